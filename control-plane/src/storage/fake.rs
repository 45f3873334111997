//! Volumes in memory, for the reconcilers' and the API's tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{StorageError, StorageHost, VolumeSpec};
use crate::model::VolumeId;

/// One call of the trait that changes something, as [`FakeStorage::calls`] keeps it.
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

/// The volumes in memory.
#[derive(Default)]
pub struct FakeStorage {
    state: Mutex<State>,
}

impl FakeStorage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, call: Call) -> Result<MutexGuard<'_, State>, StorageError> {
        let mut state = self.state();
        let outcome = state.hook.as_mut().map_or(Ok(()), |hook| hook(&call));
        state.calls.push(call);
        outcome.map(|()| state)
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
impl StorageHost for FakeStorage {
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<PathBuf, StorageError> {
        let mut state = self.enter(Call::Ensure(volume.clone()))?;
        state
            .volumes
            .entry(volume.id.clone())
            .or_insert_with(|| volume.clone());
        Ok(self.volume_path(&volume.id))
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError> {
        self.enter(Call::Remove(id.clone()))?.volumes.remove(id);
        Ok(())
    }

    async fn holds(&self, id: &VolumeId) -> Result<bool, StorageError> {
        Ok(self.state().volumes.contains_key(id))
    }

    async fn observe(&self) -> Result<BTreeSet<VolumeId>, StorageError> {
        Ok(self.state().volumes.keys().cloned().collect())
    }

    fn volume_path(&self, id: &VolumeId) -> PathBuf {
        Path::new("/fake/volumes").join(format!("{id}.raw"))
    }

    async fn purge(&self) -> Result<(), StorageError> {
        self.state().volumes.clear();
        Ok(())
    }
}
