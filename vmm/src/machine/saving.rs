//! A snapshot on its way to the disk, on a thread of its own: however long that takes, be
//! it that its files are opened, nobody else waits.
//!
//! ```text
//!   main thread        saving ───────────────── state read ──────────────── paused again, answered
//!   thread "snapshot"   └─ files opened ─┘ rings   └─ memory, state, names ─┘ rings
//! ```
//! The machine stays held for as long, so that what is written is of one moment. The thread
//! is confined to what it writes with once its files are open, and then it reads memory.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{Builder, JoinHandle};

use hearth_vmm_api::MachineState;
use vmm_sys_util::eventfd::EventFd;

use super::snapshot::{MachineV1, NOT_FOLLOWED};
use super::{Machine, Unsaved, template};
use crate::jail::{Allow, Argument, Profile, ThreadRole, confine_thread};
use crate::memory::{Cancel, Dirty, Memory};
use crate::smbios::Identity;
use crate::snapshot::{Destination, FileId, Opened, Source};

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

/// What is to be saved, and where: no file of it is open yet but those that came along.
pub(super) struct Order {
    pub(super) destination: Destination,
    /// The folder of the snapshot since which memory is to be saved.
    pub(super) base: Option<PathBuf>,
    /// The memory of the last one, if that was to be followed.
    pub(super) followed: Option<FileId>,
    pub(super) memory: Memory,
    /// Whether writes to memory are marked from then on.
    pub(super) follow: bool,
}

/// What the machine is, once its files are there.
struct Content {
    state: MachineV1,
    /// Of a template: what is to be found in its memory.
    identity: Option<Identity>,
    /// What was written since the last one, if that was marked.
    dirty: Option<Dirty>,
}

/// One that is being written.
pub(super) struct Saving {
    thread: JoinHandle<()>,
    /// Whether its files are there, which is said once.
    opened: Receiver<Result<(), Unsaved>>,
    /// What they wait for. Nobody sends it: they go again.
    content: Option<SyncSender<Box<Content>>>,
    outcome: Receiver<Result<(u64, FileId), Unsaved>>,
    cancel: Arc<Cancel>,
    /// Why nothing comes of it, which is said once its files are gone again.
    failed: Option<Unsaved>,
    /// Whether writes to memory are marked since.
    follow: bool,
}

/// The files of an order, and memory of its base.
fn open(order: Order) -> Result<(Opened, Option<File>), Unsaved> {
    let base = order.base.map(|folder| {
        let base = Source::open(&folder);
        let base = base.map_err(|refused| Unsaved::Base(io::Error::other(refused)))?;
        let base = base.memory;
        match order.followed == Some(FileId::of(&base).map_err(Unsaved::Base)?) {
            true => Ok(base),
            false => Err(Unsaved::NotNow(NOT_FOLLOWED)),
        }
    });
    let base = base.transpose()?;
    let files = order.destination.open().map_err(Unsaved::Unwritten)?;
    Ok((files, base))
}

fn write(
    files: Opened,
    base: Option<File>,
    content: Content,
    memory: &Memory,
    cancel: &Cancel,
) -> Result<(u64, FileId), Unsaved> {
    let Content {
        mut state,
        identity,
        dirty,
    } = content;
    if let Some(identity) = identity {
        state.template = Some(template::find(memory, &identity)?);
    }
    let save = |file: &mut File| {
        let written = match (&base, &dirty) {
            (Some(base), Some(dirty)) => memory.save_since(file, base, dirty, cancel)?,
            _ => memory.save(file, cancel)?,
        };
        Ok((written, FileId::of(file)?))
    };
    let written = files.write(&state, save, || cancel.check());
    written.map_err(Unsaved::Unwritten)
}

impl Saving {
    /// Has a thread make the files and then, once it has the content, write them. It rings
    /// `bell` when it has done either.
    pub(super) fn begin(order: Order, bell: Arc<EventFd>) -> io::Result<Self> {
        let cancel = Arc::new(Cancel::default());
        let cancelled = Arc::clone(&cancel);
        let (say_opened, opened) = sync_channel(1);
        let (content, awaited) = sync_channel::<Box<Content>>(1);
        let (sender, outcome) = sync_channel(1);
        let follow = order.follow;
        // Fails only when the counter is full, and then it is rung already.
        let ring = move || drop(bell.write(1));
        let thread = Builder::new().name("snapshot".to_owned()).spawn(move || {
            let memory = Arc::clone(&order.memory);
            // As the main thread opens files: so far, nothing confines it further.
            let (files, base) = match open(order) {
                Ok(opened) => opened,
                Err(unsaved) => {
                    // Nobody may be left who asks.
                    let _ = say_opened.send(Err(unsaved));
                    return ring();
                }
            };
            let _ = say_opened.send(Ok(()));
            ring();
            let Ok(content) = awaited.recv() else {
                // Before anybody hears of it: the next one may go to the same place.
                drop((files, base));
                let _ = sender.send(Err(given_up()));
                return ring();
            };
            let confined = confine_thread(ThreadRole::Device(&PROFILE));
            let written = confined
                .map_err(|error| Unsaved::Unwritten(io::Error::other(error)))
                .and_then(|()| write(files, base, *content, &memory, &cancelled));
            let _ = sender.send(written);
            ring();
        })?;
        Ok(Self {
            thread,
            opened,
            content: Some(content),
            outcome,
            cancel,
            failed: None,
            follow,
        })
    }

    /// Has it fail soon.
    fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Has its thread end soon. One that a disk holds up is the process's end to end.
    pub(super) fn end(&mut self) {
        self.content = None;
        self.cancel();
    }

    /// Whether nothing is written any more.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Machine {
    /// Has the snapshot that is being written fail soon, which [`saved`](Self::saved) tells:
    /// at once, if its files aren't open yet. Returns whether there is one.
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
        let saving = self.saving.as_mut()?;
        let outcome = match saving.content.is_some() {
            true => match heard(&saving.opened) {
                // Its disk may never answer.
                None => {
                    saving.cancel.check().err()?;
                    saving.content = None;
                    self.given_up = self.saving.take();
                    Err(given_up())
                }
                Some(Ok(())) => {
                    let failed = self.save_content().err();
                    if let Some(saving) = self.saving.as_mut().filter(|_| failed.is_some()) {
                        saving.failed = failed;
                        saving.content = None;
                    }
                    self.written()?
                }
                Some(Err(unsaved)) => Err(unsaved),
            },
            false => self.written()?,
        };
        self.saving = None;
        self.state = MachineState::Paused;
        Some(outcome)
    }

    /// What its thread says last, or why it was to write nothing. None: it has not said it.
    fn written(&mut self) -> Option<Result<u64, Unsaved>> {
        let saving = self.saving.as_mut()?;
        let outcome = heard(&saving.outcome)?;
        if let Some(unsaved) = saving.failed.take() {
            return Some(Err(unsaved));
        }
        let followed = outcome.as_ref().ok().filter(|_| saving.follow);
        self.followed = followed.map(|(_, id)| *id);
        Some(outcome.map(|(written, _)| written))
    }

    /// Its files are there: says what is to be written.
    fn save_content(&mut self) -> Result<(), Unsaved> {
        let mut follow = false;
        if let Some(saving) = &self.saving {
            saving.cancel.check().map_err(Unsaved::Unwritten)?;
            follow = saving.follow;
        }
        let state = self.read_state()?;
        self.followed = None;
        // Before it is written, while nobody writes: what fails then has left no snapshot.
        let dirty = match self.memory.is_tracking() {
            true => Some(self.take_dirty()?),
            false => None,
        };
        match (self.memory.is_tracking(), follow) {
            (false, true) => self.begin_dirty_tracking()?,
            (true, false) => self.end_dirty_tracking()?,
            _ => {}
        }
        let content = Content {
            state,
            identity: self.template.map(|_| self.identity.clone()),
            dirty,
        };
        let sender = self
            .saving
            .as_mut()
            .and_then(|saving| saving.content.take());
        let sent = sender.map(|sender| sender.send(Box::new(content)));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(Unsaved::Unwritten(io::Error::other(PANICKED))),
        }
    }
}

fn given_up() -> Unsaved {
    Unsaved::Unwritten(io::Error::other("it was cancelled"))
}

/// What a thread has said; none: nothing yet.
fn heard<T>(receiver: &Receiver<Result<T, Unsaved>>) -> Option<Result<T, Unsaved>> {
    match receiver.try_recv() {
        Ok(said) => Some(said),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => {
            Some(Err(Unsaved::Unwritten(io::Error::other(PANICKED))))
        }
    }
}

/// Why nothing comes of it any more.
const PANICKED: &str = "the thread that wrote it has panicked";
