//! Queues that are served outside of this process: what the kernel's vhost (`net::vhost`)
//! and a back end in another process ([`user`]) are told of them alike.
//!
//! QEMU, `docs/interop/vhost-user.rst`; Linux, `include/uapi/linux/vhost.h`.

pub mod user;

use ::vhost::VringConfigData;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

/// `VHOST_F_LOG_ALL`: whether a back end marks what it writes. It stands among the
/// features, but is not one of virtio.
const F_LOG_ALL: u64 = 1 << 26;

/// `VHOST_VRING_F_LOG`: the same for what it writes to the used ring.
const VRING_LOG: u32 = 1 << 0;

/// One queue as a back end gets it.
pub struct Vring<'a> {
    /// Its rings, known to lie in guest memory.
    pub queue: &'a Queue,
    /// The driver's doorbell.
    pub kick: &'a EventFd,
    /// What interrupts the driver.
    pub call: &'a EventFd,
    /// Signalled when the driver breaks the rules.
    pub error: &'a EventFd,
}

/// Where the rings of a queue are, in guest addresses.
pub(crate) fn rings(queue: &Queue) -> VringConfigData {
    VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: queue.desc_table(),
        used_ring_addr: queue.used_ring(),
        avail_ring_addr: queue.avail_ring(),
        log_addr: None,
    }
}

/// The features that a back end is told.
pub(crate) fn logged_features(features: u64, is_logged: bool) -> u64 {
    features | if is_logged { F_LOG_ALL } else { 0 }
}

/// The rings that it is told.
pub(crate) fn logged_rings(rings: VringConfigData, is_logged: bool) -> VringConfigData {
    match is_logged {
        true => VringConfigData {
            flags: VRING_LOG,
            log_addr: Some(rings.used_ring_addr),
            ..rings
        },
        false => rings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_end_marks_what_it_writes() {
        let queue = Queue::new(16).unwrap();
        let rings = VringConfigData {
            used_ring_addr: 0x4000,
            ..rings(&queue)
        };
        let logged = logged_rings(rings, true);
        assert_eq!(logged.get_log_addr(), 0x4000);
        assert_eq!(logged_rings(rings, false).get_log_addr(), 0);
        assert_eq!(logged_features(1 << 32, true), 1 << 32 | 1 << 26);
        assert_eq!(logged_features(1 << 32, false), 1 << 32);
    }
}
