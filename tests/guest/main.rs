//! `hearth-vmm` with real kernels. Needs a KVM that runs them, root, and the
//! images in target/images.

mod balloon;
mod boot;
mod console;
mod disks;
mod hotplug;
mod identity;
mod jail;
mod memory;
mod nics;
mod power;
mod snapshot;
mod template;
mod update;
mod user_disks;
mod vcpus;
mod vsock;
