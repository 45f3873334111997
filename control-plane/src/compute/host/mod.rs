//! The instances of this machine.
//!
//! ```text
//!   launch:  lock ─ clear ─ launch.json ─ cgroup ─ kernel, initrd ─ VMM ─ identity.json
//!                                                   (once an image)
//! ```
//!
//! `hearth` may be killed between any two of these steps, and during them. What
//! is there afterwards is judged by [`folder::judge`]: without a `launch.json`
//! or a process it is incomplete, and the next launch begins by ending whatever
//! is in the control group. A VMM that runs but was never noted is found by its
//! pid file, believed only if that process is in the instance's control group
//! and answers on the instance's socket.

mod bootcache;
mod cgroup;
mod client;
mod clone;
mod folder;
mod hibernation;
mod launch;
mod memory;
mod observe;
mod oom;
mod passing;
mod process;
mod room;
mod spawn;
mod update;
mod warm;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use hearth_vmm_api::SandboxLayer;
use tokio::sync::broadcast;

use super::{ComputeError, ComputeHost, Kept, LaunchSpec, Observed, Pausable, Spare, trace};
use crate::model::InstanceId;
use crate::network::names::HostNames;
pub use oom::{offer as offer_to_oom_killer, protect as protect_from_oom_killer};

use bootcache::BootCache;
use cgroup::Cgroups;
use folder::Folder;
use hibernation::under;
use observe::known;
pub use room::Free;
use room::Room;
use update::Marks;
pub use update::{Outcome as UpdateOutcome, Vmm, ask_for_update, update_of, vmms};
use warm::Templates;

/// The users that VMMs run as, one for each instance: a range that neither
/// distributions, containers nor systemd give out.
/// <https://systemd.io/UIDS-GIDS/>
const FIRST_UID: u32 = 0x7100_0000;
/// How many each hearth of this machine has.
const UIDS: u32 = 1 << 16;
/// The user that reads images' boot files, as everywhere on Linux.
const NOBODY: u32 = 65534;

/// The instances of this machine.
#[derive(Debug)]
pub struct HostCompute {
    /// `<data>/instances`.
    instances: PathBuf,
    /// The VMM's program.
    vmm: PathBuf,
    /// The program that has the `read-boot-files` subcommand: this very one.
    reader: PathBuf,
    cgroups: Cgroups,
    /// Sandbox layers that VMMs may run without.
    optional_layers: Vec<SandboxLayer>,
    /// The boot files of images.
    boot_cache: BootCache,
    /// What instances go on from instead of booting.
    templates: Arc<Templates>,
    /// How much memory this host has free for one that is made, in MiB.
    available_mib: fn() -> io::Result<u64>,
    /// What it has beyond all promises; none: who opened this made none.
    spare: Option<Arc<dyn Spare>>,
    first_uid: u32,
    /// What memory finds room in, on this host's disk.
    room: Room,
    /// One change at a time for each instance.
    locks: Mutex<HashMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
    /// The users that instances have; none before they were first asked for.
    uids: Mutex<Option<HashMap<InstanceId, u32>>>,
    /// The processes whose end is waited for.
    watched: Arc<Mutex<BTreeSet<u32>>>,
    exits: broadcast::Sender<InstanceId>,
    /// The instances whose VMMs are to be replaced.
    marks: Marks,
    /// Whoever replaces one.
    updating: tokio::sync::Mutex<()>,
    /// Whether new ones are noticed.
    watches_marks: AtomicBool,
}

fn doing<T>(what: impl Into<String>, outcome: io::Result<T>) -> Result<T, ComputeError> {
    outcome.map_err(|source| ComputeError::Host {
        doing: what.into(),
        source,
    })
}

impl HostCompute {
    /// The instances under `data`, run by the program `vmm`, for the hearth that
    /// names its own by `names`.
    ///
    /// # Errors
    /// When the folder can't be made. What else the host lacks is said when an
    /// instance is launched, and warned of now.
    pub fn open(
        names: &HostNames,
        data: &Path,
        vmm: &Path,
        optional_layers: Vec<SandboxLayer>,
        warm_templates: usize,
    ) -> Result<Self, ComputeError> {
        let cgroups = Cgroups::new(names.label());
        if let Err(e) = cgroups.check() {
            tracing::warn!("no instance can be launched: {e}");
        }
        // The program may be replaced on disk while it runs; this is the one.
        let reader = Path::new("/proc/self/exe");
        let mut host = Self::with(data, vmm, reader, cgroups, warm_templates)?;
        host.optional_layers = optional_layers;
        host.first_uid += u32::from(names.number()) * UIDS;
        Ok(host)
    }

    fn with(
        data: &Path,
        vmm: &Path,
        reader: &Path,
        cgroups: Cgroups,
        warm_templates: usize,
    ) -> Result<Self, ComputeError> {
        let data = doing("finding the data folder", std::path::absolute(data))?;
        let instances = data.join("instances");
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&instances)
            // Each VMM, another user, must pass through to its own part.
            .and_then(|()| let_pass(&data))
            .and_then(|()| let_pass(&instances));
        doing(format!("making {}", instances.display()), made)?;
        let boot_cache = doing("sweeping the boot files", BootCache::open(&data))?;
        // One that was being made is nobody's any more.
        if let Err(error) = cgroups.of_templates().kill_all() {
            tracing::warn!(%error, "what a template was made in is not ended");
        }
        let templates = Arc::new(Templates::open(&data, warm_templates));
        let room = Room::new(&instances, &cgroups, &templates);
        Ok(Self {
            boot_cache,
            templates,
            available_mib: warm::available_mib,
            spare: None,
            instances,
            vmm: vmm.to_owned(),
            reader: reader.to_owned(),
            cgroups,
            optional_layers: Vec::new(),
            first_uid: FIRST_UID,
            room,
            locks: Mutex::default(),
            uids: Mutex::default(),
            watched: Arc::default(),
            exits: broadcast::Sender::new(super::EXITS),
            marks: Marks::of(&data),
            updating: tokio::sync::Mutex::default(),
            watches_marks: AtomicBool::new(false),
        })
    }

    /// Leaves so many bytes of the disk free when it saves memory, of those that are `free`
    /// by then.
    #[must_use]
    pub fn with_disk_reserve(mut self, bytes: u64, free: Free) -> Self {
        self.room = self.room.keeping(bytes, free);
        self
    }

    /// Makes templates of what is promised to nobody alone.
    #[must_use]
    pub fn with_spare(mut self, spare: Arc<dyn Spare>) -> Self {
        self.spare = Some(spare);
        self
    }

    fn folder(&self, id: &InstanceId) -> Folder {
        Folder::new(self.instances.join(id.as_str()))
    }

    fn lock(&self, id: &InstanceId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds are not worth keeping.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(id.clone()).or_default().clone()
    }

    /// Every instance of which there is a trace.
    fn known_ids(&self) -> io::Result<BTreeSet<InstanceId>> {
        known(&self.instances, &self.cgroups)
    }

    /// The user that the instance has, or one that nobody has. Nothing is written
    /// while the lock is held, so that launches don't wait for each other.
    fn choose_uid(&self, id: &InstanceId) -> io::Result<u32> {
        let mut uids = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        let uids = match &mut *uids {
            Some(uids) => uids,
            none => {
                let mut found = HashMap::new();
                for id in self.known_ids()? {
                    if let Some(launch) = self.folder(&id).launch()? {
                        found.insert(id, launch.uid);
                    }
                }
                none.insert(found)
            }
        };
        if let Some(uid) = uids.get(id) {
            return Ok(*uid);
        }
        let taken: HashSet<u32> = uids.values().copied().collect();
        let uid = (self.first_uid..self.template_uid())
            .find(|uid| !taken.contains(uid))
            .ok_or_else(|| io::Error::other("every user for VMMs is taken"))?;
        uids.insert(id.clone(), uid);
        Ok(uid)
    }

    /// The user that templates are made by, which no instance has.
    fn template_uid(&self) -> u32 {
        self.first_uid + UIDS - 1
    }

    /// Its user may be another's from now on: nothing of the instance is left.
    fn give_back_uid(&self, id: &InstanceId) {
        let mut uids = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uids) = &mut *uids {
            uids.remove(id);
        }
    }

    /// The socket of a VMM that runs.
    async fn live_socket(&self, id: &InstanceId) -> Result<PathBuf, ComputeError> {
        if self.cgroups.is_frozen(id) {
            // It would answer to nobody: the caller needn't wait for that.
            let paused = io::Error::other("it is paused until the host has disk space again");
            return doing(format!("asking the VMM of {id}"), Err(paused));
        }
        match doing("looking", self.state(id).await)? {
            Observed::Running { .. } => Ok(self.folder(id).socket()),
            _ => Err(ComputeError::NotRunning(id.clone())),
        }
    }

    async fn ask(&self, id: &InstanceId, what: &str) -> Result<(), ComputeError> {
        let socket = self.live_socket(id).await?;
        doing(
            format!("asking the VMM of {id} for {what}"),
            client::put(&socket, what).await,
        )
    }
}

/// How long the steps of an instance's last launch took; none when there was none
/// on this host.
///
/// # Errors
/// When its folder can't be read.
pub fn trace_of(data: &Path, id: &InstanceId) -> io::Result<Option<trace::Record>> {
    Folder::new(data.join("instances").join(id.as_str())).trace()
}

/// The instances that have a folder, and where.
fn instances_in(folder: &Path) -> io::Result<Vec<(InstanceId, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|n| n.parse().ok());
        if let Some(id) = id
            && entry.file_type()?.is_dir()
        {
            found.push((id, entry.path()));
        }
    }
    Ok(found)
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(io::Error::other)?
}

/// Adds the right to pass through a folder, not to see what is in it.
fn let_pass(folder: &Path) -> io::Result<()> {
    let mut mode = fs::metadata(folder)?.permissions();
    if mode.mode() & 0o011 != 0o011 {
        mode.set_mode(mode.mode() | 0o011);
        fs::set_permissions(folder, mode)?;
    }
    Ok(())
}

#[async_trait]
impl ComputeHost for HostCompute {
    async fn known(&self) -> Result<BTreeSet<InstanceId>, ComputeError> {
        let (instances, cgroups) = (self.instances.clone(), self.cgroups.clone());
        let known = blocking(move || known(&instances, &cgroups)).await;
        doing("listing instances", known)
    }

    async fn look(&self, id: &InstanceId) -> Result<Option<Observed>, ComputeError> {
        let (folder, cgroup) = (self.folder(id), self.cgroups.path(id));
        let there = blocking(move || Ok(folder.path().try_exists()? || cgroup.try_exists()?));
        if !doing(format!("looking for {id}"), there.await)? {
            return Ok(None);
        }
        let observed = self.state(id).await;
        doing(format!("looking at {id}"), observed).map(Some)
    }

    async fn launch(&self, spec: &LaunchSpec, taps: Vec<OwnedFd>) -> Result<(), ComputeError> {
        let id = &spec.instance;
        let folder = self.folder(id);
        if let Observed::Running { boot, .. } = doing("looking", self.state(id).await)?
            && boot == spec.boot
        {
            return Ok(());
        }
        let step = spec.trace.begin("what an earlier launch left");
        let held = self.hold(id).await;
        doing("preparing the launch", folder.check_length())?;
        let locked = folder.lock();
        let _locked = doing(format!("locking {}", folder.path().display()), locked)?;
        let ended = self.cgroups.remove(id).await;
        doing("ending what an earlier launch left", ended)?;
        drop(step);
        // Whoever asked for that asked about another one.
        doing("removing its mark", self.marks.remove(id))?;
        let step = spec.trace.begin("folder, with its first record");
        let launch = doing(
            "beginning the launch",
            self.begin(spec, &folder, &held).await,
        )?;
        drop(step);
        let outcome = self.bring_up(&launch, &folder, &taps, &held).await;
        let error = outcome.as_ref().err().map(ToString::to_string);
        let record = spec.trace.record(spec.boot, error);
        if let Err(error) = folder.set_trace(&record) {
            tracing::debug!(instance = %id, %error, "the launch's times are not kept");
        }
        match outcome {
            Ok(identity) => self.watched_or_gone(id, &identity),
            Err(e) => {
                // What can't be cleared now is incomplete, and cleared later.
                if let Err(e) = self.cgroups.remove(id).await {
                    tracing::warn!(instance = %id, error = %e, "a failed launch is not cleared away");
                }
                Err(e)
            }
        }
    }

    async fn wants_update(&self, id: &InstanceId) -> Result<bool, ComputeError> {
        doing(format!("looking for a mark of {id}"), self.marks.has(id))
    }

    async fn update(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        self.update_vmm(id, boot).await
    }

    async fn hibernate(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        self.save_memory(id, boot).await
    }

    async fn kept_memory(&self, id: &InstanceId) -> Result<Option<Kept>, ComputeError> {
        self.look_for_memory(id).await
    }

    async fn discard_memory(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.remove_memory(id).await
    }

    async fn power_button(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.let_go(id).await?;
        self.ask(id, "power-button").await
    }

    async fn interrupt(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.ask(id, "nmi").await
    }

    async fn reboot(&self, id: &InstanceId, resets: u64) -> Result<(), ComputeError> {
        let socket = self.live_socket(id).await?;
        doing(
            format!("asking the VMM of {id} to reboot"),
            client::reboot(&socket, resets).await,
        )
    }

    async fn resets(&self, id: &InstanceId) -> Result<u64, ComputeError> {
        let socket = self.live_socket(id).await?;
        let machine = client::machine(&socket).await;
        let machine = doing(format!("asking the VMM of {id} about itself"), machine)?;
        Ok(machine.resets)
    }

    async fn reset(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.ask(id, "reset").await
    }

    async fn kill(&self, id: &InstanceId) -> Result<(), ComputeError> {
        let lock = self.lock(id);
        let _held = lock.lock().await;
        doing(
            format!("ending the VMM of {id}"),
            self.cgroups.remove(id).await,
        )
    }

    async fn console(&self, id: &InstanceId) -> Result<Vec<u8>, ComputeError> {
        let folder = self.folder(id);
        let tail = blocking(move || folder.console_tail()).await;
        doing(format!("reading the console of {id}"), tail)
    }

    async fn forget(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.kill(id).await?;
        let held = self.hold(id).await;
        let folder = self.folder(id);
        let removed = under(&held, move || folder.remove()).await;
        doing(format!("forgetting {id}"), removed)?;
        doing("removing its mark", self.marks.remove(id))?;
        self.give_back_uid(id);
        Ok(())
    }

    async fn purge(&self) -> Result<(), ComputeError> {
        for id in doing("listing instances", self.known_ids())? {
            self.forget(&id).await?;
        }
        let groups = self.cgroups.of_templates();
        for id in doing("listing templates", groups.list())? {
            doing("ending a template", groups.remove(&id).await)?;
        }
        doing("removing their control group", groups.remove_parent())?;
        doing("removing the templates", self.templates.purge())?;
        doing("removing the marks", self.marks.purge())?;
        doing("removing the control group", self.cgroups.remove_parent())?;
        doing(
            "removing the instances' folder",
            folder::absent_is_fine(fs::remove_dir_all(&self.instances)),
        )?;
        doing("removing the boot files", self.boot_cache.purge())
    }

    fn exits(&self) -> broadcast::Receiver<InstanceId> {
        if !self.watches_marks.swap(true, Ordering::Relaxed)
            && let Err(error) = self.marks.watch(self.exits.clone())
        {
            tracing::warn!(%error, "that a VMM is to be updated is noticed late");
        }
        self.exits.subscribe()
    }
}

impl Pausable for HostCompute {
    fn set_paused(&self, id: &InstanceId, paused: bool) -> io::Result<()> {
        self.cgroups.freeze(id, paused)
    }

    fn paused(&self) -> io::Result<BTreeSet<InstanceId>> {
        let mut all = self.cgroups.list()?;
        all.retain(|id| self.cgroups.is_frozen(id));
        Ok(all)
    }

    fn give_way(&self) -> io::Result<bool> {
        self.templates.give_way()
    }

    fn kept_bytes(&self) -> io::Result<u64> {
        self.memory_bytes()
    }
}

#[cfg(test)]
mod tests;
