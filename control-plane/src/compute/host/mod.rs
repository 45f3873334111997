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
mod oom;
mod process;
mod spawn;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;

use super::argv::{self, Owner};
use hearth_vmm_api::{Exit, SandboxLayer};

use super::{
    ComputeError, ComputeHost, LaunchSpec, MAX_INITRD, MAX_KERNEL, Observed, Pausable, trace,
};
use crate::model::{BootMethod, InstanceId};
use crate::network::names::HostNames;
pub use oom::{offer as offer_to_oom_killer, protect as protect_from_oom_killer};

use bootcache::{BootCache, BootFiles};
use cgroup::Cgroups;
use folder::{Folder, Launch};
use process::Identity;
use spawn::Wanted;

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
    first_uid: u32,
    /// One change at a time for each instance.
    locks: Mutex<HashMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
    /// The users that instances have; none before they were first asked for.
    uids: Mutex<Option<HashMap<InstanceId, u32>>>,
    /// The processes whose end is waited for.
    watched: Arc<Mutex<BTreeSet<u32>>>,
    exits: broadcast::Sender<InstanceId>,
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
    ) -> Result<Self, ComputeError> {
        let cgroups = Cgroups::new(names.label());
        if let Err(e) = cgroups.check() {
            tracing::warn!("no instance can be launched: {e}");
        }
        // The program may be replaced on disk while it runs; this is the one.
        let mut host = Self::with(data, vmm, Path::new("/proc/self/exe"), cgroups)?;
        host.optional_layers = optional_layers;
        host.first_uid += u32::from(names.number()) * UIDS;
        Ok(host)
    }

    fn with(
        data: &Path,
        vmm: &Path,
        reader: &Path,
        cgroups: Cgroups,
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
        Ok(Self {
            boot_cache,
            instances,
            vmm: vmm.to_owned(),
            reader: reader.to_owned(),
            cgroups,
            optional_layers: Vec::new(),
            first_uid: FIRST_UID,
            locks: Mutex::default(),
            uids: Mutex::default(),
            watched: Arc::default(),
            exits: broadcast::Sender::new(super::EXITS),
        })
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

    async fn state(&self, id: &InstanceId) -> io::Result<Observed> {
        let folder = self.folder(id);
        let there = folder.clone();
        let mut there = blocking(move || There::read(&there)).await?;
        if there.identity.is_none()
            && there.launch.is_some()
            // While it is being launched, the launch will note the process.
            && let Ok(_held) = self.lock(id).try_lock()
            && let Some(identity) = self.stray(id, &folder).await?
        {
            tracing::info!(instance = %id, pid = identity.pid, "found a VMM that was never noted");
            let (folder, noted) = (folder.clone(), identity.clone());
            blocking(move || folder.set_identity(&noted)).await?;
            there.identity = Some((true, identity));
        }
        if let Some((alive @ true, identity)) = &mut there.identity
            && !self.watch_exit(id, identity)?
        {
            *alive = false;
            there.exit = blocking(move || Ok(folder.exit())).await?;
        }
        Ok(there.judge())
    }

    /// A VMM of this instance that runs although no record says so.
    async fn stray(&self, id: &InstanceId, folder: &Folder) -> io::Result<Option<Identity>> {
        let members = self.cgroups.members(id)?;
        let Some(pid) = folder.claimed_pid().filter(|pid| members.contains(pid)) else {
            return Ok(None);
        };
        match client::machine(&folder.socket()).await {
            Ok(machine) if machine.id == id.as_str() && machine.pid == pid => Identity::of(pid),
            _ => Ok(None),
        }
    }

    /// Has the end of the process counted. False when it has ended already.
    fn watch_exit(&self, id: &InstanceId, identity: &Identity) -> io::Result<bool> {
        let pid = identity.pid;
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.contains(&pid) {
            return Ok(true);
        }
        let Some(fd) = identity.open()? else {
            return Ok(false);
        };
        // SAFETY: an OwnedFd returns the same open descriptor for as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        watched.insert(pid);
        let (watched, exits, id) = (self.watched.clone(), self.exits.clone(), id.clone());
        tokio::spawn(async move {
            // Readable is all there is to know; an error is a reason to look, too.
            let _ = fd.readable().await;
            watched
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&pid);
            // Nobody may be listening.
            let _ = exits.send(id);
        });
        Ok(true)
    }

    /// A user that no other instance has, written down before it is used.
    async fn begin(&self, spec: &LaunchSpec, folder: &Folder) -> io::Result<Launch> {
        let uid = self.choose_uid(&spec.instance)?;
        let launch = Launch {
            spec: spec.clone(),
            uid,
            host_boot: Some(process::host_boot()?),
        };
        let folder = folder.clone();
        blocking(move || folder.begin(&launch).map(|()| launch)).await
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
        let uid = (self.first_uid..self.first_uid + UIDS)
            .find(|uid| !taken.contains(uid))
            .ok_or_else(|| io::Error::other("every user for VMMs is taken"))?;
        uids.insert(id.clone(), uid);
        Ok(uid)
    }

    /// Its user may be another's from now on: nothing of the instance is left.
    fn give_back_uid(&self, id: &InstanceId) {
        let mut uids = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uids) = &mut *uids {
            uids.remove(id);
        }
    }

    /// Where the kernel and initrd of this launch are: of a fresh clone, in the
    /// cache; else read from the disk, into the instance's folder.
    async fn boot_files(
        &self,
        launch: &Launch,
        folder: &Folder,
    ) -> Result<BootFiles, ComputeError> {
        let method = &launch.spec.boot_method;
        if let Some(clone) = &launch.spec.clone_of
            && clone.path.exists()
        {
            let owner = Owner {
                uid: NOBODY,
                gid: NOBODY,
            };
            let read = async |files: &BootFiles| {
                read_boot_files(&self.reader, &clone.path, method, owner, files).await
            };
            let cached = self.boot_cache.get(clone, method, read).await;
            return doing("reading the boot files of its image", cached)?
                .map_err(ComputeError::Unbootable);
        }
        let Some(root) = launch.spec.disks.first() else {
            return Err(ComputeError::Unbootable("there is none".to_owned()));
        };
        let files = BootFiles {
            kernel: folder.kernel(),
            initrd: folder.initrd(),
        };
        let read = read_boot_files(&self.reader, &root.path, method, launch.owner(), &files);
        doing("reading the boot files from the root disk", read.await)?
            .map_err(ComputeError::Unbootable)?;
        Ok(files)
    }

    /// The steps of a launch behind its first record.
    async fn bring_up(
        &self,
        launch: &Launch,
        folder: &Folder,
        taps: &[OwnedFd],
    ) -> Result<Identity, ComputeError> {
        let id = &launch.spec.instance;
        let trace = &launch.spec.trace;
        let step = trace.begin("control group");
        doing(
            "making the control group",
            self.cgroups.create(&launch.spec),
        )?;
        drop(step);
        let step = trace.begin("boot files");
        let BootFiles { kernel, initrd } = self.boot_files(launch, folder).await?;
        drop(step);
        let BootMethod::Linux { initrd: wanted, .. } = &launch.spec.boot_method;
        let places = argv::Places {
            kernel: &kernel,
            initrd: wanted.as_ref().map(|_| initrd.as_path()),
            socket: &folder.socket(),
            serial_log: &folder.console(),
            exit_file: &folder.exit_file(),
            pid_file: &folder.pid_file(),
        };
        let fds: Vec<_> = taps.iter().map(AsRawFd::as_raw_fd).collect();
        // VMMs run as users of their own where this process may choose users.
        let owner = rustix::process::geteuid().is_root().then(|| launch.owner());
        let argv = argv::render(&launch.spec, &places, &fds, owner, &self.optional_layers)
            .map_err(|e| ComputeError::Refused(e.to_string()))?;
        let step = trace.begin("VMM's processes, until it says that its vCPUs run");
        let group = doing("opening the control group", self.cgroups.open(id))?;
        let started = spawn::start_vmm(&self.vmm, &argv, group, taps, &folder.log()).await;
        let status = doing(format!("starting {}", self.vmm.display()), started)?;
        if !status.success() {
            let words = folder.last_words();
            return Err(ComputeError::Refused(
                words.unwrap_or_else(|| format!("it ended with {status}")),
            ));
        }
        drop(step);
        let _step = trace.begin("VMM asked for its sandbox, and noted");
        let members = doing("looking for the VMM", self.cgroups.members(id))?;
        let identity = match folder.claimed_pid().filter(|pid| members.contains(pid)) {
            Some(pid) => doing("looking at the VMM", Identity::of(pid))?,
            None => None,
        };
        let identity = identity.ok_or_else(|| {
            let words = folder.last_words();
            ComputeError::Refused(words.unwrap_or_else(|| "it ended at once".to_owned()))
        })?;
        let machine = doing(
            "asking the VMM for its sandbox",
            client::machine(&folder.socket()).await,
        )?;
        trace.vmm(machine.start);
        self.check_sandbox(&machine.jail)?;
        doing("noting the VMM", folder.set_identity(&identity))?;
        // It has them open; their names, here, are of no more use.
        for file in [folder.kernel(), folder.initrd()] {
            doing(
                "removing boot files",
                folder::absent_is_fine(fs::remove_file(file)),
            )?;
        }
        Ok(identity)
    }

    /// The VMM ends by itself where a layer can't be had; one that runs without it all
    /// the same is not the VMM that this control plane was made for.
    fn check_sandbox(&self, standing: &[SandboxLayer]) -> Result<(), ComputeError> {
        let missing: Vec<_> = SandboxLayer::ALL
            .into_iter()
            .filter(|layer| !standing.contains(layer) && !self.optional_layers.contains(layer))
            .map(SandboxLayer::name)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(ComputeError::Refused(format!(
            "it runs without the sandbox layers {}; --jail-layers-optional allows that",
            missing.join(", ")
        )))
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

/// Copies the kernel and the initrd, if there is one, from a disk. `Ok(Err(line))`
/// says what is wrong with it.
async fn read_boot_files(
    reader: &Path,
    disk: &Path,
    method: &BootMethod,
    owner: Owner,
    to: &BootFiles,
) -> io::Result<Result<(), String>> {
    let BootMethod::Linux {
        partition,
        kernel,
        initrd,
        ..
    } = method;
    let first = Wanted {
        path: kernel,
        limit: MAX_KERNEL,
        to: &to.kernel,
    };
    let second = initrd.as_ref().map(|initrd| Wanted {
        path: initrd,
        limit: MAX_INITRD,
        to: &to.initrd,
    });
    spawn::read_boot_files(reader, disk, *partition, &first, second.as_ref(), owner).await
}

/// How long the steps of an instance's last launch took; none when there was none
/// on this host.
///
/// # Errors
/// When its folder can't be read.
pub fn trace_of(data: &Path, id: &InstanceId) -> io::Result<Option<trace::Record>> {
    Folder::new(data.join("instances").join(id.as_str())).trace()
}

/// What the records of an instance and its process say.
struct There {
    launch: Option<Launch>,
    /// Its process, and whether that lives.
    identity: Option<(bool, Identity)>,
    exit: Option<Exit>,
    host_boot: String,
}

impl There {
    fn read(folder: &Folder) -> io::Result<Self> {
        let launch = folder.launch()?;
        folder.trim_log()?;
        let identity = match folder.identity()? {
            Some(identity) => Some((identity.is_alive()?, identity)),
            None => None,
        };
        Ok(Self {
            launch,
            identity,
            // After the process: what it said last is there by then.
            exit: folder.exit(),
            host_boot: process::host_boot()?,
        })
    }

    fn judge(self) -> Observed {
        let launched = self.identity.as_ref().map(|(_, i)| i.host_boot.as_str());
        let noted = self.launch.as_ref().and_then(|l| l.host_boot.as_deref());
        let lost = (launched.or(noted)).is_some_and(|boot| boot != self.host_boot);
        let process = self.identity.map(|(alive, identity)| folder::Process {
            pid: identity.pid,
            alive,
        });
        folder::judge(self.launch.as_ref(), process, self.exit, lost)
    }
}

/// Every instance of which there is a trace.
fn known(instances: &Path, cgroups: &Cgroups) -> io::Result<BTreeSet<InstanceId>> {
    let mut found = cgroups.list()?;
    for entry in fs::read_dir(instances)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|n| n.parse::<InstanceId>().ok()));
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
        let lock = self.lock(id);
        let _held = lock.lock().await;
        doing("preparing the launch", folder.check_length())?;
        let locked = folder.lock();
        let _locked = doing(format!("locking {}", folder.path().display()), locked)?;
        let ended = self.cgroups.remove(id).await;
        doing("ending what an earlier launch left", ended)?;
        drop(step);
        let step = spec.trace.begin("folder, with its first record");
        let launch = doing("beginning the launch", self.begin(spec, &folder).await)?;
        drop(step);
        let outcome = self.bring_up(&launch, &folder, &taps).await;
        let error = outcome.as_ref().err().map(ToString::to_string);
        let record = spec.trace.record(spec.boot, error);
        if let Err(error) = folder.set_trace(&record) {
            tracing::debug!(instance = %id, %error, "the launch's times are not kept");
        }
        match outcome {
            Ok(identity) => {
                // One that has ended already counts as an end, too.
                if !doing("watching the VMM", self.watch_exit(id, &identity))? {
                    let _ = self.exits.send(id.clone());
                }
                Ok(())
            }
            Err(e) => {
                // What can't be cleared now is incomplete, and cleared later.
                if let Err(e) = self.cgroups.remove(id).await {
                    tracing::warn!(instance = %id, error = %e, "a failed launch is not cleared away");
                }
                Err(e)
            }
        }
    }

    async fn power_button(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.ask(id, "power-button").await
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
        let lock = self.lock(id);
        let _held = lock.lock().await;
        let folder = self.folder(id);
        let removed = blocking(move || folder.remove()).await;
        doing(format!("forgetting {id}"), removed)?;
        self.give_back_uid(id);
        Ok(())
    }

    async fn purge(&self) -> Result<(), ComputeError> {
        for id in doing("listing instances", self.known_ids())? {
            self.forget(&id).await?;
        }
        doing("removing the control group", self.cgroups.remove_parent())?;
        doing(
            "removing the instances' folder",
            folder::absent_is_fine(fs::remove_dir_all(&self.instances)),
        )?;
        doing("removing the boot files", self.boot_cache.purge())
    }

    fn exits(&self) -> broadcast::Receiver<InstanceId> {
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
}

#[cfg(test)]
mod tests;
