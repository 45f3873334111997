//! A listening Unix socket for this user only, removed from the file system when
//! dropped.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Whether the path is this process's to remove: another one may listen there.
    owns_path: Arc<AtomicBool>,
    /// A descriptor given up for who connects when the process has no other left.
    spare: Option<OwnedFd>,
}

impl Listener {
    /// Listens at `path`, which was given with `flag`. A socket that nobody answers on
    /// is a leftover and is replaced.
    ///
    /// # Errors
    /// One line: the path is taken, or can't be made.
    pub fn bind(flag: &str, path: &Path) -> Result<Self, String> {
        let wrong = |why: &str| format!("{flag} {}: {why}", path.display());
        let fail = |error: io::Error| wrong(&error.to_string());
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Err(wrong("another process listens there"));
                }
                let metadata = path.symlink_metadata().map_err(fail)?;
                if !metadata.file_type().is_socket() {
                    return Err(wrong("there is another file"));
                }
                std::fs::remove_file(path).map_err(fail)?;
                UnixListener::bind(path).map_err(fail)?
            }
            result => result.map_err(fail)?,
        };
        let listener = Self {
            socket,
            path: path.to_owned(),
            owns_path: Arc::new(AtomicBool::new(true)),
            spare: None,
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        listener.socket.set_nonblocking(true).map_err(fail)?;
        Ok(listener)
    }

    /// Goes on listening where another process did, which handed its socket over. The path
    /// is removed when this is dropped if `owns_path` says so by then.
    #[must_use]
    pub fn adopt(socket: OwnedFd, path: &Path, owns_path: &Arc<AtomicBool>) -> Self {
        Self {
            socket: socket.into(),
            path: path.to_owned(),
            owns_path: Arc::clone(owns_path),
            spare: None,
        }
    }

    /// Hands the socket's file over to another user.
    ///
    /// # Errors
    /// As chown(2).
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        std::os::unix::fs::chown(&self.path, uid, gid)
    }

    fn somebody_waits(&self) -> bool {
        let interest = rustix::event::PollFlags::IN;
        let mut fds = [rustix::event::PollFd::new(&self.socket, interest)];
        let now = rustix::event::Timespec::default();
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
    }

    /// The next who has connected, without waiting; reads and writes don't wait either.
    /// Who connects is let in also when the process has run out of descriptors: `free_one`
    /// then ends an older connection, and returns whether there was one.
    pub fn accept(&mut self, mut free_one: impl FnMut() -> bool) -> Option<UnixStream> {
        if self.spare.is_none() {
            self.spare = self.socket.as_fd().try_clone_to_owned().ok();
        }
        loop {
            match self.socket.accept() {
                Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => return Some(stream),
                Ok(_) => {}
                // The kernel says so before it looks whether anybody waits (accept(2) takes
                // a descriptor first): who is connected must not go for nobody.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    if !self.somebody_waits() || (self.spare.take().is_none() && !free_one()) {
                        return None;
                    }
                }
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.owns_path.load(Ordering::Relaxed) {
            return;
        }
        // Best effort: in a jail the folder may be out of reach, and a leftover
        // socket is replaced by the next one.
        let _ = std::fs::remove_file(&self.path);
    }
}
