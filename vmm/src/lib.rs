//! `hearth-vmm`: one process, one instance.

pub mod irq;
