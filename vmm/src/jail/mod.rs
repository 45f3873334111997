//! The jail: the sandbox layers that the process puts round itself once everything is
//! open, so that a guest that broke out into it has nothing; and how it becomes a
//! daemon.
//!
//! | sandbox layer | what it does | root | ordinary user |
//! |---|---|---|---|
//! | cgroup | its memory is limited: whoever starts it puts it in a cgroup v2 | yes | yes |
//! | namespaces | mount, network, IPC, UTS, cgroup namespaces of its own; for a daemon, PIDs too | yes | |
//! | chroot | a root with only the folders of its own files | yes | |
//! | user | not root (`--uid`, `--gid`) | yes | yes |
//! | capabilities | none, and none to be had | yes | yes |
//! | landlock | files in those folders only, no TCP | yes | yes |
//! | seccomp | system calls by thread | yes | yes |
//! | io-uring | rings take the requests of a disk, on its own files | yes | yes |
//!
//! Nothing else can be missing, and so has no name: no core dump, no locked memory (the
//! table in `limits`).
//!
//! With `--jail` (or `--jail=require`) each must stand, or the process ends with a line
//! that names the one that doesn't; `--jail-optional LAYER,…` lets some be missing, and
//! `--jail=best-effort` all. `GET /v1/machine` lists which stand. Without `--jail`, the
//! process only becomes another user and forbids itself the worst system calls.

#![allow(unsafe_code, reason = "system calls that change who the process is")]

mod capabilities;
mod cgroup;
mod daemon;
mod forbidden;
mod landlock;
mod limits;
mod profile;
mod root;
mod syscalls;

use std::ffi::CString;
use std::fmt::Display;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hearth_vmm_api::SandboxLayer;

pub use daemon::Parent;
pub use profile::{Allow, Argument, Profile, Profiles, ThreadRole};
pub use syscalls::confine_thread;

/// Which layers must stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// These may be missing.
    pub optional: Vec<SandboxLayer>,
}

impl Policy {
    /// Any may be missing.
    #[must_use]
    pub fn best_effort() -> Self {
        Self {
            optional: SandboxLayer::ALL.to_vec(),
        }
    }
}

/// The layers that stand, and those that must.
struct Layers<'a> {
    policy: &'a Policy,
    standing: Vec<SandboxLayer>,
}

impl Layers<'_> {
    fn stands(&mut self, layer: SandboxLayer) {
        self.standing.push(layer);
    }

    /// A layer can't be had.
    fn missing(&self, layer: SandboxLayer, why: impl Display) -> Result<(), String> {
        if self.policy.optional.contains(&layer) {
            return Ok(());
        }
        Err(format!(
            "jail: no {layer} layer: {why}; --jail-optional {layer} goes on without it"
        ))
    }
}

/// Proof that the process is confined, as far as it was to be: nothing but [`enter`] and
/// [`confine_outside`] make one. Whoever parses what a stranger wrote asks for it.
#[derive(Debug)]
pub struct Confinement {
    layers: Vec<SandboxLayer>,
}

impl Confinement {
    /// The sandbox layers that stand, in the order in which they were put up; without
    /// the jail, none.
    #[must_use]
    pub fn layers(&self) -> &[SandboxLayer] {
        &self.layers
    }
}

/// Puts up the sandbox layers. Before any thread is made. `folders` are what the process
/// still reaches: absolute, without symbolic links; `daemon` is how it became one, if it
/// did.
///
/// # Errors
/// One line: a layer that must stand can't be had, or the kernel refused what must not
/// be refused; the caller must not go on.
pub fn enter(
    folders: &[PathBuf],
    uid: Option<u32>,
    gid: Option<u32>,
    policy: &Policy,
    profiles: Profiles,
    daemon: Option<&Parent>,
) -> Result<Confinement, String> {
    let mut layers = Layers {
        policy,
        standing: Vec::new(),
    };
    if let Some(folder) = folders.iter().find(|folder| folder.parent().is_none()) {
        return Err(format!(
            "jail: a file right in {} would leave everything in reach; use a folder",
            folder.display()
        ));
    }
    // Before the process has another view of the hierarchy.
    match cgroup::limit() {
        Ok(()) => layers.stands(SandboxLayer::Cgroup),
        Err(why) => layers.missing(SandboxLayer::Cgroup, why)?,
    }
    match namespaces(daemon) {
        Ok(()) => {
            layers.stands(SandboxLayer::Namespaces);
            root::change(folders).map_err(|error| format!("jail: chroot: {error}"))?;
            layers.stands(SandboxLayer::Chroot);
        }
        Err(error) => {
            layers.missing(SandboxLayer::Namespaces, &error)?;
            layers.missing(SandboxLayer::Chroot, "it needs the namespaces layer")?;
        }
    }
    capabilities::bound();
    drop_privileges(uid, gid).map_err(|error| format!("--uid, --gid: {error}"))?;
    match is_root() {
        false => layers.stands(SandboxLayer::User),
        true => layers.missing(SandboxLayer::User, "it would stay root: give --uid")?,
    }
    capabilities::drop_all().map_err(|error| format!("jail: capabilities: {error}"))?;
    layers.stands(SandboxLayer::Capabilities);
    match landlock::restrict(folders).map_err(|error| format!("jail: landlock: {error}"))? {
        true => layers.stands(SandboxLayer::Landlock),
        false => layers.missing(
            SandboxLayer::Landlock,
            "this kernel lacks it, or leaves it out of its list (lsm=)",
        )?,
    }
    limits::set().map_err(|error| format!("jail: limits: {error}"))?;
    // Last: what the others are put up with is refused from here on.
    syscalls::confine_process(profiles).map_err(|error| format!("jail: seccomp: {error}"))?;
    layers.stands(SandboxLayer::Seccomp);
    // Who can make a ring is part of that.
    layers.stands(SandboxLayer::IoUring);
    Ok(Confinement {
        layers: layers.standing,
    })
}

/// What holds without the jail: another user, and a few system calls less, for all
/// threads.
///
/// # Errors
/// One line: the kernel refused; the caller must not go on.
pub fn confine_outside(uid: Option<u32>, gid: Option<u32>) -> Result<Confinement, String> {
    drop_privileges(uid, gid).map_err(|error| format!("--uid, --gid: {error}"))?;
    forbidden::forbid().map_err(|error| format!("seccomp: {error}"))?;
    Ok(Confinement { layers: Vec::new() })
}

fn is_root() -> bool {
    // SAFETY: takes nothing.
    unsafe { libc::geteuid() == 0 }
}

fn namespaces(daemon: Option<&Parent>) -> io::Result<()> {
    if !is_root() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    daemon.map_or(Ok(()), Parent::own_pids)?;
    root::namespaces()
}

/// Becomes a daemon ([`daemonize`](daemon::daemonize)), for the jail if `policy` says so.
///
/// # Errors
/// When the process can't be forked.
pub fn daemonize(policy: Option<&Policy>) -> io::Result<Parent> {
    daemon::daemonize(policy.is_some() && is_root())
}

/// Becomes another user and group, for good, and gives up ever gaining a privilege
/// by executing a file. The order matters: groups first, while we still may.
///
/// # Errors
/// When the kernel refuses; the caller must not go on.
fn drop_privileges(uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
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
