//! The jail: what the process gives up once everything is open, so that a guest
//! that broke out into it has nothing; and how it becomes a daemon.
//!
//! | sandbox layer | root | ordinary user |
//! |---|---|---|
//! | mount, network, IPC, UTS, cgroup namespaces | yes | |
//! | a root with only the folders of its own files | yes | |
//! | another user (`--uid`, `--gid`) | yes | |
//! | no capability, none to be had | yes | yes |
//! | Landlock: files in those folders only, no TCP | yes | yes |
//! | system calls by thread | yes | yes |
//!
//! All of it is behind `--jail`; without it, the process only becomes another user
//! and forbids itself the worst system calls. A layer that the kernel
//! doesn't have or won't give is left out, and the machine's description says
//! which ones stand.

mod capabilities;
mod daemon;
mod forbidden;
mod landlock;
mod root;
mod syscalls;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hearth_vmm_api::SandboxLayer;

pub use daemon::{Parent, daemonize};
pub use syscalls::{Role, confine_thread};

/// Puts up the sandbox layers, but for that of [`confine_process`]. Before
/// any thread is made. `folders` are what it still reaches: absolute, without
/// symbolic links.
///
/// # Errors
/// One line: the kernel refused what must not be refused; the caller must not go on.
pub fn enter(
    folders: &[PathBuf],
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<Vec<SandboxLayer>, String> {
    let mut layers = Vec::new();
    if let Some(folder) = folders.iter().find(|folder| folder.parent().is_none()) {
        return Err(format!(
            "jail: a file right in {} would leave everything in reach; use a folder",
            folder.display()
        ));
    }
    // SAFETY: takes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    // A root that can't make namespaces is one in a container.
    if is_root && root::namespaces().is_ok() {
        root::change(folders).map_err(|error| format!("jail: new root: {error}"))?;
        layers.extend([SandboxLayer::Namespaces, SandboxLayer::Chroot]);
    }
    capabilities::bound();
    drop_privileges(uid, gid).map_err(|error| format!("--uid, --gid: {error}"))?;
    if uid.is_some_and(|uid| uid != 0) {
        layers.push(SandboxLayer::User);
    }
    capabilities::drop_all().map_err(|error| format!("jail: capabilities: {error}"))?;
    layers.push(SandboxLayer::Capabilities);
    if landlock::restrict(folders).map_err(|error| format!("jail: landlock: {error}"))? {
        layers.push(SandboxLayer::Landlock);
    }
    Ok(layers)
}

/// What holds without the jail: a few system calls less, for all threads.
///
/// # Errors
/// One line: the kernel refused; the caller must not go on.
pub fn forbid_system_calls() -> Result<(), String> {
    forbidden::forbid().map_err(|error| format!("seccomp: {error}"))
}

/// The last layer: the system calls of this and all other threads.
///
/// # Errors
/// One line: the kernel refused; the caller must not go on.
pub fn confine_process() -> Result<SandboxLayer, String> {
    syscalls::confine_process().map_err(|error| format!("jail: seccomp: {error}"))?;
    Ok(SandboxLayer::Seccomp)
}

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
