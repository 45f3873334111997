//! The consoles of a host's instances, for the API.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{api::Console, compute::ComputeHost, model::InstanceId};

/// Reads them where the instances are.
pub struct HostConsole(pub Arc<dyn ComputeHost>);

#[async_trait]
impl Console for HostConsole {
    async fn tail(&self, instance: &InstanceId) -> anyhow::Result<Vec<u8>> {
        Ok(self.0.console(instance).await?)
    }
}
