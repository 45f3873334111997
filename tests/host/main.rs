//! The parts that touch a host, tested on one: namespaces, nftables, cgroups,
//! file systems. Needs root.

mod boot_files;
mod full_disk;
mod network;
mod storage;
