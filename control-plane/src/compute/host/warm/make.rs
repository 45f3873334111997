//! Makes a template: a machine that boots as far as its initramfs and is saved there.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_vmm_api::{MachineState, SandboxLayer};
use tokio::time::{Instant, sleep, timeout};

use super::super::bootcache::BootFiles;
use super::super::cgroup::Cgroups;
use super::super::folder::{Folder, Launch};
use super::super::room::Room;
use super::super::{blocking, client, process, spawn};
use super::{CONSOLE, Templates, slots};
use crate::compute::argv;
use crate::compute::{LaunchSpec, Spare};
use crate::model::{BootMethod, InstanceId, overhead_mib};

/// The word on the kernel's command line for which an initramfs holds, and the line that
/// it says then.
const WORD: &str = " hearth.hold";
const HELD: &[u8] = b"hearth.hold: held";
/// How long its processors may run until then. A debian-12 needs ten seconds under
/// emulation.
const BOOT: Duration = Duration::from_secs(180);
/// How long it may take by the clock: others have the processors first, which is no fault
/// of its own.
const LONGEST: Duration = Duration::from_secs(900);
/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What a guest that holds may still have to do.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a machine may take to stand still.
const PAUSE: Duration = Duration::from_secs(20);
/// How long its memory may take to the disk, by the clock as well: a GiB under emulation,
/// beside others, took a minute and a half.
const SNAPSHOT: Duration = Duration::from_secs(600);
/// The most memory that a guest may have touched until then: what a template takes on the
/// disk. Stock ones have a tenth of it.
const MOST: u64 = 1 << 30;
/// What the host must have left beside it, in MiB.
const SPARE_MIB: u64 = 256;
/// How often is looked whether what it takes is promised to somebody now.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(50);

/// What is needed of this machine.
#[derive(Debug)]
pub(in super::super) struct Maker {
    pub(in super::super) templates: Arc<Templates>,
    pub(in super::super) cgroups: Cgroups,
    pub(in super::super) vmm: PathBuf,
    pub(in super::super) optional_layers: Vec<SandboxLayer>,
    /// The user that the VMM runs as.
    pub(in super::super) uid: u32,
    /// What its memory finds room in.
    pub(in super::super) room: Room,
    /// How much memory this host has free, in MiB.
    pub(in super::super) available_mib: fn() -> io::Result<u64>,
    /// What it has beyond all promises.
    pub(in super::super) spare: Option<Arc<dyn Spare>>,
}

/// Why there is none.
enum Failed {
    /// It is of no use to try again.
    ForGood(String),
    /// The host has no room now, or no time.
    NoRoom,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::ForGood(error.to_string())
    }
}

impl Maker {
    /// Makes the template of this key, for launches as this one.
    pub(in super::super) async fn make(self, key: String, launch: LaunchSpec, files: BootFiles) {
        let _one = self.templates.making.lock().await;
        // Of a hearth that was killed: one is made at a time.
        for left in self.cgroups.list().unwrap_or_default() {
            if let Err(error) = self.cgroups.remove(&left).await {
                tracing::warn!(%error, "what a template was made in is not cleared away");
            }
        }
        let spec = template(&launch);
        let began = Instant::now();
        let outcome = tokio::select! {
            biased;
            // First: what is seen before anything is done is that there is no room.
            () = self.is_called_for(&spec) => Err(Failed::NoRoom),
            outcome = self.boot(&key, &launch, &spec, &files) => outcome,
        };
        let ended = self.cgroups.remove(&spec.instance).await;
        if let Err(error) = ended.and_then(|()| self.templates.workshop().map(drop)) {
            tracing::warn!(%error, "what a template was made in is not cleared away");
        }
        let image = launch
            .clone_of
            .as_ref()
            .map(|clone| clone.image.to_string());
        let (image, kind) = (image.unwrap_or_default(), &launch.instance_type);
        match outcome {
            Ok(()) => {
                // It may have to go for others, and is made again then.
                self.templates.stages().remove(&key);
                let took = began.elapsed().as_secs_f32();
                tracing::info!(image, kind, took, "made a template: launches are warm now");
            }
            Err(Failed::NoRoom) => {
                self.templates.stages().remove(&key);
                tracing::debug!(image, kind, "no room for a template");
            }
            Err(Failed::ForGood(why)) => {
                self.templates.give_up(&key);
                tracing::warn!(
                    image,
                    kind,
                    why,
                    "no template can be made: launches stay cold"
                );
            }
        }
    }

    /// Waits until the host has less to spare than a template takes while it is made: an
    /// instance, or a volume, was promised what was there. What is made is ended then, long
    /// before a guest has touched all of its memory.
    async fn is_called_for(&self, spec: &LaunchSpec) {
        let Some(spare) = &self.spare else {
            return std::future::pending().await;
        };
        let memory = u64::from(spec.memory_mib);
        let memory_mib = memory + overhead_mib(memory);
        loop {
            let left = spare.left();
            if left.memory_mib < memory_mib || left.disk_gib < MOST >> 30 {
                return;
            }
            sleep(LOOK_FOR_ROOM).await;
        }
    }

    async fn boot(
        &self,
        key: &str,
        launch: &LaunchSpec,
        spec: &LaunchSpec,
        files: &BootFiles,
    ) -> Result<(), Failed> {
        let memory = u64::from(spec.memory_mib);
        if (self.available_mib)()? < memory + overhead_mib(memory) + SPARE_MIB {
            return Err(Failed::NoRoom);
        }
        // One is made at a time: what is there is of a hearth that was killed over it.
        for left in self.cgroups.list()? {
            self.cgroups.remove(&left).await?;
        }
        let folder = self.templates.workshop()?;
        let record = Launch {
            spec: spec.clone(),
            uid: self.uid,
            host_boot: Some(process::host_boot()?),
        };
        let _lock = folder.lock()?;
        folder.begin(&record)?;
        self.cgroups.create(spec)?;
        // Its start has a deadline of its own, and is short.
        self.cgroups.yields(false)?;
        let BootMethod::Linux { initrd, .. } = &spec.boot_method;
        let places = argv::Places {
            kernel: Some(&files.kernel),
            initrd: initrd.as_ref().map(|_| files.initrd.as_path()),
            restore: None,
            take_over: None,
            template: Some(slots(launch)),
            socket: &folder.socket(),
            serial_log: &folder.console(),
            exit_file: &folder.exit_file(),
            pid_file: &folder.pid_file(),
        };
        let owner = rustix::process::geteuid().is_root().then(|| record.owner());
        let argv = argv::render(spec, &places, &[], owner, &self.optional_layers);
        let argv = argv.map_err(|error| Failed::ForGood(error.to_string()))?;
        let group = self.cgroups.open(&spec.instance)?;
        let status = spawn::start_vmm(&self.vmm, &argv, group, &[], &folder.log()).await;
        let status = match status {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(Failed::NoRoom),
            status => status?,
        };
        self.cgroups.yields(true)?;
        if !status.success() {
            let words = folder.last_words();
            return Err(Failed::ForGood(words.unwrap_or_else(|| status.to_string())));
        }
        let console = self.held(&folder, &spec.instance).await?;
        sleep(SETTLE).await;
        self.pause(&folder).await?;
        let touched = self.cgroups.memory(&spec.instance)?;
        if touched > MOST {
            let why = format!("it has touched more than {} MiB", MOST >> 20);
            return Err(Failed::ForGood(why));
        }
        let room = self.room.clone();
        let Ok(_promise) = blocking(move || room.promise(2 * touched)).await else {
            return Err(Failed::NoRoom);
        };
        let made = folder.path().join("made");
        DirBuilder::new().mode(0o700).create(&made)?;
        // Ours, and handed in open: nothing of the VMM's outlives it.
        let create = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            options.open(made.join(name))
        };
        let files = [create("memory")?, create("machine.json")?];
        let socket = folder.socket();
        tokio::select! {
            saved = timeout(SNAPSHOT, client::snapshot(&socket, files)) => {
                saved.map_err(|_| Failed::ForGood("its snapshot isn't written".to_owned()))??;
            }
            // Nobody else is chosen before what it has written is gone.
            _chosen = self.room.runs_short() => {
                self.cgroups.remove(&spec.instance).await?;
                fs::remove_dir_all(&made)?;
                return Err(Failed::NoRoom);
            }
        }
        fs::write(made.join(CONSOLE), &console)?;
        // From here on nobody writes there.
        self.cgroups.remove(&spec.instance).await?;
        Ok(self.templates.keep(&made, key)?)
    }

    /// Waits until the guest says that it holds. Returns what its console showed until then.
    async fn held(&self, folder: &Folder, id: &InstanceId) -> Result<Vec<u8>, Failed> {
        let deadline = Instant::now() + LONGEST;
        loop {
            let mut shown = folder.console_tail()?;
            if let Some(at) = shown.windows(HELD.len()).position(|part| part == HELD) {
                shown.truncate(at);
                return Ok(shown);
            }
            if self.cgroups.members(id)?.is_empty() {
                return Err(Failed::ForGood("its guest has ended".to_owned()));
            }
            if self.cgroups.ran(id)? > BOOT || Instant::now() > deadline {
                let (ran, clock) = (BOOT.as_secs(), LONGEST.as_secs());
                let why = format!(
                    "its guest doesn't hold, neither after {ran} s of running nor within {clock} s"
                );
                return Err(Failed::ForGood(why));
            }
            sleep(LOOK).await;
        }
    }

    async fn pause(&self, folder: &Folder) -> Result<(), Failed> {
        let socket = folder.socket();
        client::put(&socket, "pause").await?;
        let deadline = Instant::now() + PAUSE;
        while client::machine(&socket).await?.state != MachineState::Paused {
            if Instant::now() > deadline {
                return Err(Failed::ForGood("it doesn't stand still".to_owned()));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// The machine of a template: nobody's, under a name that is drawn for it and found nowhere
/// else, neither in its memory.
fn template(launch: &LaunchSpec) -> LaunchSpec {
    let BootMethod::Linux {
        partition,
        kernel,
        initrd,
        cmdline,
    } = launch.boot_method.clone();
    LaunchSpec {
        instance: InstanceId::from_random(rand::random()),
        boot: 0,
        boot_method: BootMethod::Linux {
            partition,
            kernel,
            initrd,
            cmdline: cmdline + WORD,
        },
        disks: Vec::new(),
        nics: Vec::new(),
        clone_of: None,
        resume: None,
        trace: crate::compute::trace::Trace::default(),
        ..launch.clone()
    }
}

/// Memory that the host can give without taking it from anybody, in MiB.
pub(in super::super) fn available_mib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib >> 10)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}
