//! What the process gives up once everything is open, and how it becomes a daemon.

mod daemon;
mod syscalls;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use daemon::{Parent, daemonize};
pub use syscalls::forbid as forbid_system_calls;

/// Becomes another user and group, for good, and gives up ever gaining a privilege
/// by executing a file. The order matters: groups first, while we still may.
///
/// # Errors
/// When the kernel refuses; the caller must not go on.
pub fn drop_privileges(uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let check = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    if uid.is_some() || gid.is_some() {
        // SAFETY: a count of zero lets the kernel read nothing through the pointer.
        check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    }
    if let Some(gid) = gid {
        // SAFETY: takes plain numbers.
        check(unsafe { libc::setresgid(gid, gid, gid) })?;
    }
    if let Some(uid) = uid {
        // SAFETY: takes plain numbers.
        check(unsafe { libc::setresuid(uid, uid, uid) })?;
    }
    // SAFETY: takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Whether this process, as the user it now is, may make files beside `path`.
///
/// # Errors
/// As access(2).
pub fn may_write_beside(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: the pointer is to a string that ends in zero and lives on.
    match unsafe { libc::access(folder.as_ptr(), libc::W_OK | libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
