//! The framework of the tests that cross a process: a test reads like a list of
//! what a person would do.
//!
//! | piece | what it is |
//! |---|---|
//! | [`Cloud`] | the running cloud, through Debian's AWS CLI |
//! | [`Host`] | the machine that the instances run on: this one, or the lab |
//! | [`Outside`] | another machine on the network, with an address of its own |
//! | [`Vm`] | one machine in `hearth-vmm`, without the cloud |
//! | [`wait`] | a predicate with a deadline; no test sleeps for a guess |

pub mod cloud;
pub mod host;
pub mod outside;
pub mod vm;
pub mod wait;

pub use cloud::{Aws, Cloud, Failure, Instance};
pub use host::{Host, Output};
pub use outside::{Outside, Tcp};
pub use vm::Vm;
