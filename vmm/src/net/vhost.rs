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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_NET_SET_BACKEND, VHOST_SET_VRING_CALL, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::memory::{Follower, Log, Memory};
use crate::vhost::{Vring, logged_features, logged_rings, rings};

const DEVICE: &str = "/dev/vhost-net";

/// The kernel's half of a pair of queues: the first one receives.
pub struct Vhost {
    device: File,
    memory: Memory,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether the kernel's thread exists: it is made once a driver wants it.
    is_owned: bool,
    /// The features that a driver has taken, and where its rings are.
    set_up: Option<(u64, [VringConfigData; 2])>,
    /// Where the kernel marks what it writes; also where it may still do so, as a change
    /// that fails half way leaves that open.
    logs: Vec<Arc<Log>>,
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
        let vhost = Self {
            device,
            memory,
            state: Mutex::default(),
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
    pub fn set_up(self: &Arc<Self>, features: u64, vrings: [Vring<'_>; 2]) -> io::Result<()> {
        let mut state = self.lock();
        if !state.is_owned {
            self.set_owner().map_err(io::Error::other)?;
            state.is_owned = true;
            let this = Arc::clone(self) as Arc<dyn Follower>;
            self.memory.follow(Arc::downgrade(&this));
        }
        self.describe(&mut state, features, vrings)
            .map_err(io::Error::other)
    }

    fn describe(
        &self,
        state: &mut State,
        features: u64,
        vrings: [Vring<'_>; 2],
    ) -> vhost::Result<()> {
        let log = self.memory.log();
        self.place(state, features, log.as_ref())?;
        let rings = vrings.each_ref().map(|vring| rings(vring.queue));
        for (index, vring) in vrings.into_iter().enumerate() {
            self.set_vring_num(index, vring.queue.size())?;
            self.set_vring_base(index, vring.queue.next_avail())?;
            self.set_vring_addr(index, &logged_rings(rings[index], log.is_some()))?;
            self.set_vring_call(index, vring.call)?;
            self.set_vring_err(index, vring.error)?;
            // Last: what was rung before is looked at now.
            self.set_vring_kick(index, vring.kick)?;
        }
        state.set_up = Some((features, rings));
        state.logs = log.into_iter().collect();
        Ok(())
    }

    /// Has the kernel know where memory is, and where it marks what it writes.
    fn place(&self, state: &mut State, features: u64, log: Option<&Arc<Log>>) -> vhost::Result<()> {
        state.logs.extend(log.cloned());
        self.set_mem_table(&self.regions())?;
        if let Some(log) = log {
            self.set_log_base(log.address(), None)?;
        }
        self.set_features(logged_features(features, log.is_some()))
    }

    /// The same while it moves packets.
    fn place_again(&self, state: &mut State) -> vhost::Result<()> {
        let Some((features, rings)) = state.set_up else {
            return Ok(());
        };
        let log = self.memory.log();
        self.place(state, features, log.as_ref())?;
        for (index, rings) in rings.into_iter().enumerate() {
            self.set_vring_addr(index, &logged_rings(rings, log.is_some()))?;
        }
        state.logs = log.into_iter().collect();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.memory
            .regions()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start(),
                memory_size: region.size(),
                userspace_addr: region.host().addr() as u64,
                ..Default::default()
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

impl Follower for Vhost {
    fn memory_changed(&self) -> io::Result<()> {
        self.place_again(&mut self.lock()).map_err(io::Error::other)
    }
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
    use virtio_queue::Queue;
    use vm_memory::GuestAddress;
    use vm_memory::GuestMemoryBackend;

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
            state: Mutex::default(),
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
        let vhost = Arc::new(on_null());
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
        for call in [Some(&event), None] {
            let error = vhost.set_call(1, call).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
        }
        let described = vhost.describe(&mut vhost.lock(), 0, [vring(), vring()]);
        assert!(described.is_err());
        // There is nobody to tell.
        vhost.stop();
    }

    #[test]
    fn nothing_is_tracked_that_the_kernel_would_not_mark() {
        let vhost = Arc::new(on_null());
        let memory = Arc::clone(&vhost.memory);
        let follower = Arc::clone(&vhost) as Arc<dyn Follower>;
        memory.follow(Arc::downgrade(&follower));
        // No driver has set it up: there is nothing to mark.
        memory.begin_tracking().unwrap();
        memory.end_tracking();
        let queue = Queue::new(16).unwrap();
        vhost.lock().set_up = Some((0, [rings(&queue), rings(&queue)]));
        assert!(memory.begin_tracking().is_err());
        assert!(!memory.is_tracking());
        assert_eq!(vhost.lock().logs.len(), 1, "the kernel may have it");
    }
}
