//! MADT: ACPI 6.5, section 5.2.12. Debian's cloud kernel has no other way to find
//! its processors.

use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};

use super::{Hardware, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::arch::layout::{IOAPIC, LAPIC};

#[expect(clippy::cast_possible_truncation, reason = "both lie below 4 GiB")]
pub(super) fn build(hardware: Hardware) -> MADT {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(LAPIC as u32),
    );
    let Hardware {
        vcpus, most_vcpus, ..
    } = hardware;
    for vcpu in 0..most_vcpus.unwrap_or(vcpus).max(vcpus) {
        // One that may be plugged later (section 5.2.12.2, "online capable") is counted
        // as possible by Linux, which ignores any other that is not enabled.
        let status = match vcpu < vcpus {
            true => EnabledStatus::Enabled,
            false => EnabledStatus::DisabledOnlineCapable,
        };
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, status));
    }
    madt.add_structure(IoApic::new(0, IOAPIC as u32, 0));
    madt
}
