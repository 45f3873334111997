//! The controllers of which the cloud has one: they run where the leader's key is
//! held (`reconcile/leader.rs`).

mod garbage;
mod placement;

pub use garbage::GarbageController;
pub use placement::PlacementController;
