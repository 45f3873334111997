//! STS: who am I.
//!
//! <https://docs.aws.amazon.com/STS/latest/APIReference/>

pub mod get_caller_identity;

use super::{
    error::Vocabulary,
    registry::{Iam, Service, action},
    wire::Protocol,
};

/// The service.
pub(super) fn service() -> Service {
    Service {
        signing_name: "sts",
        version: "2011-06-15",
        protocol: Protocol::Query,
        namespace: "https://sts.amazonaws.com/doc/2011-06-15/",
        dry_run: false,
        errors: &Vocabulary::QUERY,
        iam: Iam::plain("sts"),
        botocore: "sts",
        known: include_str!("operations.txt"),
        actions: vec![action::<get_caller_identity::GetCallerIdentity>()],
    }
}
