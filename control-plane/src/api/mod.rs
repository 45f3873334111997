//! The AWS API: wire formats, the one way in, and the actions.
//!
//! A new action is one file in its service's folder (`ec2/<resource>/`) with an
//! [`Action`] in it, and one line in that service's list of actions.

pub mod action;
#[cfg(test)]
mod authorization_tests;
pub mod console;
pub mod dispatch;
pub mod ec2;
pub mod error;
mod lists;
pub mod registry;
pub mod server;
pub mod shared;
pub mod sts;
pub mod targets;
#[cfg(test)]
mod tenancy_tests;
pub use hearth_wire as wire;

pub use action::{Action, Cloud, Ctx, Done, Idempotency, Once, Token};
pub use console::Console;
pub use error::ApiError;
pub use server::{router, serve, serve_tls};
pub use targets::Targets;
