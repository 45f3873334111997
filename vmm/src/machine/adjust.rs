//! What can be changed of devices while the guest uses them.

use std::io;

use hearth_vmm_api as api;

use super::{Error, Machine};
use crate::virtio::limit::Limits;

/// Why the machine has not another number of vCPUs, or another size of memory.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Not such a machine, or not as it is now.
    #[error("{0}")]
    NotNow(&'static str),
    /// There can't be so many, or so much.
    #[error("{0}")]
    Range(String),
    /// The host can't.
    #[error(transparent)]
    Machine(#[from] Error),
}

impl Machine {
    /// Changes how much may pass through a network interface in each direction, from now
    /// on; none: there is none of this name.
    ///
    /// # Errors
    /// When the kernel has its packets to move.
    pub fn limit_nic(&mut self, id: &str, limits: Limits) -> Option<io::Result<api::Nic>> {
        self.devices.limit_nic(id, limits)
    }

    /// Has the machine have another number of vCPUs, and the guest another size of memory
    /// in all: what is given, as far as the guest takes it and lets go of it. A reset has
    /// what was asked for last.
    ///
    /// # Errors
    /// See [`Unfit`]; all is as before then, but for vCPUs that the guest doesn't see.
    pub fn change(&mut self, change: api::MachineChange) -> Result<(), Unfit> {
        // Both, before either is.
        if let Some(count) = change.vcpus {
            self.can_have_vcpus(count)?;
        }
        let more = change.memory_bytes.map(|bytes| self.more_memory(bytes));
        let more = more.transpose()?;
        if let Some(count) = change.vcpus {
            self.set_vcpus(count)?;
        }
        if let (Some(more), Some(memory)) = (more, self.devices.memory()) {
            memory.request(more);
        }
        Ok(())
    }

    /// How many bytes more than at the start these are, if there may be as many.
    fn more_memory(&self, bytes: u64) -> Result<u64, Unfit> {
        let memory = self.devices.memory().ok_or(Unfit::NotNow(
            "the machine was started without memory that may be plugged: --memory N,max=N",
        ))?;
        let least = self.memory_bytes;
        let more = bytes.checked_sub(least).filter(|more| memory.fits(*more));
        more.ok_or_else(|| {
            let (most, step) = (least + memory.most(), memory.block());
            Unfit::Range(format!(
                "memory_bytes: {least} to {most} in steps of {step} are allowed"
            ))
        })
    }

    /// How the balloon stands, if there is one.
    #[must_use]
    pub fn balloon(&self) -> Option<api::BalloonState> {
        self.devices.balloon().map(|balloon| api::BalloonState {
            target_bytes: balloon.target(),
            actual_bytes: balloon.actual(),
        })
    }

    /// Asks the guest for memory, or gives it back. False: there is no balloon.
    #[must_use]
    pub fn set_balloon(&self, bytes: u64) -> bool {
        let balloon = self.devices.balloon();
        balloon
            .inspect(|balloon| balloon.set_target(bytes))
            .is_some()
    }
}
