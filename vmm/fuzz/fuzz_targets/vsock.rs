//! Packets from a guest to a socket device, with programs on both its sides.

#![no_main]

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use arbitrary::Unstructured;
use hearth_vmm::virtio::vsock::{Options, Vsock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let folder = PathBuf::from(format!("/tmp/hearth-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("vsock");
    let listening = folder.join("vsock_80");
    for leftover in [&path, &listening] {
        let _ = std::fs::remove_file(leftover);
    }
    let _listener = UnixListener::bind(&listening).expect("a listener");
    let options = Options {
        cid: 3,
        path: path.clone(),
    };
    let mut vsock = Vsock::new(options).expect("a device");
    let lines: [&[u8]; 4] = [b"CONNECT 52\nabc", b"CONNECT 52\n", b"CONN", b"GET /\n"];
    let mut streams = Vec::new();
    for _ in 0..u.int_in_range(0..=2u8).unwrap_or(0) {
        let mut stream = UnixStream::connect(&path).expect("a stream");
        let line = u.choose(&lines).unwrap_or(&lines[0]);
        let _ = stream.write_all(line);
        streams.push(stream);
    }
    let _ = hearth_vmm_fuzz::run(&mut vsock, u);
});
