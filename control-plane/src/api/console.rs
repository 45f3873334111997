//! The one thing that a handler asks of a host: to read a console.

use async_trait::async_trait;

use crate::model::InstanceId;

/// The serial consoles of instances, read-only: handlers never touch the host
/// themselves.
#[async_trait]
pub trait Console: Send + Sync {
    /// The last 64 KiB that the instance wrote; empty when there is nothing.
    ///
    /// # Errors
    /// If the host can't read it.
    async fn tail(&self, instance: &InstanceId) -> anyhow::Result<Vec<u8>>;
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
}
