//! What threads share is made of these, where a model tries every order in which they can
//! meet (a `models.rs` in the room): the standard library's, or those of loom.

#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU32, AtomicU64},
};

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU32, AtomicU64},
};
#[cfg(not(all(test, loom)))]
pub(crate) use vmm_sys_util::eventfd::EventFd;

#[cfg(all(test, loom))]
pub(crate) use self::modelled::EventFd;

#[cfg(all(test, loom))]
mod modelled {
    use std::io;
    use std::os::fd::{AsRawFd, RawFd};

    use super::{Condvar, Mutex};

    /// A nonblocking eventfd(2), and poll(2) on it.
    #[derive(Debug)]
    pub(crate) struct EventFd {
        count: Mutex<u64>,
        readable: Condvar,
    }

    impl EventFd {
        pub(crate) fn new(_flags: i32) -> io::Result<Self> {
            Ok(Self {
                count: Mutex::new(0),
                readable: Condvar::new(),
            })
        }

        pub(crate) fn write(&self, count: u64) -> io::Result<()> {
            *self.count.lock().expect("no panic") += count;
            self.readable.notify_all();
            Ok(())
        }

        pub(crate) fn read(&self) -> io::Result<u64> {
            match std::mem::take(&mut *self.count.lock().expect("no panic")) {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                count => Ok(count),
            }
        }

        pub(crate) fn poll(&self) {
            let mut count = self.count.lock().expect("no panic");
            while *count == 0 {
                count = self.readable.wait(count).expect("no panic");
            }
        }
    }

    impl AsRawFd for EventFd {
        fn as_raw_fd(&self) -> RawFd {
            -1
        }
    }
}
