//! The machine: built from its description, run, held, reset and taken down.
//!
//! ```text
//!   Built ──► paused ◄─resume─ ─pause─► pausing
//!               │  ▲                      │   ▲
//!               │  └──── all is quiet ────┘   │ pause
//!               └─ resume ─► running ─────────┘ ──► (report) ──► end
//!                               │  ▲
//!                         reset ▼  │ all is quiet: memory cleared, KVM VM made anew,
//!                            resetting                           kernel loaded again
//! ```
//! A snapshot that is being written holds it: `paused ── snapshot ─► saving ── written ─►
//! paused`.
//!
//! "Quiet" is when no vCPU runs and no device touches guest memory: a disk that doesn't
//! answer keeps the machine pausing or resetting, and nobody waiting (`life`).
//!
//! One thread owns the [`Machine`] and calls it; vCPU threads only send it
//! [`Reports`]. A reset makes a new KVM VM rather than trust that every hidden
//! state of the old one can be put back; devices with their open files, the memory
//! mapping and the process stay.

mod adjust;
mod built;
pub mod bus;
mod context;
mod debug;
mod devices;
mod error;
mod firmware;
mod handover;
mod ioctls;
mod life;
mod memory;
mod opening;
mod saving;
mod snapshot;
mod template;
mod user_disk;
mod variables;
mod vcpus;
mod vm;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hearth_vmm_api as api;
use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::EventFd;

use crate::acpi;
use crate::acpi::registers::Registers;
use crate::arch;
use crate::config;
use crate::irq::kvm::KvmInterrupts;
use crate::irq::{Interrupts as _, MsiMessage, MsiVector};
use crate::jail::{Profile, Profiles};
use crate::memory::Memory;
use crate::serial::Serial;
use crate::smbios;
use crate::snapshot::FileId;
use crate::vcpu::{self, Bell, Entry, ExitStats, Reports, Taken, TickRate, Vcpus};
use crate::virtio::pci::Backplane;
use crate::virtio::{self, Declaration, mem};
pub use adjust::Unfit;
pub use built::{Built, Origin, Parts, Taps};
use bus::{Bus, Target};
pub use error::Error;
pub(crate) use error::{host_error, kvm_error};
pub use firmware::{Firmware, Software};
pub(crate) use handover::PROFILE as HAND_OVER;
pub use handover::{Handover, Inherited};
pub use opening::{Errand, Outcome, Resize};
pub use snapshot::Unsaved;
pub use vcpus::Count as VcpuCount;

/// Threads that are no device's, by their names.
pub static ERRANDS: [(&str, &Profile); 4] = [
    ("flash", &variables::PROFILE),
    ("disk-file", &opening::PROFILE),
    ("snapshot", &saving::PROFILE),
    ("hand-over", &handover::PROFILE),
];

/// What the machine asks of the kernel, by the threads that do.
#[must_use]
pub fn profiles() -> Profiles {
    let mut threads = virtio::profiles();
    threads.extend(ERRANDS.map(|(_, profile)| profile));
    Profiles {
        vcpu: ioctls::VCPU_THREAD,
        main: ioctls::MAIN_THREAD,
        devices: threads,
    }
}

fn taken(device: &config::Device) -> Error {
    Error::Device(format!("there is a device {:?} already", device.id()))
}

/// The machine.
pub struct Machine {
    /// First, so that they are ended before what they use goes. None while it is reset.
    vcpus: Option<Vcpus>,
    /// The next vCPU, where KVM has made it and its plug failed then.
    spare_vcpu: Option<kvm_ioctls::VcpuFd>,
    /// The VM.
    vm: Arc<kvm_ioctls::VmFd>,
    jail: Vec<api::SandboxLayer>,
    id: String,
    /// How many vCPUs were asked for last.
    vcpu_count: u8,
    most_vcpus: Option<u8>,
    memory_bytes: u64,
    payload: Software,
    identity: smbios::Identity,
    /// Of a template: how many slots stay free in front of its devices.
    template: Option<u8>,
    generation: acpi::Generation,
    kvm: Kvm,
    model: arch::kvm::Model,
    bus: Arc<Bus>,
    devices: devices::Devices,
    /// Disks whose back ends haven't answered yet.
    connecting: Vec<user_disk::Connecting>,
    /// Files of disks that are being opened or looked at.
    errands: opening::Errands,
    context: context::DeviceContext,
    backplane: Backplane,
    /// Rung by devices that have become quiet.
    quieted: Arc<EventFd>,
    /// Memory of the last snapshot, if what is written since is marked.
    followed: Option<FileId>,
    /// The snapshot that is being written.
    saving: Option<saving::Saving>,
    /// One that was given up while its files were being opened: it may still make some, and
    /// removes them.
    given_up: Option<saving::Saving>,
    /// The slots that a pause or a reset waits for, one bit for each.
    busy: u32,
    interrupts: Arc<KvmInterrupts>,
    /// What an NMI comes by, once one was sent.
    nmi: Option<Arc<dyn MsiVector>>,
    memory: Memory,
    state: api::MachineState,
    resets: u64,
    /// The guest's next power-off is the first half of a reboot.
    rebooting: bool,
    /// The guest asked for a reset, and the machine is held.
    reset_due: bool,
    stats: Arc<[ExitStats]>,
    ticks: TickRate,
    began_ns: u64,
    pid: u32,
    entry: Arc<Entry>,
    reports: Arc<Reports>,
    /// A debugger has it: vCPUs that a reset makes stand still until it lets them go.
    is_debugged: bool,
}

impl Machine {
    /// Loads the kernel or the firmware, writes the tables, makes the vCPUs.
    fn power_on(&mut self) -> Result<(), Error> {
        vm::connect(&self.vm, &self.bus)?;
        let hardware = acpi::Hardware {
            vcpus: self.vcpu_count,
            most_vcpus: self.most_vcpus,
            last_slot: Some(self.bus.pci.last_slot()),
        };
        let (memory, identity, generation) = (&self.memory, &self.identity, &self.generation);
        let entry = match &mut self.payload {
            Software::Kernel(payload) => Some(vm::load(
                memory,
                self.memory_bytes,
                hardware,
                payload,
                identity,
                generation,
            )?),
            Software::Firmware(firmware) => {
                firmware.load(&self.vm, &self.bus, memory, hardware, identity, generation)?;
                None
            }
        };
        self.model.set_pace(&self.vm);
        let fds = vm::create_vcpus(&self.vm, &self.model, self.vcpu_count)?;
        // Without one, it is where KVM makes vCPUs begin: at the reset vector.
        if let Some(entry) = entry {
            vm::enter(&fds, &self.memory, entry)?;
        }
        self.bus.switch_on(self.vcpu_count);
        self.start_vcpus(fds, u32::MAX)
    }

    /// Waits until the guest was entered for the first time, a moment after the first
    /// [`resume`](Self::resume).
    pub fn wait_for_entry(&self) {
        self.entry.wait();
    }

    /// Presses the power button: the guest's next power-off is the end.
    ///
    /// # Errors
    /// When the interrupt can't be raised.
    pub fn press_power_button(&mut self) -> io::Result<()> {
        self.rebooting = false;
        self.bus.notify(Registers::press_power_button)
    }

    /// Sends every vCPU a non-maskable interrupt.
    ///
    /// # Errors
    /// When there is no route left for it, or it can't be raised.
    pub fn send_nmi(&mut self) -> io::Result<()> {
        // Kept: KVM delivers it a moment after it was signalled.
        let vector = match &self.nmi {
            Some(vector) => vector,
            None => self.nmi.insert(self.interrupts.msi_vector()?),
        };
        let message = MsiMessage {
            address: arch::layout::NMI_ADDRESS,
            data: arch::layout::NMI_DATA,
        };
        vector.route(message, false)?;
        vector.signal()
    }

    /// Presses the power button, and has the power-off that follows be a reset.
    /// False, and nothing done: the machine was reset more than `resets` times.
    ///
    /// # Errors
    /// When the interrupt can't be raised.
    pub fn ask_to_reboot(&mut self, resets: u64) -> io::Result<bool> {
        if self.resets != resets {
            return Ok(false);
        }
        self.bus.notify(Registers::press_power_button)?;
        self.rebooting = true;
        Ok(true)
    }

    /// Whether the guest's next power-off shall be a reset.
    #[must_use]
    pub fn is_rebooting(&self) -> bool {
        self.rebooting
    }

    /// Puts a network interface in and notifies the guest.
    ///
    /// # Errors
    /// When the name is taken, or the tap can't be had.
    pub fn add_nic(
        &mut self,
        nic: config::Nic,
        open: Vec<OwnedFd>,
    ) -> Result<Option<api::Nic>, Error> {
        let device = config::Device::Nic(nic);
        self.may_plug(&device)?;
        let made = self.context.make(&device, &mut Taps::new(), open)?;
        let slot = self.plug(made, None)?;
        let description = self.devices.at(slot).and_then(devices::Device::nic);
        self.notify_guest(|registers| registers.slot_filled(slot))?;
        Ok(description)
    }

    /// Refuses a device whose name another one has, or will have, and every one while the
    /// machine is no place for it. One of this name that failed to come is forgotten.
    fn may_plug(&mut self, device: &config::Device) -> Result<(), Error> {
        let id = device.id();
        self.forget_failed(id);
        if self.devices.has(id) || self.is_connecting(id) || self.is_opening(id) {
            return Err(taken(device));
        }
        let why = match self.state {
            api::MachineState::Resetting => life::RESETTING,
            api::MachineState::HandingOver => snapshot::HANDING_OVER,
            _ => return Ok(()),
        };
        Err(Error::Device(why.to_owned()))
    }

    /// Puts a device into a slot, or the next free one. Returns which.
    fn plug(&mut self, made: context::Made, slot: Option<u8>) -> Result<u8, Error> {
        let device = made.plug(slot, &self.bus.pci, &self.backplane)?;
        let slot = device.slot;
        self.devices.push(device);
        Ok(slot)
    }

    /// Guest memory in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Requests the unplug of a device of this kind; false: there is none of this name.
    ///
    /// # Errors
    /// When the interrupt can't be raised.
    pub fn request_unplug(&mut self, kind: &Declaration, id: &str) -> Result<bool, Error> {
        let slot = self.devices.request_unplug(kind, id);
        if let Some(slot) = slot {
            self.notify_guest(|registers| registers.request_unplug(slot))?;
        }
        Ok(slot.is_some())
    }

    fn notify_guest(&self, change: impl FnOnce(&mut Registers)) -> Result<(), Error> {
        self.bus
            .notify(change)
            .map_err(host_error("raise the event interrupt"))
    }

    /// The machine's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Readable when there are reports.
    #[must_use]
    pub fn bell(&self) -> &Bell {
        self.reports.bell()
    }

    /// What vCPUs have to report, and the bell is silent.
    #[must_use]
    pub fn take_reports(&self) -> Taken {
        self.reports.take()
    }

    /// COM1, for the console.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.bus.serial
    }

    /// Where its life stands.
    #[must_use]
    pub fn state(&self) -> api::MachineState {
        self.state
    }

    /// What the control socket shows of it.
    #[must_use]
    pub fn describe(&self) -> api::Machine {
        let processors = self.processors();
        let memory =
            |of: fn(&mem::Handle) -> u64| self.memory_bytes + self.devices.memory().map_or(0, of);
        api::Machine {
            id: self.id.clone(),
            pid: self.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state,
            vcpus: vcpus::count(processors.present()),
            vcpus_requested: vcpus::count(processors.wanted()),
            vcpus_max: self.most_vcpus.unwrap_or(self.vcpu_count),
            memory_bytes: memory(mem::Handle::plugged),
            memory_requested_bytes: memory(mem::Handle::requested),
            memory_max_bytes: memory(mem::Handle::most),
            resets: self.resets,
            disks: self.devices.disks(),
            nics: self.devices.nics(),
            connecting: self.connecting().chain(self.opening()).collect(),
            waits_for: self.waits_for(),
            jail: self.jail.clone(),
            start: api::Start {
                began_ns: self.began_ns,
                entered_ns: self.entry.at_ns(),
            },
        }
    }

    /// What is behind an exit, by its name on the control socket.
    fn name(&self, target: Target) -> String {
        match target {
            Target::None => "none".to_owned(),
            Target::Serial => "serial".to_owned(),
            Target::Config => "pci-config".to_owned(),
            Target::Acpi => "acpi".to_owned(),
            Target::Keyboard => "keyboard".to_owned(),
            Target::Board => "firmware".to_owned(),
            Target::Slot(slot) => self.devices.name(slot),
        }
    }

    /// Counters since the process began.
    #[must_use]
    pub fn metrics(&self) -> api::Metrics {
        let name = |target| self.name(target);
        let (exits, exit_latency) = vcpu::summary(&self.stats, &self.ticks, name);
        api::Metrics {
            vcpu_exits: self.stats.iter().map(ExitStats::total).sum(),
            exits,
            exit_latency,
            devices: self.devices.metrics(),
        }
    }
}
