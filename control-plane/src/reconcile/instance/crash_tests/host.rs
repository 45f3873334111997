//! A host in memory at whose calls a `hearth` can die or hang.

use std::sync::Mutex;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::{
    compute::{ComputeError, ComputeHost, Kept, LaunchSpec, Observed, simulated::SimulatedCompute},
    model::*,
    network::{self, HostNet, NetworkHost, Topology, VpcNet, simulated::SimulatedNetwork},
    storage::{StorageError, StorageHost, VolumeSpec, simulated::SimulatedStorage},
};

/// Dies at the chosen one of the calls that change the host.
#[derive(Default)]
pub(super) struct Fuse {
    pub(super) calls: usize,
    /// The call to die at, and whether its effect is there by then.
    pub(super) die_at: Option<(usize, bool)>,
    pub(super) dead: bool,
}

/// A host whose calls can be the last that a `hearth` makes. It outlives it.
#[derive(Default)]
pub(super) struct Host {
    pub(super) compute: SimulatedCompute,
    pub(super) storage: SimulatedStorage,
    pub(super) network: SimulatedNetwork,
    pub(super) fuse: Mutex<Fuse>,
    pub(super) hangs: Mutex<Option<Hang>>,
}

/// What never comes back, or always fails.
#[derive(Debug, PartialEq)]
pub(super) enum Hang {
    Volume(VolumeId),
    /// Memory that is saved, until this is taken back.
    Memory,
    Vmm(InstanceId),
    Vpc(VpcId),
    BrokenVpc(VpcId),
}

impl Host {
    pub(super) fn hang(&self, what: Hang) {
        *self.hangs.lock().unwrap() = Some(what);
    }

    /// Never comes back if that is what hangs.
    async fn pass_by(&self, what: Hang) {
        let hangs = *self.hangs.lock().unwrap() == Some(what);
        if hangs {
            std::future::pending().await
        }
    }

    /// Wraps one changing call. A dead process does nothing more, ever.
    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        let last = {
            let mut fuse = self.fuse.lock().unwrap();
            fuse.calls += 1;
            match fuse.die_at {
                // What was done beside the last call.
                _ if fuse.dead => Some(false),
                Some((n, after)) if n == fuse.calls => {
                    fuse.dead = true;
                    Some(after)
                }
                _ => None,
            }
        };
        match last {
            None => call.await,
            Some(after) => {
                if after {
                    call.await;
                }
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl ComputeHost for Host {
    async fn known(&self) -> Result<std::collections::BTreeSet<InstanceId>, ComputeError> {
        self.compute.known().await
    }
    async fn look(&self, id: &InstanceId) -> Result<Option<Observed>, ComputeError> {
        self.compute.look(id).await
    }
    async fn launch(
        &self,
        spec: &LaunchSpec,
        taps: Vec<std::os::fd::OwnedFd>,
    ) -> Result<(), ComputeError> {
        self.call(self.compute.launch(spec, taps)).await
    }
    async fn wants_update(&self, id: &InstanceId) -> Result<bool, ComputeError> {
        self.compute.wants_update(id).await
    }
    async fn update(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        self.call(self.compute.update(id, boot)).await
    }
    async fn hibernate(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError> {
        while *self.hangs.lock().unwrap() == Some(Hang::Memory) {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        self.call(self.compute.hibernate(id, boot)).await
    }
    async fn kept_memory(&self, id: &InstanceId) -> Result<Option<Kept>, ComputeError> {
        self.compute.kept_memory(id).await
    }
    async fn discard_memory(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.discard_memory(id)).await
    }
    async fn power_button(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.power_button(id)).await
    }
    async fn interrupt(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.interrupt(id)).await
    }
    async fn reboot(&self, id: &InstanceId, resets: u64) -> Result<(), ComputeError> {
        self.call(self.compute.reboot(id, resets)).await
    }
    async fn resets(&self, id: &InstanceId) -> Result<u64, ComputeError> {
        self.compute.resets(id).await
    }
    async fn reset(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.reset(id)).await
    }
    async fn kill(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.pass_by(Hang::Vmm(id.clone())).await;
        self.call(self.compute.kill(id)).await
    }
    async fn console(&self, id: &InstanceId) -> Result<Vec<u8>, ComputeError> {
        self.compute.console(id).await
    }
    async fn forget(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.forget(id)).await
    }
    async fn purge(&self) -> Result<(), ComputeError> {
        self.compute.purge().await
    }
    fn exits(&self) -> broadcast::Receiver<InstanceId> {
        self.compute.exits()
    }
}

#[async_trait]
impl StorageHost for Host {
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<std::path::PathBuf, StorageError> {
        self.pass_by(Hang::Volume(volume.id.clone())).await;
        self.call(self.storage.ensure_volume(volume)).await
    }
    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError> {
        self.call(self.storage.remove_volume(id)).await
    }
    async fn observe(&self) -> Result<std::collections::BTreeSet<VolumeId>, StorageError> {
        self.storage.observe().await
    }
    fn volume_path(&self, id: &VolumeId) -> std::path::PathBuf {
        self.storage.volume_path(id)
    }
    async fn purge(&self) -> Result<(), StorageError> {
        self.storage.purge().await
    }
}

#[async_trait]
impl NetworkHost for Host {
    async fn known(&self) -> network::Result<std::collections::BTreeSet<VpcId>> {
        self.network.known().await
    }
    async fn apply_vpc(
        &self,
        id: &VpcId,
        desired: Option<&VpcNet>,
    ) -> network::Result<network::Failed> {
        self.pass_by(Hang::Vpc(id.clone())).await;
        if *self.hangs.lock().unwrap() == Some(Hang::BrokenVpc(id.clone())) {
            return Err(network::Error::host("shaping it", "it is broken"));
        }
        self.call(self.network.apply_vpc(id, desired)).await
    }
    async fn apply_host(&self, desired: &HostNet) -> network::Result<()> {
        self.call(self.network.apply_host(desired)).await
    }
    async fn apply(&self, desired: &Topology) -> network::Result<()> {
        self.call(self.network.apply(desired)).await
    }
    async fn open_tap(&self, eni: &Eni) -> network::Result<std::os::fd::OwnedFd> {
        self.network.open_tap(eni).await
    }
    async fn answering(&self, vpc: &VpcId) -> network::Result<network::Answering> {
        self.network.answering(vpc).await
    }
    async fn purge(&self) -> network::Result<()> {
        self.network.purge().await
    }
}
