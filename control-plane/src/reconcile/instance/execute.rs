//! Carries out the plans of the instances on this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::broadcast;

use super::{
    launch::LaunchError,
    plan::{Facts, Step, plan},
    record,
};
use crate::{
    compute::{ComputeError, ComputeHost, Kept, Observed},
    config::Config,
    model::{Hosts, Instance, InstanceId, InstanceState, Intent, StateReason},
    reconcile::{
        Clock, Controller, Controllers, Requeue, Slots,
        host::NetworkController,
        queue::{Kind, Wake},
    },
    storage::StorageHost,
    store::{Changed, Db, Revision, View},
};

/// How many instances are stepped at once: most of them wait for their slots.
const AT_ONCE: usize = 4096;
/// How often a launch is tried while the host is what fails.
const LAUNCHES: u32 = 5;
/// When one that is to be hibernated looks again whether few enough wait for that. Those
/// that do are through sooner only where their memory takes a third of a second each.
const SAVE_LATER: Duration = Duration::from_secs(10);
/// What the controller remembers of an instance between steps; losing it does
/// no harm.
#[derive(Debug, Clone, Default)]
struct Memory {
    /// When the power button was last pressed.
    pressed: Option<Timestamp>,
    /// When its VMM was first seen to have ended.
    ended: Option<Timestamp>,
    /// How many launches have failed in a row.
    failures: u32,
    /// Why the launch, or the hibernation, has failed for good.
    failed: Option<StateReason>,
    /// The record's revision that this is about: a call that changes the record
    /// is not kept waiting by what failed before it.
    revision: Revision,
}

/// The instances of this host.
pub struct InstanceController {
    /// Desired state.
    pub db: Db,
    /// Those whose instances these are.
    pub hosts: Hosts,
    /// The configuration.
    pub config: Arc<Config>,
    /// The VMMs.
    pub compute: Arc<dyn ComputeHost>,
    /// The volumes.
    pub storage: Arc<dyn StorageHost>,
    /// The taps.
    pub network: Arc<NetworkController>,
    /// What the work on the host is bounded by.
    pub slots: Slots,
    /// The time.
    pub clock: Clock,
    memory: Mutex<BTreeMap<InstanceId, Memory>>,
}

#[async_trait]
impl Controller for InstanceController {
    type Key = InstanceId;

    fn name(&self) -> &'static str {
        "instances"
    }

    /// Each piece of its work has a deadline of its own, by its kind. A launch has the
    /// most of them, and waits for its network for as long as that takes.
    fn deadline(&self) -> Duration {
        Duration::from_secs(2 * 3600)
    }

    fn at_once(&self) -> usize {
        AT_ONCE
    }

    async fn all(&self) -> anyhow::Result<BTreeSet<InstanceId>> {
        let known = self.slots.run(Kind::Look, self.compute.known()).await?;
        let mut all = known.context("looking for VMMs")?;
        let view = self.db.view();
        let hosts = self.hosts.iter();
        let mine = hosts.flat_map(|host| view.by(Instance::BY_HOST, &host.0));
        all.extend(mine.map(|i| i.id.clone()));
        Ok(all)
    }

    fn concerned(&self, view: &View, changed: &Changed) -> Vec<Wake<InstanceId>> {
        let ids = changed.of::<Instance>(view).filter_map(|i| match i {
            Ok(instance) => self.is_mine(instance).then(|| instance.id.clone()),
            Err(gone) => gone.parse().ok(),
        });
        ids.map(Wake::Changed).collect()
    }

    fn events(&self) -> Option<broadcast::Receiver<InstanceId>> {
        Some(self.compute.exits())
    }

    async fn step(&self, id: &InstanceId) -> anyhow::Result<Requeue> {
        let look = self.slots.run(Kind::Look, self.compute.look(id)).await?;
        let observed = look.context("looking for its VMM")?;
        // After looking: what the view says is then at least as new, and no VMM
        // of a younger record can be taken for a stray.
        let view = self.db.view();
        match view.find::<Instance>(id).filter(|i| self.is_mine(i)) {
            Some(instance) => self.live(&view, instance, observed.as_ref()).await,
            None => {
                self.memory().remove(id);
                if observed.is_some() && view.has_unreadable::<Instance>() {
                    tracing::warn!(instance = %id, "there is a VMM whose record may be unreadable");
                } else if observed.is_some() {
                    tracing::warn!(instance = %id, "there is a VMM that no record knows, removing it");
                    let forget = self.compute.forget(id);
                    let forget = self.slots.run(Kind::Control, forget).await?;
                    forget.context("removing a stray VMM")?;
                }
                Ok(Requeue::Idle)
            }
        }
    }
}

impl InstanceController {
    /// A controller that remembers nothing yet.
    pub fn new(with: &Controllers, network: Arc<NetworkController>) -> Self {
        Self {
            db: with.db.clone(),
            hosts: with.hosts.clone(),
            config: with.config.clone(),
            compute: with.compute.clone(),
            storage: with.storage.clone(),
            network,
            slots: with.slots.clone(),
            clock: with.clock.clone(),
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

    fn is_mine(&self, instance: &Instance) -> bool {
        self.hosts.have(instance.host.as_ref())
    }

    /// Plans and carries out one step of one instance's life.
    async fn live(
        &self,
        view: &View,
        instance: &Instance,
        observed: Option<&Observed>,
    ) -> anyhow::Result<Requeue> {
        let now = (self.clock)();
        let id = &instance.id;
        let revision = view.modified(instance).unwrap_or_default();
        let memory = {
            let mut all = self.memory();
            let memory = all.entry(id.clone()).or_default();
            if memory.revision != revision {
                *memory = Memory {
                    revision,
                    ..Memory::default()
                };
            }
            match observed {
                Some(Observed::Exited { .. }) => drop(memory.ended.get_or_insert(now)),
                _ => memory.ended = None,
            }
            memory.clone()
        };
        let resets = self.resets(instance, observed).await?;
        let facts = Facts {
            now,
            resets,
            observed,
            kept: self.kept(instance).await?,
            update: self.wants_update(instance).await?,
            volumes: self.has_volumes(view, instance).await?,
            pressed: memory.pressed,
            ended: memory.ended,
            failed: memory.failed.as_ref(),
            stop_grace: self.config.stop_grace,
            terminate_grace: self.config.terminate_grace,
            restart_lost: self.config.restart_lost,
        };
        let step = plan(instance, &facts);
        if record::is_incomplete(view, instance) && step != Step::Nothing {
            // A launch without its disk, or an end that leaves it behind.
            tracing::warn!(instance = %id, step = ?step, "records of it can't be read, it waits");
            return Ok(Requeue::Idle);
        }
        let _place = match step {
            Step::Nothing => return Ok(Requeue::Idle),
            Step::Wait(pause) => return Ok(Requeue::After(pause)),
            Step::Hibernate | Step::Update => match self.slots.place(Kind::Memory) {
                Some(place) => Some(place),
                None => return Ok(Requeue::After(SAVE_LATER)),
            },
            _ => None,
        };
        tracing::info!(instance = %id, step = ?step, "instance");
        match self.execute(view, instance, revision, &step, now).await {
            Ok(()) => {
                self.remember(id, |m| m.failures = 0);
                Ok(Requeue::Now)
            }
            Err(error) => self.note_failure(id, &step, error),
        }
    }

    /// Whether a volume that goes with it is still there; not asked before it
    /// matters.
    async fn has_volumes(&self, view: &View, instance: &Instance) -> anyhow::Result<bool> {
        if instance.state != InstanceState::ShuttingDown {
            return Ok(false);
        }
        for volume in record::volumes(view, instance).filter(|v| record::goes_with(v)) {
            let holds = self.storage.holds(&volume.id);
            let holds = self.slots.run(Kind::Look, holds).await?;
            if holds.context("looking for a volume")? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is kept of its memory, where that is to be gone on from or removed.
    async fn kept(&self, instance: &Instance) -> anyhow::Result<Option<Kept>> {
        let matters = matches!(
            instance.state,
            InstanceState::Stopping | InstanceState::Stopped
        );
        if !instance.settings.may_hibernate || !matters {
            return Ok(None);
        }
        let kept = self.compute.kept_memory(&instance.id);
        let kept = self.slots.run(Kind::Look, kept).await?;
        kept.context("looking for its memory")
    }

    /// Saves its memory, for as long as that is what is wanted: one that is forced or
    /// terminated meanwhile doesn't wait for the disk.
    async fn hibernate(&self, instance: &Instance) -> anyhow::Result<()> {
        let hibernate = self.compute.hibernate(&instance.id, instance.boots);
        self.while_meant(instance, Intent::Hibernate, hibernate)
            .await
    }

    /// Has another VMM take its machine over, for as long as it is to run: what is cut short
    /// leaves one that has it.
    async fn replace_vmm(&self, instance: &Instance) -> anyhow::Result<()> {
        let update = self.compute.update(&instance.id, instance.boots);
        self.while_meant(instance, Intent::Run, update).await
    }

    /// Does what takes as long as its memory, unless something else is meant by then.
    async fn while_meant(
        &self,
        instance: &Instance,
        intent: Intent,
        act: impl Future<Output = Result<(), ComputeError>>,
    ) -> anyhow::Result<()> {
        let (id, boot) = (&instance.id, instance.boots);
        let mut views = self.db.changed();
        let changed = views.wait_for(|view| {
            let wanted = |now: &Instance| now.intent == intent && now.boots == boot;
            !view.find::<Instance>(id).is_some_and(wanted)
        });
        tokio::select! {
            done = self.slots.run(Kind::Memory, act) => match done? {
                // It ended by itself in the meantime.
                Ok(()) | Err(ComputeError::NotRunning(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            _ = changed => Ok(()),
        }
    }

    /// Whether its VMM is to be replaced, while that can be done.
    async fn wants_update(&self, instance: &Instance) -> anyhow::Result<bool> {
        if instance.state != InstanceState::Running {
            return Ok(false);
        }
        let wanted = self.compute.wants_update(&instance.id);
        let wanted = self.slots.run(Kind::Look, wanted).await?;
        wanted.context("looking whether its VMM is to be updated")
    }

    /// How often the VMM was reset, if a reboot is to be done and it can be asked.
    async fn resets(
        &self,
        instance: &Instance,
        observed: Option<&Observed>,
    ) -> anyhow::Result<Option<u64>> {
        if instance.state != InstanceState::Running
            || instance.reboots_asked == instance.reboots_done
            || !matches!(observed, Some(Observed::Running { .. }))
        {
            return Ok(None);
        }
        let asked = self.compute.resets(&instance.id);
        match self.slots.run(Kind::Control, asked).await? {
            Ok(resets) => Ok(Some(resets)),
            Err(ComputeError::NotRunning(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Decides whether a failed step is tried again.
    fn note_failure(
        &self,
        id: &InstanceId,
        step: &Step,
        error: LaunchError,
    ) -> anyhow::Result<Requeue> {
        let mut all = self.memory();
        let memory = all.entry(id.clone()).or_default();
        match error {
            LaunchError::Final(reason) => {
                tracing::warn!(instance = %id, reason = reason.message, "launch failed");
                memory.failed = Some(reason);
                Ok(Requeue::Now)
            }
            LaunchError::Passing(error) if *step == Step::Launch => {
                memory.failures += 1;
                if memory.failures < LAUNCHES {
                    return Err(error.context("launching"));
                }
                // The caller learns that it was the host; the log, what it was.
                tracing::warn!(
                    instance = %id,
                    failures = memory.failures,
                    error = format!("{error:#}"),
                    "launch failed"
                );
                memory.failed = Some(StateReason::internal_error("Internal error on launch"));
                Ok(Requeue::Now)
            }
            LaunchError::Passing(error) if *step == Step::Hibernate => {
                tracing::warn!(
                    instance = %id,
                    error = format!("{error:#}"),
                    "it can't be hibernated, it is stopped"
                );
                let why = "its memory could not be saved on its host";
                memory.failed = Some(StateReason::not_hibernated(why));
                Ok(Requeue::Now)
            }
            LaunchError::Passing(error) => Err(error),
        }
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
            Step::Hibernate => self.hibernate(instance).await?,
            Step::Update => self.replace_vmm(instance).await?,
            Step::DiscardMemory => {
                let discard = self.slots.run(Kind::Disk, self.compute.discard_memory(id));
                discard.await?.context("removing its memory")?;
            }
            Step::Reset => {
                let reset = self.slots.run(Kind::Control, self.compute.reset(id));
                reset.await?.context("resetting the VMM")?;
            }
            Step::PressButton | Step::AskToReboot(_) => {
                self.remember(id, |m| m.pressed = Some(now));
                let press = async {
                    match step {
                        Step::AskToReboot(resets) => self.compute.reboot(id, *resets).await,
                        _ => self.compute.power_button(id).await,
                    }
                };
                match self.slots.run(Kind::Control, press).await {
                    // It went down by itself in the meantime.
                    Ok(Ok(()) | Err(ComputeError::NotRunning(_))) => {}
                    // A VMM that can't be asked can still be forced when its time is over.
                    Ok(Err(error)) => stuck(id, &error),
                    Err(late) => stuck(id, &late),
                }
            }
            Step::Kill => {
                let kill = self.slots.run(Kind::Control, self.compute.kill(id));
                kill.await?.context("killing the VMM")?;
            }
            Step::Forget => {
                let forget = self.slots.run(Kind::Control, self.compute.forget(id));
                forget.await?.context("removing the VMM")?;
            }
            Step::RemoveVolumes => {
                for volume in record::volumes(view, instance).filter(|v| record::goes_with(v)) {
                    let remove = self.storage.remove_volume(&volume.id);
                    let remove = self.slots.run(Kind::Disk, remove).await?;
                    remove.context("removing a volume")?;
                }
            }
            Step::Record(transition) => {
                self.update(instance, revision, |view, change, instance| {
                    record::apply(view, change, instance, transition, now);
                })
                .await?;
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
            .transact_infallible(|view, change| {
                if let Some(current) = view.find::<Instance>(&instance.id)
                    && view.modified(current) == Some(planned)
                {
                    change_it(view, change, current);
                }
            })
            .await?;
        Ok(())
    }
}

fn stuck(id: &InstanceId, error: &dyn std::error::Error) {
    tracing::warn!(instance = %id, %error, "the power button is stuck");
}
