//! What a debugger has of the machine. It holds vCPUs beside whoever else pauses the
//! machine, and nothing but them: they run when neither does, and devices go on, as
//! those of a PC do under a probe of its processor.

use super::Machine;
use crate::arch::debug::Trap;
use crate::vcpu::Access;

impl Machine {
    /// Holds all vCPUs, now and after each reset, until [`Self::end_debugging`] and each is
    /// released. Whether they stand still: [`Self::held`].
    pub fn hold_vcpus(&mut self) {
        self.is_debugged = true;
        if let Some(vcpus) = &self.vcpus {
            vcpus.hold();
        }
    }

    /// The way to the vCPUs, once all stand still or have ended.
    #[must_use]
    pub fn held(&self) -> Option<Access> {
        let vcpus = self.vcpus.as_ref()?;
        vcpus.are_parked().then(|| vcpus.access())
    }

    /// Has vCPUs that a reset makes run at once again.
    pub fn end_debugging(&mut self) {
        self.is_debugged = false;
    }

    /// How often the machine was reset: each time, its vCPUs and its memory are new.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Why its memory and its registers must stay as they are now, if they must.
    #[must_use]
    pub fn refuses_writes(&self) -> Option<&'static str> {
        self.refuses_reset()
    }

    /// The traps that hold vCPUs, by their number.
    #[must_use]
    pub fn take_traps(&self) -> Vec<(usize, Trap)> {
        self.reports.take_traps()
    }
}
