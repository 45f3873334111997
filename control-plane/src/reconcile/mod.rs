//! The reconcilers: they make the desired state true, and write down what
//! became of it.
//!
//! Each is a [`Controller`], keyed by the resource that its work is about: a
//! step looks at the view and at the host, plans (pure functions, tested by
//! table) and takes one idempotent step for that key. A step takes no other
//! input, so that recovery from a crash is the ordinary step. The [`queue`] runs
//! it: when a record that concerns the key changed, when the host says so, when
//! the step itself asked for it, and every half minute in any case.
//!
//! - [`cluster`]: controllers of which the cloud has one: placement, garbage; they
//!   run in the process that leads
//! - [`host`]: network, images and lone volumes of this host, and who
//!   answers on it
//! - [`instance`]: the lives of the instances on this host

pub mod cluster;
mod controllers;
pub mod host;
pub mod instance;
mod leader;
pub mod queue;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use jiff::Timestamp;

pub use controllers::Controllers;
pub use queue::{Controller, Requeue, Slots, run};

/// What the time is; a test brings its own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine's clock.
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}
