//! `hearth-vmm`: one process, one instance.

pub mod acpi;
pub mod arch;
pub mod irq;
pub mod pci;
pub mod smbios;
pub mod virtio;
