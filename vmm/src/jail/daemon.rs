//! Becoming a daemon: no one's child, with its own session, and a parent that
//! returns only when the machine runs or has said why it can't.

#![allow(unsafe_code, reason = "fork(2) and inherited descriptors")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

/// What the child sends when all is well.
const READY: u8 = b'\n';

/// The daemon's line to the waiting parent.
#[derive(Debug)]
pub struct Parent {
    pipe: File,
    /// What takes the place of the standard streams; the jail has none.
    null: File,
}

impl Parent {
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

    /// The machine can't run: has the parent print this line and exit with 2.
    pub fn fail(mut self, line: &str) {
        // If the parent is gone, nobody is left to read it.
        let _ = self.pipe.write_all(line.as_bytes());
    }
}

fn is_file(fd: i32) -> bool {
    // SAFETY: stat is plain data, for which all zeros are a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live stat.
    unsafe { libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG }
}

/// Forks twice. Returns in the daemon; the parent waits for it and exits with 0,
/// or with 2 after printing the daemon's one line on standard error.
///
/// Must be called before any thread is made.
///
/// # Errors
/// When the process can't be forked.
pub fn daemonize() -> io::Result<Parent> {
    let mut fds = [0; 2];
    // SAFETY: the pointer is to two ints.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 has just made these descriptors, and nobody else owns them.
    let (mut reader, writer) = unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) };
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: the process has one thread, so the child is a whole copy of it.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => drop(reader),
        _ => {
            drop(writer);
            let mut message = Vec::new();
            let status = match reader.read_to_end(&mut message) {
                Ok(_) if message == [READY] => 0,
                Ok(0) => {
                    eprintln!("hearth-vmm: the machine's process died while it started");
                    1
                }
                _ => {
                    eprintln!("hearth-vmm: {}", String::from_utf8_lossy(&message));
                    2
                }
            };
            std::process::exit(status);
        }
    }
    // SAFETY: takes nothing; the child is no group leader, so this can't fail.
    unsafe { libc::setsid() };
    // The second fork: no session leader, so no terminal is ever acquired, and the
    // middle process's end makes the daemon init's child.
    // SAFETY: as above.
    match unsafe { libc::fork() } {
        -1 => {
            let error = io::Error::last_os_error();
            Parent { pipe: writer, null }.fail(&format!("fork: {error}"));
            std::process::exit(2);
        }
        0 => Ok(Parent { pipe: writer, null }),
        _ => {
            // No destructor may run twice, so no ordinary exit.
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) }
        }
    }
}
