//! What exists in the cloud: resources, their identifiers and state machines.
//!
//! Pure: no I/O, no clock of its own. Every type here that the store keeps
//! implements [`Resource`].

mod address;
mod eni;
mod group;
mod idempotency;
mod ids;
mod image;
mod instance;
mod instance_type;
mod key_pair;
mod reachability;
#[cfg(test)]
pub mod samples;
mod tags;
mod volume;
mod vpc;

pub use address::*;
pub use eni::*;
pub use group::*;
pub use idempotency::*;
pub use ids::*;
pub use image::*;
pub use instance::*;
pub use instance_type::*;
pub use key_pair::*;
pub use reachability::*;
pub use tags::*;
pub use volume::*;
pub use vpc::*;

use serde::{Serialize, de::DeserializeOwned};

/// A record of the desired state: one JSON value under one key of the store.
///
/// The key is `/{KIND}/{id}`.
pub trait Resource: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The plural noun that heads the key, as in `/instances/i-…`.
    const KIND: &'static str;

    /// The last part of the key.
    fn id(&self) -> &str;

    /// The store's key of the record with this id.
    fn key_of(id: &str) -> String {
        format!("/{}/{id}", Self::KIND)
    }

    /// The store's key of this record.
    fn key(&self) -> String {
        Self::key_of(self.id())
    }
}
