//! The reconcilers: they make the desired state true, and write down what
//! became of it.
//!
//! Each is a [`Controller`]: one pass looks at the view and at the host, plans
//! (pure functions, tested by table) and carries out idempotent steps. A pass
//! takes no input, so that recovery from a crash is the ordinary pass. The
//! [`driver`] wakes it: at each change of the view, when the host says so, when
//! the pass itself asked for it, and every half minute in any case.
//!
//! - [`cluster`]: controllers of which the cloud has one: placement, garbage
//! - [`host`]: network, images and lone volumes of this host, and who
//!   answers on it
//! - [`instance`]: the lives of the instances on this host

pub mod cluster;
pub mod driver;
pub mod host;
pub mod instance;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use jiff::Timestamp;

pub use driver::{Again, Controller, drive};

/// What the time is; a test brings its own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine's clock.
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}
