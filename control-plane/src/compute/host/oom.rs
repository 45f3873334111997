//! Whom the kernel ends first when the host's memory runs out: the VMMs, one of
//! which gives back most, and not `hearth`, which serves them all.
//!
//! <https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html>

use std::ffi::CStr;
use std::io;

use rustix::fs::{CWD, Mode, OFlags, openat};

const FILE: &CStr = c"/proc/self/oom_score_adj";
/// `hearth`'s: only with nothing else left.
const HEARTH: &[u8] = b"-900";
/// That of what `hearth` starts: a VMM counts for half of the memory more than it
/// has.
const CHILD: &[u8] = b"500";

fn set(score: &[u8]) -> io::Result<()> {
    let file = openat(CWD, FILE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, score)?;
    Ok(())
}

/// Keeps the kernel from choosing this process. What it starts inherits that,
/// but for VMMs and the readers of their disks.
///
/// # Errors
/// When this process may not: it takes CAP_SYS_RESOURCE.
pub fn protect() -> io::Result<()> {
    set(HEARTH)
}

/// Has the kernel choose this process early. A child may call it before it becomes
/// another program: makes system calls only.
///
/// # Errors
/// When there is no /proc.
pub fn offer() -> io::Result<()> {
    set(CHILD)
}
