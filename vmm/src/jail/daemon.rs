//! Becoming a daemon: no one's child, with its own session, and a parent that
//! returns only when the machine runs or has said why it can't.
//!
//! In the jail it is also alone in a PID namespace: pid 1 to itself, and to everybody
//! outside what fork(2) said to the process in the middle, which passes that on. Only a
//! process that forks can have this one; in the foreground it stays who its parent waits
//! for.

#![allow(unsafe_code, reason = "fork(2), unshare(2), inherited descriptors")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

use hearth_vmm_api::ExitStatus;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What the child sends when all is well.
const READY: u8 = b'\n';

/// The daemon's line to the waiting parent.
#[derive(Debug)]
pub struct Parent {
    pipe: File,
    /// What takes the place of the standard streams; the jail has none.
    null: File,
    pid: u32,
    own_pids: io::Result<()>,
}

impl Parent {
    /// This process's id, as those outside of its PID namespace know it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether this process is alone in a PID namespace, or why it isn't.
    pub(super) fn own_pids(&self) -> io::Result<()> {
        match &self.own_pids {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }

    /// The machine runs: lets the parent return, and lets go of its terminal.
    ///
    /// # Errors
    /// When `/dev/null` can't be put in place of the standard streams.
    pub fn ready(mut self) -> io::Result<()> {
        for stream in [0, 1, 2] {
            // A standard error that is a file is someone's log, and stays.
            if stream == 2 && is_file(stream) {
                continue;
            }
            // SAFETY: both are open descriptors; the standard streams are owned by
            // nobody in this process.
            if unsafe { libc::dup2(self.null.as_raw_fd(), stream) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        self.pipe.write_all(&[READY])
    }

    /// The machine can't run: has the parent print this line and exit with this status.
    pub fn fail(mut self, status: ExitStatus, line: &str) {
        tell_failure(&mut self.pipe, status, line);
    }
}

/// A failure on its way to the parent: a byte for its exit status, and the line.
fn tell_failure(pipe: &mut File, status: ExitStatus, line: &str) {
    // If the parent is gone, nobody is left to read it.
    let _ = pipe.write_all(&[&[status as u8], line.as_bytes()].concat());
}

fn is_file(fd: i32) -> bool {
    // SAFETY: stat is plain data, for which all zeros are a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live stat.
    unsafe { libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG }
}

/// Two ends of a pipe: the one that is read, and the one that is written.
fn pipe() -> io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: the pointer is to two ints.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 has just made these descriptors, and nobody else owns them.
    Ok(unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) })
}

/// Has the next child be the first process of a new PID namespace.
fn unshare_pids() -> io::Result<()> {
    // SAFETY: the file descriptor table, which threads would share, stays.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.map_err(Into::into)
}

/// Forks twice. Returns in the daemon; the parent waits for it and exits with 0,
/// or with the daemon's status after printing its one line on standard error. With `own_pids`
/// the daemon has a PID namespace of its own if that can be had: [`enter`](super::enter)
/// says whether it must.
///
/// Must be called before any thread is made.
///
/// # Errors
/// When the process can't be forked.
pub(super) fn daemonize(own_pids: bool) -> io::Result<Parent> {
    let (mut reader, mut writer) = pipe()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: the process has one thread, so the child is a whole copy of it.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => drop(reader),
        _ => {
            drop(writer);
            let mut message = Vec::new();
            // What was read before an error is what there is.
            let _ = reader.read_to_end(&mut message);
            let status = match &*message {
                [READY] => 0,
                [] => {
                    eprintln!("hearth-vmm: the machine's process died while it started");
                    ExitStatus::Crashed as u8
                }
                [status, line @ ..] => {
                    eprintln!("hearth-vmm: {}", String::from_utf8_lossy(line));
                    *status
                }
            };
            std::process::exit(status.into());
        }
    }
    // SAFETY: takes nothing; the child is no group leader, so this can't fail.
    unsafe { libc::setsid() };
    let own_pids = match own_pids {
        true => unshare_pids(),
        false => Err(io::ErrorKind::Unsupported.into()),
    };
    // The second fork: no session leader, so no terminal is ever acquired, and the
    // middle process's end makes the daemon init's child.
    match fork_told_its_pid() {
        Ok(Some(pid)) => Ok(Parent {
            pipe: writer,
            null,
            pid,
            own_pids,
        }),
        Ok(None) => {
            // No destructor may run twice, so no ordinary exit.
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) }
        }
        Err(error) => {
            let refused = ExitStatus::Refused;
            tell_failure(&mut writer, refused, &format!("fork: {error}"));
            std::process::exit((refused as u8).into());
        }
    }
}

/// Forks a child that learns its process id as this process sees it: in a PID namespace
/// of its own it has no way to ask. None: this is still the parent.
fn fork_told_its_pid() -> io::Result<Option<u32>> {
    let (mut reader, mut writer) = pipe()?;
    // SAFETY: the process has one thread, so the child is a whole copy of it.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(writer);
            let mut pid = [0; size_of::<u32>()];
            reader.read_exact(&mut pid)?;
            Ok(Some(u32::from_ne_bytes(pid)))
        }
        pid => {
            writer.write_all(&pid.to_ne_bytes())?;
            Ok(None)
        }
    }
}
