//! The memory of hibernated instances: saved, kept, and given out once.
//!
//! ```text
//!  pause ─ memory.new/ ─ the VMM writes, all is synced ─ rename ─► memory-BOOT/ ─ VMM ended
//!                                                                      │ rename, synced
//!             a VMM with --restore ◄─ memory.used/ ◄───────────────────┘
//! ```
//! A guest's memory knows what is on its disk: to go on from it after anything else ran
//! on that disk would ruin the file system. So memory can be gone on from under the name
//! `memory-BOOT` alone, and
//! - it gets that name last, when all of it is on the host's disk and the guest is held;
//! - whatever lets the guest run takes the name away *first*, and the folder is synced in
//!   between: a VMM that is started, with this memory or from cold, and one that is let
//!   go after all.
//!
//! It is the name that decides and not a record in the store: a power cut may take back a
//! transaction, but not a folder that was synced. And each change of it is made under the
//! instance's lock, which the thread that makes it holds, so that one whose caller has
//! gone away can't bring the name back later.
//!
//! Files are root's, mode 0600: a VMM gets them as open descriptors, or opens them before
//! it becomes its user.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_vmm_api::MachineState;
use rustix::fs::statvfs;
use tokio::sync::OwnedMutexGuard;

use super::folder::{Folder, absent_is_fine};
use super::{HostCompute, blocking, client, doing};
use crate::compute::{ComputeError, Kept, Observed};
use crate::model::InstanceId;

/// Being written: good for nothing.
const NEW: &str = "memory.new";
/// Given out: good for nothing else.
const USED: &str = "memory.used";
/// What the name of kept memory begins with; the boot that it is of follows.
const WHOLE: &str = "memory-";
/// How long a VMM's disks may take to finish what they have begun.
const PAUSE_DEADLINE: Duration = Duration::from_secs(60);
/// How often is looked whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often a VMM is asked whose guest is just doing what can't be saved, as a reset.
const TRIES: u32 = 5;
/// How long such a guest has to be through with it.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Size of the blocks that `st_blocks` counts, in bytes: stat(2).
const BLOCK: u64 = 512;

/// An instance's lock, held.
type Held = OwnedMutexGuard<()>;

/// Does what blocks under a lock, which is held until it is through even if nobody waits
/// for it any more.
async fn under<T: Send + 'static>(
    held: Held,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<(T, Held)> {
    blocking(move || f().map(|done| (done, held))).await
}

/// An instance's memory, in its folder.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    folder: PathBuf,
}

impl Memory {
    pub(super) fn of(folder: &Folder) -> Self {
        Self {
            folder: folder.path().to_owned(),
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn whole(&self, boot: u64) -> PathBuf {
        self.place(&format!("{WHOLE}{boot}"))
    }

    /// The boots whose memory is kept, and whether there is anything else of any.
    fn look(&self) -> io::Result<(Vec<u64>, bool)> {
        let (mut boots, mut rest) = (Vec::new(), false);
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((boots, rest)),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            boots.extend(name.strip_prefix(WHOLE).and_then(|n| n.parse::<u64>().ok()));
            rest |= name == NEW || name == USED;
        }
        Ok((boots, rest))
    }

    /// What is kept.
    pub(super) fn kept(&self) -> io::Result<Option<Kept>> {
        Ok(match self.look()? {
            (boots, false) if boots.is_empty() => None,
            (boots, _) => match boots[..] {
                [boot] => Some(Kept::Whole { boot }),
                // There is never more than one.
                _ => Some(Kept::Rest),
            },
        })
    }

    /// Makes the files that memory and the rest of the machine go into, open.
    fn begin(&self) -> io::Result<[File; 2]> {
        self.discard()?;
        DirBuilder::new().mode(0o700).create(self.place(NEW))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        // As the VMM calls them where it has a folder.
        let memory = options.open(self.place(NEW).join("memory"))?;
        let state = options.open(self.place(NEW).join("machine.json"))?;
        Ok([memory, state])
    }

    /// What was written is whole, and on the disk but for its names. So is what the guest
    /// wrote, first: it has that for written, and a power cut must not take back any of it
    /// and leave the memory.
    fn keep(&self, boot: u64, disks: &[PathBuf]) -> io::Result<()> {
        for disk in disks {
            sync(disk)?;
        }
        sync(&self.place(NEW))?;
        fs::rename(self.place(NEW), self.whole(boot))?;
        sync(&self.folder)
    }

    /// Takes its name from whatever memory is kept: when this returns, none can be gone on
    /// from any more. What it was given to removes it.
    fn withdraw(&self) -> io::Result<()> {
        for boot in self.look()?.0 {
            absent_is_fine(fs::remove_dir_all(self.place(USED)))?;
            fs::rename(self.whole(boot), self.place(USED))?;
            sync(&self.folder)?;
        }
        Ok(())
    }

    /// Removes what a VMM that runs was given: it has it open.
    pub(super) fn remove_used(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(self.place(USED)))
    }

    /// Removes what is good for nothing.
    pub(super) fn sweep(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(self.place(NEW)))?;
        absent_is_fine(fs::remove_dir_all(self.place(USED)))
    }

    /// Removes all of it, so that none of it can ever be gone on from.
    pub(super) fn discard(&self) -> io::Result<()> {
        self.withdraw()?;
        self.sweep()
    }

    /// Before a launch, from this boot's memory or from cold: no other is left.
    pub(super) fn keep_only(&self, boot: Option<u64>) -> io::Result<()> {
        match (self.kept()?, boot) {
            (None, _) => Ok(()),
            (Some(Kept::Whole { boot: kept }), Some(boot)) if kept == boot => self.sweep(),
            _ => self.discard(),
        }
    }

    /// The folder with this boot's memory, for the one VMM that ever gets it.
    pub(super) fn take(&self, boot: u64) -> io::Result<Option<PathBuf>> {
        if !self.whole(boot).try_exists()? {
            return Ok(None);
        }
        self.withdraw()?;
        Ok(Some(self.place(USED)))
    }

    /// What it takes on the disk, in bytes.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        let (boots, rest) = self.look()?;
        let mut places: Vec<_> = boots.into_iter().map(|boot| self.whole(boot)).collect();
        if rest {
            places.extend([NEW, USED].map(|name| self.place(name)));
        }
        let mut bytes = 0;
        for place in places {
            // It may have been removed meanwhile.
            let taken = fs::metadata(place.join("memory"));
            absent_is_fine(taken.map(|file| bytes += file.blocks() * BLOCK))?;
        }
        Ok(bytes)
    }
}

/// Has the names in a folder, or what is in a file, outlast a power cut.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl HostCompute {
    fn memory(&self, id: &InstanceId) -> Memory {
        Memory::of(&self.folder(id))
    }

    /// What is kept of an instance's memory.
    pub(super) async fn look_for_memory(
        &self,
        id: &InstanceId,
    ) -> Result<Option<Kept>, ComputeError> {
        let memory = self.memory(id);
        let kept = blocking(move || memory.kept()).await;
        doing(format!("looking for the memory of {id}"), kept)
    }

    /// Removes an instance's memory.
    pub(super) async fn remove_memory(&self, id: &InstanceId) -> Result<(), ComputeError> {
        let held = self.lock(id).lock_owned().await;
        let memory = self.memory(id);
        let removed = under(held, move || memory.discard()).await;
        doing(format!("removing the memory of {id}"), removed).map(drop)
    }

    /// What the memory of all instances takes on the disk, in bytes.
    pub(super) fn memory_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.instances)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_instance = name
                .to_str()
                .is_some_and(|name| name.parse::<InstanceId>().is_ok());
            if is_instance && entry.file_type()?.is_dir() {
                let folder = entry.path();
                bytes += Memory { folder }.bytes()?;
            }
        }
        Ok(bytes)
    }

    /// Saves an instance's memory and leaves it held, unless that was done.
    pub(super) async fn save_memory(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        let held = self.lock(id).lock_owned().await;
        if self.look_for_memory(id).await? == Some(Kept::Whole { boot }) {
            return Ok(());
        }
        let socket = self.live_socket(id).await?;
        match doing("looking", self.state(id).await)? {
            Observed::Running { boot: running, .. } if running == boot => {}
            _ => return Err(ComputeError::NotRunning(id.clone())),
        }
        let launch = doing("reading its launch", self.folder(id).launch())?;
        let launch = launch.ok_or_else(|| ComputeError::NotRunning(id.clone()))?;
        let disks = launch.spec.disks.into_iter().map(|disk| disk.path);
        let (memory, disks) = (self.memory(id), disks.collect());
        let saved = self.save(&socket, &memory, disks, boot, held).await;
        if saved.is_err()
            // Who presses the power button tries that again.
            && let Err(error) = self.let_go(id).await
        {
            tracing::warn!(instance = %id, %error, "it is held, and can't be let go");
        }
        doing(format!("saving the memory of {id}"), saved)
    }

    async fn save(
        &self,
        socket: &Path,
        memory: &Memory,
        disks: Vec<PathBuf>,
        boot: u64,
        mut held: Held,
    ) -> io::Result<()> {
        let machine = client::machine(socket).await?;
        self.check_room(machine.memory_bytes)?;
        for left in (0..TRIES).rev() {
            let begun = memory.clone();
            let files;
            // Before it is held: by the files is seen that it may be to be let go.
            (files, held) = under(held, move || begun.begin()).await?;
            pause(socket).await?;
            match client::snapshot(socket, files).await {
                Ok(()) => {
                    let written = memory.clone();
                    let kept = under(held, move || written.keep(boot, &disks)).await;
                    return kept.map(drop);
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && left > 0 => {
                    tracing::debug!(%error, "its memory can't be saved now");
                    held = let_go(socket, memory, held).await?;
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("it is never as it can be saved"))
    }

    /// Whether so much can be written without taking from what the host keeps free.
    fn check_room(&self, bytes: u64) -> io::Result<()> {
        let space = statvfs(&self.instances)?;
        let free = (space.f_bavail * space.f_frsize).saturating_sub(self.disk_reserve);
        if free >= bytes {
            return Ok(());
        }
        let message =
            format!("its memory takes {bytes} bytes, and {free} are free beyond the reserve");
        Err(io::Error::new(io::ErrorKind::StorageFull, message))
    }

    /// Has an instance that was to be hibernated run on: its memory is good for nothing
    /// from then on. Nothing was held: nothing is done.
    pub(super) async fn let_go(&self, id: &InstanceId) -> Result<(), ComputeError> {
        let held = self.lock(id).lock_owned().await;
        if self.look_for_memory(id).await?.is_none() {
            return Ok(());
        }
        let socket = self.live_socket(id).await?;
        let gone_on = let_go(&socket, &self.memory(id), held).await;
        doing(format!("letting {id} go on"), gone_on).map(drop)
    }
}

/// Holds a machine. What a `hearth` that was killed had saved of it is waited for.
async fn pause(socket: &Path) -> io::Result<()> {
    client::put(socket, "pause").await?;
    let mut since = Instant::now();
    loop {
        match client::machine(socket).await?.state {
            MachineState::Paused => return Ok(()),
            MachineState::Saving => since = Instant::now(),
            _ if since.elapsed() > PAUSE_DEADLINE => {
                let late = "its disks are not done";
                return Err(io::Error::new(io::ErrorKind::TimedOut, late));
            }
            _ => {}
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Lets a machine go on: first its memory loses its name. What is removed last tells that
/// it is to be let go, to whoever comes after a crash.
async fn let_go(socket: &Path, memory: &Memory, held: Held) -> io::Result<Held> {
    let (first, last) = (memory.clone(), memory.clone());
    let ((), held) = under(held, move || first.withdraw()).await?;
    client::put(socket, "resume").await?;
    let ((), held) = under(held, move || last.sweep()).await?;
    Ok(held)
}
