//! Packets to and from a network device, and buffers for them.

#![no_main]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use arbitrary::Unstructured;
use hearth_vmm::net::{Link, Offload};
use hearth_vmm::virtio::limit::Limits;
use hearth_vmm::virtio::net::{Net, Options};
use libfuzzer_sys::fuzz_target;

/// A link that is a pair of sockets.
struct Pair(UnixDatagram);

impl AsRawFd for Pair {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Pair {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Pair {
    fn set_offload(&self, _: Offload) -> io::Result<()> {
        Ok(())
    }
    fn set_enabled(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let mut wires = Vec::new();
    let mut links = Vec::new();
    for _ in 0..u.int_in_range(1..=2u8).unwrap_or(1) {
        let (wire, link) = UnixDatagram::pair().expect("sockets");
        wire.set_nonblocking(true).expect("flag");
        link.set_nonblocking(true).expect("flag");
        for _ in 0..u.int_in_range(0..=6u8).unwrap_or(0) {
            let length = u.int_in_range(0..=3000usize).unwrap_or(0);
            // A full socket is fine too.
            let _ = wire.send(&vec![0x5a; length]);
        }
        wires.push(wire);
        links.push(Pair(link));
    }
    let options = Options {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        limits: Limits::NONE,
    };
    let mut net = Net::with_pairs(links, options).expect("a device");
    let _ = hearth_vmm_fuzz::run(&mut net, u);
});
