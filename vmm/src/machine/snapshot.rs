//! A held machine, saved; and a machine that goes on from what was saved, in a process of
//! its own.
//!
//! ```text
//!   paused ── snapshot ──► folder ── --restore ──► paused, devices held ── resume ─►
//! ```
//! What the description says is not in the folder but on the command line: which kernel a
//! reset loads, where disks and taps are by now. What the guest knows of it must be the
//! same, and is compared.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::context::Made;
use super::saving::{Order, Saving};
use super::template::TemplateV1;
use super::{Error, Machine, host_error, vm};
use crate::acpi::registers::{Registers, RegistersV1};
use crate::arch;
use crate::arch::layout::GENERATION;
use crate::arch::state::{ClockV1, ControllersV1, ProcessorV1, VcpuV1, kept_msrs};
use crate::memory::Ram;
use crate::pci::BusV1;
use crate::serial::SerialV1;
use crate::snapshot::{Destination, Refused, Source};
use crate::vcpu::Vcpus;

use hearth_vmm_api::MachineState;

/// How long a vCPU's thread, which does nothing else, has for its state.
const VCPU_STATE: Duration = Duration::from_secs(10);

/// Why what changes a machine has to wait.
pub(super) const SAVING: &str = "a snapshot of the machine is being written";
/// The same.
pub(super) const HANDING_OVER: &str = "the machine is being handed over to another process";

/// The same, for a while: whoever opens them removes them, and they may be the next one's.
const GIVEN_UP: &str = "the files of a snapshot that was given up are still being opened";

/// Why it can't be saved since another one.
pub(super) const NOT_FOLLOWED: &str =
    "the base is not this machine's last snapshot, or wasn't followed";

/// Why one can't be saved at all.
pub(super) const FIRMWARE: &str =
    "a machine with firmware can't be saved: its board has no saved state";

/// A whole machine but its memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineV1 {
    processor: ProcessorV1,
    memory: Vec<RegionV1>,
    devices: Vec<DeviceV1>,
    clock: ClockV1,
    /// By their number; none where one is not plugged. Boxed, so that a file that is full
    /// of `null` is no more in memory than it is on the disk.
    vcpus: Vec<Option<Box<VcpuV1>>>,
    controllers: ControllersV1,
    registers: RegistersV1,
    serial: SerialV1,
    bus: BusV1,
    /// The guest's next power-off is the first half of a reboot.
    rebooting: bool,
    /// What it is called, where it is a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) template: Option<TemplateV1>,
}

/// A region of guest memory, in the order in which they are in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegionV1 {
    start: u64,
    size: u64,
}

/// A device: its state is the bus's to know.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceV1 {
    id: String,
    kind: String,
    slot: u8,
    unplug_requested: bool,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Unsaved {
    /// The machine is not as it must be.
    #[error("{0}")]
    NotNow(&'static str),
    /// The guest has done what can't be saved.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Memory can't be followed.
    #[error(transparent)]
    Machine(#[from] Error),
    /// The one that it is to be since can't be read.
    #[error("base")]
    Base(#[source] io::Error),
    /// It can't be written.
    #[error("write the snapshot")]
    Unwritten(#[source] io::Error),
}

/// A saved machine, read.
pub(super) struct Saved(pub(super) MachineV1);

impl Saved {
    pub(super) fn read(source: &Source) -> Result<Self, Error> {
        source.state().map(Self).map_err(within("machine.json"))
    }

    /// Takes out those of the devices, all of which are here, that it doesn't have: they
    /// are plugged when it goes on.
    pub(super) fn split(&self, here: &mut Vec<Made>) -> Result<Vec<Made>, Error> {
        let has = |one: &Made| self.0.devices.iter().any(|saved| saved.id == one.id());
        let is_new = |one: &mut Made| one.is_hot() && !has(one);
        let new = here.extract_if(.., is_new).collect();
        let saved = self.0.devices.iter();
        let mut saved: Vec<_> = saved.map(|one| (&*one.id, &*one.kind)).collect();
        let here = here.iter().map(|made| (made.id(), made.kind()));
        let mut here: Vec<_> = here.collect();
        saved.sort_unstable();
        here.sort_unstable();
        if saved == here {
            return Ok(new);
        }
        let list = |devices: &[(&str, &str)]| {
            let names = devices.iter().map(|(id, kind)| format!("{id} ({kind})"));
            names.collect::<Vec<_>>().join(", ")
        };
        let (saved, here) = (list(&saved), list(&here));
        let wrong = format!("its devices are {saved}, and here there are {here}");
        Err(Error::Restore(Refused::because(wrong)))
    }

    /// The last slot for devices: what the guest was told of.
    pub(super) fn last_slot(&self) -> u8 {
        self.0.bus.last_slot
    }

    /// The slot of a device.
    pub(super) fn slot(&self, id: &str) -> Option<u8> {
        let mut devices = self.0.devices.iter();
        devices.find(|one| one.id == id).map(|one| one.slot)
    }
}

fn within(part: &'static str) -> impl FnOnce(Refused) -> Error {
    move |refused| Error::Restore(refused.within(part))
}

fn regions(memory: &Ram) -> Vec<RegionV1> {
    let regions = memory.regions().map(|region| RegionV1 {
        start: region.start(),
        size: region.size(),
    });
    regions.collect()
}

/// Has a vCPU's thread do something, which says what it was refused.
fn on_vcpu<T: Send + 'static>(
    vcpus: &mut Vcpus,
    index: usize,
    call: impl FnOnce(&mut kvm_ioctls::VcpuFd) -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let done = vcpus.call(index, call, Instant::now() + VCPU_STATE);
    done.unwrap_or_else(|error| Err(Refused::because(error.to_string())))
        .map_err(|refused| refused.within(format_args!("vCPU {index}")))
}

impl Machine {
    /// Begins to write what the machine is, which goes on from there when it is let go, and
    /// so can others. It must be held, and stays so until all is written, which
    /// [`saved`](Self::saved) tells. Of memory, only what was written since the snapshot in
    /// the folder `base`, where that is the last one and was to be followed; and `follow`
    /// says whether this one is.
    ///
    /// # Errors
    /// See [`Unsaved`]; there is no snapshot then. Once its files are there, what fails has
    /// the last one followed no more.
    pub fn begin_snapshot(
        &mut self,
        destination: Destination,
        base: Option<PathBuf>,
        follow: bool,
    ) -> Result<(), Unsaved> {
        self.is_saveable()?;
        if base.is_some() && self.followed.is_none() {
            return Err(Unsaved::NotNow(NOT_FOLLOWED));
        }
        let order = Order {
            destination,
            base,
            followed: self.followed,
            memory: Arc::clone(&self.memory),
            follow,
        };
        let saving = Saving::begin(order, Arc::clone(&self.quieted));
        self.saving = Some(saving.map_err(Unsaved::Unwritten)?);
        self.state = MachineState::Saving;
        Ok(())
    }

    /// Whether it stands still, and nothing of it is about to change.
    pub(super) fn is_saveable(&self) -> Result<(), Unsaved> {
        let why = match self.state {
            MachineState::Saving => SAVING,
            MachineState::HandingOver => HANDING_OVER,
            MachineState::Paused if self.reset_due => {
                "the guest asked for a reset, which comes as the machine goes on"
            }
            MachineState::Paused if !self.reports.are_taken() => {
                "the guest has just ended, or let go of a device: ask again"
            }
            MachineState::Paused if self.payload.is_firmware() => FIRMWARE,
            MachineState::Paused if self.given_up.as_ref().is_some_and(|one| !one.has_ended()) => {
                GIVEN_UP
            }
            MachineState::Paused => return Ok(()),
            _ => "the machine is not paused",
        };
        Err(Unsaved::NotNow(why))
    }

    /// What it is; of a template, not yet where in memory it is called what it is.
    pub(super) fn read_state(&mut self) -> Result<MachineV1, Refused> {
        let msrs: Arc<[u32]> = kept_msrs(&self.kvm)?.into();
        let mut states = Vec::new();
        let present = self.bus.processors().present();
        for index in 0..present.checked_ilog2().map_or(0, |last| last + 1) {
            if present >> index & 1 == 0 {
                states.push(None);
                continue;
            }
            let vcpus = self.vcpus.as_mut();
            let vcpus = vcpus.ok_or_else(|| Refused::because("there are no vCPUs"))?;
            let msrs = Arc::clone(&msrs);
            let save = move |fd: &mut kvm_ioctls::VcpuFd| VcpuV1::save(fd, &msrs);
            states.push(Some(Box::new(on_vcpu(vcpus, index as usize, save)?)));
        }
        let devices = self.devices.list().map(|device| DeviceV1 {
            id: device.id.clone(),
            kind: device.declaration.name.to_owned(),
            slot: device.slot,
            unplug_requested: device.unplug_requested,
        });
        Ok(MachineV1 {
            processor: self.model.save(),
            memory: regions(&self.memory),
            devices: devices.collect(),
            vcpus: states,
            controllers: ControllersV1::save(&self.vm)?,
            clock: ClockV1::save(&self.vm)?,
            registers: self.bus.save_registers(),
            serial: self.bus.serial.save(),
            bus: self.bus.pci.save()?,
            rebooting: self.rebooting,
            template: self.save_template(),
        })
    }

    /// Makes the vCPUs of a machine that goes on, in a VM that has its memory, and has
    /// everything be as it was; but for what says that it is a copy, if it is: its name,
    /// where that was a template's, and the generation id.
    pub(super) fn go_on(&mut self, Saved(saved): Saved, is_copy: bool) -> Result<(), Error> {
        let refuse = |wrong: String| Err(Error::Restore(Refused::because(wrong)));
        let (has, wants) = (regions(&self.memory), &saved.memory);
        if has != *wants {
            return refuse(format!("its memory is {wants:x?}, and here {has:x?}"));
        }
        // As many as there may ever be: which of them are plugged is the guest's to know.
        let restored = self.model.restore(&saved.processor);
        restored.map_err(within("processor"))?;
        let present = saved.registers.processors.present;
        let bits = saved.vcpus.iter().rev();
        let bits = bits.fold(0u64, |bits, one| bits << 1 | u64::from(one.is_some()));
        let all = u8::try_from(saved.vcpus.len()).ok();
        let all = all.filter(|all| *all <= self.model.count() && bits == u64::from(present));
        let Some(all) = all else {
            return refuse(format!(
                "vCPUs {present:#x} are plugged, and {bits:#x} saved"
            ));
        };
        vm::connect(&self.vm, &self.bus)?;
        let mut states = saved.vcpus.iter().flatten();
        let pace = states.find_map(|vcpu| vcpu.tsc_khz());
        if let Some(khz) = pace {
            arch::kvm::set_pace(&self.vm, khz);
        }
        let fds = vm::create_vcpus(&self.vm, &self.model, all)?;
        self.start_vcpus(fds, present)?;
        let elapsed = saved.clock.elapsed();
        let restored = saved.clock.restore(&self.vm, elapsed);
        restored.map_err(Error::Restore)?;
        let msrs: Arc<[u32]> = kept_msrs(&self.kvm).map_err(Error::Restore)?.into();
        let mut absent = Vec::new();
        for (index, state) in saved.vcpus.into_iter().enumerate() {
            let Some(vcpus) = &mut self.vcpus else {
                continue;
            };
            let Some(state) = state else {
                absent.push(index);
                continue;
            };
            let msrs = Arc::clone(&msrs);
            let restore = move |fd: &mut kvm_ioctls::VcpuFd| state.restore(fd, &msrs, elapsed);
            on_vcpu(vcpus, index, restore).map_err(Error::Restore)?;
        }
        // Not before those that were saved have it: whether this host can is theirs to say,
        // and where their clock stands.
        if let Some(khz) = pace {
            self.model.keep_pace(khz);
        }
        for index in absent {
            let Some(vcpus) = &mut self.vcpus else {
                continue;
            };
            let fall_in = move |fd: &mut kvm_ioctls::VcpuFd| {
                arch::kvm::fall_in(fd, pace)
                    .map_err(|error| Refused::because(format!("{}: {}", error.what, error.source)))
            };
            on_vcpu(vcpus, index, fall_in).map_err(Error::Restore)?;
        }
        let restored = saved.controllers.restore(&self.vm);
        restored.map_err(Error::Restore)?;
        // From here on, interrupts that waited are raised again.
        let restored = self.bus.pci.restore(&saved.bus);
        restored.map_err(within("PCI"))?;
        let restored = self.bus.restore_registers(&saved.registers);
        restored.map_err(within("ACPI registers"))?;
        let wanted = self.bus.processors().wanted();
        self.vcpu_count = super::vcpus::count(wanted);
        let restored = self.bus.serial.restore(&saved.serial);
        restored.map_err(within("serial port"))?;
        for device in saved.devices.iter().filter(|one| one.unplug_requested) {
            self.devices.request_unplug_of(&device.id);
        }
        self.rebooting = saved.rebooting;
        if !is_copy {
            return Ok(());
        }
        self.take_name(saved.template.as_ref())?;
        let id = self.generation.bytes();
        let written = self.memory.write_slice(id, GuestAddress(GENERATION));
        written.map_err(|error| host_error("write the generation id")(io::Error::other(error)))?;
        self.notify_guest(Registers::generation_changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file of at most 16 MiB becomes in memory: five bytes (`null,`) are one vCPU.
    #[test]
    fn a_processor_that_is_none_takes_no_room() {
        fn of_each<T>(_: fn(&MachineV1) -> &Vec<T>) -> usize {
            size_of::<T>()
        }
        let most = of_each(|state| &state.vcpus);
        assert!(
            most <= 16,
            "a snapshot's file of 16 MiB makes {most} bytes of each 5"
        );
    }
}
