//! The lives of the instances on one host.
//!
//! - [`plan`]: the next step of one instance, from its record and what there is
//!   of it on the host; pure
//! - [`record`]: what becomes of the records when a step of its life is done; pure
//! - [`execute`]: carries the steps out
//! - [`launch`]: the longest of them

pub mod execute;
pub mod launch;
pub mod plan;
pub mod record;

pub use execute::InstanceController;

#[cfg(test)]
mod crash_tests;
