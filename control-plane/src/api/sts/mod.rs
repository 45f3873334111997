//! STS: who am I.
//!
//! <https://docs.aws.amazon.com/STS/latest/APIReference/>

pub mod get_caller_identity;

use super::{
    registry::{Service, action},
    wire::Dialect,
};

/// The service.
pub fn service() -> Service {
    Service {
        name: "sts",
        dialect: Dialect::Query,
        version: "2011-06-15",
        namespace: "https://sts.amazonaws.com/doc/2011-06-15/",
        known: include_str!("operations.txt"),
        actions: vec![action::<get_caller_identity::GetCallerIdentity>()],
    }
}
