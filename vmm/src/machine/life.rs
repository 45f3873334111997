//! Held, let go, power-cycled, ended. What takes time is begun, and gone on with when
//! somebody rings: a device that has become quiet, a vCPU that stands still. The thread
//! that owns the machine waits for nobody longer than it says.

#![allow(unsafe_code, reason = "an eventfd as one that can be polled")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_vmm_api::MachineState;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

use super::snapshot::{HANDING_OVER, SAVING};
use super::{Error, Machine, host_error, vm};

/// Why what changes a machine has to wait.
pub(super) const RESETTING: &str = "the machine is being reset";

/// How long an answer waits for what is begun: nearly always it takes a millisecond.
pub(super) const MOMENT: Duration = Duration::from_millis(50);

/// How long a machine that ends waits for requests of its disks. What is still under way
/// then is the kernel's, as when the power fails.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

impl Machine {
    /// Rung by devices that have become quiet: [`Self::progress`] is due.
    #[must_use]
    pub fn quieted(&self) -> &EventFd {
        &self.quieted
    }

    fn is_held(&self) -> bool {
        use MachineState::{HandingOver, Paused, Saving};
        matches!(self.state, Paused | Saving | HandingOver)
    }

    /// Why the machine can't be reset now, if it can't.
    #[must_use]
    pub fn refuses_reset(&self) -> Option<&'static str> {
        match self.state {
            MachineState::Saving => Some(SAVING),
            MachineState::HandingOver => Some(HANDING_OVER),
            _ => None,
        }
    }

    fn is_under_way(&self) -> bool {
        matches!(self.state, MachineState::Pausing | MachineState::Resetting)
    }

    /// The devices whose host has not done yet what a pause or a reset waits for.
    #[must_use]
    pub fn waits_for(&self) -> Vec<String> {
        match self.is_under_way() {
            true => self.devices.names(self.busy),
            false => Vec::new(),
        }
    }

    /// Lets the machine run. One that is being reset will, by itself; so will one whose
    /// guest asked for that before it was held, which is reset now.
    ///
    /// # Errors
    /// One line: a snapshot is being written, or the machine is being handed over.
    pub fn resume(&mut self) -> Result<(), &'static str> {
        match self.state {
            MachineState::Saving => return Err(SAVING),
            MachineState::HandingOver => return Err(HANDING_OVER),
            MachineState::Resetting => return Ok(()),
            _ if self.reset_due => self.begin_reset(),
            _ => self.let_go(),
        }
        Ok(())
    }

    fn let_go(&mut self) {
        if let Some(vcpus) = &self.vcpus {
            // Before the guest can ring.
            self.bus.pci.resume();
            vcpus.resume();
            self.state = MachineState::Running;
        }
    }

    /// Holds the machine: no vCPU runs, no device touches guest memory. Returns whether
    /// that is so already; else it will be.
    ///
    /// # Errors
    /// One line: the machine is being reset.
    pub fn pause(&mut self) -> Result<bool, &'static str> {
        match (self.state, &self.vcpus) {
            (MachineState::Resetting, _) => return Err(RESETTING),
            (MachineState::Running, Some(vcpus)) => {
                vcpus.begin_pause();
                self.state = MachineState::Pausing;
            }
            _ => {}
        }
        // A hold doesn't make the machine anew, which is all that could fail.
        let _ = self.settle(MOMENT);
        Ok(self.is_held())
    }

    /// Power-cycles the machine and lets it run. Returns whether it does already; else
    /// it will.
    ///
    /// # Errors
    /// When it can't be made anew; it is then without vCPUs and good for nothing
    /// but being dropped.
    pub fn reset(&mut self) -> Result<bool, Error> {
        if self.state != MachineState::Resetting {
            self.begin_reset();
        }
        self.settle(MOMENT)?;
        Ok(self.state == MachineState::Running)
    }

    fn begin_reset(&mut self) {
        if let Some(vcpus) = &self.vcpus {
            vcpus.begin_end();
        }
        self.rebooting = false;
        self.reset_due = false;
        self.state = MachineState::Resetting;
    }

    /// The guest asks for [`Self::reset`]. One that is held, or will be, stays so: whoever
    /// was told that it stands still relies on that. It is reset as it goes on.
    ///
    /// # Errors
    /// As [`Self::reset`].
    pub fn reset_by_guest(&mut self) -> Result<(), Error> {
        if self.state == MachineState::Pausing || self.is_held() {
            self.reset_due = true;
            return Ok(());
        }
        self.reset().map(drop)
    }

    /// Goes on with what was begun, as far as that is possible now.
    ///
    /// # Errors
    /// Those of a reset that was begun.
    pub fn progress(&mut self) -> Result<(), Error> {
        // Nonblocking: an error says that it has not rung. Before all looks at what may
        // have: what comes behind one rings again.
        let has_rung = self.quieted.read().is_ok();
        self.plug_connected();
        self.finish_errands();
        if !has_rung && !self.is_under_way() {
            return Ok(());
        }
        if !self.is_without_vcpus() {
            return Ok(());
        }
        self.look_at_devices();
        match self.state {
            MachineState::Pausing if self.busy == 0 => self.state = MachineState::Paused,
            MachineState::Resetting if self.busy == 0 => return self.power_cycle(),
            _ => {}
        }
        Ok(())
    }

    /// The first half of what is under way: no vCPU runs, and devices are asked to be
    /// quiet. Returns whether it is done.
    fn is_without_vcpus(&mut self) -> bool {
        match (self.state, &self.vcpus) {
            (MachineState::Pausing, Some(vcpus)) => {
                let are_parked = vcpus.are_parked();
                if are_parked {
                    // Those that are asked already don't mind.
                    self.bus.pci.hold();
                }
                are_parked
            }
            (MachineState::Resetting, Some(vcpus)) => {
                let have_ended = vcpus.have_ended();
                if have_ended {
                    self.vcpus = None;
                    self.spare_vcpu = None;
                    self.reports.clear();
                    // A guest that starts anew holds on to nothing whose unplug was
                    // requested.
                    let slots = self.devices.unplug_requested();
                    self.devices.eject(&self.bus.pci, slots);
                    self.bus.reset();
                }
                have_ended
            }
            _ => true,
        }
    }

    fn look_at_devices(&mut self) {
        let settled = self.bus.pci.settle();
        self.devices.forget(settled.gone);
        self.busy = settled.busy;
    }

    /// Takes out the devices in these slots, one bit for each: the guest let go of
    /// them. They are listed until nothing of them touches guest memory any more.
    pub fn eject(&mut self, slots: u32) {
        self.devices.eject(&self.bus.pci, slots);
        self.look_at_devices();
    }

    /// [`Self::progress`], until nothing is under way, or for so long.
    fn settle(&mut self, long: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + long;
        loop {
            self.progress()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.is_under_way() || left.is_zero() {
                return Ok(());
            }
            self.wait(left);
        }
    }

    /// Waits until a device or a vCPU rings, or for so long.
    pub(super) fn wait(&self, long: Duration) {
        // SAFETY: both are open for as long as they are borrowed.
        let [quieted, bell] = [self.quieted.as_raw_fd(), self.bell().as_raw_fd()]
            .map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
        let all = &mut [
            PollFd::new(&quieted, PollFlags::IN),
            PollFd::new(&bell, PollFlags::IN),
        ];
        // An error can only be EINTR, and then looking round does no harm.
        let _ = poll(all, Timespec::try_from(long).ok().as_ref());
        // Whoever comes here looks at all that it can ring for, and reports are looked at
        // by the main loop whether it has rung or not.
        self.bell().silence();
    }

    /// The second half of a reset, when nothing touches guest memory any more.
    fn power_cycle(&mut self) -> Result<(), Error> {
        self.memory
            .clear()
            .map_err(host_error("clear guest memory"))?;
        let vm = vm::create(&self.kvm, &self.memory)?;
        self.interrupts
            .replace(Arc::clone(&vm))
            .map_err(host_error("interrupt routes"))?;
        self.vm = vm;
        self.model.set_pace(&self.vm);
        self.power_on()?;
        self.resets += 1;
        self.let_go();
        // Disks that came meanwhile are plugged now.
        let _ = self.quieted.write(1);
        Ok(())
    }

    /// Takes the machine down. Returns the devices with requests that the host has not
    /// done: their memory stays for as long as the process does.
    #[must_use]
    pub fn end(mut self) -> Vec<String> {
        let deadline = Instant::now() + LAST_REQUESTS;
        let left = || deadline.saturating_duration_since(Instant::now());
        if let Some(vcpus) = &self.vcpus {
            vcpus.begin_end();
            while !vcpus.have_ended() && !left().is_zero() {
                self.wait(left());
            }
        }
        if let Some(mut saving) = self.saving.take() {
            saving.end();
            while !saving.has_ended() && !left().is_zero() {
                self.wait(left().min(MOMENT));
            }
        }
        match self.vcpus.take_if(|vcpus| !vcpus.have_ended()) {
            // It writes where nobody reads: the process's end is its end.
            Some(vcpus) => std::mem::forget(vcpus),
            None => self.vcpus = None,
        }
        // Not the board, which a vCPU may have in hand whose firmware's variables a disk
        // keeps it from writing.
        self.bus.pci.reset();
        loop {
            let settled = self.bus.pci.settle();
            if settled.busy == 0 {
                return Vec::new();
            }
            if left().is_zero() {
                let unfinished = self.devices.names(settled.busy);
                self.bus.pci.abandon();
                return unfinished;
            }
            self.wait(left());
            let _ = self.quieted.read();
        }
    }
}
