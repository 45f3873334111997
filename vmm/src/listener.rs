//! A listening Unix socket for this user only, removed from the file system when
//! dropped.
//!
//! Whoever connects owns the machine, and threads of this very process may connect: that
//! of a disk that another process serves looks for its back end, and the socket device's
//! for who listens to its guest. One that a back end or a guest has taken over must not
//! get the machine by its own front door, so this process is not let in; nor is the one
//! that this one has taken its machine over from, until that is gone.

#![allow(unsafe_code, reason = "SO_PEERCRED")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// The socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Whether the path is this process's to remove: another one may listen there.
    owns_path: Arc<AtomicBool>,
    /// A descriptor given up for who connects when the process has no other left.
    spare: Option<OwnedFd>,
    /// Who is let in.
    peers: Peers,
    /// Who listened here before, and isn't let in either.
    predecessor: Option<Arc<Predecessor>>,
}

/// As many are turned away at once: others are served before the next ones, however many
/// a thread of this process makes.
const TURNED_AWAY: usize = 16;

/// Whom a [`Listener`] lets in, of those that reach its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// Every process but this one.
    Others,
    /// This one too: for tests that are both ends.
    All,
}

/// A process, as this one's namespaces have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its id; 0: one outside of this PID namespace.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// The process that had the machine before, and its listening sockets: a thread of it may
/// have connected by the time that this one accepts, and may go on doing so until it ends.
#[derive(Debug, Default)]
pub struct Predecessor {
    who: OnceLock<Peer>,
    is_gone: AtomicBool,
}

impl Predecessor {
    /// Notes who it is.
    pub fn is(&self, who: Peer) {
        // It is one, and said so once.
        let _ = self.who.set(who);
    }

    /// Notes that no thread of it can connect any more.
    pub fn has_gone(&self) {
        self.is_gone.store(true, Ordering::Release);
    }

    /// Whether this may be it: of those outside of this PID namespace, the user is all
    /// that is known.
    fn may_be(&self, peer: Peer) -> bool {
        self.who.get().is_none_or(|who| *who == peer)
    }
}

/// The process that connected: unix(7), `SO_PEERCRED`.
fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = libc::socklen_t::try_from(size_of_val(&peer)).map_err(io::Error::other)?;
    // SAFETY: both pointers are to live values, the second one the size of the first.
    let asked = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut size,
        )
    };
    match asked {
        0 => Ok(Peer {
            pid: u32::try_from(peer.pid).map_err(io::Error::other)?,
            uid: peer.uid,
        }),
        _ => Err(io::Error::last_os_error()),
    }
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
            peers: Peers::Others,
            predecessor: None,
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        listener.socket.set_nonblocking(true).map_err(fail)?;
        Ok(listener)
    }

    /// Goes on listening where another process did, which handed its socket over. The path
    /// is removed when this is dropped if `owns_path` says so by then.
    #[must_use]
    pub fn adopt(
        socket: OwnedFd,
        path: &Path,
        owns_path: &Arc<AtomicBool>,
        predecessor: &Arc<Predecessor>,
    ) -> Self {
        Self {
            socket: socket.into(),
            path: path.to_owned(),
            owns_path: Arc::clone(owns_path),
            spare: None,
            peers: Peers::Others,
            predecessor: Some(Arc::clone(predecessor)),
        }
    }

    /// The same, for whom it says.
    #[must_use]
    pub fn for_peers(mut self, peers: Peers) -> Self {
        self.peers = peers;
        self
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
    /// then ends an older connection, and returns whether there was one. This process is
    /// hung up on, unless [`Peers`] says otherwise, and so is its [`Predecessor`].
    pub fn accept(&mut self, mut free_one: impl FnMut() -> bool) -> Option<UnixStream> {
        let predecessor = self.predecessor.as_ref();
        let is_gone = predecessor.is_some_and(|one| one.is_gone.load(Ordering::Acquire));
        if self.spare.is_none() {
            self.spare = self.socket.as_fd().try_clone_to_owned().ok();
        }
        let mut turned_away = 0;
        while turned_away < TURNED_AWAY {
            match self.socket.accept() {
                Ok((stream, _))
                    if self.lets_in(&stream) && stream.set_nonblocking(true).is_ok() =>
                {
                    return Some(stream);
                }
                Ok(_) => turned_away += 1,
                // The kernel says so before it looks whether anybody waits (accept(2) takes
                // a descriptor first): who is connected must not go for nobody.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    if !self.somebody_waits() || (self.spare.take().is_none() && !free_one()) {
                        return None;
                    }
                }
                Err(_) => {
                    // All that it left here was turned away.
                    if is_gone {
                        self.predecessor = None;
                    }
                    return None;
                }
            }
        }
        None
    }

    fn lets_in(&self, stream: &UnixStream) -> bool {
        if self.peers == Peers::All {
            return true;
        }
        let is_another = |peer: Peer| {
            let predecessor = self.predecessor.as_ref();
            peer.pid != std::process::id() && predecessor.is_none_or(|one| !one.may_be(peer))
        };
        // Where the kernel doesn't say who it is, nobody is let in.
        peer(stream).is_ok_and(is_another)
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// As a thread that was taken over would come.
    #[test]
    fn this_process_is_hung_up_on() {
        let folder = tempfile::tempdir().expect("folder");
        for (peers, is_let_in) in [(Peers::Others, false), (Peers::All, true)] {
            let path = folder.path().join("s");
            let listener = Listener::bind("--socket", &path).expect("binds");
            assert_eq!(listener.peers, Peers::Others, "unless somebody asks for it");
            let mut listener = listener.for_peers(peers);
            let client = UnixStream::connect(path).expect("connects");
            assert_eq!(peer(&client).expect("a peer").pid, std::process::id());
            let stream = listener.accept(|| false);
            assert_eq!(stream.is_some(), is_let_in, "{peers:?}");
            drop(stream);
            assert_eq!((&client).read(&mut [0]).expect("hung up"), 0);
        }
    }

    /// A listening socket with who is queued there, in this process's place another one.
    #[test]
    fn who_had_the_socket_before_is_hung_up_on_until_it_is_gone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let me = Peer {
            pid: std::process::id(),
            uid: peer_of_this(&path).uid,
        };
        let others = [
            Peer { pid: 0, ..me },
            Peer {
                pid: me.pid + 1,
                ..me
            },
            Peer {
                uid: me.uid + 1,
                ..me
            },
        ];
        let predecessor = Predecessor::default();
        assert!(predecessor.may_be(me), "who hasn't said who it is");
        predecessor.is(me);
        assert!(predecessor.may_be(me));
        assert!(!others.iter().any(|other| predecessor.may_be(*other)));
        // It connects while it lives, and what it left is there when it is gone.
        let socket = UnixListener::bind(&path).expect("binds");
        socket.set_nonblocking(true).expect("set");
        let predecessor = Arc::new(predecessor);
        let owns_path = Arc::default();
        let mut listener = Listener::adopt(socket.into(), &path, &owns_path, &predecessor);
        for is_gone in [false, true] {
            let clients =
                [(); TURNED_AWAY + 1].map(|()| UnixStream::connect(&path).expect("connects"));
            if is_gone {
                predecessor.has_gone();
            }
            for left in [true, true, false] {
                assert_eq!(listener.predecessor.is_some(), left || !is_gone);
                assert!(listener.accept(|| false).is_none());
            }
            for mut client in clients {
                assert_eq!(client.read(&mut [0]).expect("hung up"), 0);
            }
        }
    }

    fn peer_of_this(path: &Path) -> Peer {
        let listener = UnixListener::bind(path).expect("binds");
        let client = UnixStream::connect(path).expect("connects");
        drop(listener);
        std::fs::remove_file(path).expect("removed");
        peer(&client).expect("a peer")
    }
}
