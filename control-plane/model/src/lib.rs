//! What exists in the cloud: resources, their identifiers and state machines.
//!
//! Pure: no I/O, no clock of its own. Every type here that the store keeps
//! implements [`Resource`]; [`resource`] says how one is declared.

mod address;
mod arn;
mod authority;
pub mod condition_key;
mod default_vpc;
pub mod dns_names;
mod elastic_ip;
mod eni;
mod group;
mod idempotency;
mod ids;
mod image;
mod instance;
mod instance_type;
mod key_pair;
mod launch_template;
mod quota;
mod quota_guard;
mod reachability;
mod reservation;
mod resource;
#[cfg(any(test, feature = "samples"))]
pub mod samples;
mod tags;
#[cfg(test)]
mod tests;
mod volume;
mod vpc;
mod zone;

pub use address::*;
pub use arn::{Arn, MalformedArn};
pub use authority::Authority;
pub use condition_key::ConditionKey;
pub use default_vpc::*;
pub use elastic_ip::*;
pub use eni::*;
pub use group::*;
pub use idempotency::*;
pub use ids::*;
pub use image::*;
pub use instance::*;
pub use instance_type::*;
pub use key_pair::*;
pub use launch_template::*;
pub use quota::*;
pub use quota_guard::QuotaGuard;
pub use reachability::*;
pub use reservation::*;
pub use resource::{
    Described, Identifier, Index, Keys, Listed, Part, Reference, Regional, Resource, Scope, Shared,
    Visible,
};
pub use tags::*;
pub use volume::*;
pub use vpc::*;
pub use zone::zone_id;
