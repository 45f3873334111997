//! Files of disks, opened and asked for their size beside the main loop: a network's file
//! system may take its time with either, and nobody waits for it but who asked.
//!
//! ```text
//!   main thread   add_disk ───────────────────────── plug ─► finished, answered late
//!                 change_disk ─┐                   ┌─ new size ─► the same
//!   thread "disk-file"         └─ open, lock, size ┘ rings
//! ```

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::Builder;

use hearth_vmm_api as api;
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

use super::context::{self, Found};
use super::devices::{self, Look};
use super::{Error, Machine, host_error};
use crate::config;
use crate::jail::{Allow, Argument, Profile, ThreadRole, confine_thread};
use crate::virtio::limit::Limits;

/// What the thread asks of the kernel.
pub(super) static PROFILE: Profile = Profile {
    thread: &[
        Allow::any(libc::SYS_openat),
        Allow::any(libc::SYS_statx),
        Allow::when(
            libc::SYS_fcntl,
            &[Argument::is(1, libc::F_OFD_SETLK as u64)],
        ),
    ],
    plug: &[],
};

/// As many threads at once, however many are forgotten meanwhile: one that its file system
/// holds can't be ended.
const MAX_ERRANDS: usize = 64;

/// As many of them for one storage, so that one that is dead leaves threads for others.
const MAX_PER_STORAGE: usize = 16;

/// As many looks at one disk: who is answered by the second is told the newest size.
const MAX_LOOKS: usize = 2;

/// Bytes of the stack of one, which does hardly anything.
const STACK_SIZE: usize = 64 << 10;

/// Something that is begun, and answered later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errand(u64);

/// What came of an errand.
#[derive(Debug)]
pub enum Outcome {
    /// A disk was to be put in.
    Added(Result<Option<api::Disk>, Error>),
    /// A disk's size was to be looked at; none: the disk is gone.
    Resized(Result<Option<api::Disk>, Error>),
}

/// A disk whose size is to be looked at again.
#[derive(Debug)]
pub enum Resize {
    /// What there is to say of it.
    Now(api::Disk),
    /// That comes later.
    Later(Errand),
}

enum Purpose {
    Plug(config::Disk),
    Resize(String, Option<Limits>),
}

/// What answers for a disk's file, as far as that is known without asking it.
#[derive(PartialEq, Eq)]
enum Storage {
    /// The device of its file system, or the file itself, if that is a block device: major
    /// and minor number.
    Device(u32, u32),
    /// The folder that it is to be opened in.
    Folder(PathBuf),
}

impl Storage {
    /// That of an open file.
    fn of(file: &impl AsFd) -> Option<Self> {
        // What the kernel knows: no file system is asked.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let known = statx(file, "", flags, StatxFlags::TYPE).ok()?;
        let kind = FileType::from_raw_mode(known.stx_mode.into());
        Some(match kind {
            FileType::BlockDevice => Self::Device(known.stx_rdev_major, known.stx_rdev_minor),
            _ => Self::Device(known.stx_dev_major, known.stx_dev_minor),
        })
    }

    /// That of a disk that is open already, or to be opened.
    fn of_disk(disk: &config::Disk, file: Option<&OwnedFd>) -> Self {
        let open = file.and_then(Self::of);
        open.unwrap_or_else(|| {
            let folder = disk.path.parent().unwrap_or(&disk.path);
            Self::Folder(folder.to_owned())
        })
    }
}

impl Purpose {
    /// The disk's name.
    fn id(&self) -> &str {
        match self {
            Self::Plug(disk) => &disk.id,
            Self::Resize(id, _) => id,
        }
    }

    fn looks_at(&self, disk: &str) -> bool {
        matches!(self, Self::Resize(id, _) if id == disk)
    }
}

enum Answer {
    Opened(Result<Found, Error>),
    Size(io::Result<u64>),
}

struct UnderWay {
    errand: Errand,
    /// None: nobody wants it any more, and its thread is still there.
    purpose: Option<Purpose>,
    /// What the thread knows of that.
    is_wanted: Arc<AtomicBool>,
    /// Where the thread waits; none: that isn't known.
    storage: Option<Storage>,
    answer: Receiver<Answer>,
}

impl UnderWay {
    /// Has it be wanted no more if it is what is meant; returns whether it is.
    fn forget_if(&mut self, is_meant: impl FnOnce(&mut Purpose) -> bool) -> bool {
        let is_forgotten = self.purpose.take_if(is_meant).is_some();
        if is_forgotten {
            self.is_wanted.store(false, Ordering::SeqCst);
        }
        is_forgotten
    }
}

/// Those under way, as they were begun, and what came of others.
#[derive(Default)]
pub(super) struct Errands {
    count: u64,
    under_way: Vec<UnderWay>,
    done: Vec<(Errand, Outcome)>,
}

impl Errands {
    /// The disks that are to be plugged.
    fn opening(&self) -> impl Iterator<Item = &str> {
        self.under_way.iter().filter_map(|one| match &one.purpose {
            Some(Purpose::Plug(disk)) => Some(&*disk.id),
            _ => None,
        })
    }
}

impl Machine {
    /// Puts a disk in, which may be open already, and notifies the guest: once that is done,
    /// [`Self::finished`] says so.
    ///
    /// # Errors
    /// When the name is taken, or too much else is under way.
    pub fn add_disk(&mut self, disk: config::Disk, file: Option<OwnedFd>) -> Result<Errand, Error> {
        self.may_plug(&config::Device::Disk(disk.clone()))?;
        let storage = Some(Storage::of_disk(&disk, file.as_ref()));
        let opened = disk.clone();
        let open = move |is_wanted: &AtomicBool| {
            let is_wanted = || is_wanted.load(Ordering::SeqCst);
            Answer::Opened(context::open_wanted_disk(&opened, file, is_wanted))
        };
        self.begin(Purpose::Plug(disk), storage, open)
    }

    /// Looks at a disk's size again and notifies the guest if it changed; then it has these
    /// limits too, if any are given. None: there is no disk of this name.
    ///
    /// # Errors
    /// When too much else is under way, or another process serves it and it can't have
    /// limits; nothing has changed then.
    pub fn change_disk(
        &mut self,
        id: &str,
        limits: Option<Limits>,
    ) -> Result<Option<Resize>, Error> {
        match self.devices.look_at_disk(id, limits)? {
            None => Ok(None),
            Some(Look::Asked(disk)) => Ok(Some(Resize::Now(disk))),
            Some(Look::At(handle)) => {
                let looks = self.errands.under_way.iter();
                let looks =
                    looks.filter(|one| one.purpose.as_ref().is_some_and(|p| p.looks_at(id)));
                if looks.count() >= MAX_LOOKS {
                    let why = "its file doesn't say how big it is, and was asked before";
                    return Err(Error::Device(format!("{id}: {why}")));
                }
                let storage = Storage::of(&handle);
                let look = move |_: &AtomicBool| Answer::Size(handle.size());
                let purpose = Purpose::Resize(id.to_owned(), limits);
                let errand = self.begin(purpose, storage, look)?;
                Ok(Some(Resize::Later(errand)))
            }
        }
    }

    /// What came of an errand, each once.
    pub fn finished(&mut self) -> Option<(Errand, Outcome)> {
        self.errands.done.pop()
    }

    fn begin(
        &mut self,
        purpose: Purpose,
        storage: Option<Storage>,
        work: impl FnOnce(&AtomicBool) -> Answer + Send + 'static,
    ) -> Result<Errand, Error> {
        let all = &self.errands.under_way;
        let beside = all.iter().filter(|one| one.storage == storage).count();
        let why = if beside >= MAX_PER_STORAGE {
            Some("too many other disks there are being opened or looked at")
        } else if all.len() >= MAX_ERRANDS {
            Some("too many other disks are being opened or looked at")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(Error::Device(format!("{}: {why}", purpose.id())));
        }
        let is_wanted = Arc::new(AtomicBool::new(true));
        let wanted = Arc::clone(&is_wanted);
        let (sender, answer) = channel();
        let bell = Arc::clone(&self.quieted);
        let run = move || {
            // Dropped without a word, it says that nothing comes of it.
            if confine_thread(ThreadRole::Device(&PROFILE)).is_ok() {
                // Nobody may be left who asks.
                let _ = sender.send(work(&wanted));
            }
            drop(sender);
            // Fails only when the counter is full, and then it is rung already.
            let _ = bell.write(1);
        };
        let thread = Builder::new().name("disk-file".to_owned());
        let spawned = thread.stack_size(STACK_SIZE).spawn(run);
        spawned.map_err(host_error("a thread to open a disk"))?;
        self.errands.count += 1;
        let errand = Errand(self.errands.count);
        self.errands.under_way.push(UnderWay {
            errand,
            purpose: Some(purpose),
            is_wanted,
            storage,
            answer,
        });
        Ok(errand)
    }

    /// Goes on with what was opened or looked at. What was asked of one disk is done in
    /// that order, so that the last size is the newest.
    pub(super) fn finish_errands(&mut self) {
        let is_resetting = self.state == api::MachineState::Resetting;
        if self.state == api::MachineState::HandingOver {
            // What the other process has been told stays as it is.
            return;
        }
        self.forget_looks();
        let mut waits = BTreeSet::new();
        for mut one in std::mem::take(&mut self.errands.under_way) {
            let is_early = match &one.purpose {
                Some(purpose @ Purpose::Plug(_)) => is_resetting || waits.contains(purpose.id()),
                Some(purpose) => waits.contains(purpose.id()),
                None => false,
            };
            let answer = match is_early {
                true => Err(TryRecvError::Empty),
                false => one.answer.try_recv(),
            };
            if let Err(TryRecvError::Empty) = answer {
                waits.extend(one.purpose.as_ref().map(|purpose| purpose.id().to_owned()));
                self.errands.under_way.push(one);
                continue;
            }
            let outcome = match (one.purpose.take(), answer) {
                (None, _) => continue,
                (Some(Purpose::Plug(disk)), Ok(Answer::Opened(found))) => {
                    Outcome::Added(found.and_then(|found| self.plug_disk(&disk, found)))
                }
                (Some(Purpose::Resize(id, limits)), Ok(Answer::Size(size))) => {
                    let size = size.map_err(host_error("look at the disk's size"));
                    Outcome::Resized(size.map(|size| self.devices.disk_has(&id, size, limits)))
                }
                (Some(Purpose::Plug(_)), _) => Outcome::Added(Err(gone())),
                (Some(Purpose::Resize(..)), _) => Outcome::Resized(Err(gone())),
            };
            self.errands.done.push((one.errand, outcome));
        }
    }

    /// Forgets looks at disks that are gone: nothing waits for a file that may never answer.
    fn forget_looks(&mut self) {
        let devices = &self.devices;
        let is_gone = |purpose: &mut Purpose| match purpose {
            Purpose::Resize(id, _) => !devices.has(id),
            Purpose::Plug(_) => false,
        };
        for one in &mut self.errands.under_way {
            if one.forget_if(is_gone) {
                self.errands
                    .done
                    .push((one.errand, Outcome::Resized(Ok(None))));
            }
        }
    }

    fn plug_disk(&mut self, disk: &config::Disk, found: Found) -> Result<Option<api::Disk>, Error> {
        let made = self.context.disk(disk, found)?;
        let slot = self.plug(made, None)?;
        let description = self.devices.at(slot).and_then(devices::Device::disk);
        self.notify_guest(|registers| registers.slot_filled(slot))?;
        Ok(description)
    }

    /// Whether a disk of this name is to be plugged once its file is open.
    pub(super) fn is_opening(&self, id: &str) -> bool {
        self.errands.opening().any(|other| other == id)
    }

    /// Whether somebody waits for what is opened or looked at.
    pub(super) fn opens(&self) -> bool {
        let mut all = self.errands.under_way.iter();
        all.any(|one| one.purpose.is_some())
    }

    /// Disks that aren't plugged yet.
    pub(super) fn opening(&self) -> impl Iterator<Item = api::Connecting> {
        self.errands.opening().map(|id| api::Connecting {
            id: id.to_owned(),
            error: None,
        })
    }

    /// Forgets a disk whose file isn't open yet, and says so to who asked for it; false:
    /// there is none of this name.
    pub fn forget_opening(&mut self, id: &str) -> bool {
        let is_it = |purpose: &mut Purpose| matches!(purpose, Purpose::Plug(disk) if disk.id == id);
        let mut all = self.errands.under_way.iter_mut();
        let Some(errand) = all.find_map(|one| one.forget_if(is_it).then_some(one.errand)) else {
            return false;
        };
        let why = Error::Device(format!("{id}: it was taken away before its file was open"));
        self.errands.done.push((errand, Outcome::Added(Err(why))));
        true
    }
}

fn gone() -> Error {
    Error::Device("the thread that looked at the disk's file is gone".to_owned())
}
