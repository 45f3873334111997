//! The instance metadata service (IMDS), versions 1 and 2, on 169.254.169.254.
//!
//! [`Facts`] are read from the view, [`tree`] turns them into the documents
//! that cloud-init, the AWS SDKs and a person with curl ask for, [`answer`]
//! decides on one request, all of it pure; [`server`] puts it on a socket. Who
//! asks is known by the address that the namespace's anti-spoofing vouches for,
//! never by what the request says.
//!
//! Not served, and 404 as on EC2 where there is none: `iam/` (no instance profiles yet),
//! `spot/`, `events/recommendations/rebalance`, `autoscaling/`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>

pub mod answer;
pub mod facts;
pub mod identity;
pub mod server;
pub mod token;
pub mod tree;

pub use facts::Facts;
pub use identity::Identity;

/// What the service signs with.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The tokens of sessions.
    pub tokens: token::TokenKey,
    /// Identity documents; without, they have no signatures.
    pub identity: Option<std::sync::Arc<Identity>>,
}
