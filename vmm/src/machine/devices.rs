//! The PCI devices of a machine: made from their descriptions, plugged into slots,
//! taken out again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_vmm_api as api;
use vm_memory::GuestMemoryMmap;

use super::bus::Bus;
use super::{Error, Taps};
use crate::block::Backend;
use crate::config;
use crate::irq::Interrupts;
use crate::irq::kvm::KvmInterrupts;
use crate::net::{Tap, Vhost};
use crate::pci::PciRoot;
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::{self, Balloon};
use crate::virtio::blk::{self, Block, Options};
use crate::virtio::counters::Counters;
use crate::virtio::net::{KERNEL_FEATURES, Net, Options as NetOptions};
use crate::virtio::pci::VirtioPciDevice;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{self, Vsock};

/// What is in the slots, as the control socket shows it.
#[derive(Default)]
pub(super) struct Devices {
    /// Disks, in slot order.
    pub(super) disks: Vec<api::Disk>,
    /// Network interfaces, in slot order.
    pub(super) nics: Vec<api::Nic>,
    /// The way to each disk, by its name.
    pub(super) handles: BTreeMap<String, blk::Handle>,
    /// The way to the balloon, if there is one.
    pub(super) balloon: Option<balloon::Handle>,
    /// What every device counts, by its name.
    counters: BTreeMap<String, Plugged>,
}

/// A device in its slot.
struct Plugged {
    slot: u8,
    counters: Arc<dyn Counters>,
}

/// What a device needs of the machine.
pub(super) struct DeviceContext {
    pub(super) bus: Arc<Bus>,
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) interrupts: Arc<KvmInterrupts>,
    pub(super) vcpus: u8,
}

impl DeviceContext {
    fn plug(&self, what: &str, device: Box<dyn VirtioDevice>) -> Result<Plugged, Error> {
        let function = VirtioPciDevice::new(
            device,
            Arc::clone(&self.memory),
            Arc::clone(&self.interrupts) as Arc<dyn Interrupts>,
        )
        .map_err(|error| Error::Device(format!("{what}: {error}")))?;
        let counters = function.counters();
        let slot = self
            .bus
            .pci
            .add(None, Box::new(function))
            .map_err(|error| Error::Device(format!("{what}: {error}")))?;
        Ok(Plugged { slot, counters })
    }

    /// Makes and plugs a disk, from its file where that is open already.
    fn disk(
        &self,
        disk: &config::Disk,
        file: Option<OwnedFd>,
    ) -> Result<(api::Disk, blk::Handle, Plugged), Error> {
        let what = format!("--disk {}", disk.path.display());
        let fail = |error: io::Error| Error::Device(format!("{what}: {error}"));
        let backend = match file {
            Some(file) => Backend::from_file(File::from(file), disk.read_only),
            None => Backend::open(&disk.path, disk.read_only),
        }
        .map_err(fail)?;
        lock(&backend).map_err(fail)?;
        let size_bytes = backend.size().map_err(fail)?;
        if size_bytes < SECTOR {
            return Err(Error::Device(format!(
                "{what}: a disk has at least {SECTOR} bytes"
            )));
        }
        let options = Options {
            serial: disk.serial.clone(),
            queues: disk.queues.unwrap_or(self.vcpus.into()),
            engine: disk.engine,
        };
        let device = Block::new(backend, &options).map_err(fail)?;
        let handle = device.handle();
        let plugged = self.plug(&what, Box::new(device))?;
        let description = api::Disk {
            id: disk.id.clone(),
            slot: plugged.slot,
            path: disk.path.clone(),
            size_bytes,
            read_only: disk.read_only,
            serial: disk.serial.clone(),
            unplug_requested: false,
        };
        Ok((description, handle, plugged))
    }

    /// Makes and plugs a network interface, on its tap where that is open already, once
    /// for each pair of queues; as many of vhost-net may come behind them.
    fn nic(
        &self,
        nic: &config::Nic,
        taps: &mut Taps,
        mut open: Vec<OwnedFd>,
    ) -> Result<(api::Nic, Plugged), Error> {
        let queues = usize::from(nic.queues);
        let vhosts = match open.len() == 2 * queues {
            true => open.split_off(queues),
            false => Vec::new(),
        };
        let (name, open) = match &nic.tap {
            config::Tap::Name(name) => (name.clone(), open),
            config::Tap::Fds(fds) => {
                let numbers: Vec<_> = fds.iter().map(i32::to_string).collect();
                let name = format!("descriptor {}", numbers.join(":"));
                (name, fds.iter().filter_map(|fd| taps.remove(fd)).collect())
            }
        };
        let what = format!("--nic {name}");
        let fail = |error: io::Error| Error::Device(format!("{what}: {error}"));
        let links = if open.is_empty() {
            Tap::open_queues(&name, queues)
        } else if open.len() == queues {
            Tap::from_fds(open)
        } else {
            let wrong = format!("{queues} queues need as many descriptors of the tap");
            Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
        };
        let options = NetOptions {
            mac: nic.mac,
            mtu: nic.mtu,
        };
        let mut device = Net::with_pairs(links.map_err(fail)?, options).map_err(fail)?;
        let vhosts = self.vhosts(nic, vhosts).map_err(fail)?;
        let vhost = !vhosts.is_empty();
        if vhost {
            device = device.in_kernel(vhosts).map_err(fail)?;
        }
        let plugged = self.plug(&what, Box::new(device))?;
        let description = api::Nic {
            id: nic.id.clone(),
            slot: plugged.slot,
            tap: name,
            mac: nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
            mtu: nic.mtu,
            queues: nic.queues,
            vhost,
            unplug_requested: false,
        };
        Ok((description, plugged))
    }

    /// The kernel's half of each pair of queues, from its file where that is open
    /// already; nothing where it is not wanted, or not asked for and not to be had.
    fn vhosts(&self, nic: &config::Nic, open: Vec<OwnedFd>) -> io::Result<Vec<Vhost>> {
        let memory = || Arc::clone(&self.memory);
        let vhosts: io::Result<_> = match (nic.vhost, open.is_empty()) {
            (Some(false), true) => return Ok(Vec::new()),
            (Some(false), false) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is off, but descriptors of it came along",
            )),
            (wanted, true) => {
                let opened = (0..nic.queues)
                    .map(|_| Vhost::open(memory(), KERNEL_FEATURES))
                    .collect();
                match (opened, wanted) {
                    (Err(_), None) => return Ok(Vec::new()),
                    (opened, _) => opened,
                }
            }
            (_, false) => open
                .into_iter()
                .map(|fd| Vhost::from_fd(fd, memory(), KERNEL_FEATURES))
                .collect(),
        };
        vhosts.map_err(|error| io::Error::new(error.kind(), format!("vhost-net: {error}")))
    }
}

/// Locks a disk against every other VMM, until its last handle is closed: shared for
/// one that is only read. An "open file description" lock (fcntl(2)), which belongs
/// to the open file and not to the process.
fn lock(backend: &Backend) -> io::Result<()> {
    let kind = if backend.read_only() {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    // SAFETY: a flock of zeroes is a valid one: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).map_err(io::Error::other)?;
    let deadline = Instant::now() + UNLOCKING;
    loop {
        // SAFETY: the pointer is to a live flock.
        let result =
            unsafe { libc::fcntl(backend.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // A ring of io_uring lets go of its files a moment after its process
            // has ended.
            Some(libc::EAGAIN | libc::EACCES) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Some(libc::EAGAIN | libc::EACCES) => {
                return Err(io::Error::new(
                    error.kind(),
                    "another machine uses this disk",
                ));
            }
            // A file system without locks, where there is nothing to guard with.
            Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(()),
            _ => return Err(error),
        }
    }
}

/// How long a disk may stay locked by a process that has ended.
const UNLOCKING: Duration = Duration::from_secs(1);

/// Devices of which there is one at most.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// A balloon.
    pub balloon: bool,
    /// A socket device.
    pub vsock: Option<vsock::Options>,
}

/// The smallest disk in bytes: one sector.
const SECTOR: u64 = 512;

impl Devices {
    /// Makes and plugs all: disks first, so that the first is in the first slot,
    /// then network interfaces, then the entropy source.
    pub(super) fn plug(
        context: &DeviceContext,
        disks: &[config::Disk],
        nics: &[config::Nic],
        mut taps: Taps,
        extras: &Extras,
    ) -> Result<Self, Error> {
        let mut devices = Self::default();
        for disk in disks {
            devices.add_disk(context, disk, None)?;
        }
        for nic in nics {
            devices.add_nic(context, nic, &mut taps, Vec::new())?;
        }
        let plugged = context.plug("entropy source", Box::new(Rng::new()))?;
        devices.counters.insert("rng".to_owned(), plugged);
        if extras.balloon {
            let balloon = Balloon::new();
            devices.balloon = Some(balloon.handle());
            let plugged = context.plug("--balloon", Box::new(balloon))?;
            devices.counters.insert("balloon".to_owned(), plugged);
        }
        if let Some(options) = &extras.vsock {
            let what = format!("--vsock {}", options.path.display());
            let device = Vsock::new(options.clone())
                .map_err(|error| Error::Device(format!("{what}: {error}")))?;
            let plugged = context.plug(&what, Box::new(device))?;
            devices.counters.insert("vsock".to_owned(), plugged);
        }
        Ok(devices)
    }

    /// Makes and plugs a disk, from its file where that is open already.
    pub(super) fn add_disk(
        &mut self,
        context: &DeviceContext,
        disk: &config::Disk,
        file: Option<OwnedFd>,
    ) -> Result<api::Disk, Error> {
        let (disk, handle, plugged) = context.disk(disk, file)?;
        self.handles.insert(disk.id.clone(), handle);
        self.counters.insert(disk.id.clone(), plugged);
        self.disks.push(disk.clone());
        Ok(disk)
    }

    /// Makes and plugs a network interface, on its tap where that is open already.
    pub(super) fn add_nic(
        &mut self,
        context: &DeviceContext,
        nic: &config::Nic,
        taps: &mut Taps,
        open: Vec<OwnedFd>,
    ) -> Result<api::Nic, Error> {
        let (nic, plugged) = context.nic(nic, taps, open)?;
        self.counters.insert(nic.id.clone(), plugged);
        self.nics.push(nic.clone());
        Ok(nic)
    }

    /// What all devices count, by their names.
    pub(super) fn metrics(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let list = |plugged: &Plugged| {
            let list = plugged.counters.list().into_iter();
            list.map(|(name, value)| (name.to_owned(), value)).collect()
        };
        self.counters
            .iter()
            .map(|(id, plugged)| (id.clone(), list(plugged)))
            .collect()
    }

    /// Whether a disk or network interface has this name.
    pub(super) fn has(&self, id: &str) -> bool {
        self.disks.iter().any(|disk| disk.id == id) || self.nics.iter().any(|nic| nic.id == id)
    }

    /// The slots whose unplug is requested, one bit for each.
    pub(super) fn unplug_requested(&self) -> u32 {
        let disks = self
            .disks
            .iter()
            .map(|disk| (disk.unplug_requested, disk.slot));
        let nics = self.nics.iter().map(|nic| (nic.unplug_requested, nic.slot));
        disks
            .chain(nics)
            .filter(|(unplug_requested, _)| *unplug_requested)
            .fold(0, |slots, (_, slot)| slots | 1 << slot)
    }

    /// Takes out what the guest has let go of.
    pub(super) fn eject(&mut self, pci: &PciRoot, slots: u32) {
        for slot in (1..32u8).filter(|slot| slots >> slot & 1 == 1) {
            // An empty slot is the guest's own mistake, and does no harm.
            if pci.remove(slot).is_ok() {
                self.disks.retain(|disk| disk.slot != slot);
                let disks = &self.disks;
                self.handles
                    .retain(|id, _| disks.iter().any(|disk| disk.id == *id));
                self.nics.retain(|nic| nic.slot != slot);
                self.counters.retain(|_, plugged| plugged.slot != slot);
            }
        }
    }
}
