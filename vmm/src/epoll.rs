//! An epoll(7) set, as the threads of devices and of what is behind them wait on one.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

/// Token of the stop event.
pub(crate) const STOP: u64 = 0;
/// Token of a device's first doorbell.
pub(crate) const DOORBELL: u64 = 1;

/// An epoll set.
pub(crate) struct Epoll(vmm_sys_util::epoll::Epoll);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        vmm_sys_util::epoll::Epoll::new().map(Self)
    }

    pub(crate) fn watch(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events, token);
        self.0.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    pub(crate) fn unwatch(&self, fd: &impl AsRawFd) -> io::Result<()> {
        let event = EpollEvent::default();
        self.0.ctl(ControlOperation::Delete, fd.as_raw_fd(), event)
    }

    /// Waits for events, or only looks (`at_once`). Returns how many there are.
    pub(crate) fn wait(&self, events: &mut [EpollEvent], at_once: bool) -> io::Result<usize> {
        loop {
            match self.0.wait(if at_once { 0 } else { -1 }, events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}
