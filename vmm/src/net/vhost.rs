//! vhost-net: the kernel moves packets between a tap and a pair of queues by itself.
//!
//! Nothing of a packet comes through this process: the driver's doorbell wakes a
//! thread of the kernel, which reads the rings in guest memory and signals the
//! interrupt's event. Linux: `include/uapi/linux/vhost.h`. What of it needs the
//! kernel's module is seen by the guests' tests alone.

#![allow(unsafe_code, reason = "vhost-net is handed addresses of guest memory")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_NET_SET_BACKEND, VHOST_SET_VRING_CALL, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::memory::Memory;

const DEVICE: &str = "/dev/vhost-net";

/// One queue as the kernel gets it.
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

/// The kernel's half of a pair of queues: the first one receives.
pub struct Vhost {
    device: File,
    memory: Memory,
    /// Whether the kernel's thread exists: it is made once a driver wants it.
    owned: Mutex<bool>,
}

impl Vhost {
    /// Opens one for a pair of queues in this memory.
    ///
    /// # Errors
    /// When the kernel has no vhost-net, this process may not use it, or it lacks one
    /// of the `needed` features.
    pub fn open(memory: Memory, needed: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK);
        let device = options.open(DEVICE).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "; modprobe vhost_net makes it",
                _ => "",
            };
            io::Error::new(error.kind(), format!("{DEVICE}: {error}{hint}"))
        })?;
        Self::check(device, memory, needed)
    }

    /// Takes one that is open already.
    ///
    /// # Errors
    /// As [`Self::open`], and when it is something else.
    pub fn from_fd(fd: OwnedFd, memory: Memory, needed: u64) -> io::Result<Self> {
        Self::check(File::from(fd), memory, needed)
    }

    fn check(device: File, memory: Memory, needed: u64) -> io::Result<Self> {
        let owned = Mutex::new(false);
        let vhost = Self {
            device,
            memory,
            owned,
        };
        if vhost.get_features().map_err(io::Error::other)? & needed != needed {
            return Err(io::Error::other("the kernel's vhost-net is too old"));
        }
        Ok(vhost)
    }

    /// Hands over a pair of queues that the driver has just set up: receive, transmit.
    /// Nothing moves before [`Self::start`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&self, features: u64, vrings: [Vring<'_>; 2]) -> io::Result<()> {
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        if !*owned {
            self.set_owner().map_err(io::Error::other)?;
            *owned = true;
        }
        self.describe(features, vrings).map_err(io::Error::other)
    }

    fn describe(&self, features: u64, vrings: [Vring<'_>; 2]) -> vhost::Result<()> {
        self.set_features(features)?;
        self.set_mem_table(&self.regions())?;
        for (index, vring) in vrings.into_iter().enumerate() {
            let queue = vring.queue;
            self.set_vring_num(index, queue.size())?;
            self.set_vring_base(index, queue.next_avail())?;
            let config = VringConfigData {
                queue_max_size: queue.max_size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: queue.desc_table(),
                used_ring_addr: queue.used_ring(),
                avail_ring_addr: queue.avail_ring(),
                log_addr: None,
            };
            self.set_vring_addr(index, &config)?;
            self.set_vring_call(index, vring.call)?;
            self.set_vring_err(index, vring.error)?;
            // Last: what was rung before is looked at now.
            self.set_vring_kick(index, vring.kick)?;
        }
        Ok(())
    }

    fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.memory
            .iter()
            .filter_map(|region| {
                let start = region.start_addr();
                let host = self.memory.get_host_address(start).ok()?;
                Some(VhostUserMemoryRegionInfo {
                    guest_phys_addr: start.0,
                    memory_size: region.len(),
                    userspace_addr: host.addr() as u64,
                    ..Default::default()
                })
            })
            .collect()
    }

    /// Replaces what interrupts the driver, for good or until the next [`Self::set_up`]:
    /// `queue` is 0 for receive, 1 for transmit. None: nothing does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_call(&self, queue: u32, call: Option<&EventFd>) -> io::Result<()> {
        // -1 is VHOST_FILE_UNBIND.
        let fd = call.map_or(-1, AsRawFd::as_raw_fd);
        let file = vhost_vring_file { index: queue, fd };
        // SAFETY: VHOST_SET_VRING_CALL reads one `vhost_vring_file`, which outlives it.
        check(unsafe { ioctl_with_ref(self, VHOST_SET_VRING_CALL(), &file) })
    }

    /// Packets move from here on, through a tap whose queue is enabled.
    ///
    /// # Errors
    /// When the rings are not what the kernel can use, or the tap is none.
    pub fn start(&self, tap: RawFd) -> io::Result<()> {
        for queue in 0..2 {
            // Those begun are stopped by the caller.
            self.set_backend(queue, tap)?;
        }
        Ok(())
    }

    /// No guest memory is touched when this returns.
    pub fn stop(&self) {
        for queue in 0..2 {
            // Fails only for a queue that doesn't exist, and before there is an owner.
            let _ = self.set_backend(queue, -1);
        }
    }

    /// The next chain that the kernel would take from a queue, 0 for receive and 1 for
    /// transmit. None before one was set up.
    #[must_use]
    pub fn next_available(&self, queue: usize) -> Option<u16> {
        let base = self.get_vring_base(queue).ok()?;
        u16::try_from(base).ok()
    }

    fn set_backend(&self, index: u32, fd: RawFd) -> io::Result<()> {
        let file = vhost_vring_file { index, fd };
        // SAFETY: VHOST_NET_SET_BACKEND reads one `vhost_vring_file`, which outlives it.
        check(unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &file) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl AsRawFd for Vhost {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl VhostKernBackend for Vhost {
    type AS = Memory;

    fn mem(&self) -> &Memory {
        &self.memory
    }

    /// The caller has looked at the rings; the crate's own look refuses those that end
    /// with a region's last byte.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::Ram;

    // What needs the kernel's module is seen by the guests' tests: the order of the
    // ioctls, and that the first owner stays.
    #[test]
    fn what_is_no_vhost_net_is_refused() {
        let ranges = [(0, 1 << 20)];
        let memory = Arc::new(Ram::private(&ranges).unwrap());
        let null = File::open("/dev/null").unwrap();
        assert!(Vhost::from_fd(null.into(), memory, 0).is_err());
    }

    /// On something that knows none of the ioctls.
    fn on_null() -> Vhost {
        let ranges = [(0, 1 << 20), (1 << 32, 2 << 20)];
        Vhost {
            device: File::open("/dev/null").unwrap(),
            memory: Arc::new(Ram::private(&ranges).unwrap()),
            owned: Mutex::new(false),
        }
    }

    #[test]
    fn the_kernel_is_told_where_all_of_the_memory_is() {
        let vhost = on_null();
        let found: Vec<_> = vhost
            .regions()
            .iter()
            .map(|region| {
                (
                    region.guest_phys_addr,
                    region.memory_size,
                    region.userspace_addr,
                )
            })
            .collect();
        let host = |address| {
            let address = GuestAddress(address);
            vhost.memory.get_host_address(address).unwrap().addr() as u64
        };
        let expected = [(0, 1 << 20, host(0)), (1 << 32, 2 << 20, host(1 << 32))];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let vhost = on_null();
        let tap = vhost.as_raw_fd();
        let error = vhost.start(tap).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        let event = EventFd::new(libc::EFD_CLOEXEC).unwrap();
        let queue = Queue::new(16).unwrap();
        let vring = || Vring {
            queue: &queue,
            kick: &event,
            call: &event,
            error: &event,
        };
        assert!(vhost.set_up(0, [vring(), vring()]).is_err());
        assert!(vhost.describe(0, [vring(), vring()]).is_err());
        for call in [Some(&event), None] {
            let error = vhost.set_call(1, call).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        }
        // There is nobody to tell.
        vhost.stop();
    }
}
