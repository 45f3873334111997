//! The interrupt controllers that the vCPUs share.

#![allow(unsafe_code, reason = "KVM's structure of a controller is a union")]

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state,
    kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::{raw, refused};
use crate::arch::layout::IOAPIC;
use crate::snapshot::Refused;

/// Pins of the IOAPIC (`KVM_IOAPIC_NUM_PINS`).
const PINS: usize = 24;
/// Its id has four bits. Intel 82093AA, section 3.2.1.
const LAST_ID: u32 = 0xf;
/// The register that is selected is named by a byte. Section 3.1.1.
const LAST_REGISTER: u32 = 0xff;

/// Both 8259 and the IOAPIC (KVM_GET_IRQCHIP).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllersV1 {
    #[serde(with = "raw")]
    master: kvm_irqchip,
    #[serde(with = "raw")]
    slave: kvm_irqchip,
    pub(super) ioapic: IoapicV1,
}

/// The IOAPIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IoapicV1 {
    /// The guest-physical address of its registers.
    pub(super) base_address: u64,
    /// Which register the window shows.
    pub(super) selected: u32,
    pub(super) id: u32,
    /// Pins that are asserted, a bit each.
    pub(super) asserted: u32,
    /// The redirection table. Intel 82093AA, section 3.2.4.
    pub(super) redirection: [u64; PINS],
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
        let ioapic = get(KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: KVM fills this member for that controller, and any bytes are one.
        let ioapic = unsafe { ioapic.chip.ioapic };
        Ok(Self {
            master: get(KVM_IRQCHIP_PIC_MASTER)?,
            slave: get(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: IoapicV1::from(&ioapic),
        })
    }

    /// Sets those of a VM, whose vCPUs have been restored.
    ///
    /// # Errors
    /// When the IOAPIC can't be so, or KVM refuses.
    pub fn restore(&self, vm: &VmFd) -> Result<(), Refused> {
        let checked = self.ioapic.check();
        checked.map_err(|refused| refused.within("IOAPIC"))?;
        let mut ioapic = kvm_irqchip::default();
        ioapic.chip.ioapic = kvm_ioapic_state::from(&self.ioapic);
        for (chip_id, chip) in [
            (KVM_IRQCHIP_PIC_MASTER, self.master),
            (KVM_IRQCHIP_PIC_SLAVE, self.slave),
            (KVM_IRQCHIP_IOAPIC, ioapic),
        ] {
            let chip = kvm_irqchip { chip_id, ..chip };
            vm.set_irqchip(&chip)
                .map_err(refused("set the interrupt controllers"))?;
        }
        Ok(())
    }
}

impl IoapicV1 {
    /// KVM takes whatever it is given.
    pub(super) fn check(&self) -> Result<(), Refused> {
        let refuse = |wrong: String| Err(Refused::because(wrong));
        if self.base_address != IOAPIC {
            let there = self.base_address;
            return refuse(format!("it is at {IOAPIC:#x} here and at {there:#x} there"));
        }
        if self.id > LAST_ID {
            return refuse(format!("its id can't be {:#x}", self.id));
        }
        if self.selected > LAST_REGISTER {
            return refuse(format!("there is no register {:#x}", self.selected));
        }
        if self.asserted >> PINS != 0 {
            let wrong = format!("of {PINS} pins, {:#x} can't be asserted", self.asserted);
            return refuse(wrong);
        }
        Ok(())
    }
}

impl From<&kvm_ioapic_state> for IoapicV1 {
    fn from(state: &kvm_ioapic_state) -> Self {
        Self {
            base_address: state.base_address,
            selected: state.ioregsel,
            id: state.id,
            asserted: state.irr,
            // SAFETY: both members are the same 64 bits, of any value.
            redirection: state.redirtbl.map(|entry| unsafe { entry.bits }),
        }
    }
}

impl From<&IoapicV1> for kvm_ioapic_state {
    fn from(state: &IoapicV1) -> Self {
        let mut set = Self {
            base_address: state.base_address,
            ioregsel: state.selected,
            id: state.id,
            irr: state.asserted,
            ..Default::default()
        };
        for (entry, bits) in set.redirtbl.iter_mut().zip(state.redirection) {
            entry.bits = bits;
        }
        set
    }
}
