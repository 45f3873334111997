//! Whether an account was given its default VPC in a region.

use serde::{Deserialize, Serialize};

use super::{Authority, Scope, resource::regional};

/// The mark that it was: an account that has deleted its default VPC keeps it
/// deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultVpcMark {
    /// [`DefaultVpcMark::ID`].
    id: String,
    /// The account and region that it is in.
    pub scope: Scope,
}

regional! {
    DefaultVpcMark {
        // As those that there are were written.
        kind: "settlements",
        key: id,
        indexes: [],
        authority: |_this| Authority::Closed("it is written before an account's first call"),
    }
}

impl DefaultVpcMark {
    /// The one id that there is in a scope.
    pub const ID: &'static str = "settled";

    /// The mark in a scope.
    pub fn of(scope: &Scope) -> Self {
        Self {
            id: Self::ID.into(),
            scope: scope.clone(),
        }
    }
}
