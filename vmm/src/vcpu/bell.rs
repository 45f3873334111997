//! What wakes the main loop: an eventfd(2) in its poll(2).

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use crate::sync::EventFd;

/// Readable from when it is rung until it is silenced.
#[derive(Debug)]
pub struct Bell(EventFd);

impl Bell {
    /// A silent one.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// Wakes whoever polls it, now or later.
    pub fn ring(&self) {
        // It fails only where the counter is at its end, and then it is readable.
        let _ = self.0.write(1);
    }

    /// Makes it unreadable; what it was rung for is to be looked at after that, not
    /// before. Returns whether it had been rung.
    pub fn silence(&self) -> bool {
        self.0.read().is_ok()
    }

    /// Waits until it is rung.
    #[cfg(all(test, loom))]
    pub(super) fn poll(&self) {
        self.0.poll();
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
