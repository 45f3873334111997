//! A network in memory: what `--hosts simulated:N` and the tests have in place of
//! namespaces and nftables. It keeps what was applied, so that a test can look.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Error, Failed, HostNet, NetworkHost, Result, Topology, VpcNet};
use crate::conditions::Conditions;
use crate::model::{Eni, EniId, VpcId};

/// Keeps the last topology; its taps are `/dev/null`.
#[derive(Debug, Default)]
pub struct SimulatedNetwork {
    applied: Mutex<Topology>,
    silent: AtomicBool,
    conditions: Conditions,
}

impl SimulatedNetwork {
    /// Nothing applied yet.
    pub fn new(conditions: Conditions) -> Self {
        Self {
            conditions,
            ..Self::default()
        }
    }

    fn state(&self) -> MutexGuard<'_, Topology> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was applied last.
    pub fn applied(&self) -> Topology {
        self.state().clone()
    }

    /// Whether guests don't answer (by default all do that have a tap).
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    async fn enter(&self) -> Result<()> {
        let met = self.conditions.meet().await;
        met.map_err(|e| Error::host("asking a simulated host", e))
    }
}

#[async_trait]
impl NetworkHost for SimulatedNetwork {
    async fn known(&self) -> Result<BTreeSet<VpcId>> {
        Ok(self.state().vpcs.keys().cloned().collect())
    }

    async fn apply_vpc(&self, id: &VpcId, desired: Option<&VpcNet>) -> Result<Failed> {
        self.enter().await?;
        let mut applied = self.state();
        match desired {
            Some(vpc) => applied.vpcs.insert(id.clone(), vpc.clone()),
            None => applied.vpcs.remove(id),
        };
        Ok(Failed::new())
    }

    async fn apply_host(&self, _desired: &HostNet) -> Result<()> {
        Ok(())
    }

    async fn apply(&self, desired: &Topology) -> Result<()> {
        *self.state() = desired.clone();
        Ok(())
    }

    async fn open_tap(&self, eni: &Eni) -> Result<OwnedFd> {
        let vpcs = &self.state().vpcs;
        let there = vpcs
            .get(&eni.vpc)
            .is_some_and(|vpc| vpc.interfaces.contains_key(&eni.id));
        if !there {
            return Err(Error::NoTap(eni.id.to_string()));
        }
        std::fs::File::open("/dev/null")
            .map(OwnedFd::from)
            .map_err(|e| Error::host("opening /dev/null", e))
    }

    async fn answering(&self, vpc: &VpcId) -> Result<BTreeSet<EniId>> {
        if self.silent.load(Ordering::Relaxed) {
            return Ok(BTreeSet::new());
        }
        let vpcs = &self.state().vpcs;
        let vpc = vpcs.get(vpc).into_iter();
        Ok(vpc.flat_map(|vpc| vpc.interfaces.keys().cloned()).collect())
    }

    async fn purge(&self) -> Result<()> {
        *self.state() = Topology::default();
        Ok(())
    }
}
