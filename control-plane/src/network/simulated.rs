//! A network in memory: what `--hosts simulated:N` and the tests have in place of
//! namespaces and nftables. For a test it keeps what was applied, to be looked at.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Answering, Error, Failed, HostNet, NetworkHost, Result, Topology, VpcNet};
use crate::conditions::Conditions;
use crate::model::{Eni, VpcId};

/// Keeps the last topology; its taps are `/dev/null`.
#[derive(Debug, Default)]
pub struct SimulatedNetwork {
    applied: Mutex<Topology>,
    silent: AtomicBool,
    conditions: Conditions,
    without_packets: bool,
}

impl SimulatedNetwork {
    /// One without packets.
    pub fn new(conditions: Conditions) -> Self {
        Self {
            conditions,
            without_packets: true,
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
}

#[async_trait]
impl NetworkHost for SimulatedNetwork {
    fn has_packets(&self) -> bool {
        !self.without_packets
    }

    async fn known(&self) -> Result<BTreeSet<VpcId>> {
        Ok(self.state().vpcs.keys().cloned().collect())
    }

    async fn apply_vpc(&self, id: &VpcId, desired: Option<&VpcNet>) -> Result<Failed> {
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
        let met = self.conditions.meet().await;
        met.map_err(|e| Error::host("asking a simulated host", e))?;
        let has_tap = |vpc: &VpcNet| vpc.interfaces.contains_key(&eni.id);
        if !self.without_packets && !self.state().vpcs.get(&eni.vpc).is_some_and(has_tap) {
            return Err(Error::NoTap(eni.id.to_string()));
        }
        std::fs::File::open("/dev/null")
            .map(OwnedFd::from)
            .map_err(|e| Error::host("opening /dev/null", e))
    }

    async fn answering(&self, vpc: &VpcId) -> Result<Answering> {
        if self.without_packets {
            return Ok(Answering::All);
        }
        if self.silent.load(Ordering::Relaxed) {
            return Ok(Answering::Only(BTreeSet::new()));
        }
        let state = self.state();
        let interfaces = state.vpcs.get(vpc).into_iter();
        let interfaces = interfaces.flat_map(|vpc| vpc.interfaces.keys().cloned());
        Ok(Answering::Only(interfaces.collect()))
    }

    async fn purge(&self) -> Result<()> {
        *self.state() = Topology::default();
        Ok(())
    }
}
