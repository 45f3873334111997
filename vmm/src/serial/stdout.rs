//! Standard output as a reader of the guest's output that nobody waits for: a full
//! pipe, or a terminal that shows nothing more, must stop no thread of the machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use super::Serial;
use super::feed::Feed;

/// How long the last output may take when the process ends. A reader that is at work
/// has read a pipe's worth in far less; one that isn't should not hold up the end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Standard output.
pub struct StandardOutput {
    way: Way,
    feed: Feed,
    /// Whoever has read it is no more.
    gone: bool,
}

/// How bytes get there without a wait.
enum Way {
    /// By an open file of our own: "never wait" is a property of the open file, which
    /// the shell and our own standard error mostly share with us.
    Own(File),
    /// By a socket, which can be told so for each message.
    Socket(RawFd),
    /// By the shared open file, which is made not to wait until we end: another user's
    /// terminal, that we were given and may not open.
    Shared(RawFd, libc::c_int),
    /// By a plain write, which on a file never waits for a reader.
    File(RawFd),
}

impl Way {
    fn to(fd: RawFd) -> Self {
        match kind(fd) {
            libc::S_IFSOCK => Self::Socket(fd),
            libc::S_IFIFO | libc::S_IFCHR => {
                let mut options = OpenOptions::new();
                options
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
                match options.open(format!("/proc/self/fd/{fd}")) {
                    Ok(file) => Self::Own(file),
                    Err(_) => Self::Shared(fd, make_nonblocking(fd)),
                }
            }
            _ => Self::File(fd),
        }
    }

    fn fd(&self) -> RawFd {
        match self {
            Self::Own(file) => file.as_raw_fd(),
            Self::Socket(fd) | Self::Shared(fd, _) | Self::File(fd) => *fd,
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let (start, length) = (bytes.as_ptr().cast(), bytes.len());
        let count = match self {
            Self::Socket(fd) => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: the pointer and the length are those of a live slice.
                unsafe { libc::send(*fd, start, length, flags) }
            }
            // SAFETY: as above.
            _ => unsafe { libc::write(self.fd(), start, length) },
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Self::Shared(fd, flags) = *self {
            // SAFETY: no memory is involved.
            unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
        }
    }
}

/// What a descriptor is: `S_IFMT` of its mode, 0 for none.
fn kind(fd: RawFd) -> libc::mode_t {
    // SAFETY: stat is plain data, for which all zeros are a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live stat; what is no descriptor leaves it as it is.
    unsafe { libc::fstat(fd, &raw mut stat) };
    stat.st_mode & libc::S_IFMT
}

/// Returns the flags that were there before.
fn make_nonblocking(fd: RawFd) -> libc::c_int {
    // SAFETY: no memory is involved.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) };
    flags
}

impl StandardOutput {
    /// The process's. It must be opened before a jail is entered.
    #[must_use]
    pub fn open() -> Self {
        Self::on(libc::STDOUT_FILENO)
    }

    fn on(fd: RawFd) -> Self {
        Self {
            way: Way::to(fd),
            feed: Feed::new(0),
            gone: false,
        }
    }

    /// The descriptor that has to have room before there is anything to do, if there is.
    #[must_use]
    pub fn awaited(&self) -> Option<RawFd> {
        (self.feed.lags() && !self.gone).then(|| self.way.fd())
    }

    /// Writes what can be written without waiting.
    pub fn progress(&mut self, serial: &Serial) {
        let Self { way, feed, gone } = self;
        *gone = *gone || !feed.send(serial, |bytes| way.write(bytes));
    }

    /// Writes all there is, unless that takes more than [`LAST_WORDS`].
    pub fn finish(&mut self, serial: &Serial) {
        let deadline = Instant::now() + LAST_WORDS;
        self.progress(serial);
        while let Some(fd) = self.awaited() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = libc::c_int::try_from(left.as_millis()).unwrap_or(0);
            let mut room = libc::pollfd {
                fd,
                events: libc::POLLOUT,
                revents: 0,
            };
            // SAFETY: the pointer is to one live pollfd.
            if timeout == 0 || unsafe { libc::poll(&raw mut room, 1, timeout) } == 0 {
                return;
            }
            self.progress(serial);
        }
    }
}

#[cfg(test)]
mod tests;
