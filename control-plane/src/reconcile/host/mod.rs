//! The controllers of this host beside those of its instances' lives.

mod disk;
mod images;
mod network;
mod reachability;
mod spare;
mod volumes;

pub use disk::DiskGuard;
pub use images::ImageController;
pub use network::NetworkController;
pub use reachability::ReachabilityController;
pub use spare::HostSpare;
pub use volumes::VolumeController;
