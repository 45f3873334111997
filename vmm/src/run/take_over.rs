//! Live update: a process takes over the machine of another one, which may be of another
//! version. No reboot; the guest notices a pause.
//!
//! ```text
//!   the new process                        the old process
//!   command line read
//!   PUT /v1/hand-over, with a socket ────► machine paused (or it was) ─────┐
//!     on which all that follows is said    state read                      │
//!   files, sockets, taps received ◄─────── "hand-over" thread sends:       │ anything fails,
//!   the rest opened, machine built           descriptors                   │ either way:
//!   ══ confined                              guest memory, unless shared   │ the new one ends,
//!   memory and state received ◄───────────   the state                     │ the old one has
//!   everything is as it was                                                │ its machine go on
//!   Ready ───────────────────────────────►                                 ┘
//!                        Yours ◄────────── from here on it never runs here again
//!   sockets' paths, pid file: its own
//!   machine resumed (unless it was paused)
//!   Taken ───────────────────────────────► ends without a trace
//!   gone ◄──────────────────────────────── its end of the socket closes
//! ```
//! **Never two.** The old process gives the machine up by saying `Yours`, after which it
//! can't be resumed there; the new one runs nothing before it has heard that. Until then it
//! has written nowhere: devices are made held, paths and pid file left alone.
//!
//! **Never none without a reason.** Who dies closes the socket, however it dies.
//!
//! | dies | before `Yours` | between `Yours` and `Taken` | after |
//! |---|---|---|---|
//! | the new one | the machine goes on in the old one | nobody knows how far it ran: the old one writes the exit file, `crashed` | as any machine's process |
//! | the old one | as any machine's process: the new one ends, exit status 2 | nothing: the word is on its way | it was about to end |
//!
//! **Never by the front door.** A thread of the old process that a back end or a guest has
//! taken over could connect to the sockets that are handed over, and wait there for the new
//! process, to which it is another one. So those that look like the old process (by its id,
//! and between PID namespaces by its user) are hung up on, those too that waited when it
//! ended ([`Predecessor`]).
//!
//! **What is handed over** is what can't be opened twice: disks (whose locks belong to the
//! open file, and are never let go), queues of taps, listening sockets with those who wait
//! there; and what may be there no more: kernel and initrd, where the command line names
//! none. What can, the new process opens by its own command line: log, `/dev/kvm` and
//! `/dev/vhost-net`. KVM ties a VM to its process, so the new one makes its
//! own, of the state that a snapshot has too. Guest memory that is `shared` is mapped by
//! both and not copied; private memory is sent through the socket while the machine is
//! held, and there twice for as long.
//!
//! **What ends**: clients of the control and console sockets connect again; streams of the
//! socket device are reset, and its driver is told; counters begin at zero; dirty pages are
//! no longer followed.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hearth_vmm_api::ApiError;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use crate::handover::{Message, Word, ask_who, hear};
use crate::listener::{Listener, Predecessor};
use crate::machine::Inherited;

/// How long either side waits for a byte, or that one is taken. A disk may be slow to let
/// the machine be paused.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine that is being taken over.
pub(super) struct TakeOver {
    stream: UnixStream,
    sockets: BTreeMap<String, OwnedFd>,
    owns_paths: Arc<AtomicBool>,
    /// Who has it until then.
    predecessor: Arc<Predecessor>,
    /// Whether it is to run here.
    runs: bool,
}

/// The process that had the machine, which is about to end.
#[derive(Debug)]
pub(super) struct Leaving {
    stream: UnixStream,
    predecessor: Arc<Predecessor>,
}

impl Leaving {
    /// What to poll for its end.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether it still is there. Its end of the socket is closed by the last of its
    /// threads.
    pub(super) fn is_there(&self) -> bool {
        use rustix::io::Errno;
        match recv(&self.stream, &mut [0], RecvFlags::DONTWAIT) {
            // It has nothing more to say, but who is no longer itself may.
            Ok((_, 1..)) | Err(Errno::AGAIN | Errno::INTR) => true,
            Ok(_) | Err(_) => {
                self.predecessor.has_gone();
                false
            }
        }
    }
}

impl TakeOver {
    /// Asks the process whose control socket this is for its machine, and receives what
    /// can't be opened twice.
    ///
    /// # Errors
    /// One line; the machine goes on there.
    pub(super) fn begin(control: &Path) -> Result<(Self, Inherited), String> {
        let fail = |error: io::Error| {
            let why = match error.kind() {
                io::ErrorKind::UnexpectedEof => "it was not handed over".to_owned(),
                io::ErrorKind::WouldBlock => "nothing came in time".to_owned(),
                _ => error.to_string(),
            };
            format!("--take-over {}: {why}", control.display())
        };
        let (mut stream, theirs) = UnixStream::pair().map_err(fail)?;
        for end in [&stream, &theirs] {
            end.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
            end.set_write_timeout(Some(PATIENCE)).map_err(fail)?;
        }
        ask(control, theirs.into()).map_err(fail)?;
        let mut inherited = Inherited::new(stream.try_clone().map_err(fail)?);
        let mut sockets = BTreeMap::new();
        loop {
            let (message, mut files) = hear(&mut stream).map_err(fail)?;
            match message {
                Message::Socket(flag) => {
                    sockets.extend(files.pop().map(|socket| (flag, socket)));
                }
                Message::Device(id) => {
                    inherited.devices.insert(id, files);
                }
                Message::Software => {
                    inherited.software = files.into_iter().map(Into::into).collect();
                }
                Message::Memory => {
                    inherited.regions = files.into_iter().map(Into::into).collect();
                }
                Message::Prepared { runs } => {
                    ask_who(&stream).map_err(fail)?;
                    let taken = Self {
                        stream,
                        sockets,
                        owns_paths: Arc::clone(&inherited.owns_paths),
                        predecessor: Arc::default(),
                        runs,
                    };
                    return Ok((taken, inherited));
                }
            }
        }
    }

    /// The listening socket that the flag names in the other process, if it has one.
    pub(super) fn socket(&mut self, flag: &str, path: &Path) -> Option<Listener> {
        let socket = self.sockets.remove(flag)?;
        let (owns_paths, predecessor) = (&self.owns_paths, &self.predecessor);
        Some(Listener::adopt(socket, path, owns_paths, predecessor))
    }

    /// Everything is here and can run: has the other process give it up. Returns whether
    /// it is to be resumed.
    ///
    /// # Errors
    /// One line: it isn't given up, and must not run here.
    pub(super) fn take(&self) -> Result<bool, String> {
        let fail = |error: io::Error| format!("--take-over: the machine was kept back: {error}");
        Word::Ready.say(&self.stream).map_err(fail)?;
        // Nobody is let in who may be it, if the kernel doesn't say who it is.
        if let Some(who) = Word::Yours.wait(&self.stream).map_err(fail)? {
            self.predecessor.is(who);
        }
        self.owns_paths.store(true, Ordering::Relaxed);
        Ok(self.runs)
    }

    /// It runs, or is held as it was: lets the other process end.
    pub(super) fn taken(self) -> Leaving {
        // If it is gone, it has ended.
        let _ = Word::Taken.say(&self.stream);
        Leaving {
            stream: self.stream,
            predecessor: self.predecessor,
        }
    }
}

/// Asks for the machine, to be handed over on this socket.
fn ask(control: &Path, socket: OwnedFd) -> io::Result<()> {
    let mut stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let files = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    let request = b"PUT /v1/hand-over HTTP/1.1\r\nHost: vmm\r\n\r\n";
    let flags = SendFlags::NOSIGNAL;
    sendmsg(&stream, &[IoSlice::new(request)], &mut ancillary, flags)?;
    drop(socket);
    let mut answer = String::new();
    // One that fits an error is enough.
    (&mut stream).take(64 << 10).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 202 ") {
        return Ok(());
    }
    let why = serde_json::from_str(body).map(|ApiError { error }| error);
    let status = head.lines().next().unwrap_or_default();
    Err(io::Error::other(
        why.unwrap_or_else(|_| format!("it answered {status:?}")),
    ))
}
