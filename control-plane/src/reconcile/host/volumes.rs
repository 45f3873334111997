//! Removes the volumes that were deleted.

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;

use crate::{
    model::{HostId, Volume, VolumeId},
    reconcile::{Again, Controller, cluster::transact},
    storage::StorageHost,
    store::Db,
};

/// The volumes of this host that no instance has.
pub struct VolumeController {
    /// Desired state.
    pub db: Db,
    /// This host.
    pub host: HostId,
    /// The volumes.
    pub storage: Arc<dyn StorageHost>,
}

#[async_trait]
impl Controller for VolumeController {
    fn name(&self) -> &'static str {
        "volumes"
    }

    /// First the volume, then its record: what is left by a crash between them is
    /// found again by the record.
    async fn pass(&self) -> anyhow::Result<Again> {
        let view = self.db.view();
        let going: Vec<&VolumeId> = view
            .by(Volume::DELETING, "")
            // One that never had a host has no data on any.
            .filter(|volume| volume.host.as_ref().is_none_or(|host| *host == self.host))
            .map(|volume| &volume.id)
            .collect();
        for id in going {
            let removed = self.storage.remove_volume(id).await;
            removed.with_context(|| format!("removing {id}"))?;
            transact(&self.db, |view, change| {
                if let Some(volume) = view.find::<Volume>(id) {
                    change.delete_tagged(volume, id);
                }
            })
            .await?;
        }
        Ok(Again::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Tags, samples},
        storage::{VolumeSpec, fake::FakeStorage},
    };

    #[tokio::test]
    async fn only_what_was_deleted_on_this_host_goes_with_its_tags() {
        let db = Db::in_memory().await;
        let storage = Arc::new(FakeStorage::default());
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
                change.put(&volume);
                change.put_tags(&volume.scope, &volume.id, [("a".into(), "b".into())].into());
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
        }
        let controller = VolumeController {
            db: db.clone(),
            host: HostId("here".into()),
            storage: storage.clone(),
        };
        for _ in 0..2 {
            assert_eq!(controller.pass().await.unwrap(), Again::Idle);
            let kept = [2, 4].map(VolumeId::from_random);
            assert_eq!(storage.observe().await.unwrap(), kept.clone().into());
            let view = db.view();
            let records: Vec<_> = view.all::<Volume>().map(|v| v.id.clone()).collect();
            assert_eq!(records, kept);
            assert_eq!(view.all::<Tags>().count(), 2);
        }
    }
}
