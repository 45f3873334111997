//! A network without a host, for tests of what stands above it: it keeps what
//! was applied, so that a test can look.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::{Error, NetworkHost, Result, Topology};
use crate::model::{Eni, EniId};

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

    fn set(&self, topology: Topology) {
        match self.applied.lock() {
            Ok(mut applied) => *applied = topology,
            Err(poisoned) => *poisoned.into_inner() = topology,
        }
    }
}

#[async_trait]
impl NetworkHost for FakeNetwork {
    async fn apply(&self, desired: &Topology) -> Result<()> {
        self.set(desired.clone());
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

    async fn answering(&self) -> Result<BTreeSet<EniId>> {
        if self.silent.load(Ordering::Relaxed) {
            return Ok(BTreeSet::new());
        }
        let applied = self.applied();
        let interfaces = applied.vpcs.values().flat_map(|vpc| vpc.interfaces.keys());
        Ok(interfaces.cloned().collect())
    }

    async fn purge(&self) -> Result<()> {
        self.set(Topology::default());
        Ok(())
    }
}
