//! A machine on its way: with every file open and no thread yet, then, in a confined
//! process, started in the one way that what it is made from says.
//!
//! ```text
//!   Parts ── Built::new ──► Built ══ the process confines itself ══ start ─┬─► power on  ─┐
//!            KVM, memory,           threads, slots                         ├─► restore  ──┼─► Machine
//!            devices, files                                                └─► take over ─┘
//! ```

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hearth_vmm_api as api;
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bus::Bus;
use super::context::{DeviceContext, Made};
use super::devices::Devices;
use super::handover::Inherited;
use super::snapshot::Saved;
use super::{Error, Firmware, Machine, Software, VcpuCount, host_error, memory, taken, vm};
use crate::acpi;
use crate::arch;
use crate::config;
use crate::irq::Interrupts;
use crate::irq::kvm::KvmInterrupts;
use crate::jail::Confinement;
use crate::memory::{Memory, Options, Pluggable};
use crate::serial::Serial;
use crate::smbios;
use crate::snapshot::Source;
use crate::vcpu::{self, Bell, ExitStats, Reports, TickRate, Trace};
use crate::virtio::SHARED;
use crate::virtio::pci::Backplane;
use crate::virtio::thread::DeviceThread;

/// Taps that were handed down open, by their number.
pub type Taps = BTreeMap<RawFd, OwnedFd>;

/// Where a machine comes from.
#[derive(Debug)]
pub enum Origin {
    /// Nowhere: its kernel is loaded.
    PowerOn,
    /// What was saved of one.
    Snapshot(Source),
    /// Another process, in which it is held meanwhile.
    Process(Inherited),
}

/// What a machine is made of, with every file open.
pub struct Parts {
    /// Its name.
    pub id: String,
    /// How many vCPUs: 1 to 32.
    pub vcpus: VcpuCount,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// What guest memory is made of.
    pub memory: Options,
    /// Where more may be plugged.
    pub pluggable: Option<Pluggable>,
    /// What it boots, at once or by a reset: a kernel, or firmware that finds one itself.
    pub payload: Software,
    /// What it says it is.
    pub identity: smbios::Identity,
    /// COM1.
    pub serial: Serial,
    /// Its devices, in slot order.
    pub devices: Vec<config::Device>,
    /// The last slot for devices: of these, and of those that come while the guest runs.
    /// A snapshot's machine keeps its own.
    pub last_slot: u8,
    /// The taps that they name by descriptor.
    pub taps: Taps,
    /// Of a template: how many slots stay free in front of its devices.
    pub template: Option<u8>,
    /// Where it comes from.
    pub origin: Origin,
    /// Where its exits are noted, if they are.
    pub exit_trace: Option<Trace>,
    /// When the program began ([`crate::vcpu::unix_ns`]).
    pub began_ns: u64,
    /// The process's id, as those outside know it.
    pub pid: u32,
}

/// A machine with every file open, and without any thread: what it is made from was not
/// looked at yet.
pub struct Built {
    id: String,
    vcpus: VcpuCount,
    memory_bytes: u64,
    payload: Software,
    identity: smbios::Identity,
    template: Option<u8>,
    origin: Origin,
    exit_trace: Option<Trace>,
    began_ns: u64,
    pid: u32,
    kvm: Kvm,
    vm: Arc<VmFd>,
    model: arch::kvm::Model,
    generation: acpi::Generation,
    memory: Memory,
    interrupts: Arc<KvmInterrupts>,
    bus: Arc<Bus>,
    context: DeviceContext,
    devices: Vec<Made>,
    bell: Bell,
    quieted: Arc<EventFd>,
}

impl Built {
    /// Builds a machine.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind.
    pub fn new(mut parts: Parts) -> Result<Self, Error> {
        vcpu::install_kick_handler().map_err(host_error("signal handler"))?;
        let kvm = vm::open(parts.vcpus.all())?;
        let (hole, is_firmware) = (parts.payload.hole(), parts.payload.is_firmware());
        if is_firmware {
            Firmware::check(&kvm)?;
        }
        let (bytes, blocks) = (parts.memory_bytes, parts.pluggable);
        let memory = memory::make((bytes, hole), blocks, parts.memory, &mut parts.origin)?;
        let vm = vm::create(&kvm, &memory)?;
        let interrupts =
            KvmInterrupts::new(Arc::clone(&vm)).map_err(host_error("interrupt routes"))?;
        let bus = match is_firmware {
            true => Bus::with_board(parts.serial),
            false => Bus::new(parts.serial),
        };
        let bus = Arc::new(bus.map_err(host_error("eventfd"))?);
        bus.pci.keep_to(parts.last_slot);
        let context = DeviceContext {
            memory: Arc::clone(&memory),
            vcpus: parts.vcpus.first,
            bus: Arc::clone(&bus),
            owns_paths: match &parts.origin {
                Origin::Process(inherited) => Arc::clone(&inherited.owns_paths),
                _ => Arc::new(AtomicBool::new(true)),
            },
        };
        let mut devices: Vec<Made> = Vec::new();
        let mut taps = parts.taps;
        for device in &parts.devices {
            if devices.iter().any(|other| other.id() == device.id()) {
                return Err(taken(device));
            }
            let open = match &mut parts.origin {
                Origin::Process(inherited) => inherited.devices.remove(device.id()),
                _ => None,
            };
            devices.push(context.make(device, &mut taps, open.unwrap_or_default())?);
        }
        let quieted = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host_error("eventfd"))?;
        Ok(Self {
            id: parts.id,
            vcpus: parts.vcpus,
            memory_bytes: parts.memory_bytes,
            payload: parts.payload,
            identity: parts.identity,
            template: parts.template,
            origin: parts.origin,
            exit_trace: parts.exit_trace,
            began_ns: parts.began_ns,
            pid: parts.pid,
            model: arch::kvm::Model::new(&kvm, parts.vcpus.all()).map_err(vm::refused)?,
            kvm,
            vm,
            generation: acpi::Generation::fresh().map_err(host_error("generation id"))?,
            memory,
            interrupts,
            bus,
            context,
            devices,
            bell: Bell::new().map_err(host_error("eventfd"))?,
            quieted: Arc::new(quieted),
        })
    }

    /// Makes the devices' threads, loads the kernel or reads what the machine goes on
    /// from, and makes the vCPUs, paused: in a confined process, since threads inherit
    /// what confines it, and whoever made the kernel's image may be after its parser.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(self, confinement: &Confinement) -> Result<Machine, Error> {
        let shared = DeviceThread::spawn("devices".to_owned(), &SHARED);
        let backplane = Backplane {
            memory: Arc::clone(&self.memory),
            interrupts: Arc::clone(&self.interrupts) as Arc<dyn Interrupts>,
            shared: Arc::new(shared.map_err(host_error("the devices' thread"))?),
            bell: Arc::clone(&self.quieted),
        };
        let jail = confinement.layers().to_vec();
        let trace = self.exit_trace.clone();
        let (mut machine, made, origin) = self.assemble(backplane, jail);
        match origin {
            Origin::PowerOn => machine.cold_start(made)?,
            Origin::Snapshot(source) => machine.restore(made, Saved::read(&source)?, true)?,
            Origin::Process(inherited) => machine.take_over(made, inherited)?,
        }
        if let Some(trace) = trace {
            let vcpus = machine.stats.len();
            let head = trace.head(vcpus, |target| machine.name(target));
            head.map_err(host_error("write the exit trace"))?;
        }
        Ok(machine)
    }

    /// The machine, still without its devices and vCPUs: those, and where they are from.
    fn assemble(
        self,
        backplane: Backplane,
        jail: Vec<api::SandboxLayer>,
    ) -> (Machine, Vec<Made>, Origin) {
        let machine = Machine {
            vcpus: None,
            spare_vcpu: None,
            vm: self.vm,
            jail,
            id: self.id,
            vcpu_count: self.vcpus.first,
            most_vcpus: self.vcpus.most,
            memory_bytes: self.memory_bytes,
            payload: self.payload,
            identity: self.identity,
            template: self.template,
            generation: self.generation,
            kvm: self.kvm,
            model: self.model,
            bus: self.bus,
            devices: Devices::default(),
            connecting: Vec::new(),
            errands: super::opening::Errands::default(),
            context: self.context,
            backplane,
            quieted: self.quieted,
            followed: None,
            saving: None,
            given_up: None,
            busy: 0,
            interrupts: self.interrupts,
            nmi: None,
            memory: self.memory,
            state: api::MachineState::Paused,
            resets: 0,
            rebooting: false,
            reset_due: false,
            stats: (0..self.vcpus.all())
                .map(|index| ExitStats::of(index.into(), self.exit_trace.as_ref()))
                .collect(),
            ticks: TickRate::default(),
            began_ns: self.began_ns,
            pid: self.pid,
            entry: Arc::default(),
            reports: Arc::new(Reports::new(self.bell)),
            is_debugged: false,
        };
        (machine, self.devices, self.origin)
    }
}

impl Machine {
    /// Plugs the devices into the next free slots, in a template behind those that stay
    /// free, and loads the kernel.
    fn cold_start(&mut self, made: Vec<Made>) -> Result<(), Error> {
        let first = self.template.map(|free| free.saturating_add(1));
        for (index, device) in (0..).zip(made) {
            self.plug(device, first.map(|first| first.saturating_add(index)))?;
        }
        self.power_on()
    }

    /// Plugs the devices into the slots where the saved machine has them, and has all of
    /// it be as it was. A disk or interface that the saved machine lacks is plugged when
    /// that is done, as one that comes while the guest runs, its guest notified. A copy is called by its own name, and
    /// knows that it is one.
    pub(super) fn restore(
        &mut self,
        mut made: Vec<Made>,
        saved: Saved,
        is_copy: bool,
    ) -> Result<(), Error> {
        let new = saved.split(&mut made)?;
        self.bus.pci.keep_to(saved.last_slot());
        for device in made {
            let slot = saved.slot(device.id());
            self.plug(device, slot)?;
        }
        self.go_on(saved, is_copy)?;
        for device in new {
            let slot = self.plug(device, None)?;
            self.notify_guest(|registers| registers.slot_filled(slot))?;
        }
        Ok(())
    }
}
