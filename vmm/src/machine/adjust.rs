//! What can be changed of devices while the guest uses them.

use std::io;

use hearth_vmm_api as api;

use super::{Error, Machine, host_error};
use crate::virtio::limit::Limits;

/// Why the guest can't have that much memory.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// None comes or goes.
    #[error("the machine was started without memory that may be plugged: --memory N,max=N")]
    Never,
    /// Not as much as this.
    #[error("memory_bytes: {least} to {most} in steps of {step} are allowed")]
    Size {
        /// Bytes of the start.
        least: u64,
        /// Bytes at most.
        most: u64,
        /// Bytes that come and go together.
        step: u64,
    },
}

impl Machine {
    /// Looks at a disk's size again and notifies the guest if it changed; none: there is
    /// no disk of this name.
    ///
    /// # Errors
    /// When the size can't be read.
    pub fn resize_disk(&mut self, id: &str) -> Result<Option<api::Disk>, Error> {
        let resized = self.devices.resize_disk(id).transpose();
        resized.map_err(host_error("look at the disk's size"))
    }

    /// Changes how much a disk may do, from now on; false: there is no disk of this name.
    ///
    /// # Errors
    /// One line: another process serves it.
    pub fn limit_disk(&mut self, id: &str, limits: Limits) -> Result<bool, &'static str> {
        self.devices.limit_disk(id, limits)
    }

    /// Changes how much may pass through a network interface in each direction, from now
    /// on; none: there is none of this name.
    ///
    /// # Errors
    /// When the kernel has its packets to move.
    pub fn limit_nic(&mut self, id: &str, limits: Limits) -> Option<io::Result<api::Nic>> {
        self.devices.limit_nic(id, limits)
    }

    /// Has the guest have so many bytes of memory in all, as far as it plugs and unplugs
    /// them; a reset unplugs all, and the next kernel plugs as many.
    ///
    /// # Errors
    /// One line: there is no such memory, or not so much of it.
    pub fn set_memory(&mut self, bytes: u64) -> Result<(), Unfit> {
        let Some(memory) = self.devices.memory() else {
            return Err(Unfit::Never);
        };
        let more = bytes.checked_sub(self.memory_bytes);
        if more.is_some_and(|more| memory.set_requested(more)) {
            return Ok(());
        }
        let least = self.memory_bytes;
        Err(Unfit::Size {
            least,
            most: least + memory.most(),
            step: memory.block(),
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
