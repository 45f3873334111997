//! `hearth-vmm`: one process, one instance.

pub mod acpi;
pub mod arch;
pub mod block;
pub mod config;
pub mod control;
pub mod irq;
pub mod jail;
pub mod listener;
pub mod machine;
pub mod net;
pub mod pci;
pub mod run;
pub mod serial;
pub mod smbios;
pub mod vcpu;
pub mod virtio;
