//! Kicks: a signal that gets a thread out of `KVM_RUN`, or keeps it from entering.

#![allow(unsafe_code, reason = "the kvm_run page and a signal handler")]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// This thread's `kvm_run.immediate_exit`, for the signal handler.
    pub(super) static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is into the kvm_run page of the VcpuFd that this very
        // thread owns; it is cleared before the VcpuFd is dropped.
        unsafe { flag.write_volatile(1) };
    }
}

/// Makes kicks possible; once for the process, before the first vCPU.
///
/// # Errors
/// When the handler can't be set.
pub fn install() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(errno_to_io)
}

/// Lets a vCPU be entered again after a kick. Its thread looks for orders between this
/// and that: a kick that this undoes was for one that is there.
pub(super) fn rearm(fd: &mut VcpuFd) {
    fd.set_kvm_immediate_exit(0);
    // The handler runs on this thread; so the compiler alone could move the look for
    // orders before the store.
    compiler_fence(Ordering::SeqCst);
}

fn errno_to_io(error: errno::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
