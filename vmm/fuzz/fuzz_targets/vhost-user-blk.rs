//! What a back end answers when it is asked what it is: messages with a header that fits,
//! or bytes.

#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hearth_vmm::memory::{Options, Ram};
use hearth_vmm::virtio::VirtioDevice;
use hearth_vmm::virtio::vhost_user_blk::{Target, UserBlock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    let mut left = data;
    while let [request, size, rest @ ..] = left {
        // An odd one is no message.
        let (body, rest) = rest.split_at(rest.len().min(usize::from(*size)));
        if request & 0x80 == 0 {
            let size = u32::try_from(body.len()).expect("short");
            let header = [u32::from(*request), 1 | 1 << 2, size].map(u32::to_ne_bytes);
            let _ = theirs.write_all(&header.concat());
        }
        let _ = theirs.write_all(body);
        left = rest;
    }
    // It says no more.
    let _ = theirs.shutdown(std::net::Shutdown::Write);
    let target = Target {
        path: "/nowhere".into(),
        socket: Some(ours),
    };
    let Ok(back_end) = target.open() else {
        return;
    };
    let options = Options {
        shared: true,
        ..Options::default()
    };
    let memory = Arc::new(Ram::new(&[(0, 1 << 20)], options).expect("memory"));
    if let Ok(device) = UserBlock::new(back_end, memory, None, 4) {
        device.config_read(0, &mut [0; 64]);
        assert!(device.queue_sizes().len() <= 16);
        let _ = device.features();
    }
});
