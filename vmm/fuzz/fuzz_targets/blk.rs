//! Requests to a block device.

#![no_main]

use std::fs::File;
use std::os::fd::FromRawFd;

use arbitrary::Unstructured;
use hearth_vmm::block::{Backend, EngineKind};
use hearth_vmm::virtio::blk::{Block, Options};
use libfuzzer_sys::fuzz_target;

/// A disk in memory, of 64 KiB.
fn disk() -> File {
    // SAFETY: the name is a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no memory file");
    // SAFETY: the descriptor is open and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(64 << 10).expect("length");
    file
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let read_only = u.ratio(1, 8).unwrap_or(false);
    let engine = match u.ratio(1, 8) {
        Ok(true) => EngineKind::Threads,
        _ => EngineKind::Auto,
    };
    let options = Options {
        serial: "vol0".to_owned(),
        queues: 1,
        engine,
    };
    let backend = Backend::from_file(disk(), read_only).expect("a file");
    let mut block = Block::new(backend, &options).expect("a device");
    let _ = hearth_vmm_fuzz::run(&mut block, u);
});
