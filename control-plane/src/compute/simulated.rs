//! Instances in memory: what `--hosts simulated:N` and the tests have in place of
//! VMMs. It keeps the contract of [`ComputeHost`] and lets a test make things
//! happen: exits, and failures at any call.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use hearth_vmm_api::Exit;
use tokio::sync::broadcast;

use super::{ComputeError, ComputeHost, Kept, LaunchSpec, Observed};
use crate::conditions::Conditions;
use crate::model::InstanceId;

/// One call of the trait that changes something, as [`SimulatedCompute::calls`] keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`ComputeHost::launch`].
    Launch(LaunchSpec),
    /// [`ComputeHost::update`].
    Update(InstanceId),
    /// [`ComputeHost::hibernate`].
    Hibernate(InstanceId),
    /// [`ComputeHost::discard_memory`].
    DiscardMemory(InstanceId),
    /// [`ComputeHost::power_button`].
    PowerButton(InstanceId),
    /// [`ComputeHost::interrupt`].
    Interrupt(InstanceId),
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
    memory: BTreeMap<InstanceId, Memory>,
    /// How often guests were let run on an instance's disks.
    runs: BTreeMap<InstanceId, u64>,
    resumed: Vec<InstanceId>,
    ruined: bool,
    calls: Vec<Call>,
    hook: Option<Hook>,
    next_pid: u32,
    /// The instances whose VMMs are to be replaced.
    updates: BTreeSet<InstanceId>,
    deaf: bool,
}

/// The memory of a hibernated instance.
#[derive(Debug, Clone, Copy)]
struct Memory {
    boot: u64,
    /// What its guest knows of its disks.
    runs: u64,
}

impl State {
    /// A guest writes to its disks.
    fn run(&mut self, id: &InstanceId) {
        *self.runs.entry(id.clone()).or_default() += 1;
    }

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

    /// Asks for an instance's VMM to be replaced.
    pub fn ask_for_update(&self, id: &InstanceId) {
        self.state().updates.insert(id.clone());
        let _ = self.exits.send(id.clone());
    }

    /// The instances that went on from their memory, in the order that they did.
    pub fn resumed(&self) -> Vec<InstanceId> {
        self.state().resumed.clone()
    }

    /// Whether any went on from memory after something else had run on its disks: on a
    /// real host its file system would be ruined.
    pub fn ruined(&self) -> bool {
        self.state().ruined
    }

    /// Puts memory of this boot there, as if it had been hibernated.
    pub fn place_memory(&self, id: InstanceId, boot: u64) {
        let mut state = self.state();
        let runs = state.runs.get(&id).copied().unwrap_or_default();
        state.memory.insert(id, Memory { boot, runs });
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
        state.updates.remove(&spec.instance);
        // From here on there is no memory, whatever comes of it.
        if let Some(memory) = state.memory.remove(&spec.instance)
            && spec.resume == Some(memory.boot)
        {
            let runs = state.runs.get(&spec.instance).copied().unwrap_or_default();
            state.ruined |= memory.runs != runs;
            state.resumed.push(spec.instance.clone());
        }
        state.run(&spec.instance);
        state.next_pid += 1;
        let running = Observed::Running {
            pid: 1000 + state.next_pid,
            boot: spec.boot,
        };
        state.instances.insert(spec.instance.clone(), running);
        state.resets.insert(spec.instance.clone(), 0);
        Ok(())
    }

    async fn wants_update(&self, id: &InstanceId) -> Result<bool, ComputeError> {
        Ok(self.state().updates.contains(id))
    }

    async fn update(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        self.enter(Call::Update(id.clone())).await?;
        let mut state = self.state();
        let is_due = state.updates.remove(id);
        let next = 1000 + state.next_pid + 1;
        match state.instances.get_mut(id) {
            Some(Observed::Running { pid, boot: running }) if *running == boot => {
                if is_due {
                    *pid = next;
                    state.next_pid += 1;
                }
                Ok(())
            }
            _ => Err(ComputeError::NotRunning(id.clone())),
        }
    }

    async fn hibernate(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        self.enter(Call::Hibernate(id.clone())).await?;
        let mut state = self.state();
        match state.instances.get(id) {
            Some(Observed::Running { boot: running, .. }) if *running == boot => {}
            _ => return Err(ComputeError::NotRunning(id.clone())),
        }
        let runs = state.runs.get(id).copied().unwrap_or_default();
        state.memory.insert(id.clone(), Memory { boot, runs });
        Ok(())
    }

    async fn kept_memory(&self, id: &InstanceId) -> Result<Option<Kept>, ComputeError> {
        let state = self.state();
        let memory = state.memory.get(id);
        Ok(memory.map(|memory| Kept::Whole { boot: memory.boot }))
    }

    async fn discard_memory(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.enter(Call::DiscardMemory(id.clone())).await?;
        self.state().memory.remove(id);
        Ok(())
    }

    async fn power_button(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.enter(Call::PowerButton(id.clone())).await?;
        let mut state = self.state();
        if !matches!(state.instances.get(id), Some(Observed::Running { .. })) {
            return Err(ComputeError::NotRunning(id.clone()));
        }
        if state.memory.remove(id).is_some() {
            state.run(id);
        }
        let deaf = state.deaf;
        drop(state);
        if !deaf {
            self.exit(id, Exit::GuestPowerOff);
        }
        Ok(())
    }

    async fn interrupt(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.enter(Call::Interrupt(id.clone())).await?;
        match self.state().instances.get(id) {
            Some(Observed::Running { .. }) => Ok(()),
            _ => Err(ComputeError::NotRunning(id.clone())),
        }
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
        state.updates.remove(id);
        state.resets.remove(id);
        state.consoles.remove(id);
        state.memory.remove(id);
        Ok(())
    }

    async fn purge(&self) -> Result<(), ComputeError> {
        let mut state = self.state();
        state.instances.clear();
        state.consoles.clear();
        state.memory.clear();
        Ok(())
    }

    fn exits(&self) -> broadcast::Receiver<InstanceId> {
        self.exits.subscribe()
    }
}
