//! `hearth-vmm`: one process, one instance.
//!
//! `unsafe` is for the modules that say at their top what for.

#![deny(unsafe_code)]

pub mod acpi;
pub mod arch;
pub mod block;
pub mod board;
pub mod config;
pub mod control;
mod epoll;
pub mod error;
pub mod gdb;
pub mod handover;
pub mod irq;
pub mod jail;
pub mod listener;
pub mod machine;
pub mod memory;
pub mod net;
pub mod pci;
pub mod run;
pub mod serial;
pub mod smbios;
pub mod snapshot;
mod sync;
pub mod vcpu;
pub mod vhost;
pub mod virtio;
