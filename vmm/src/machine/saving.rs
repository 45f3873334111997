//! A snapshot on its way to the disk, on a thread of its own: however long that takes,
//! nobody else waits.
//!
//! ```text
//!   main thread        state read, files made ─► saving ───────────── paused again, answered
//!   thread "snapshot"                             └─ memory, state, names ─┘ rings
//! ```
//! The machine stays held for as long, so that what is written is of one moment.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::{Builder, JoinHandle};

use hearth_vmm_api::MachineState;
use vmm_sys_util::eventfd::EventFd;

use super::{Machine, Unsaved};
use crate::jail::{Allow, Argument, Profile, ThreadRole, confine_thread};
use crate::memory::{Cancel, Dirty, Memory};
use crate::snapshot::{FileId, Opened};

/// What the thread asks of the kernel: it writes files that are open, and gives or takes
/// their names.
pub(super) static PROFILE: Profile = Profile {
    thread: &[
        // A snapshot's memory, made a clone of the one before.
        Allow::when(libc::SYS_ioctl, &[Argument::is(1, FICLONE)]),
        Allow::any(libc::SYS_fallocate),
        Allow::any(libc::SYS_ftruncate),
        Allow::any(libc::SYS_fsync),
        Allow::any(libc::SYS_statx),
        Allow::any(libc::SYS_rename),
        Allow::any(libc::SYS_unlink),
    ],
    plug: &[],
};

/// `linux/fs.h`.
const FICLONE: u64 = 0x4004_9409;

/// What of memory is to be written.
pub(super) enum Content {
    /// All of it.
    Whole,
    /// What was written since a snapshot, over a clone of its memory.
    Since(File, Dirty),
}

/// One that is being written.
pub(super) struct Saving {
    thread: JoinHandle<()>,
    outcome: Receiver<io::Result<(u64, FileId)>>,
    cancel: Arc<Cancel>,
    /// Whether writes to memory are marked since.
    follow: bool,
}

impl Saving {
    /// Has a thread write it, which rings `bell` when it has done.
    pub(super) fn begin(
        files: Opened,
        memory: Memory,
        content: Content,
        follow: bool,
        bell: Arc<EventFd>,
    ) -> io::Result<Self> {
        let cancel = Arc::new(Cancel::default());
        let cancelled = Arc::clone(&cancel);
        let (sender, outcome) = sync_channel(1);
        let write = move || {
            confine_thread(ThreadRole::Device(&PROFILE)).map_err(io::Error::other)?;
            let memory = |file: &mut File| {
                let written = match &content {
                    Content::Whole => memory.save(file, &cancelled)?,
                    Content::Since(base, dirty) => {
                        memory.save_since(file, base, dirty, &cancelled)?
                    }
                };
                Ok((written, FileId::of(file)?))
            };
            files.write(memory, || cancelled.check())
        };
        let thread = Builder::new().name("snapshot".to_owned()).spawn(move || {
            // Nobody may be left who asks.
            let _ = sender.send(write());
            // Fails only when the counter is full, and then it is rung already.
            let _ = bell.write(1);
        })?;
        Ok(Self {
            thread,
            outcome,
            cancel,
            follow,
        })
    }

    /// Has it fail soon. A thread that a disk holds up is the process's end to end.
    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Whether nothing is written any more.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Machine {
    /// Has the snapshot that is being written fail soon, which [`saved`](Self::saved) tells.
    /// Returns whether there is one.
    pub fn cancel_snapshot(&self) -> bool {
        if let Some(saving) = &self.saving {
            saving.cancel();
        }
        self.saving.is_some()
    }

    /// What became of the snapshot that was begun, once: the bytes of memory written.
    /// None: it is still being written, or there is none.
    ///
    /// # Errors
    /// It could not be written, and there is none then.
    pub fn saved(&mut self) -> Option<Result<u64, Unsaved>> {
        let saving = self.saving.as_ref()?;
        let outcome = match saving.outcome.try_recv() {
            Ok(outcome) => outcome,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => {
                Err(io::Error::other("the thread that wrote it has panicked"))
            }
        };
        let follow = saving.follow;
        self.saving = None;
        self.state = MachineState::Paused;
        let outcome = outcome.map_err(Unsaved::Unwritten);
        self.followed = outcome.as_ref().ok().filter(|_| follow).map(|(_, id)| *id);
        Some(outcome.map(|(written, _)| written))
    }
}
