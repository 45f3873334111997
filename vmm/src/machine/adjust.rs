//! What can be changed of devices while the guest uses them.

use std::io;

use hearth_vmm_api as api;

use super::{Error, Machine, host_error};
use crate::virtio::limit::Limits;

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
