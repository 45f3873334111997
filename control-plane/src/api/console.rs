//! What a handler asks of a host: to read a console, and to press the button beside it
//! that leaves no trace in any record.

use async_trait::async_trait;

use crate::model::InstanceId;

/// What handlers reach of instances: how it is reached, is the host's matter.
#[async_trait]
pub trait Console: Send + Sync {
    /// The last 64 KiB that the instance wrote; empty when there is nothing.
    ///
    /// # Errors
    /// If the host can't read it.
    async fn tail(&self, instance: &InstanceId) -> anyhow::Result<Vec<u8>>;

    /// Sends a running instance's processors a non-maskable interrupt.
    ///
    /// # Errors
    /// If the host can't, or the instance has just ended.
    async fn interrupt(&self, instance: &InstanceId) -> anyhow::Result<()>;
}

/// No console at all: for tests of handlers.
#[cfg(test)]
pub struct NoConsole;

#[cfg(test)]
#[async_trait]
impl Console for NoConsole {
    async fn tail(&self, _: &InstanceId) -> anyhow::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn interrupt(&self, _: &InstanceId) -> anyhow::Result<()> {
        Ok(())
    }
}
