//! Host side of network cards: what packets go through.

mod tap;
mod vhost;

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use bitflags::bitflags;

pub use tap::{Attached, Tap};
pub use vhost::Vhost;

bitflags! {
    /// What a link may leave to the guest instead of doing it before it hands over
    /// a packet.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Offload: u32 {
        /// Checksums may be missing.
        const CHECKSUM = 1;
        /// TCP over IPv4 may come in segments larger than the MTU.
        const TSO4 = 2;
        /// TCP over IPv6 may.
        const TSO6 = 4;
    }
}

/// A link that packets are read from and written to, one by each system call,
/// with a `struct virtio_net_hdr_v1` (12 bytes) in front. Never blocks.
pub trait Link: AsFd + AsRawFd + Send + Sync {
    /// Sets what the guest takes, of all links to the same network.
    ///
    /// # Errors
    /// When the link can't do that.
    fn set_offload(&self, offload: Offload) -> io::Result<()>;

    /// One of several links to the same network takes part, or doesn't: then no
    /// packet comes to it. Asked only of links that there are several of.
    ///
    /// # Errors
    /// When the link can't do that.
    fn set_enabled(&self, enabled: bool) -> io::Result<()>;
}
