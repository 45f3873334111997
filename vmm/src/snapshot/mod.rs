//! What a machine was, so that another one goes on from there.
//!
//! Each register machine has its state beside its code: a plain structure with its
//! version in its name (`RegistersV1`), by `save` and `restore`. A version that was
//! released doesn't change any more: what is new is a V2, which reads a V1. A field that
//! isn't known is refused, since what it stands for would be lost.

mod container;
mod refused;
#[cfg(test)]
pub(crate) mod testing;

pub use container::{Destination, FileId, Opened, Source};
pub(crate) use container::{sealed, unsealed};
pub use refused::Refused;
