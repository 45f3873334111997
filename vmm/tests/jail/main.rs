//! What each kind of thread in the jail can't do, tried in a process of its own: this
//! program again, which has one thread when it enters.

#![allow(clippy::disallowed_methods, reason = "a test may start programs")]

mod attempts;
mod kvm;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_vmm::block::{Backend, EngineKind, Op, Prepared, Until, Wakes};
use hearth_vmm::jail::{self, Policy, ThreadRole};
use hearth_vmm::machine::{ERRANDS, profiles};
use hearth_vmm::virtio::DECLARATIONS;
use hearth_vmm_api::{ExitStatus, SandboxLayer};
use rustix::fs::AtFlags;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use attempts::{X32, attempts, call};

/// A user that nobody is.
const USER: u32 = 64_001;

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
        // As a disk with limits waits.
        let soon = Instant::now() + Duration::from_millis(1);
        engine.wait(Until::At(soon), &mut done)?;
    }
    match done.iter().all(|completion| completion.result == 0) {
        true => Ok(()),
        false => Err(io::Error::other("a discard failed")),
    }
}

/// What the host knows of this process, opened while that could be: files in proc are
/// made up when they are read.
struct OwnProcess {
    folder: File,
    limits: File,
}

impl OwnProcess {
    fn open() -> Self {
        Self {
            folder: File::open("/proc/self").expect("proc"),
            limits: File::open("/proc/self/limits").expect("proc"),
        }
    }

    fn wrong_limits(mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut limits = String::new();
        self.limits.read_to_string(&mut limits).expect("limits");
        for name in ["Max core file size", "Max locked memory"] {
            let line = limits.lines().find_map(|line| line.strip_prefix(name));
            let values: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
            if !matches!(values[..], ["0", "0", "bytes"]) {
                wrong.push(format!("{name}: {values:?}"));
            }
        }
        // Of a process that is not dumpable, they are root's (proc(5)).
        let limits = rustix::fs::statat(&self.folder, "limits", AtFlags::empty());
        if limits.expect("their owner").st_uid != 0 {
            wrong.push("it is dumpable".to_owned());
        }
        wrong
    }
}

/// In the process of its own, which becomes `user` if that is said.
fn inside(folder: &Path, user: Option<u32>, daemon: Option<&jail::Parent>) -> Vec<String> {
    let before = disk(folder.join("first"));
    let mut machine = kvm::Machine::open();
    // SAFETY: takes nothing.
    let is_other = user.is_some() || unsafe { libc::geteuid() } != 0;
    let own = OwnProcess::open();
    let policy = Policy::best_effort();
    let entered = jail::enter(
        &[folder.to_owned()],
        user,
        user,
        &policy,
        profiles(),
        daemon,
    );
    let confinement = entered.expect("the jail");
    let layers = confinement.layers();
    let mut wrong = Vec::new();
    for (layer, stands) in [
        (SandboxLayer::User, is_other),
        (SandboxLayer::Capabilities, true),
        (SandboxLayer::Seccomp, true),
        (SandboxLayer::IoUring, true),
    ] {
        if layers.contains(&layer) != stands {
            wrong.push(format!("{layer} layer: {}", !stands));
        }
    }
    wrong.extend(own.wrong_limits());
    wrong.extend(try_all("main"));
    match &mut machine {
        Some(machine) => wrong.extend(machine.is_made_anew()),
        None => eprintln!("SKIPPED: there is no KVM for this user"),
    }
    // A disk that is plugged later: its ring is made by the main thread.
    let later = disk(folder.join("later"));
    let devices = DECLARATIONS.iter().map(|kind| (kind.name, &kind.profile));
    let roles = devices
        .chain(ERRANDS)
        .map(|(name, profile)| (name, ThreadRole::Device(profile)));
    let tried = AtomicUsize::new(0);
    let machine = Mutex::new(machine);
    std::thread::scope(|scope| {
        let run = |name: &str, role: ThreadRole| {
            jail::confine_thread(role).expect("confined");
            tried.fetch_add(1, Ordering::SeqCst);
            let mut wrong = try_all(name);
            if let Some(machine) = &mut *machine.lock().unwrap_or_else(PoisonError::into_inner) {
                wrong.extend(match role {
                    ThreadRole::Vcpu => machine.is_run(),
                    _ => machine.is_left_alone(),
                });
            }
            wrong
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
    if tried.into_inner() != DECLARATIONS.len() + ERRANDS.len() + 1 {
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

/// How this program runs again.
struct Run {
    name: &'static str,
    /// Whether only root can start it so.
    by_root: bool,
    /// Whom it is started as.
    started_as: Option<u32>,
    /// Whom it becomes in the jail.
    becomes: Option<u32>,
    in_jail: bool,
    is_daemon: bool,
}

impl Run {
    const ALL: [Self; 5] = [
        Self {
            name: "root that becomes a user",
            by_root: true,
            started_as: None,
            becomes: Some(USER),
            in_jail: true,
            is_daemon: false,
        },
        Self {
            name: "root that becomes a daemon of a user",
            by_root: true,
            started_as: None,
            becomes: Some(USER),
            in_jail: true,
            is_daemon: true,
        },
        Self {
            name: "root that stays so",
            by_root: true,
            started_as: None,
            becomes: None,
            in_jail: true,
            is_daemon: false,
        },
        Self {
            name: "ordinary user",
            by_root: false,
            started_as: Some(USER),
            becomes: None,
            in_jail: true,
            is_daemon: false,
        },
        Self {
            name: "without the jail",
            by_root: false,
            started_as: None,
            becomes: None,
            in_jail: false,
            is_daemon: false,
        },
    ];

    /// What went otherwise than it should, in the process of its own.
    fn wrong(&self, folder: &Path) -> Vec<String> {
        match self.in_jail {
            true => inside(folder, self.becomes, None),
            false => without_jail(),
        }
    }

    /// The same in a daemon, which says it through the parent that waits for it.
    fn wrong_daemon(&self, folder: &Path) {
        let policy = Policy::best_effort();
        let daemon = jail::daemonize(Some(&policy)).expect("a daemon");
        let mut wrong = Vec::new();
        // This proc is that of who started it.
        let pid = std::fs::read_link("/proc/self").expect("proc");
        let known = daemon.pid().to_string();
        if (std::process::id(), pid.to_str()) != (1, Some(&*known)) {
            wrong.push(format!("{} in, {pid:?} out, {known}", std::process::id()));
        }
        wrong.extend(inside(folder, self.becomes, Some(&daemon)));
        match wrong.is_empty() {
            true => daemon.ready().expect("its parent is told"),
            false => daemon.fail(ExitStatus::Refused, &wrong.join("\n")),
        }
    }

    /// Starts the process and says how it went.
    fn passes(&self, is_root: bool) -> bool {
        let said = |how: &str| eprintln!("test every_thread_is_confined, {} ... {how}", self.name);
        if self.by_root && !is_root {
            said("SKIPPED: needs root");
            return true;
        }
        let folder = tempfile::tempdir().expect("folder");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.env(FOLDER, folder.path()).env(RUN, self.name);
        let owner = self.started_as.or(self.becomes);
        // Best effort: who is not root has its own folder.
        let _ = std::os::unix::fs::chown(folder.path(), owner, owner);
        if let Some(user) = self.started_as.filter(|_| is_root) {
            command.uid(user).gid(user);
        }
        match command.status() {
            Ok(status) if status.success() => said("ok"),
            // The program may lie where others can't reach it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                said(&format!("SKIPPED: {error}"));
            }
            other => {
                said(&format!("FAILED: {other:?}"));
                return false;
            }
        }
        true
    }
}

/// What a process of its own learns from: its folder, and which [`Run`] it is.
const FOLDER: &str = "HEARTH_JAIL_FOLDER";
const RUN: &str = "HEARTH_JAIL_RUN";

fn main() -> ExitCode {
    if let (Some(folder), Ok(name)) = (std::env::var_os(FOLDER), std::env::var(RUN)) {
        let mut runs = Run::ALL.iter();
        let run = runs.find(|run| run.name == name).expect("a run");
        if run.is_daemon {
            run.wrong_daemon(&PathBuf::from(folder));
            return ExitCode::SUCCESS;
        }
        let wrong = run.wrong(&PathBuf::from(folder));
        for line in &wrong {
            eprintln!("{line}");
        }
        return ExitCode::from(u8::from(!wrong.is_empty()));
    }
    // SAFETY: takes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    let failed = Run::ALL.iter().filter(|run| !run.passes(is_root)).count();
    ExitCode::from(u8::from(failed > 0))
}
