//! What each kind of thread in the jail can't do, tried in a process of its own: this
//! program again, which has one thread when it enters.

#![allow(clippy::disallowed_methods, reason = "a test may start programs")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_vmm::block::{Backend, EngineKind, Op, Prepared, Wakes};
use hearth_vmm::jail::{self, Policy, ThreadRole};
use hearth_vmm::virtio::{DECLARATIONS, profiles};
use hearth_vmm_api::SandboxLayer;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A user that nobody is.
const USER: u32 = 64_001;

/// Who gets past the filter with an attempt: whatever the kernel says then, it is not
/// the filter's EPERM.
#[derive(Clone, Copy)]
enum Past {
    Nobody,
    Main,
    /// The threads that start devices.
    Vcpus,
    /// The threads of disks, and those that they inherit their filters from.
    Disks,
    /// The threads of interfaces, and the same.
    Nics,
    /// The threads of the socket device, and the same.
    Sockets,
}

impl Past {
    fn includes(self, name: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Main => name == "main",
            Self::Vcpus => ["main", "vcpu"].contains(&name),
            Self::Nics => ["main", "vcpu", "net"].contains(&name),
            Self::Disks => ["main", "vcpu", "blk"].contains(&name),
            Self::Sockets => ["main", "vcpu", "vsock"].contains(&name),
        }
    }
}

fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: no attempt below passes a pointer but to a string that lives on, or to
    // the 120 bytes of `struct io_uring_params`; none has an effect on memory else.
    match unsafe { libc::syscall(number, a, b, c, d) } {
        ..0 => Err(io::Error::last_os_error()),
        fd => {
            if number == libc::SYS_io_uring_setup || number == libc::SYS_openat {
                // SAFETY: the call has just made it.
                unsafe { libc::close(i32::try_from(fd).unwrap_or(-1)) };
            }
            Ok(())
        }
    }
}

const BAD_FD: libc::c_long = -1;
const X32: libc::c_long = 0x4000_0000;

/// Every attempt: its name, who gets past the filter, and the call.
fn attempts(parameters: &mut [u64; 15]) -> Vec<(&'static str, Past, libc::c_long, [i64; 4])> {
    let text = |text: &'static std::ffi::CStr| text.as_ptr() as i64;
    let (file, link) = (text(c"/etc/passwd"), text(c"/tmp/hearth-no-link"));
    let here = i64::from(libc::AT_FDCWD);
    let (inet, unix) = (i64::from(libc::AF_INET), i64::from(libc::AF_UNIX));
    let stream = i64::from(libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
    let child = i64::from(libc::SIGCHLD);
    // REGISTER_FILES, REGISTER_RESTRICTIONS, REGISTER_ENABLE_RINGS.
    let register = libc::SYS_io_uring_register;
    let setup = parameters.as_mut_ptr() as i64;
    let ioctl = |request: u64| {
        let request = i64::try_from(request).expect("32 bits");
        (libc::SYS_ioctl, [BAD_FD, request, 0, 0])
    };
    // linux/kvm.h: KVM_GET_API_VERSION. linux/vhost.h: VHOST_SET_OWNER and
    // VHOST_NET_SET_BACKEND.
    let ioctls = [
        ("open a tap", Past::Main, libc::TUNSETIFF),
        ("ask a tap", Past::Main, libc::TUNGETIFF),
        ("headers of a tap", Past::Main, libc::TUNSETVNETHDRSZ),
        ("terminal", Past::Main, libc::TCGETS),
        ("KVM", Past::Vcpus, 0xae00),
        ("offload of a tap", Past::Vcpus, libc::TUNSETOFFLOAD),
        ("own a vhost", Past::Vcpus, 0xaf01),
        ("queues of a tap", Past::Nics, libc::TUNSETQUEUE),
        ("backend of a vhost", Past::Nics, 0x4008_af30),
        ("nonblocking socket", Past::Sockets, libc::FIONBIO),
        ("persistent tap", Past::Nobody, libc::TUNSETPERSIST),
        ("terminal input", Past::Nobody, libc::TIOCSTI),
    ];
    let mut attempts = vec![
        ("execve", Past::Nobody, libc::SYS_execve, [file, 0, 0, 0]),
        ("fork", Past::Nobody, libc::SYS_clone, [child, 0, 0, 0]),
        ("ptrace", Past::Nobody, libc::SYS_ptrace, [0; 4]),
        ("unshare", Past::Nobody, libc::SYS_unshare, [0; 4]),
        ("mount", Past::Nobody, libc::SYS_mount, [0; 4]),
        ("bpf", Past::Nobody, libc::SYS_bpf, [0; 4]),
        ("kill", Past::Nobody, libc::SYS_kill, [0; 4]),
        (
            "symlinkat",
            Past::Nobody,
            libc::SYS_symlinkat,
            [file, here, link, 0],
        ),
        (
            "inet socket",
            Past::Nobody,
            libc::SYS_socket,
            [inet, stream, 0, 0],
        ),
        (
            "unix socket",
            Past::Sockets,
            libc::SYS_socket,
            [unix, stream, 0, 0],
        ),
        ("x32 getpid", Past::Nobody, X32 | libc::SYS_getpid, [0; 4]),
        ("openat", Past::Main, libc::SYS_openat, [here, file, 0, 0]),
        (
            "new ring",
            Past::Main,
            libc::SYS_io_uring_setup,
            [1, setup, 0, 0],
        ),
        ("register files", Past::Main, register, [BAD_FD, 2, 0, 0]),
        (
            "register restrictions",
            Past::Main,
            register,
            [BAD_FD, 11, 0, 0],
        ),
        ("enable a ring", Past::Disks, register, [BAD_FD, 12, 0, 0]),
        (
            "enter a ring",
            Past::Disks,
            libc::SYS_io_uring_enter,
            [BAD_FD, 0, 0, 0],
        ),
    ];
    attempts.extend(ioctls.map(|(what, past, request)| {
        let (number, arguments) = ioctl(request);
        (what, past, number, arguments)
    }));
    attempts
}

/// Makes every attempt on a thread that is `name`: main, vcpu or that of a device;
/// what went otherwise, in words.
fn try_all(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut parameters = [0; 15];
    for (what, past, number, arguments) in attempts(&mut parameters) {
        let result = call(number, arguments);
        let code = result.as_ref().err().and_then(io::Error::raw_os_error);
        let is_past = code != Some(libc::EPERM);
        if is_past != past.includes(name) {
            wrong.push(format!("{what} by {name}: {result:?}"));
        }
        // Whoever may open files finds none of the host's.
        if what == "openat" && result.is_ok() {
            wrong.push(format!("{name} opens /etc/passwd"));
        }
    }
    wrong
}

fn disk(path: PathBuf) -> (Arc<Backend>, Prepared) {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.open(path).expect("a disk");
    file.set_len(4096).expect("grows");
    let backend = Backend::from_file(file, false).expect("a disk");
    let event = || Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("event"));
    let wakes = Wakes {
        doorbell: event(),
        stop: event(),
    };
    let prepared = EngineKind::Auto
        .prepare(&backend, wakes)
        .expect("an engine");
    (Arc::new(backend), prepared)
}

/// A disk's thread still does what it is there for.
fn serve(backend: Arc<Backend>, prepared: Prepared) -> io::Result<()> {
    assert!(backend.as_raw_fd() >= 0);
    let mut engine = prepared.start(backend, 4)?;
    let mut done = Vec::new();
    for token in 0..2 {
        let (offset, length) = (0, 4096);
        engine.submit(token, Op::Discard { offset, length })?;
    }
    while done.len() < 2 {
        engine.wait(true, &mut done)?;
    }
    match done.iter().all(|completion| completion.result == 0) {
        true => Ok(()),
        false => Err(io::Error::other("a discard failed")),
    }
}

/// In the process of its own.
fn inside(folder: &Path) -> Vec<String> {
    let before = disk(folder.join("first"));
    // SAFETY: takes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    let user = is_root.then_some(USER);
    let policy = Policy::best_effort();
    let entered = jail::enter(&[folder.to_owned()], user, user, &policy, profiles());
    let confinement = entered.expect("the jail");
    let layers = confinement.layers();
    let mut wrong = Vec::new();
    if is_root {
        for layer in [
            SandboxLayer::User,
            SandboxLayer::Seccomp,
            SandboxLayer::IoUring,
        ] {
            if !layers.contains(&layer) {
                wrong.push(format!("no {layer} layer"));
            }
        }
    }
    wrong.extend(try_all("main"));
    // A disk that is plugged later: its ring is made by the main thread.
    let later = disk(folder.join("later"));
    let roles = DECLARATIONS
        .iter()
        .map(|kind| (kind.name, ThreadRole::Device(&kind.profile)));
    let tried = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let run = |name: &str, role: ThreadRole| {
            jail::confine_thread(role).expect("confined");
            tried.fetch_add(1, Ordering::SeqCst);
            try_all(name)
        };
        let threads: Vec<_> = roles
            .chain([("vcpu", ThreadRole::Vcpu)])
            .map(|(name, role)| scope.spawn(move || run(name, role)))
            .collect();
        for thread in threads {
            wrong.extend(thread.join().expect("a thread"));
        }
        for (backend, prepared) in [before, later] {
            let blk = ThreadRole::Device(&hearth_vmm::virtio::blk::DECLARATION.profile);
            let served = scope.spawn(move || {
                jail::confine_thread(blk).expect("confined");
                serve(backend, prepared)
            });
            if let Err(error) = served.join().expect("a thread") {
                wrong.push(format!("a disk's thread: {error}"));
            }
        }
    });
    if tried.into_inner() != DECLARATIONS.len() + 1 {
        wrong.push("not every role was tried".to_owned());
    }
    wrong
}

/// In a process of its own, without the jail.
fn without_jail() -> Vec<String> {
    let confinement = jail::confine_outside(None, None).expect("seccomp");
    assert!(confinement.layers().is_empty());
    let mut wrong = Vec::new();
    for (what, number) in [
        ("execve", libc::SYS_execve),
        ("ptrace", libc::SYS_ptrace),
        ("x32 getpid", X32 | libc::SYS_getpid),
        ("x32 execve", X32 | 520),
    ] {
        let result = call(number, [0; 4]);
        let code = result.as_ref().err().and_then(io::Error::raw_os_error);
        if code != Some(libc::EPERM) {
            wrong.push(format!("{what} without the jail: {result:?}"));
        }
    }
    wrong.extend(
        call(libc::SYS_getpid, [0; 4])
            .err()
            .map(|e| format!("getpid: {e}")),
    );
    wrong
}

/// Runs this program again, as `user` where that is said; what it tries is `mode`.
fn outside(mode: &str, user: Option<u32>) -> bool {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env("HEARTH_JAIL_FOLDER", folder.path());
    command.env("HEARTH_JAIL_MODE", mode);
    // Best effort: who is not root has its own folder.
    let _ = std::os::unix::fs::chown(folder.path(), Some(USER), Some(USER));
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let who = if mode == "none" {
        "without the jail"
    } else if user.is_some() {
        "ordinary user"
    } else {
        "own user"
    };
    match command.status() {
        Ok(status) if status.success() => {
            eprintln!("test every_thread_is_confined, {who} ... ok");
            true
        }
        // The program may lie where others can't reach it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("test every_thread_is_confined, {who} ... SKIPPED: {error}");
            true
        }
        other => {
            eprintln!("test every_thread_is_confined, {who} ... FAILED: {other:?}");
            false
        }
    }
}

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os("HEARTH_JAIL_FOLDER") {
        let wrong = match std::env::var("HEARTH_JAIL_MODE").as_deref() {
            Ok("none") => without_jail(),
            _ => inside(&PathBuf::from(folder)),
        };
        for line in &wrong {
            eprintln!("{line}");
        }
        return ExitCode::from(u8::from(!wrong.is_empty()));
    }
    // SAFETY: takes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    let all =
        outside("jail", None) & (!is_root || outside("jail", Some(USER))) & outside("none", None);
    ExitCode::from(u8::from(!all))
}
