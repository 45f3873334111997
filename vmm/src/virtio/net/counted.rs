//! What a network device counts, and when it has anything to show.
//!
//! What the kernel moves, the kernel counts, at the tap. From here nobody can ask it
//! there. A tap's descriptor has no ioctl for that (`drivers/net/tun.c`). rtnetlink,
//! ethtool, /proc/net/dev and sysfs speak of the network namespace in which they are
//! opened: the tap's is its VPC's, and this process is in another, in the jail in an
//! empty one. To go there takes CAP_SYS_ADMIN (setns(2)), which is gone before the
//! guest runs, so that an interface plugged later would show nothing; and what is kept
//! open from before tells of all interfaces there, thus of other instances. Whoever made
//! the tap can read its counts (`ip -s link`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::virtio::counters::{Counters, counters};

counters! {
    /// What a network device counts, as the guest sees it. Bytes are those of packets
    /// without virtio's header.
    pub(super) struct NetCounters {
        /// Times that the driver rang.
        notifications,
        /// Packets to the guest.
        received_packets,
        /// Their bytes.
        received_bytes,
        /// Packets from the guest.
        transmitted_packets,
        /// Their bytes.
        transmitted_bytes,
        /// Packets from the guest that the link refused.
        transmit_errors,
    }
}

/// The counters, while it is known what they should be: packets that the kernel moves
/// are left out, not shown as none.
pub(super) struct Counted {
    pub(super) counters: Arc<NetCounters>,
    is_in_kernel: AtomicBool,
}

impl Counted {
    /// Of a device whose packets the kernel will move, or won't.
    pub(super) fn new(is_in_kernel: bool) -> Self {
        Self {
            counters: Arc::default(),
            is_in_kernel: AtomicBool::new(is_in_kernel),
        }
    }

    /// A driver has started, and who moves its packets is decided.
    pub(super) fn moved(&self, is_in_kernel: bool) {
        self.is_in_kernel.store(is_in_kernel, Ordering::Relaxed);
    }
}

impl Counters for Counted {
    fn list(&self) -> Vec<(&'static str, u64)> {
        match self.is_in_kernel.load(Ordering::Relaxed) {
            true => Vec::new(),
            false => self.counters.list(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_moves_is_left_out_and_what_a_pump_does_is_not() {
        let counted = Counted::new(true);
        assert_eq!(counted.list(), []);
        counted.moved(false);
        counted.counters.received_packets.add(1);
        assert_eq!(counted.list()[1], ("received_packets", 1));
        counted.moved(true);
        assert_eq!(counted.list(), []);
        assert_eq!(Counted::new(false).list().len(), 6);
    }
}
