//! The PCI devices of a machine: made from their descriptions, plugged into slots,
//! taken out again.

use std::sync::Arc;

use hearth_vmm_api as api;
use vm_memory::GuestMemoryMmap;

use super::Error;
use crate::config;
use crate::irq::Interrupts;
use crate::irq::kvm::KvmInterrupts;
use crate::pci::PciRoot;
use crate::virtio::VirtioDevice;
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
struct Socket<'a> {
    pci: &'a PciRoot,
    memory: &'a Arc<GuestMemoryMmap>,
    interrupts: &'a Arc<KvmInterrupts>,
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

impl Devices {
    /// Makes and plugs all: the entropy source, disks, network interfaces.
    pub(super) fn plug(
        pci: &PciRoot,
        memory: &Arc<GuestMemoryMmap>,
        interrupts: &Arc<KvmInterrupts>,
        disks: &[config::Disk],
        nics: &[config::Nic],
    ) -> Result<Self, Error> {
        let socket = Socket {
            pci,
            memory,
            interrupts,
        };
        let devices = Self::default();
        socket.plug("entropy source", Box::new(Rng::new()))?;
        if !disks.is_empty() || !nics.is_empty() {
            return Err(Error::Device(
                "--disk and --nic: not supported yet".to_owned(),
            ));
        }
        Ok(devices)
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
