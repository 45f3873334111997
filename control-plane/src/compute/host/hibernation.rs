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
//! A VMM that ends before it has noted its process id never let its guest run. Where that
//! was no fault of the memory (it is damaged, or of another machine than this), the memory
//! gets its name back when nothing of that VMM is left, and the launch is tried again.
//!
//! It is the name that decides and not a record in the store: a power cut may take back a
//! transaction, but not a folder that was synced. And each change of it is made under the
//! instance's lock, which the thread that makes it holds, so that one whose caller has
//! gone away can't bring the name back later.
//!
//! A `hearth` that is killed leaves a VMM that goes on saving. The next one waits for it, and
//! gives the name to what it has written: the guest was held all the while, for whoever
//! lets it go removes that first.
//!
//! A save is given up where the disk runs short ([`super::room`]): what it has written goes
//! at once, then the VMM is told, and its guest goes on to be stopped as one that can't be
//! hibernated.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_vmm_api::MachineState;
use tokio::sync::OwnedMutexGuard;

use super::memory::Memory;
use super::{HostCompute, blocking, client, doing, instances_in};
use crate::compute::{ComputeError, Kept, Observed};
use crate::model::InstanceId;

/// How long a VMM's disks may take to finish what they have begun.
const PAUSE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a VMM may take to stop saving: the disk may be slow with what it has.
const CANCEL_DEADLINE: Duration = Duration::from_secs(20);
/// How often is looked whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often a VMM is asked whose guest is just doing what can't be saved, as a reset.
const TRIES: u32 = 5;
/// How long such a guest has to be through with it.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// An instance's lock, held for as long as anybody has one of these.
pub(super) type Held = Arc<OwnedMutexGuard<()>>;

/// Does what blocks under a lock, which is held until it is through even if nobody waits
/// for it any more.
pub(super) async fn under<T: Send + 'static>(
    held: &Held,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let held = Arc::clone(held);
    blocking(move || {
        let _held = held;
        f()
    })
    .await
}

/// An instance whose memory is saved, and what is needed for it.
struct Saved<'a> {
    id: &'a InstanceId,
    socket: PathBuf,
    memory: Memory,
    boot: u64,
    /// Those that it knows.
    disks: Vec<PathBuf>,
    /// The most that it takes, in bytes.
    bytes: u64,
    held: Held,
}

impl HostCompute {
    fn memory(&self, id: &InstanceId) -> Memory {
        Memory::of(&self.folder(id))
    }

    /// The instance's lock, once nobody else has it.
    pub(super) async fn hold(&self, id: &InstanceId) -> Held {
        Arc::new(self.lock(id).lock_owned().await)
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
        let held = self.hold(id).await;
        let memory = self.memory(id);
        let removed = under(&held, move || memory.discard()).await;
        doing(format!("removing the memory of {id}"), removed)
    }

    /// What the memory of all instances takes on the disk, in bytes.
    pub(super) fn memory_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for (_, folder) in instances_in(&self.instances)? {
            bytes += Memory::at(folder).bytes()?;
        }
        Ok(bytes)
    }

    /// Saves an instance's memory and leaves it held, unless that was done.
    pub(super) async fn save_memory(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        let held = self.hold(id).await;
        if self.look_for_memory(id).await? == Some(Kept::Whole { boot }) {
            // One who was killed may have given it its name, and no more.
            let memory = self.memory(id);
            return doing("keeping memory", blocking(move || memory.outlast()).await);
        }
        let socket = self.live_socket(id).await?;
        match doing("looking", self.state(id).await)? {
            Observed::Running { boot: running, .. } if running == boot => {}
            _ => return Err(ComputeError::NotRunning(id.clone())),
        }
        let launch = doing("reading its launch", self.folder(id).launch())?;
        let launch = launch.ok_or_else(|| ComputeError::NotRunning(id.clone()))?;
        let disks = launch.spec.disks.into_iter().map(|disk| disk.path);
        let saved = Saved {
            id,
            socket,
            memory: self.memory(id),
            boot,
            disks: disks.collect(),
            bytes: u64::from(launch.spec.memory_mib) << 20,
            held,
        };
        let outcome = match self.adopt(&saved).await {
            Ok(false) => self.save(&saved).await,
            Ok(true) => Ok(()),
            Err(error) => Err(error),
        };
        drop(saved);
        if outcome.is_err()
            // Who presses the power button tries that again.
            && let Err(error) = self.let_go(id).await
        {
            tracing::warn!(instance = %id, %error, "it is held, and can't be let go");
        }
        doing(format!("saving the memory of {id}"), outcome)
    }

    /// Keeps what a `hearth` that was killed has begun to save, when that is written.
    /// Returns whether it was: it may have failed, or there was nothing.
    async fn adopt(&self, saved: &Saved<'_>) -> io::Result<bool> {
        let first = client::machine(&saved.socket).await?.state;
        if !matches!(first, MachineState::Saving | MachineState::Paused) {
            return Ok(false);
        }
        if first == MachineState::Saving {
            tracing::info!(instance = %saved.id, "its memory is being saved already");
        }
        self.watched(saved, ended(&saved.socket)).await?;
        let memory = saved.memory.clone();
        let is_written = under(&saved.held, move || memory.is_written()).await?;
        if is_written {
            saved.keep().await?;
        }
        Ok(is_written)
    }

    async fn save(&self, saved: &Saved<'_>) -> io::Result<()> {
        for left in (0..TRIES).rev() {
            let (memory, room, bytes) = (saved.memory.clone(), self.room.clone(), saved.bytes);
            // Before it is held: by the files is seen that it may be to be let go.
            let begin = move || {
                memory.clear()?;
                room.take(bytes, || memory.create())
            };
            let files = under(&saved.held, begin).await?;
            pause(&saved.socket).await?;
            let written = client::snapshot(&saved.socket, files);
            match self.watched(saved, written).await {
                Ok(()) => return saved.keep().await,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && left > 0 => {
                    tracing::debug!(%error, "its memory can't be saved now");
                    let_go(&saved.socket, &saved.memory, &saved.held).await?;
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("it is never as it can be saved"))
    }

    /// Waits for what is written, for as long as there is room on the disk.
    async fn watched<T>(
        &self,
        saved: &Saved<'_>,
        written: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let _chosen = tokio::select! {
            biased;
            written = written => return written,
            chosen = self.room.runs_short() => chosen,
        };
        // The room first: until there is some its VMM may be stopped where it is, and hear
        // nothing.
        let memory = saved.memory.clone();
        under(&saved.held, move || memory.spoil()).await?;
        if let Err(error) = cancel(&saved.socket).await {
            // One of an older hearth can't be told.
            tracing::warn!(instance = %saved.id, %error, "it doesn't stop saving, and is ended");
            self.cgroups.remove(saved.id).await?;
        }
        let why = "the disk is nearly full: its memory is given up";
        Err(io::Error::new(io::ErrorKind::StorageFull, why))
    }

    /// Has an instance that was to be hibernated run on: its memory is good for nothing
    /// from then on. Nothing was held: nothing is done.
    pub(super) async fn let_go(&self, id: &InstanceId) -> Result<(), ComputeError> {
        let held = self.hold(id).await;
        if self.look_for_memory(id).await?.is_none() {
            return Ok(());
        }
        let socket = self.live_socket(id).await?;
        let gone_on = let_go(&socket, &self.memory(id), &held).await;
        doing(format!("letting {id} go on"), gone_on)
    }
}

impl Saved<'_> {
    async fn keep(&self) -> io::Result<()> {
        let (memory, boot, disks) = (self.memory.clone(), self.boot, self.disks.clone());
        under(&self.held, move || memory.keep(boot, &disks)).await
    }
}

/// Holds a machine.
async fn pause(socket: &Path) -> io::Result<()> {
    client::put(socket, "pause").await?;
    let since = Instant::now();
    while client::machine(socket).await?.state != MachineState::Paused {
        if since.elapsed() > PAUSE_DEADLINE {
            let late = "its disks are not done";
            return Err(io::Error::new(io::ErrorKind::TimedOut, late));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Waits until a machine isn't saved any more, however long the disk takes for that.
async fn ended(socket: &Path) -> io::Result<()> {
    while client::machine(socket).await?.state == MachineState::Saving {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Has a machine not be saved any more.
async fn cancel(socket: &Path) -> io::Result<()> {
    let since = Instant::now();
    loop {
        let cancelled = async {
            if client::machine(socket).await?.state != MachineState::Saving {
                return Ok(true);
            }
            client::cancel_snapshot(socket).await.map(|()| false)
        };
        match cancelled.await {
            Ok(true) => return Ok(()),
            // It may be stopped where it is, until there is room again.
            Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(error),
            _ if since.elapsed() > CANCEL_DEADLINE => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it goes on saving"));
            }
            _ => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Lets a machine go on: first its memory loses its name, and what is written can't get one
/// any more. What is removed last tells that it is to be let go, to whoever comes after a
/// crash.
async fn let_go(socket: &Path, memory: &Memory, held: &Held) -> io::Result<()> {
    let (first, last) = (memory.clone(), memory.clone());
    under(held, move || {
        first.withdraw()?;
        first.spoil()
    })
    .await?;
    cancel(socket).await?;
    client::put(socket, "resume").await?;
    under(held, move || last.sweep()).await
}
