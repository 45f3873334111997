//! The controllers of this host beside those of its instances' lives.

mod images;
mod network;
mod reachability;

pub use images::ImageController;
pub use network::NetworkController;
pub use reachability::ReachabilityController;
