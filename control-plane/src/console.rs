//! The consoles of a host's instances, for the API.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{api::Console, compute::ComputeHost, model::InstanceId};

/// Reaches them where the instances are.
pub struct HostConsole(pub Arc<dyn ComputeHost>);

#[async_trait]
impl Console for HostConsole {
    async fn tail(&self, instance: &InstanceId) -> anyhow::Result<Vec<u8>> {
        Ok(self.0.console(instance).await?)
    }

    async fn interrupt(&self, instance: &InstanceId) -> anyhow::Result<()> {
        Ok(self.0.interrupt(instance).await?)
    }
}
