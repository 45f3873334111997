//! Which sandbox layers VMMs can have on this machine, each tried out. The layers that
//! are confined to a thread are tried in one that ends with them.

use std::io;
use std::thread;

use hearth_vmm_api::SandboxLayer;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What was found of a layer, or why it can't be had.
pub(super) type Finding = (SandboxLayer, Result<String, String>);

/// Tries every layer but the control group, which has a row of its own.
pub(super) fn gather(root: bool) -> Vec<Finding> {
    let failed = || Err("its trial failed".to_owned());
    let tried = thread::spawn(namespaces).join();
    let (namespaces, chroot) = tried.unwrap_or_else(|_| (failed(), failed()));
    vec![
        (SandboxLayer::Namespaces, namespaces),
        (SandboxLayer::Chroot, chroot),
        (SandboxLayer::User, user(root)),
        (SandboxLayer::Capabilities, capabilities()),
        (SandboxLayer::Landlock, landlock()),
        (SandboxLayer::Seccomp, seccomp()),
        (SandboxLayer::IoUring, io_uring()),
    ]
}

type Found = Result<String, String>;

/// New namespaces, and a root put together in them.
fn namespaces() -> (Found, Found) {
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP
        | UnshareFlags::NEWPID;
    // SAFETY: the file descriptor table, which threads share, stays.
    if let Err(error) = unsafe { unshare_unsafe(flags) } {
        let why = format!("unshare: {}", io::Error::from(error));
        return (Err(why), Err("needs namespaces".into()));
    }
    // In this thread's own namespace from here on: it goes with the thread.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    let built = mount_change("/", private)
        .and_then(|()| mount("tmpfs", "/tmp", "tmpfs", MountFlags::NOSUID, c"size=64k"))
        .map(|()| "a root of its own can be mounted".to_owned())
        .map_err(|error| format!("mount: {}", io::Error::from(error)));
    (Ok("can be made".into()), built)
}

fn user(root: bool) -> Result<String, String> {
    match root {
        true => Ok("each VMM gets a user of its own".into()),
        false => Err("only root can give each VMM a user of its own".into()),
    }
}

fn capabilities() -> Result<String, String> {
    rustix::thread::capabilities(None)
        .map(|_| "can be dropped".to_owned())
        .map_err(|error| io::Error::from(error).to_string())
}

/// `seccomp(2)`, `SECCOMP_GET_ACTION_AVAIL`: whether filters can refuse with an errno.
fn seccomp() -> Result<String, String> {
    const GET_ACTION_AVAIL: libc::c_uint = 2;
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one u32 at the pointer.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) };
    match result {
        0 => Ok("filters can be set".into()),
        _ => Err(io::Error::last_os_error().to_string()),
    }
}

/// `landlock_create_ruleset(2)`, `LANDLOCK_CREATE_RULESET_VERSION`.
fn landlock() -> Result<String, String> {
    const VERSION: libc::c_uint = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: with this flag the kernel reads nothing.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
    match version {
        1.. => Ok(format!("version {version}")),
        _ => Err(io::Error::last_os_error().to_string()),
    }
}

/// A disabled ring that takes restrictions. Where no ring can be made, none can be
/// misused: disks are then served by threads.
fn io_uring() -> Result<String, String> {
    const R_DISABLED: u64 = 1 << 6;
    const REGISTER_RESTRICTIONS: libc::c_uint = 11;
    // struct io_uring_params has 120 bytes, of which flags are bytes 8 to 11.
    let mut parameters = [0_u64; 15];
    parameters[1] = R_DISABLED;
    // SAFETY: the kernel reads and writes exactly 120 bytes at the pointer.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let Ok(fd @ 0..) = i32::try_from(fd) else {
        return match io::Error::last_os_error() {
            // A ring can be made, but not a disabled one: Linux before 5.10.
            error if error.raw_os_error() == Some(libc::EINVAL) => Err(error.to_string()),
            error => Ok(format!("no ring can be made ({error})")),
        };
    };
    // struct io_uring_restriction has 16 bytes; all zero: no register operation but 0.
    let restriction = [0_u64; 2];
    // SAFETY: the kernel reads one restriction of 16 bytes at the pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            fd,
            REGISTER_RESTRICTIONS,
            restriction.as_ptr(),
            1,
        )
    };
    let error = io::Error::last_os_error();
    // SAFETY: the descriptor is ours, just made, and closed only here.
    unsafe { libc::close(fd) };
    match result {
        0 => Ok("rings can be restricted".into()),
        _ => Err(error.to_string()),
    }
}
