//! A debugger's way to the vCPUs that it holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::mailbox::{CallError, Mailbox};

/// How long a call may take. Those of a debugger are made while the vCPU stands still.
const CALL: Duration = Duration::from_secs(1);

/// The vCPUs of one machine, by their number. Its owner is the thread that owns
/// [`Vcpus`](super::Vcpus) too: a vCPU has one caller at a time. After a reset it leads
/// to vCPUs that have ended.
#[derive(Clone)]
pub struct Access(Vec<Arc<Mailbox<VcpuFd>>>);

impl Access {
    pub(super) fn new(mailboxes: impl Iterator<Item = Arc<Mailbox<VcpuFd>>>) -> Self {
        Self(mailboxes.collect())
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Makes a call on a vCPU's own thread, and waits for the result.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<T: Send + 'static>(
        &self,
        index: usize,
        call: impl FnOnce(&mut VcpuFd) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let mailbox = self.0.get(index).ok_or(CallError::Missing)?;
        mailbox.call(call, Instant::now() + CALL)
    }

    /// Holds a vCPU no more: it does as the machine has ordered.
    pub fn release(&self, index: usize) {
        if let Some(mailbox) = self.0.get(index) {
            mailbox.release();
        }
    }
}
