//! Volumes in memory: what `--hosts simulated:N` and the tests have in place of disks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{StorageError, StorageHost, VolumeSpec};
use crate::{conditions::Conditions, model::VolumeId};

/// One call of the trait that changes something, as [`SimulatedStorage::calls`] keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`StorageHost::ensure_volume`].
    Ensure(VolumeSpec),
    /// [`StorageHost::remove_volume`].
    Remove(VolumeId),
}

type Hook = Box<dyn FnMut(&Call) -> Result<(), StorageError> + Send>;

#[derive(Default)]
struct State {
    volumes: BTreeMap<VolumeId, VolumeSpec>,
    calls: Vec<Call>,
    hook: Option<Hook>,
}

/// The volumes.
pub struct SimulatedStorage {
    state: Mutex<State>,
    conditions: Conditions,
    recording: bool,
}

/// For a test: it keeps every call.
impl Default for SimulatedStorage {
    fn default() -> Self {
        Self {
            recording: true,
            ..Self::new(Conditions::default())
        }
    }
}

impl SimulatedStorage {
    /// None yet.
    pub fn new(conditions: Conditions) -> Self {
        Self {
            state: Mutex::default(),
            conditions,
            recording: false,
        }
    }

    /// Puts something there that no call made, as an earlier process left it.
    pub fn place(&self, volume: VolumeSpec) {
        self.state().volumes.insert(volume.id.clone(), volume);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enter(&self, call: Call) -> Result<(), StorageError> {
        let met = self.conditions.meet().await;
        met.map_err(|source| StorageError::Host {
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
    pub fn set_hook(&self, hook: impl FnMut(&Call) -> Result<(), StorageError> + Send + 'static) {
        self.state().hook = Some(Box::new(hook));
    }

    /// The calls so far, failed ones too.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }
}

#[async_trait]
impl StorageHost for SimulatedStorage {
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<PathBuf, StorageError> {
        self.enter(Call::Ensure(volume.clone())).await?;
        self.state()
            .volumes
            .entry(volume.id.clone())
            .or_insert_with(|| volume.clone());
        Ok(self.volume_path(&volume.id))
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError> {
        self.enter(Call::Remove(id.clone())).await?;
        self.state().volumes.remove(id);
        Ok(())
    }

    async fn holds(&self, id: &VolumeId) -> Result<bool, StorageError> {
        Ok(self.state().volumes.contains_key(id))
    }

    async fn observe(&self) -> Result<BTreeSet<VolumeId>, StorageError> {
        Ok(self.state().volumes.keys().cloned().collect())
    }

    fn volume_path(&self, id: &VolumeId) -> PathBuf {
        Path::new("/simulated/volumes").join(format!("{id}.raw"))
    }

    async fn purge(&self) -> Result<(), StorageError> {
        self.state().volumes.clear();
        Ok(())
    }
}
