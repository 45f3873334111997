//! The interrupt controllers that the vCPUs share.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::{raw, refused};
use crate::snapshot::Refused;

/// Both 8259 and the IOAPIC (KVM_GET_IRQCHIP).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllersV1 {
    #[serde(with = "raw")]
    master: kvm_irqchip,
    #[serde(with = "raw")]
    slave: kvm_irqchip,
    #[serde(with = "raw")]
    ioapic: kvm_irqchip,
}

impl ControllersV1 {
    /// Those of a VM whose vCPUs and devices stand still.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn save(vm: &VmFd) -> Result<Self, Refused> {
        let get = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(refused("get the interrupt controllers"))
                .map(|()| chip)
        };
        Ok(Self {
            master: get(KVM_IRQCHIP_PIC_MASTER)?,
            slave: get(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: get(KVM_IRQCHIP_IOAPIC)?,
        })
    }

    /// Sets those of a VM, whose vCPUs have been restored.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn restore(&self, vm: &VmFd) -> Result<(), Refused> {
        for (chip_id, chip) in [
            (KVM_IRQCHIP_PIC_MASTER, self.master),
            (KVM_IRQCHIP_PIC_SLAVE, self.slave),
            (KVM_IRQCHIP_IOAPIC, self.ioapic),
        ] {
            let chip = kvm_irqchip { chip_id, ..chip };
            vm.set_irqchip(&chip)
                .map_err(refused("set the interrupt controllers"))?;
        }
        Ok(())
    }
}
