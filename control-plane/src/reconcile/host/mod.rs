//! The controllers of this host beside its instances.

mod images;
mod network;

pub use images::ImageController;
pub use network::NetworkController;
