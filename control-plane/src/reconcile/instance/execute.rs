//! Carries out the plans of the instances on this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    plan::{Facts, Step, Transition, plan},
    record,
};
use crate::{
    compute::{
        CloneOf, ComputeError, ComputeHost, DiskSpec, LaunchSpec, NicSpec, Observed, trace::Trace,
    },
    config::Config,
    images,
    model::{Image, Instance, InstanceId, InstanceState, InstanceType, StateReason, VolumeId},
    network::NetworkHost,
    reconcile::{Again, Clock, Controller, host::NetworkController},
    storage::{Source, StorageHost, VolumeSpec},
    store::{Db, Revision, TransactError, View},
};

/// How many instances are worked on at once.
const AT_ONCE: usize = 8;
/// How often a launch is tried while the host is what fails.
const LAUNCHES: u32 = 5;
/// The pause after a first failed step; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The MTU of an instance's interface, in bytes.
const MTU: u16 = 1500;

/// What the controller remembers of an instance between passes; losing it does
/// no harm.
#[derive(Debug, Clone, Default)]
struct Memory {
    /// When the power button was last pressed.
    pressed: Option<Timestamp>,
    /// How many steps have failed in a row.
    failures: u32,
    /// Before when nothing is tried.
    not_before: Option<Timestamp>,
    /// Why the launch has failed for good.
    failed: Option<StateReason>,
    /// The record's revision that this is about: a call that changes the record
    /// is not kept waiting by what failed before it.
    revision: Revision,
}

/// Why a launch failed.
enum LaunchError {
    /// Trying again may help.
    Passing(anyhow::Error),
    /// It won't.
    Final(StateReason),
}

impl<E: Into<anyhow::Error>> From<E> for LaunchError {
    fn from(error: E) -> Self {
        Self::Passing(error.into())
    }
}

/// The instances of this host.
pub struct InstanceController {
    /// Desired state.
    pub db: Db,
    /// The configuration, this host's id in it.
    pub config: Arc<Config>,
    /// The VMMs.
    pub compute: Arc<dyn ComputeHost>,
    /// The volumes.
    pub storage: Arc<dyn StorageHost>,
    /// The taps.
    pub taps: Arc<dyn NetworkHost>,
    /// Whoever makes them.
    pub network: Arc<NetworkController>,
    /// The time.
    pub clock: Clock,
    memory: Mutex<BTreeMap<InstanceId, Memory>>,
}

#[async_trait]
impl Controller for InstanceController {
    fn name(&self) -> &'static str {
        "instances"
    }

    fn events(&self) -> Option<watch::Receiver<u64>> {
        Some(self.compute.exits())
    }

    async fn pass(&self) -> anyhow::Result<Again> {
        let observed = self.compute.observe().await.context("looking for VMMs")?;
        let volumes = self
            .storage
            .observe()
            .await
            .context("looking for volumes")?;
        // After looking: what the view says is then at least as new, and no VMM
        // of a younger record can be taken for a stray.
        let view = self.db.view();
        let mine: Vec<&Instance> = view.by(Instance::BY_HOST, &self.config.host_id.0).collect();
        self.memory()
            .retain(|id, _| view.find::<Instance>(id).is_some());

        let steps: Vec<BoxFuture<'_, Again>> = mine
            .iter()
            .map(|instance| {
                self.step(&view, instance, observed.get(&instance.id), &volumes)
                    .boxed()
            })
            .collect();
        let lives: Vec<Again> = stream::iter(steps)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;

        let mut again = lives.into_iter().min().unwrap_or(Again::Idle);
        let known: BTreeSet<&InstanceId> = mine.iter().map(|i| &i.id).collect();
        for stray in observed.keys().filter(|id| !known.contains(id)) {
            tracing::warn!(instance = %stray, "there is a VMM that no record knows, removing it");
            self.compute
                .forget(stray)
                .await
                .context("removing a stray VMM")?;
            again = Again::Now;
        }
        Ok(again)
    }
}

impl InstanceController {
    /// A controller that remembers nothing yet.
    pub fn new(
        db: Db,
        config: Arc<Config>,
        compute: Arc<dyn ComputeHost>,
        storage: Arc<dyn StorageHost>,
        taps: Arc<dyn NetworkHost>,
        network: Arc<NetworkController>,
        clock: Clock,
    ) -> Self {
        Self {
            db,
            config,
            compute,
            storage,
            taps,
            network,
            clock,
            memory: Mutex::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Memory>> {
        // It holds nothing that a panic could leave half-done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, id: &InstanceId, change: impl FnOnce(&mut Memory)) {
        change(self.memory().entry(id.clone()).or_default());
    }

    /// Plans and carries out one step of one instance's life.
    async fn step(
        &self,
        view: &View,
        instance: &Instance,
        observed: Option<&Observed>,
        volumes: &BTreeSet<VolumeId>,
    ) -> Again {
        let now = (self.clock)();
        let revision = view.modified(instance).unwrap_or_default();
        let memory = {
            let mut all = self.memory();
            let memory = all.entry(instance.id.clone()).or_default();
            if memory.revision != revision {
                *memory = Memory {
                    revision,
                    ..Memory::default()
                };
            }
            memory.clone()
        };
        if let Some(pause) = memory
            .not_before
            .and_then(|t| Duration::try_from(t - now).ok())
            && !pause.is_zero()
        {
            return Again::After(pause);
        }
        let resets = match self.resets(instance, observed).await {
            Ok(resets) => resets,
            Err(error) => return self.note_failure(&instance.id, &Step::Nothing, error, now),
        };
        let facts = Facts {
            now,
            resets,
            observed,
            volumes: record::volumes(view, instance)
                .any(|v| record::goes_with(v) && volumes.contains(&v.id)),
            pressed: memory.pressed,
            failed: memory.failed.as_ref(),
            stop_grace: self.config.stop_grace,
            terminate_grace: self.config.terminate_grace,
        };
        let step = plan(instance, &facts);
        match step {
            Step::Nothing => return Again::Idle,
            Step::Wait(pause) => return Again::After(pause),
            _ => tracing::info!(instance = %instance.id, step = ?step, "instance"),
        }
        match self.execute(view, instance, revision, &step, now).await {
            Ok(()) => {
                self.remember(&instance.id, |m| {
                    m.failures = 0;
                    m.not_before = None;
                });
                Again::Now
            }
            Err(error) => self.note_failure(&instance.id, &step, error, now),
        }
    }

    /// How often the VMM was reset, if a reboot is to be done and it can be asked.
    async fn resets(
        &self,
        instance: &Instance,
        observed: Option<&Observed>,
    ) -> Result<Option<u64>, LaunchError> {
        if instance.state != InstanceState::Running
            || instance.reboots_asked == instance.reboots_done
            || !matches!(observed, Some(Observed::Running { .. }))
        {
            return Ok(None);
        }
        match self.compute.resets(&instance.id).await {
            Ok(resets) => Ok(Some(resets)),
            Err(ComputeError::NotRunning(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Decides when a failed step is tried again.
    fn note_failure(
        &self,
        id: &InstanceId,
        step: &Step,
        error: LaunchError,
        now: Timestamp,
    ) -> Again {
        let mut all = self.memory();
        let memory = all.entry(id.clone()).or_default();
        memory.failures += 1;
        match error {
            LaunchError::Final(reason) => {
                tracing::warn!(instance = %id, reason = reason.message, "launch failed");
                memory.failed = Some(reason);
                return Again::Now;
            }
            LaunchError::Passing(error) => {
                tracing::warn!(
                    instance = %id,
                    step = ?step,
                    failures = memory.failures,
                    error = format!("{error:#}"),
                    "step failed"
                );
                // The caller learns that it was the host; the log, what it was.
                if *step == Step::Launch && memory.failures >= LAUNCHES {
                    memory.failed = Some(StateReason::internal_error("Internal error on launch"));
                    return Again::Now;
                }
            }
        }
        let pause = PAUSE_MAX.min(PAUSE_MIN * 2u32.pow(memory.failures.min(7) - 1));
        memory.not_before = now.checked_add(pause).ok();
        Again::After(pause)
    }

    async fn execute(
        &self,
        view: &View,
        instance: &Instance,
        revision: Revision,
        step: &Step,
        now: Timestamp,
    ) -> Result<(), LaunchError> {
        let id = &instance.id;
        match step {
            Step::Nothing | Step::Wait(_) => {}
            Step::Launch => self.launch(view, instance).await?,
            Step::Reset => self.compute.reset(id).await.context("resetting the VMM")?,
            Step::PressButton | Step::AskToReboot(_) => {
                self.remember(id, |m| m.pressed = Some(now));
                let pressed = match step {
                    Step::AskToReboot(resets) => self.compute.reboot(id, *resets).await,
                    _ => self.compute.power_button(id).await,
                };
                match pressed {
                    // It went down by itself in the meantime.
                    Ok(()) | Err(ComputeError::NotRunning(_)) => {}
                    Err(error) => {
                        // A VMM that can't be asked can still be forced when its time is over.
                        tracing::warn!(instance = %id, %error, "the power button is stuck");
                    }
                }
            }
            Step::Kill => self.compute.kill(id).await.context("killing the VMM")?,
            Step::Forget => self.compute.forget(id).await.context("removing the VMM")?,
            Step::RemoveVolumes => {
                for volume in record::volumes(view, instance).filter(|v| record::goes_with(v)) {
                    self.storage
                        .remove_volume(&volume.id)
                        .await
                        .context("removing a volume")?;
                }
            }
            Step::Record(transition) => {
                self.update(instance, revision, |view, change, instance| {
                    record::apply(view, change, instance, transition, now);
                })
                .await?;
                if *transition == Transition::Terminated {
                    self.network.ensure().await.context("removing its taps")?;
                }
            }
        }
        Ok(())
    }

    /// Changes the instance's record and what hangs on it, unless somebody
    /// changed it since the plan was made: the next pass plans anew then.
    async fn update(
        &self,
        instance: &Instance,
        planned: Revision,
        change_it: impl Fn(&View, &mut crate::store::Change<'_>, &Instance),
    ) -> anyhow::Result<()> {
        self.db
            .transact(|view, change| {
                if let Some(current) = view.find::<Instance>(&instance.id)
                    && view.modified(current) == Some(planned)
                {
                    change_it(view, change, current);
                }
                Ok::<_, Infallible>(())
            })
            .await
            .map_err(|error| match error {
                TransactError::Refused(never) => match never {},
                TransactError::Contended => anyhow::anyhow!("too many conflicting changes"),
                TransactError::Store(error) => error.into(),
            })
    }

    async fn launch(&self, view: &View, instance: &Instance) -> Result<(), LaunchError> {
        let lost = |what: &str| LaunchError::Final(StateReason::internal_error(what));
        let image = view
            .at(&instance.scope)
            .visible::<Image>(&instance.image)
            .ok_or_else(|| lost("Its image is gone"))?;
        let kind = InstanceType::find(&instance.instance_type)
            .ok_or_else(|| lost("Its instance type is gone"))?;
        let trace = Trace::of(instance.launched_at);
        trace.mark("placed and picked up");
        let root = self.root_volume(view, instance, image).await?;
        trace.mark("root volume there");
        self.network.ensure().await.context("making its taps")?;
        let mut nics = Vec::new();
        let mut taps = Vec::new();
        for eni in record::interfaces(view, instance) {
            taps.push(self.taps.open_tap(eni).await.context("opening a tap")?);
            nics.push(NicSpec {
                eni: eni.id.clone(),
                mac: eni.mac,
                mtu: MTU,
            });
        }
        trace.mark("network there");
        let spec = LaunchSpec {
            instance: instance.id.clone(),
            boot: instance.boots,
            instance_type: instance.instance_type.clone(),
            vcpus: kind.vcpus,
            memory_mib: kind.memory_mib,
            boot_method: image.manifest.boot.clone(),
            disks: vec![DiskSpec {
                volume: instance.root_volume.clone(),
                path: root,
                read_only: false,
            }],
            nics,
            clone_of: (instance.boots == 1).then(|| {
                Box::new(CloneOf {
                    image: image.id.clone(),
                    path: images::disk_path(&self.config.images_dir, image),
                })
            }),
            trace,
        };
        match self.compute.launch(&spec, taps).await {
            Ok(()) => Ok(()),
            Err(ComputeError::Unbootable(why)) => {
                Err(LaunchError::Final(StateReason::client_error(&why)))
            }
            Err(ComputeError::Refused(why)) => {
                tracing::warn!(instance = %instance.id, why, "the VMM refused to start");
                Err(lost("Internal error on launch"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The root volume's file: a clone of the image at the first boot. Later it
    /// must be there, for a new clone would pass for the user's data.
    async fn root_volume(
        &self,
        view: &View,
        instance: &Instance,
        image: &Image,
    ) -> Result<PathBuf, LaunchError> {
        let lost = || LaunchError::Final(StateReason::internal_error("Its root volume is lost"));
        let volume = record::volumes(view, instance)
            .find(|v| v.id == instance.root_volume)
            .ok_or_else(lost)?;
        if instance.boots > 1 {
            let there = self
                .storage
                .observe()
                .await
                .context("looking for volumes")?;
            if !there.contains(&volume.id) {
                return Err(lost());
            }
        }
        let spec = VolumeSpec {
            id: volume.id.clone(),
            size_bytes: u64::from(volume.size_gib) << 30,
            source: Some(Source {
                image: image.id.clone(),
                path: images::disk_path(&self.config.images_dir, image),
            }),
        };
        Ok(self
            .storage
            .ensure_volume(&spec)
            .await
            .context("making its root volume")?)
    }
}
