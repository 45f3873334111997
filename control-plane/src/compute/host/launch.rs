//! The steps of a launch, from its first record to its last.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use hearth_vmm_api::{ExitStatus, SandboxLayer};

use super::bootcache::BootFiles;
use super::folder::{self, Folder, Launch};
use super::hibernation::{Held, under};
use super::memory::Memory;
use super::process::{self, Identity};
use super::spawn::{self, Wanted};
use super::warm::Maker;
use super::{HostCompute, NOBODY, client, doing};
use crate::compute::argv::{self, Owner};
use crate::compute::{ComputeError, LaunchSpec, MAX_INITRD, MAX_KERNEL};
use crate::model::BootMethod;

impl HostCompute {
    /// A user that no other instance has, written down before it is used.
    pub(super) async fn begin(
        &self,
        spec: &LaunchSpec,
        folder: &Folder,
        held: &Held,
    ) -> io::Result<Launch> {
        let uid = self.choose_uid(&spec.instance)?;
        let launch = Launch {
            spec: spec.clone(),
            uid,
            host_boot: Some(process::host_boot()?),
        };
        let folder = folder.clone();
        under(held, move || {
            // Before anything can run: from here on there is no other memory.
            Memory::of(&folder).keep_only(launch.spec.resume)?;
            folder.begin(&launch).map(|()| launch)
        })
        .await
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
    pub(super) async fn bring_up(
        &self,
        launch: &Launch,
        folder: &Folder,
        taps: &[OwnedFd],
        held: &Held,
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
        let files = self.boot_files(launch, folder).await?;
        drop(step);
        let BootMethod::Linux { initrd: wanted, .. } = &launch.spec.boot_method;
        let places = argv::Places {
            kernel: Some(&files.kernel),
            initrd: wanted.as_ref().map(|_| files.initrd.as_path()),
            restore: None,
            take_over: None,
            template: None,
            socket: &folder.socket(),
            serial_log: &folder.console(),
            exit_file: &folder.exit_file(),
            pid_file: &folder.pid_file(),
        };
        if !self.resume(launch, folder, &places, taps, held).await?
            && !self.start_warm(launch, folder, &places, taps).await?
        {
            self.start(launch, folder, &places, taps).await?;
            // What is on its own disk may be its guest's, of an attempt before this one.
            if files.kernel != folder.kernel() {
                self.make_template(launch, files);
            }
        }
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
        if launch.spec.resume.is_some() {
            doing("removing its memory", Memory::of(folder).sweep())?;
        }
        Ok(identity)
    }

    /// Starts the VMM.
    async fn start(
        &self,
        launch: &Launch,
        folder: &Folder,
        places: &argv::Places<'_>,
        taps: &[OwnedFd],
    ) -> Result<(), Unstarted> {
        let fds: Vec<_> = taps.iter().map(AsRawFd::as_raw_fd).collect();
        // VMMs run as users of their own where this process may choose users.
        let owner = rustix::process::geteuid().is_root().then(|| launch.owner());
        let argv = argv::render(&launch.spec, places, &fds, owner, &self.optional_layers)
            .map_err(|e| ComputeError::Refused(e.to_string()))?;
        let trace = &launch.spec.trace;
        let _step = trace.begin("VMM's processes, until it says that its vCPUs run");
        let group = self.cgroups.open(&launch.spec.instance);
        let group = doing("opening the control group", group)?;
        let started = spawn::start_vmm(&self.vmm, &argv, group, taps, &folder.log()).await;
        let status = doing(format!("starting {}", self.vmm.display()), started)?;
        if status.success() {
            return Ok(());
        }
        let words = folder.last_words();
        Err(Unstarted {
            is_unrestorable: ExitStatus::Unrestorable.is(status.code()),
            error: ComputeError::Refused(
                words.unwrap_or_else(|| format!("it ended with {status}")),
            ),
        })
    }

    /// Starts the VMM on a template, if there is one and it takes it.
    async fn start_warm(
        &self,
        launch: &Launch,
        folder: &Folder,
        places: &argv::Places<'_>,
        taps: &[OwnedFd],
    ) -> Result<bool, ComputeError> {
        let id = &launch.spec.instance;
        let Some(template) = self.templates.find(&launch.spec, &self.vmm) else {
            return Ok(false);
        };
        let _step = launch.spec.trace.begin("a template, to go on from");
        if let Err(error) = template.begin_console(folder) {
            tracing::warn!(instance = %id, %error, "its template has no console, and goes: it boots from cold");
            self.templates.remove(&template);
            let emptied = folder::absent_is_fine(fs::remove_file(folder.console()));
            doing("emptying the console", emptied)?;
            return Ok(false);
        }
        let places = argv::Places {
            restore: Some(template.folder()),
            ..*places
        };
        match self.start(launch, folder, &places, taps).await {
            Ok(()) => Ok(true),
            Err(Unstarted {
                error: ComputeError::Refused(why),
                is_unrestorable,
            }) => {
                tracing::warn!(instance = %id, why, "its template is refused: it boots from cold");
                if is_unrestorable {
                    self.templates.remove(&template);
                }
                let ended = self.cgroups.remove(id).await;
                doing("ending what refused its template", ended)?;
                let made = self.cgroups.create(&launch.spec);
                doing("making the control group", made)?;
                let emptied = folder::absent_is_fine(fs::remove_file(folder.console()));
                doing("emptying the console", emptied)?;
                Ok(false)
            }
            Err(Unstarted { error, .. }) => Err(error),
        }
    }

    /// Has a template be made for launches as this one, if there is to be one. It is in
    /// the way neither of a launch nor of the end of this process.
    fn make_template(&self, launch: &Launch, files: BootFiles) {
        let Some(key) = self.templates.wanted(&launch.spec, &self.vmm) else {
            return;
        };
        let maker = Maker {
            templates: Arc::clone(&self.templates),
            cgroups: self.cgroups.of_templates(),
            vmm: self.vmm.clone(),
            optional_layers: self.optional_layers.clone(),
            uid: self.template_uid(),
            room: self.room.clone(),
            available_mib: self.available_mib,
            spare: self.spare.clone(),
        };
        tokio::spawn(maker.make(key, launch.spec.clone(), files));
    }

    /// Starts the VMM on the memory that it is to go on from, if that is still there and
    /// it takes it. That memory is never given out again, but where it is sure that its
    /// guest has not run, and that this was no fault of the memory.
    async fn resume(
        &self,
        launch: &Launch,
        folder: &Folder,
        places: &argv::Places<'_>,
        taps: &[OwnedFd],
        held: &Held,
    ) -> Result<bool, ComputeError> {
        let Some(boot) = launch.spec.resume else {
            return Ok(false);
        };
        let id = &launch.spec.instance;
        let memory = Memory::of(folder);
        let taken = under(held, move || memory.take(boot)).await;
        let Some(taken) = doing("taking its memory", taken)? else {
            tracing::warn!(instance = %id, "there is no memory to go on from: it boots from cold");
            return Ok(false);
        };
        let places = argv::Places {
            restore: Some(&taken),
            ..*places
        };
        match self.start(launch, folder, &places, taps).await {
            Ok(()) => {
                tracing::info!(instance = %id, "it goes on from its memory");
                Ok(true)
            }
            Err(Unstarted {
                error,
                is_unrestorable,
            }) => {
                let ended = self.cgroups.remove(id).await;
                doing("ending what did not go on from its memory", ended)?;
                // A VMM notes its process id before it lets the guest run.
                let may_have_run = folder.claimed_pid().is_some();
                let why = match error {
                    ComputeError::Refused(why) if may_have_run || is_unrestorable => why,
                    error if may_have_run => return Err(error),
                    error => {
                        let memory = Memory::of(folder);
                        let back = under(held, move || memory.give_back(boot)).await;
                        doing("taking its memory back", back)?;
                        return Err(passing(error));
                    }
                };
                tracing::warn!(instance = %id, why, "its memory is refused, and lost: it boots from cold");
                let made = self.cgroups.create(&launch.spec);
                doing("making the control group", made)?;
                Ok(false)
            }
        }
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
}

/// A VMM that was not started.
struct Unstarted {
    error: ComputeError,
    /// What it was to go on from is of no use, now or another time: its exit status says so.
    is_unrestorable: bool,
}

impl From<ComputeError> for Unstarted {
    fn from(error: ComputeError) -> Self {
        Self {
            error,
            is_unrestorable: false,
        }
    }
}

impl From<Unstarted> for ComputeError {
    fn from(unstarted: Unstarted) -> Self {
        unstarted.error
    }
}

/// A refusal as what another moment may not refuse.
fn passing(error: ComputeError) -> ComputeError {
    match error {
        ComputeError::Refused(why) => ComputeError::Host {
            doing: "going on from its memory".to_owned(),
            source: io::Error::other(why),
        },
        error => error,
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
