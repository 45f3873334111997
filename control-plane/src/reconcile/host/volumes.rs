//! Removes the volumes that were deleted.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;

use crate::{
    model::{Hosts, Volume, VolumeId},
    reconcile::{
        Controller, Requeue, Slots,
        queue::{Kind, Wake},
    },
    storage::StorageHost,
    store::{Changed, Db, View},
};

/// The volumes of this host that no instance has.
pub struct VolumeController {
    /// Desired state.
    pub db: Db,
    /// Those whose volumes these are.
    pub hosts: Hosts,
    /// The volumes.
    pub storage: Arc<dyn StorageHost>,
    /// What work on them is bounded by.
    pub slots: Slots,
}

impl VolumeController {
    /// Whether there is something to do for it here. One that never had a host has
    /// no data on any.
    fn goes(&self, volume: &Volume) -> bool {
        let here = volume.host.is_none() || self.hosts.have(volume.host.as_ref());
        volume.deleting && volume.attachment.is_none() && here
    }
}

#[async_trait]
impl Controller for VolumeController {
    type Key = VolumeId;

    fn name(&self) -> &'static str {
        "volumes"
    }

    /// Longer than [`Kind::Disk`] has.
    fn deadline(&self) -> Duration {
        Duration::from_secs(3600)
    }

    async fn all(&self) -> anyhow::Result<BTreeSet<VolumeId>> {
        let view = self.db.view();
        let going = view.by(Volume::DELETING, "").filter(|v| self.goes(v));
        Ok(going.map(|volume| volume.id.clone()).collect())
    }

    fn concerned(&self, view: &View, changed: &Changed) -> Vec<Wake<VolumeId>> {
        let volumes = changed.there::<Volume>(view);
        let going = volumes.filter(|volume| self.goes(volume));
        going
            .map(|volume| Wake::Changed(volume.id.clone()))
            .collect()
    }

    /// First the volume, then its record: what is left by a crash between them is
    /// found again by the record.
    async fn step(&self, id: &VolumeId) -> anyhow::Result<Requeue> {
        if !self
            .db
            .view()
            .find::<Volume>(id)
            .is_some_and(|v| self.goes(v))
        {
            return Ok(Requeue::Idle);
        }
        let removed = self.storage.remove_volume(id);
        let removed = self.slots.run(Kind::Disk, removed).await?;
        removed.with_context(|| format!("removing {id}"))?;
        self.db
            .transact_infallible(|view, change| {
                if let Some(volume) = view.find::<Volume>(id).filter(|v| self.goes(v)) {
                    change.delete_tagged(volume);
                }
            })
            .await?;
        Ok(Requeue::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{HostId, Tags, samples},
        storage::{VolumeSpec, simulated::SimulatedStorage},
    };

    #[tokio::test]
    async fn only_what_was_deleted_on_this_host_goes_with_its_tags() {
        let db = Db::in_memory().await;
        let storage = Arc::new(SimulatedStorage::default());
        let host = |name: &str| Some(HostId(name.into()));
        // The last is another host's, though this one has a file of that name.
        for (n, host, deleting) in [
            (1, host("here"), true),
            (2, host("here"), false),
            (3, None, true),
            (4, host("there"), true),
        ] {
            let volume = Volume {
                host,
                attachment: None,
                deleting,
                ..samples::volume(n)
            };
            let spec = VolumeSpec {
                id: volume.id.clone(),
                size_bytes: 1,
                source: None,
            };
            storage.ensure_volume(&spec).await.unwrap();
            db.transact(|_, change| {
                change.create(&volume);
                change.put_tags(&volume, [("a".into(), "b".into())].into());
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
        }
        let controller = VolumeController {
            db: db.clone(),
            hosts: Hosts::one(HostId("here".into())),
            storage: storage.clone(),
            slots: Slots::wide(1),
        };
        for _ in 0..2 {
            for id in controller.all().await.unwrap() {
                assert_eq!(controller.step(&id).await.unwrap(), Requeue::Idle);
            }
            let kept = [2, 4].map(VolumeId::from_random);
            assert_eq!(storage.observe().await.unwrap(), kept.clone().into());
            let view = db.view();
            let records: Vec<_> = view.all::<Volume>().map(|v| v.id.clone()).collect();
            assert_eq!(records, kept);
            assert_eq!(view.all::<Tags>().count(), 2);
        }
    }
}
