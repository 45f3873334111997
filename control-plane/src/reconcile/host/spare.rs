//! What a host has that no instance was promised.

use std::fmt;

use crate::{
    compute::Spare,
    model::{Host, HostId, Quota},
    store::Db,
};

/// That of one host, by the sums that placement goes by.
pub struct HostSpare {
    /// Desired state.
    pub db: Db,
    /// The host.
    pub host: HostId,
}

impl fmt::Debug for HostSpare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostSpare").field(&self.host).finish()
    }
}

impl Spare for HostSpare {
    fn left(&self) -> Quota {
        let view = self.db.view();
        // A host whose record isn't there gives nothing.
        let has = view.shared::<Host>(&self.host.0).map(Host::quota);
        has.unwrap_or_default().less(view.claimed(&self.host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Instance, Volume, samples};

    #[tokio::test]
    async fn what_was_promised_is_no_more_to_spare() {
        let db = Db::in_memory().await;
        let id = HostId("a".into());
        let spare = HostSpare {
            db: db.clone(),
            host: id.clone(),
        };
        assert_eq!(spare.left(), Quota::default());
        let host = Host {
            memory_mib: 4096,
            disk_gib: 20,
            ..samples::host("a", 4)
        };
        let instance = Instance {
            host: Some(id.clone()),
            ..samples::instance(1)
        };
        let volume = Volume {
            host: Some(id),
            ..samples::volume(1)
        };
        db.transact_infallible(|_, change| change.create(&host))
            .await
            .unwrap();
        assert_eq!(spare.left(), host.quota());
        db.transact_infallible(|_, change| {
            change.create(&instance);
            change.create(&volume);
        })
        .await
        .unwrap();
        let left = spare.left();
        assert_eq!(left.memory_mib, 4096 - instance.quota().memory_mib);
        assert_eq!(left.disk_gib, 20 - u64::from(volume.size_gib));
    }
}
