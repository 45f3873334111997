//! A debugger's way in: gdb's remote protocol on a Unix socket, for one gdb at a time.
//!
//! ```text
//!   main loop ── progress ──► Debugger ── one gdb: Session ── packets ──► gdbstub
//!                                            │ hold, held                    │ Target
//!                                            ▼                               ▼
//!                                         Machine ◄── Access: calls ────── Guest
//! ```
//! Whoever attaches has the machine, its memory and its registers, as who has the control
//! socket does: the socket is this user's only. Where nobody is attached, nothing of it
//! is in a vCPU's way. While a snapshot is being written, gdb reads what it likes and changes
//! nothing (EBUSY), and one that leaves is let go when it is written.

mod guest;
mod session;
mod target;

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use self::session::Session;
use crate::listener::Listener;
use crate::machine::Machine;

/// The socket, and who is attached.
pub struct Debugger {
    listener: Listener,
    session: Option<Session>,
}

impl Debugger {
    /// Listens at `path`.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind(path: &Path) -> Result<Self, String> {
        Listener::bind("--gdb", path).map(Self::new)
    }

    /// Serves who connects here.
    #[must_use]
    pub fn new(listener: Listener) -> Self {
        Self {
            listener,
            session: None,
        }
    }

    /// The listening socket.
    #[must_use]
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// What to poll: each descriptor, and events as of poll(2).
    pub fn interests(&self) -> impl Iterator<Item = (RawFd, libc::c_short)> {
        let listener = (self.listener.as_raw_fd(), libc::POLLIN);
        let listener = (!self.is_leaving()).then_some(listener);
        let session = self.session.as_ref().and_then(Session::interest);
        listener.into_iter().chain(session)
    }

    /// Does what can be done without waiting.
    pub fn progress(&mut self, machine: &mut Machine) {
        self.session.take_if(|session| !session.progress(machine));
        while !self.is_leaving()
            && let Some(stream) = self.listener.accept(|| false)
        {
            // A second one reads that the connection was closed.
            if self.session.is_none() {
                self.session = Some(Session::new(stream, machine));
                self.session.take_if(|session| !session.progress(machine));
            }
        }
    }

    /// Who comes next waits for it.
    fn is_leaving(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_leaving)
    }

    /// Says to who is attached that the machine has ended, as a process of this status.
    pub fn end(self, status: u8) {
        if let Some(session) = self.session {
            session.end(status);
        }
    }
}
