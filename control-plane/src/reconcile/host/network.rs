//! Keeps this host's network as the view wants it.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    model::HostId,
    network::{NetworkHost, Topology, plan::topology},
    reconcile::{Again, Controller},
    store::Db,
};

/// How long the host's network is taken on trust before it is gone through
/// again, though nothing is desired anew: less than the driver's resync, so that
/// rules that another program took away are back after one.
const TRUST: std::time::Duration = std::time::Duration::from_secs(20);

/// The network of this host.
pub struct NetworkController {
    db: Db,
    host: HostId,
    network: Arc<dyn NetworkHost>,
    /// What was applied last without an error, and when.
    applied: Mutex<Option<(Topology, Instant)>>,
}

impl NetworkController {
    /// A controller that has applied nothing yet.
    pub fn new(db: Db, host: HostId, network: Arc<dyn NetworkHost>) -> Self {
        Self {
            db,
            host,
            network,
            applied: Mutex::new(None),
        }
    }

    /// Brings the network to what the view wants by now. One at a time, so that
    /// an older picture is never applied after a newer one.
    ///
    /// # Errors
    /// As [`NetworkHost::apply`].
    pub async fn ensure(&self) -> Result<(), crate::network::Error> {
        let mut applied = self.applied.lock().await;
        let desired = topology(&self.db.view(), &self.host);
        if let Some((last, at)) = &*applied
            && *last == desired
            && at.elapsed() < TRUST
        {
            return Ok(());
        }
        *applied = None;
        self.network.apply(&desired).await?;
        *applied = Some((desired, Instant::now()));
        Ok(())
    }
}

#[async_trait]
impl Controller for NetworkController {
    fn name(&self) -> &'static str {
        "network"
    }

    async fn pass(&self) -> anyhow::Result<Again> {
        self.ensure().await?;
        Ok(Again::Idle)
    }
}
