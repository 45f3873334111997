//! What a client token stood for.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Authority, Index, Scope,
    resource::{in_time, regional},
};

/// A `ClientToken` that made something: asked again with the same parameters
/// the answer is the same, with others it is an error.
///
/// <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html>
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientToken {
    /// The account and region that it is in.
    pub scope: Scope,
    /// `Action:token`, the store's key.
    pub key: String,
    /// The SHA-256 of the request's parameters, hexadecimal.
    pub digest: String,
    /// The id of what the call made.
    pub made: String,
    /// When.
    pub created: Timestamp,
}

regional! {
    ClientToken {
        kind: "client-tokens",
        key: key,
        indexes: [BY_AGE],
        authority: |_this| Authority::Free("it is the call's own, beside what it makes"),
    }
}

impl ClientToken {
    /// The oldest first.
    pub const BY_AGE: Index<Self> = Index {
        name: "age",
        keys: |this, key| key(&in_time(this.created)),
    };
}
