//! The machine's vCPUs: made, plugged and unplugged.
//!
//! KVM can't take a vCPU back. One that the guest has let go of stands still with its
//! thread until it is plugged again, and waits for its SIPI then, as a new one does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_vmm_api::MachineState;
use kvm_ioctls::VcpuFd;

use super::{Error, Machine, Unfit, host_error, vm};
use crate::acpi::processors::Processors;
use crate::arch;
use crate::vcpu::{Surroundings, Threadless, Vcpus};

/// How long a vCPU's thread, which does nothing else, has until it is plugged again.
const PLUG: Duration = Duration::from_secs(1);

/// How many vCPUs a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// At the start.
    pub first: u8,
    /// At most, where they come and go.
    pub most: Option<u8>,
}

impl Count {
    /// How many there may ever be.
    #[must_use]
    pub fn all(self) -> u8 {
        self.most.unwrap_or(self.first)
    }
}

/// The bit of a vCPU.
fn bit(index: usize) -> u32 {
    u32::try_from(index)
        .ok()
        .and_then(|index| 1u32.checked_shl(index))
        .unwrap_or(0)
}

/// How many have their bits set.
pub(super) fn count(vcpus: u32) -> u8 {
    u8::try_from(vcpus.count_ones()).unwrap_or(u8::MAX)
}

impl Machine {
    fn surroundings(&self) -> Surroundings {
        Surroundings {
            bus: Arc::clone(&self.bus),
            reports: Arc::clone(&self.reports),
            stats: Arc::clone(&self.stats),
            entry: Arc::clone(&self.entry),
        }
    }

    /// Gives the vCPUs their threads, paused: the lowest ones, of which those are plugged
    /// whose bits are set.
    pub(super) fn start_vcpus(&mut self, fds: Vec<VcpuFd>, plugged: u32) -> Result<(), Error> {
        let all = fds.len();
        let vcpus = Vcpus::start(fds, &self.surroundings());
        let mut vcpus = vcpus.map_err(host_error("vCPU threads"))?;
        (0..all)
            .filter(|index| plugged & bit(*index) == 0)
            .for_each(|index| vcpus.unplug(index));
        if self.is_debugged {
            vcpus.hold();
        }
        self.vcpus = Some(vcpus);
        self.state = MachineState::Paused;
        Ok(())
    }

    /// How the processors stand; while the machine is being reset, as they will.
    pub(super) fn processors(&self) -> Processors {
        match self.state {
            MachineState::Resetting => Processors::new(self.vcpu_count),
            _ => self.bus.processors(),
        }
    }

    /// Whether so many vCPUs may be there.
    pub(super) fn can_have_vcpus(&self, count: u8) -> Result<(), Unfit> {
        let most = self.most_vcpus.ok_or(Unfit::NotNow(
            "the machine was started without a number of vCPUs at most: --vcpus N,max=N",
        ))?;
        if !(1..=most).contains(&count) {
            return Err(Unfit::Range(format!("vcpus: 1 to {most} are allowed")));
        }
        if self.is_debugged {
            return Err(Unfit::NotNow("a debugger holds the vCPUs"));
        }
        Ok(())
    }

    /// Has so many vCPUs be there, which [may be](Self::can_have_vcpus). More are at once;
    /// of fewer, the guest is asked to let go, and may not. A reset has as many as were
    /// asked for last.
    ///
    /// # Errors
    /// When the host can't; all is as before then, but for vCPUs that the guest doesn't
    /// see.
    pub(super) fn set_vcpus(&mut self, count: u8) -> Result<(), Error> {
        if self.state != MachineState::Resetting {
            let missing = self.bus.processors().missing(count);
            (0..self.most_vcpus.unwrap_or(count))
                .filter(|index| missing & bit((*index).into()) != 0)
                .try_for_each(|index| self.plug_vcpu(index))?;
            self.notify_guest(|registers| registers.request_processors(count))?;
        }
        self.vcpu_count = count;
        Ok(())
    }

    /// Makes a vCPU that waits for its SIPI, or has one of before do so.
    fn plug_vcpu(&mut self, index: u8) -> Result<(), Error> {
        let surroundings = self.surroundings();
        let Some(vcpus) = &mut self.vcpus else {
            return Ok(());
        };
        // The lowest that is missing comes, so that these have no holes.
        while vcpus.count() <= usize::from(index) {
            #[expect(clippy::cast_possible_truncation, reason = "no more than the index")]
            let next = vcpus.count() as u8;
            let fd = match self.spare_vcpu.take() {
                Some(fd) => fd,
                None => vm::create_vcpu(&self.vm, next)?,
            };
            if let Err(refused) = self.model.reset(&fd, next) {
                self.spare_vcpu = Some(fd);
                return Err(vm::refused(refused));
            }
            if let Err(Threadless { fd, why }) = vcpus.add(fd, &surroundings) {
                self.spare_vcpu = Some(fd);
                return Err(host_error("vCPU thread")(why));
            }
        }
        // One that the guest has just let go of may not have heard of that yet.
        vcpus.unplug(index.into());
        let deadline = Instant::now() + PLUG;
        let called = vcpus.call(index.into(), |fd| arch::kvm::await_sipi(fd), deadline);
        let called =
            called.map_err(|error| host_error("plug a vCPU")(std::io::Error::other(error)));
        called?.map_err(vm::refused)?;
        vcpus.plug(index.into());
        if self.state == MachineState::Running {
            vcpus.resume();
        }
        Ok(())
    }

    /// Has vCPUs that the guest has let go of stand still: one bit for each.
    pub fn unplug_vcpus(&mut self, vcpus: u32) {
        // One that was plugged again since is there.
        let gone = vcpus & !self.bus.processors().present();
        if let Some(all) = &mut self.vcpus {
            (0..all.count())
                .filter(|index| gone & bit(*index) != 0)
                .for_each(|index| all.unplug(index));
        }
    }
}
