//! Instances whose VMMs give way to the installed program while they run.
//!
//! ```text
//!  hearth vmm update ─► updates/<id> ─ seen ─ a step of its own, under the instance's lock:
//!    room for its memory, twice ─ a VMM with --take-over ─┬─ refused: the old one goes on
//!                                                         └─ the new one noted, the old one ends
//!    ─ memory.max as before ─ update.json ─ updates/<id> removed
//! ```
//! That there are never two machines, and never none, is between the two VMMs: the old one
//! goes on until the new one has everything, and from then on the new one has it. Here it
//! matters which of them is the instance's. The new one says in its pid file that it is,
//! before the old one ends; so a `hearth` that is killed at any moment leaves either the old
//! one alive, which its record names, or one that it no longer does but its pid file, in the
//! same control group and on the same socket ([`super::observe`]). Until then, that the
//! noted one has ended is nobody's end.
//!
//! The mark is a file, since whoever asks is another process, and the host is what a
//! reconciler looks at. A launch and the instance's end remove it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;

use super::folder::{Folder, Launch, absent_is_fine};
use super::process::Identity;
use super::{HostCompute, client, doing, instances_in, spawn};
use crate::compute::argv;
use crate::compute::{ComputeError, Observed};
use crate::model::{InstanceId, overhead_mib};

/// How long a VMM may take to take a machine over: memory that isn't shared is copied.
const DEADLINE: Duration = Duration::from_secs(1200);
/// How long it may take after that until one of the two is gone.
const SETTLED: Duration = Duration::from_secs(180);
/// How often is looked whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What came of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The VMM that had the machine.
    pub was: u32,
    /// The one that has it; the same where it ran the installed program already, and where
    /// that was refused.
    pub pid: u32,
    /// Why it was refused.
    #[serde(default)]
    pub refused: Option<String>,
}

/// The instances whose VMMs are to be replaced.
#[derive(Debug, Clone)]
pub(super) struct Marks(PathBuf);

impl Marks {
    pub(super) fn of(data: &Path) -> Self {
        Self(data.join("updates"))
    }

    fn path(&self, id: &InstanceId) -> PathBuf {
        self.0.join(id.as_str())
    }

    pub(super) fn has(&self, id: &InstanceId) -> io::Result<bool> {
        self.path(id).try_exists()
    }

    pub(super) fn remove(&self, id: &InstanceId) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.path(id)))
    }

    pub(super) fn purge(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(&self.0))
    }

    fn create(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
    }

    fn put(&self, id: &InstanceId) -> io::Result<()> {
        self.create()?;
        File::create(self.path(id)).map(drop)
    }

    /// Has it counted as a reason to look at an instance that it is marked.
    pub(super) fn watch(&self, seen: broadcast::Sender<InstanceId>) -> io::Result<()> {
        self.create()?;
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags)?;
        inotify::add_watch(&fd, &self.0, inotify::WatchFlags::CREATE)?;
        // SAFETY: an OwnedFd returns the same open descriptor for as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        tokio::spawn(async move {
            let mut space = [MaybeUninit::uninit(); 4096];
            while let Ok(mut ready) = fd.readable().await {
                let mut events = inotify::Reader::new(fd.get_ref(), &mut space);
                while let Ok(event) = events.next() {
                    let name = event.file_name().and_then(|name| name.to_str().ok());
                    if let Some(id) = name.and_then(|name| name.parse().ok()) {
                        // Nobody may be listening.
                        let _ = seen.send(id);
                    }
                }
                ready.clear_ready();
            }
        });
        Ok(())
    }
}

/// A VMM that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmm {
    /// Its instance.
    pub instance: InstanceId,
    /// Its process id.
    pub pid: u32,
    /// Its version, if it says so.
    pub version: Option<String>,
    /// The first digits of its program's SHA-256.
    pub build: String,
    /// Whether its program is the installed one.
    pub is_installed: bool,
}

/// The VMMs of the instances under `data`; `program` is the installed one.
///
/// # Errors
/// When they can't be looked at: it takes root.
pub async fn vmms(data: &Path, program: &Path) -> io::Result<Vec<Vmm>> {
    let installed = inode(program)?;
    let mut builds = BTreeMap::new();
    let mut found = Vec::new();
    for (instance, path) in instances_in(&data.join("instances"))? {
        let folder = Folder::new(path);
        let Some(identity) = folder.identity()? else {
            continue;
        };
        if !identity.is_alive()? {
            continue;
        }
        let exe = exe(identity.pid);
        let mut looked = || -> io::Result<_> {
            let inode = inode(&exe)?;
            let build = match builds.get(&inode) {
                Some(build) => String::clone(build),
                None => {
                    let build = hex::encode(&Sha256::digest(fs::read(&exe)?)[..6]);
                    builds.insert(inode, build.clone());
                    build
                }
            };
            Ok((inode, build))
        };
        let (inode, build) = match looked() {
            // It has ended since.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            looked => looked?,
        };
        let vmm = Vmm {
            instance,
            pid: identity.pid,
            version: None,
            build,
            is_installed: inode == installed,
        };
        found.push((vmm, folder.socket()));
    }
    let asked = found.into_iter().map(async |(vmm, socket)| {
        let machine = client::machine(&socket).await.ok();
        let version = machine.map(|machine| machine.version);
        let version = version.filter(|version| !version.is_empty());
        Vmm { version, ..vmm }
    });
    Ok(join_all(asked).await)
}

/// Has the VMM of an instance under `data` be replaced by the `hearth` that runs there.
///
/// # Errors
/// When it can't be marked.
pub fn ask_for_update(data: &Path, id: &InstanceId) -> io::Result<()> {
    let folder = Folder::new(data.join("instances").join(id.as_str()));
    folder.forget_update()?;
    Marks::of(data).put(id)
}

/// What came of it; none: it is under way. `Some(None)`: the instance ended before.
///
/// # Errors
/// When it can't be looked at.
pub fn update_of(data: &Path, id: &InstanceId) -> io::Result<Option<Option<Outcome>>> {
    if Marks::of(data).has(id)? {
        return Ok(None);
    }
    let folder = Folder::new(data.join("instances").join(id.as_str()));
    folder.update().map(Some)
}

fn exe(pid: u32) -> PathBuf {
    format!("/proc/{pid}/exe").into()
}

/// Which file it is: a program that was replaced is another, under the same name.
fn inode(program: &Path) -> io::Result<(u64, u64)> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", program.display()));
    let file = fs::metadata(program).map_err(named)?;
    Ok((file.dev(), file.ino()))
}

/// What stops an update.
enum Stopped {
    /// It isn't to be: the old one goes on.
    Refused(String),
    /// It can be tried again.
    Later(ComputeError),
}

impl<E: Into<ComputeError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Later(error.into())
    }
}

impl HostCompute {
    pub(super) async fn update_vmm(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        // One after the other: each has the host's free memory counted for itself.
        let _one = self.updating.lock().await;
        let held = self.hold(id).await;
        if !doing("looking for its mark", self.marks.has(id))? {
            return Ok(());
        }
        let folder = self.folder(id);
        let is_due = matches!(
            doing("looking", self.state(id).await)?,
            Observed::Running { boot: running, .. } if running == boot
        );
        let launch = doing("reading its launch", folder.launch())?;
        let old = doing("reading its identity", folder.identity())?;
        let (true, Some(launch), Some(old)) = (is_due, launch, old) else {
            doing("removing its mark", self.marks.remove(id))?;
            return Err(ComputeError::NotRunning(id.clone()));
        };
        let (pid, refused) = match self.replace(id, &folder, &launch, &old).await {
            Ok(new) => (new.pid, None),
            Err(Stopped::Refused(why)) => {
                tracing::warn!(instance = %id, why, "its VMM is not updated");
                (old.pid, Some(why))
            }
            Err(Stopped::Later(error)) => return Err(error),
        };
        let limited = self.cgroups.set_memory(&launch.spec, 1);
        doing("limiting its memory again", limited)?;
        let outcome = Outcome {
            was: old.pid,
            pid,
            refused,
        };
        doing("noting the update", folder.set_update(&outcome))?;
        let removed = self.marks.remove(id);
        drop(held);
        doing("removing its mark", removed)
    }

    /// Has the installed program take the machine over; returns who has it then.
    async fn replace(
        &self,
        id: &InstanceId,
        folder: &Folder,
        launch: &Launch,
        old: &Identity,
    ) -> Result<Identity, Stopped> {
        let later = |why: &str| {
            let why = io::Error::new(io::ErrorKind::ResourceBusy, why.to_owned());
            doing::<Identity>(format!("updating the VMM of {id}"), Err(why)).map_err(Stopped::Later)
        };
        if self.cgroups.is_frozen(id) {
            return later("it is paused until the host has disk space again");
        }
        // Of a `hearth` that was killed.
        if self.others(id, old)?.next().is_some() {
            return later("another program is about to take its machine over");
        }
        let installed = doing("looking at the installed VMM", inode(&self.vmm))?;
        if doing("looking at its program", inode(&exe(old.pid)))? == installed {
            return Ok(old.clone());
        }
        self.has_room_twice(launch)?;
        let locked = folder.lock();
        let _locked = doing(format!("locking {}", folder.path().display()), locked)?;
        let widened = self.cgroups.set_memory(&launch.spec, 2);
        doing("having room for its memory twice", widened)?;
        let said = doing("reading its log", folder.log_length())?;
        let started = self.start_successor(folder, launch).await;
        let settled = self.settle(id, folder, old).await?;
        let Some(new) = settled else {
            let words = folder.first_words_since(said);
            let words = words.or(started.err().map(|error| format!("{error:?}")));
            let words = words.unwrap_or_else(|| "it ended at once".to_owned());
            return Err(Stopped::Refused(words));
        };
        tracing::info!(instance = %id, was = old.pid, pid = new.pid, "its VMM is updated");
        Ok(new)
    }

    /// What is in the group beside the VMM that is noted.
    pub(super) fn others(
        &self,
        id: &InstanceId,
        noted: &Identity,
    ) -> Result<impl Iterator<Item = u32> + use<>, ComputeError> {
        let members = doing("looking at its control group", self.cgroups.members(id))?;
        let noted = noted.pid;
        Ok(members.into_iter().filter(move |pid| *pid != noted))
    }

    /// Memory that isn't shared is there twice for as long as it takes.
    fn has_room_twice(&self, launch: &Launch) -> Result<(), Stopped> {
        let spec = &launch.spec;
        let guest = u64::from(spec.memory_mib);
        let has = doing("asking for its memory", self.cgroups.memory(&spec.instance))? >> 20;
        let wants = has.min(guest) + overhead_mib(guest);
        let free = doing("asking for free memory", (self.available_mib)())?;
        if free >= wants {
            return Ok(());
        }
        Err(Stopped::Refused(format!(
            "its memory is there twice while it is taken over: that takes {wants} MiB, and the host has {free} MiB"
        )))
    }

    async fn start_successor(&self, folder: &Folder, launch: &Launch) -> Result<(), ComputeError> {
        let socket = folder.socket();
        let places = argv::Places {
            // Those that the old one has open.
            kernel: None,
            initrd: None,
            restore: None,
            take_over: Some(&socket),
            template: None,
            socket: &socket,
            serial_log: &folder.console(),
            exit_file: &folder.exit_file(),
            pid_file: &folder.pid_file(),
        };
        // They come from the old one, by the interface's name.
        let taps: Vec<_> = (3..).take(launch.spec.nics.len()).collect();
        let owner = rustix::process::geteuid().is_root().then(|| launch.owner());
        let argv = argv::render(&launch.spec, &places, &taps, owner, &self.optional_layers)
            .map_err(|error| ComputeError::Refused(error.to_string()))?;
        let group = self.cgroups.open(&launch.spec.instance);
        let group = doing("opening the control group", group)?;
        let log = folder.log();
        let started = spawn::start_vmm_within(DEADLINE, &self.vmm, &argv, group, &[], &log);
        doing(format!("starting {}", self.vmm.display()), started.await).map(drop)
    }

    /// Waits until one of the two VMMs has the machine for sure, and the other is gone, and
    /// notes the new one if that has it. None: the old one goes on, or both have ended.
    async fn settle(
        &self,
        id: &InstanceId,
        folder: &Folder,
        old: &Identity,
    ) -> Result<Option<Identity>, ComputeError> {
        let deadline = Instant::now() + SETTLED;
        let mut new = None;
        while Instant::now() < deadline {
            let others: BTreeSet<u32> = self.others(id, old)?.collect();
            let is_alive = doing("looking at the old VMM", old.is_alive())?;
            if new.is_none()
                && let Some(pid) = folder.claimed_pid().filter(|pid| others.contains(pid))
                && let Some(identity) = doing("looking at the VMM", Identity::of(pid))?
            {
                doing("noting the VMM", folder.set_identity(&identity))?;
                self.watched_or_gone(id, &identity)?;
                new = Some(identity);
            }
            if (new.is_some() && !is_alive) || (new.is_none() && others.is_empty()) {
                return Ok(new);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let late = io::Error::new(io::ErrorKind::TimedOut, "neither VMM has ended");
        doing(format!("updating the VMM of {id}"), Err(late))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_is_seen_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::of(dir.path());
        let id = InstanceId::from_random(1);
        assert!(!marks.has(&id).unwrap());
        marks.remove(&id).unwrap();
        let mut seen = broadcast::Sender::new(8);
        let mut heard = seen.subscribe();
        marks
            .watch(std::mem::replace(&mut seen, broadcast::Sender::new(1)))
            .unwrap();
        fs::write(marks.0.join("no-instance"), "").unwrap();
        marks.put(&id).unwrap();
        let first = tokio::time::timeout(Duration::from_secs(60), heard.recv());
        assert_eq!(first.await.unwrap().unwrap(), id);
        assert!(marks.has(&id).unwrap());
        marks.remove(&id).unwrap();
        assert!(!marks.has(&id).unwrap());
        marks.purge().unwrap();
        marks.purge().unwrap();
    }
}
