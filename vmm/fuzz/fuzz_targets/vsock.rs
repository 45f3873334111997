//! Packets from a guest to a socket device, with programs on both its sides.

#![no_main]

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use arbitrary::{Result, Unstructured};
use hearth_vmm::virtio::vsock::{Options, Vsock};
use hearth_vmm_fuzz::STEP;
use libfuzzer_sys::fuzz_target;

/// Packets with headers that are mostly right, virtio 1.2 section 5.10.6: from the
/// guest's address, to ports where somebody may be.
fn packets(u: &mut Unstructured) -> Result<Vec<u8>> {
    let mut painted = Vec::new();
    for _ in 0..u.int_in_range(0..=12u8)? {
        let start = painted.len();
        let source = if u.ratio(1, 16)? { u.arbitrary()? } else { 3 };
        painted.extend(u64::to_le_bytes(source));
        painted.extend(2u64.to_le_bytes());
        painted.extend(u32::to_le_bytes(*u.choose(&[52, 53, 1000])?));
        painted.extend(u32::to_le_bytes(*u.choose(&[
            80,
            81,
            1 << 30,
            (1 << 30) + 1,
        ])?));
        painted.extend(u32::from(*u.choose(&[0u16, 1, 16, 500])?).to_le_bytes());
        painted.extend([1, 0, u.int_in_range(0..=8u8)?, 0]);
        painted.extend([u.int_in_range(0..=3u8)?, 0, 0, 0]);
        painted.extend(u.arbitrary::<[u8; 8]>()?);
        painted.resize(start + usize::try_from(STEP).unwrap_or(0), 0);
    }
    Ok(painted)
}

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
    let _ = hearth_vmm_fuzz::run_painted(&mut vsock, u, packets);
});
