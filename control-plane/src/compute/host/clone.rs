//! Starts a program inside a control group, from its first instruction on.
//!
//! Who writes itself into a group's `cgroup.procs` waits for all of the host's
//! processors (a grace period of RCU), ten milliseconds and more; who is born there
//! waits for nobody: `CLONE_INTO_CGROUP` of clone(2), since Linux 5.7.
//!
//! A program on a disk that doesn't answer is never begun, and its process can't be
//! ended: that costs the process, and no thread of ours waits for it.

use std::ffi::{CString, OsString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::runtime::Handle;

use super::oom;

/// `include/uapi/linux/sched.h`; the `libc` crate has the second cut short.
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What is started: no environment, `/` for its folder, nothing on its standard input
/// and output.
pub(super) struct Program<'a> {
    /// The program's file.
    pub(super) path: &'a Path,
    /// Its arguments, without its name.
    pub(super) arguments: &'a [OsString],
    /// Its standard error.
    pub(super) log: &'a File,
    /// Descriptors that it has under the same numbers.
    pub(super) inherited: &'a [OwnedFd],
}

/// A process of ours; it is killed when this is dropped before its end.
pub(super) struct Child {
    /// None once it has ended and is reaped.
    pidfd: Option<AsyncFd<OwnedFd>>,
    /// Where its end is awaited when nobody else does.
    runtime: Handle,
}

impl Child {
    /// Waits for its end.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let Some(pidfd) = &self.pidfd else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        let status = ended(pidfd).await?;
        self.pidfd = None;
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            // Fails only for a process that is gone. One that hangs in the kernel, as
            // on a dead disk, doesn't end by this: nothing else may wait for it.
            let _ = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
            self.runtime.spawn(async move { ended(&pidfd).await });
        }
    }
}

/// How the process ended, once it has; it is reaped then.
async fn ended(pidfd: &AsyncFd<OwnedFd>) -> io::Result<ExitStatus> {
    loop {
        let mut ready = pidfd.readable().await?;
        if let Some(status) = reap(pidfd.get_ref())? {
            return Ok(status);
        }
        ready.clear_ready();
    }
}

fn reap(pidfd: &OwnedFd) -> io::Result<Option<ExitStatus>> {
    use std::os::fd::AsFd as _;
    let how = WaitIdOptions::NOHANG | WaitIdOptions::EXITED;
    let ended = waitid(WaitId::PidFd(pidfd.as_fd()), how)?;
    // As wait(2) has it: the status in the second byte, a signal in the first.
    Ok(ended.map(|ended| {
        let status = ended.exit_status().map(|status| status << 8);
        ExitStatus::from_raw(status.or(ended.terminating_signal()).unwrap_or_default())
    }))
}

/// All that the child needs, made before it is there: it can allocate nothing.
struct Prepared {
    path: CString,
    argv: Vec<*const c_char>,
    null: RawFd,
    log: RawFd,
    inherited: Vec<RawFd>,
    /// Where it says why it could not become the program.
    complaint: RawFd,
}

/// Starts the program in the control group whose folder is `group`; returns when it
/// has become that program.
pub(super) async fn spawn(program: &Program<'_>, group: BorrowedFd<'_>) -> io::Result<Child> {
    let (child, mut complaint) = fork(program, group)?;
    let mut errno = Vec::new();
    complaint.read_to_end(&mut errno).await?;
    match <[u8; 4]>::try_from(errno) {
        Ok(errno) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        Err(_) => Ok(child),
    }
}

/// The process that is to become the program, and where it says why it can't; that
/// ends when it has.
fn fork(program: &Program<'_>, group: BorrowedFd<'_>) -> io::Result<(Child, pipe::Receiver)> {
    /// One at a time: a process that is forked meanwhile would hold the pipe's other
    /// end too, until it has become its own program.
    static FORKING: Mutex<()> = Mutex::new(());
    let text = |s: &[u8]| CString::new(s).map_err(io::Error::from);
    let path = text(program.path.as_os_str().as_bytes())?;
    let arguments = program.arguments.iter().map(|a| text(a.as_bytes()));
    let arguments = arguments.collect::<io::Result<Vec<_>>>()?;
    let argv = [&path].into_iter().chain(&arguments).map(|s| s.as_ptr());
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let forking = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let prepared = Prepared {
        argv: argv.chain([ptr::null()]).collect(),
        path,
        null: null.as_raw_fd(),
        log: program.log.as_raw_fd(),
        inherited: program.inherited.iter().map(|fd| fd.as_raw_fd()).collect(),
        complaint: writer.as_raw_fd(),
    };
    let mut pidfd: RawFd = -1;
    // SAFETY: the structure is plain data, for which all zeros are a value.
    let mut call: libc::clone_args = unsafe { std::mem::zeroed() };
    call.flags = CLONE_PIDFD | CLONE_INTO_CGROUP;
    call.pidfd = (&raw mut pidfd).addr() as u64;
    call.exit_signal = libc::SIGCHLD as u64;
    call.cgroup = group.as_raw_fd() as u64;
    // SAFETY: the structure says its true size, and where the kernel may write a
    // descriptor. Without a stack and without CLONE_VM it is a fork: the child has a
    // copy of everything, and only this thread. It leaves by `become_program` at once,
    // which takes no lock and allocates nothing.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut call, size_of_val(&call)) };
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: this is the child.
        0 => unsafe { become_program(&prepared) },
        _ => {}
    }
    drop(writer);
    drop(forking);
    // SAFETY: the kernel has just made the descriptor, and nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: an OwnedFd returns the same open descriptor for as long as it lives.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    let child = Child {
        pidfd: Some(pidfd),
        runtime: Handle::current(),
    };
    Ok((child, pipe::Receiver::from_owned_fd(reader)?))
}

/// Replaces the calling process by the program, or ends it.
///
/// # Safety
/// Only for a child that shares nothing but files with its parent.
unsafe fn become_program(prepared: &Prepared) -> ! {
    let errno = match replace(prepared) {
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        Ok(never) => match never {},
    };
    let errno = errno.to_ne_bytes();
    // SAFETY: the buffer is live; `_exit` ends the process without anything of the
    // parent's being run a second time.
    unsafe {
        libc::write(prepared.complaint, errno.as_ptr().cast(), errno.len());
        libc::_exit(127)
    }
}

/// System calls only: it neither allocates nor locks.
fn replace(prepared: &Prepared) -> io::Result<std::convert::Infallible> {
    let check = |result: i32| match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    oom::offer()?;
    let streams = [(prepared.null, 0), (prepared.null, 1), (prepared.log, 2)];
    let environment: [*const c_char; 1] = [ptr::null()];
    // SAFETY: plain numbers, all of descriptors that are open; the signal set is
    // initialised; path, argv and environment end as execve(2) wants, and live.
    unsafe {
        for (from, to) in streams {
            check(libc::dup2(from, to))?;
        }
        for fd in &prepared.inherited {
            check(libc::fcntl(*fd, libc::F_SETFD, 0))?;
        }
        check(libc::chdir(c"/".as_ptr()))?;
        // What this program ignores or blocks is no matter of the next.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut(),
        ))?;
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(
            prepared.path.as_ptr(),
            prepared.argv.as_ptr(),
            environment.as_ptr(),
        );
    }
    Err(io::Error::last_os_error())
}
