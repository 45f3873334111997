//! A network without a host, for tests of what stands above it: it keeps what
//! was applied, so that a test can look.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::{Error, Failed, HostNet, NetworkHost, Result, Topology, VpcNet};
use crate::model::{Eni, EniId, VpcId};

/// Keeps the last topology; its taps are `/dev/null`.
#[derive(Debug, Default)]
pub struct FakeNetwork {
    applied: Mutex<Topology>,
    silent: AtomicBool,
}

impl FakeNetwork {
    /// What was applied last.
    pub fn applied(&self) -> Topology {
        match self.applied.lock() {
            Ok(applied) => applied.clone(),
            Err(poisoned) => poisoned.into_inner().clone(),
        }
    }

    /// Whether guests don't answer (by default all do that have a tap).
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    fn change(&self, change: impl FnOnce(&mut Topology)) {
        match self.applied.lock() {
            Ok(mut applied) => change(&mut applied),
            Err(poisoned) => change(&mut poisoned.into_inner()),
        }
    }
}

#[async_trait]
impl NetworkHost for FakeNetwork {
    async fn known(&self) -> Result<BTreeSet<VpcId>> {
        Ok(self.applied().vpcs.into_keys().collect())
    }

    async fn apply_vpc(&self, id: &VpcId, desired: Option<&VpcNet>) -> Result<Failed> {
        self.change(|applied| match desired {
            Some(vpc) => {
                applied.vpcs.insert(id.clone(), vpc.clone());
            }
            None => {
                applied.vpcs.remove(id);
            }
        });
        Ok(Failed::new())
    }

    async fn apply_host(&self, _desired: &HostNet) -> Result<()> {
        Ok(())
    }

    async fn apply(&self, desired: &Topology) -> Result<()> {
        self.change(|applied| *applied = desired.clone());
        Ok(())
    }

    async fn open_tap(&self, eni: &Eni) -> Result<OwnedFd> {
        let applied = self.applied();
        let there = applied
            .vpcs
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
        let vpc = self.applied().vpcs.remove(vpc);
        Ok(vpc.map_or_else(BTreeSet::new, |vpc| vpc.interfaces.into_keys().collect()))
    }

    async fn purge(&self) -> Result<()> {
        self.change(|applied| *applied = Topology::default());
        Ok(())
    }
}
