//! The PCI devices of a machine: made from their descriptions, plugged into slots,
//! taken out again.

use std::io;
use std::sync::Arc;

use hearth_vmm_api as api;
use vm_memory::GuestMemoryMmap;

use super::{Error, Taps};
use crate::block::{Backend, EngineKind};
use crate::config;
use crate::irq::Interrupts;
use crate::irq::kvm::KvmInterrupts;
use crate::net::Tap;
use crate::pci::PciRoot;
use crate::virtio::VirtioDevice;
use crate::virtio::blk::{Block, Options};
use crate::virtio::net::{Net, Options as NetOptions};
use crate::virtio::pci::VirtioPciDevice;
use crate::virtio::rng::Rng;

/// What is in the slots, as the control socket tells it.
#[derive(Default)]
pub(super) struct Devices {
    /// Disks, in slot order.
    pub(super) disks: Vec<api::Disk>,
    /// Network interfaces, in slot order.
    pub(super) nics: Vec<api::Nic>,
}

/// What a device needs of the machine.
pub(super) struct Socket<'a> {
    pub(super) pci: &'a PciRoot,
    pub(super) memory: &'a Arc<GuestMemoryMmap>,
    pub(super) interrupts: &'a Arc<KvmInterrupts>,
    pub(super) vcpus: u8,
}

impl Socket<'_> {
    fn plug(&self, what: &str, device: Box<dyn VirtioDevice>) -> Result<u8, Error> {
        let function = VirtioPciDevice::new(
            device,
            Arc::clone(self.memory),
            Arc::clone(self.interrupts) as Arc<dyn Interrupts>,
        )
        .map_err(|error| Error::Device(format!("{what}: {error}")))?;
        self.pci
            .add(None, Box::new(function))
            .map_err(|error| Error::Device(format!("{what}: {error}")))
    }
}

impl Socket<'_> {
    pub(super) fn disk(&self, disk: &config::Disk) -> Result<api::Disk, Error> {
        let what = format!("--disk {}", disk.path.display());
        let fail = |error: io::Error| Error::Device(format!("{what}: {error}"));
        let backend = Backend::open(&disk.path, disk.read_only).map_err(fail)?;
        let size_bytes = backend.size().map_err(fail)?;
        if size_bytes < SECTOR {
            return Err(Error::Device(format!(
                "{what}: a disk has at least {SECTOR} bytes"
            )));
        }
        let options = Options {
            serial: disk.serial.clone(),
            queues: self.vcpus.into(),
            engine: EngineKind::Auto,
        };
        let device = Block::new(backend, &options).map_err(fail)?;
        Ok(api::Disk {
            id: disk.id.clone(),
            slot: self.plug(&what, Box::new(device))?,
            path: disk.path.clone(),
            size_bytes,
            read_only: disk.read_only,
            serial: disk.serial.clone(),
        })
    }

    pub(super) fn nic(&self, nic: &config::Nic, taps: &mut Taps) -> Result<api::Nic, Error> {
        let (name, tap) = match &nic.tap {
            config::Tap::Name(name) => (name.clone(), Tap::open(name)),
            config::Tap::Fd(fd) => (
                format!("descriptor {fd}"),
                taps.remove(fd)
                    .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
                    .and_then(Tap::from_fd),
            ),
        };
        let what = format!("--nic {name}");
        let fail = |error: io::Error| Error::Device(format!("{what}: {error}"));
        let options = NetOptions {
            mac: nic.mac,
            mtu: nic.mtu,
        };
        let device = Net::new(tap.map_err(fail)?, options).map_err(fail)?;
        Ok(api::Nic {
            id: nic.id.clone(),
            slot: self.plug(&what, Box::new(device))?,
            tap: name,
            mac: nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
            mtu: nic.mtu,
        })
    }
}

/// The smallest disk in bytes: one sector.
const SECTOR: u64 = 512;

impl Devices {
    /// Makes and plugs all: disks first, so that the first is in the first slot,
    /// then network interfaces, then the entropy source.
    pub(super) fn plug(
        socket: &Socket<'_>,
        disks: &[config::Disk],
        nics: &[config::Nic],
        mut taps: Taps,
    ) -> Result<Self, Error> {
        let mut devices = Self::default();
        for disk in disks {
            devices.disks.push(socket.disk(disk)?);
        }
        for nic in nics {
            devices.nics.push(socket.nic(nic, &mut taps)?);
        }
        socket.plug("entropy source", Box::new(Rng::new()))?;
        Ok(devices)
    }

    /// Whether a disk or network interface has this name.
    pub(super) fn has(&self, id: &str) -> bool {
        self.disks.iter().any(|disk| disk.id == id) || self.nics.iter().any(|nic| nic.id == id)
    }

    /// Takes out what the guest has let go of.
    pub(super) fn eject(&mut self, pci: &PciRoot, slots: u32) {
        for slot in (1..32u8).filter(|slot| slots >> slot & 1 == 1) {
            // An empty slot is the guest's own mistake, and does no harm.
            if pci.remove(slot).is_ok() {
                self.disks.retain(|disk| disk.slot != slot);
                self.nics.retain(|nic| nic.slot != slot);
            }
        }
    }
}
