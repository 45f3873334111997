//! Instances in memory: what `--hosts simulated:N` and the tests have in place of
//! VMMs. It keeps the contract of [`ComputeHost`] and lets a test make things
//! happen: exits, and failures at any call.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use hearth_vmm_api::Exit;
use tokio::sync::broadcast;

use super::{ComputeError, ComputeHost, LaunchSpec, Observed};
use crate::conditions::Conditions;
use crate::model::InstanceId;

/// One call of the trait that changes something, as [`SimulatedCompute::calls`] keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`ComputeHost::launch`].
    Launch(LaunchSpec),
    /// [`ComputeHost::power_button`].
    PowerButton(InstanceId),
    /// [`ComputeHost::reboot`].
    Reboot(InstanceId),
    /// [`ComputeHost::reset`].
    Reset(InstanceId),
    /// [`ComputeHost::kill`].
    Kill(InstanceId),
    /// [`ComputeHost::forget`].
    Forget(InstanceId),
}

type Hook = Box<dyn FnMut(&Call) -> Result<(), ComputeError> + Send>;

#[derive(Default)]
struct State {
    instances: BTreeMap<InstanceId, Observed>,
    resets: BTreeMap<InstanceId, u64>,
    consoles: BTreeMap<InstanceId, Vec<u8>>,
    calls: Vec<Call>,
    hook: Option<Hook>,
    next_pid: u32,
    deaf: bool,
}

impl State {
    /// The count of a running instance's resets.
    fn running_resets(&mut self, id: &InstanceId) -> Result<&mut u64, ComputeError> {
        match self.instances.get(id) {
            Some(Observed::Running { .. }) => Ok(self.resets.entry(id.clone()).or_default()),
            _ => Err(ComputeError::NotRunning(id.clone())),
        }
    }
}

/// What a simulated instance's console says.
const CONSOLE: &[u8] = b"This instance is simulated: it has no guest.\n";

/// The instances.
pub struct SimulatedCompute {
    state: Mutex<State>,
    exits: broadcast::Sender<InstanceId>,
    conditions: Conditions,
    recording: bool,
}

/// For a test: it keeps every call.
impl Default for SimulatedCompute {
    fn default() -> Self {
        Self {
            recording: true,
            ..Self::new(Conditions::default())
        }
    }
}

impl SimulatedCompute {
    /// None yet.
    pub fn new(conditions: Conditions) -> Self {
        Self {
            state: Mutex::default(),
            exits: broadcast::Sender::new(super::EXITS),
            conditions,
            recording: false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call, and lets conditions and hook fail it before it has any effect.
    async fn enter(&self, call: Call) -> Result<(), ComputeError> {
        let met = self.conditions.meet().await;
        met.map_err(|source| ComputeError::Host {
            doing: "asking a simulated host".to_owned(),
            source,
        })?;
        let mut state = self.state();
        let outcome = state.hook.as_mut().map_or(Ok(()), |hook| hook(&call));
        if self.recording {
            state.calls.push(call);
        }
        outcome
    }

    /// Is asked before each call takes effect; an error is returned instead.
    pub fn set_hook(&self, hook: impl FnMut(&Call) -> Result<(), ComputeError> + Send + 'static) {
        self.state().hook = Some(Box::new(hook));
    }

    /// Whether guests ignore the power button (by default they obey at once).
    pub fn set_deaf(&self, deaf: bool) {
        self.state().deaf = deaf;
    }

    /// Ends a running VMM for a reason, as if the guest or a fault had done it.
    pub fn exit(&self, id: &InstanceId, exit: Exit) {
        if let Some(o) = self.state().instances.get_mut(id)
            && let Observed::Running { boot, .. } = *o
        {
            *o = Observed::Exited { boot, exit };
        }
        // Nobody may be listening.
        let _ = self.exits.send(id.clone());
    }

    /// Puts something there that no launch made, as a crash would leave it.
    pub fn place(&self, id: InstanceId, observed: Observed) {
        self.state().instances.insert(id, observed);
    }

    /// What the guest has written to its console.
    pub fn write_console(&self, id: &InstanceId, bytes: &[u8]) {
        self.state()
            .consoles
            .entry(id.clone())
            .or_default()
            .extend_from_slice(bytes);
    }

    /// The calls so far, failed ones too.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }
}

#[async_trait]
impl ComputeHost for SimulatedCompute {
    async fn known(&self) -> Result<BTreeSet<InstanceId>, ComputeError> {
        Ok(self.state().instances.keys().cloned().collect())
    }

    async fn look(&self, id: &InstanceId) -> Result<Option<Observed>, ComputeError> {
        Ok(self.state().instances.get(id).cloned())
    }

    async fn launch(&self, spec: &LaunchSpec, _taps: Vec<OwnedFd>) -> Result<(), ComputeError> {
        self.enter(Call::Launch(spec.clone())).await?;
        let mut state = self.state();
        if matches!(state.instances.get(&spec.instance), Some(Observed::Running { boot, .. }) if *boot == spec.boot)
        {
            return Ok(());
        }
        state.next_pid += 1;
        let running = Observed::Running {
            pid: 1000 + state.next_pid,
            boot: spec.boot,
        };
        state.instances.insert(spec.instance.clone(), running);
        state.resets.insert(spec.instance.clone(), 0);
        Ok(())
    }

    async fn power_button(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.enter(Call::PowerButton(id.clone())).await?;
        let state = self.state();
        if !matches!(state.instances.get(id), Some(Observed::Running { .. })) {
            return Err(ComputeError::NotRunning(id.clone()));
        }
        let deaf = state.deaf;
        drop(state);
        if !deaf {
            self.exit(id, Exit::GuestPowerOff);
        }
        Ok(())
    }

    async fn reboot(&self, id: &InstanceId, resets: u64) -> Result<(), ComputeError> {
        self.enter(Call::Reboot(id.clone())).await?;
        let mut state = self.state();
        let deaf = state.deaf;
        let counted = state.running_resets(id)?;
        if *counted != resets {
            return Err(ComputeError::Host {
                doing: format!("rebooting {id}"),
                source: std::io::Error::other("the machine was reset since"),
            });
        }
        *counted += u64::from(!deaf);
        Ok(())
    }

    async fn resets(&self, id: &InstanceId) -> Result<u64, ComputeError> {
        self.state().running_resets(id).copied()
    }

    async fn reset(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.enter(Call::Reset(id.clone())).await?;
        *self.state().running_resets(id)? += 1;
        Ok(())
    }

    async fn kill(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.enter(Call::Kill(id.clone())).await?;
        self.exit(
            id,
            Exit::Crashed {
                detail: "killed".to_owned(),
            },
        );
        Ok(())
    }

    async fn console(&self, id: &InstanceId) -> Result<Vec<u8>, ComputeError> {
        let written = self.state().consoles.get(id).cloned();
        Ok(written.unwrap_or_else(|| CONSOLE.to_vec()))
    }

    async fn forget(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.enter(Call::Forget(id.clone())).await?;
        let mut state = self.state();
        state.instances.remove(id);
        state.resets.remove(id);
        state.consoles.remove(id);
        Ok(())
    }

    async fn purge(&self) -> Result<(), ComputeError> {
        let mut state = self.state();
        state.instances.clear();
        state.consoles.clear();
        Ok(())
    }

    fn exits(&self) -> broadcast::Receiver<InstanceId> {
        self.exits.subscribe()
    }
}
