//! Gives back what building the machine took.

#![allow(unsafe_code, reason = "malloc_trim(3), dl_iterate_phdr(3), madvise(2)")]

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

/// After so long, what the start needs was needed: also of a restore, which must not be
/// held up by pages that are mapped again.
const STARTED: Duration = Duration::from_secs(1);

/// Gives back what the heap held while the machine was built: command line, filters and
/// tables took more than a machine that runs.
pub(super) fn heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a plain number; it locks the heap, as any allocation.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The pages of the program and its libraries, of which a machine that runs needs a small
/// part. They are let go of once, a moment after the start: what is needed is mapped again
/// when it is next touched, out of the page cache, and the rest no longer counts as this
/// process's.
pub(super) struct Code {
    /// When; none afterwards.
    at: Option<Instant>,
}

impl Code {
    /// Of a machine that begins to run now.
    pub(super) fn of_start() -> Self {
        Self {
            at: Some(Instant::now() + STARTED),
        }
    }

    /// `timeout` of poll(2), or less if they are to be let go of sooner.
    pub(super) fn sooner(&self, timeout: i32) -> i32 {
        let Some(at) = self.at else {
            return timeout;
        };
        let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
        match (i32::try_from(left), u32::try_from(timeout)) {
            (Ok(left), Ok(_)) => left.min(timeout),
            (Ok(left), Err(_)) => left,
            (Err(_), _) => timeout,
        }
    }

    /// Lets go of them if it is time.
    pub(super) fn progress(&mut self) {
        if self.at.is_some_and(|at| at <= Instant::now()) {
            self.at = None;
            // SAFETY: the function takes what dl_iterate_phdr(3) gives, and keeps none of it.
            unsafe { libc::dl_iterate_phdr(Some(let_go), std::ptr::null_mut()) };
        }
    }
}

/// The segments of one program or library that nobody writes to: they are what their file
/// says. Those that are written once, by the loader (RELRO), are parts of others.
unsafe extern "C" fn let_go(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr(3) gives a live structure.
    let info = unsafe { &*info };
    // SAFETY: its headers are where it says, and so many.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // SAFETY: takes a plain number.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else {
        return 0;
    };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let [Ok(base), Ok(address), Ok(size)] =
            [info.dlpi_addr, header.p_vaddr, header.p_memsz].map(usize::try_from)
        else {
            continue;
        };
        let begin = base + address;
        let whole = begin - begin % page;
        let length = begin + size - whole;
        // SAFETY: whole pages of a private mapping of a file, none of which differs from
        // the file: when they are touched again, by whatever thread, they are the same.
        // Where the kernel refuses, nothing has changed.
        unsafe { libc::madvise(whole as *mut c_void, length, libc::MADV_DONTNEED) };
    }
    0
}
