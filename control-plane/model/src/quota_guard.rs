//! What keeps quotas where two calls come at once.

use serde::{Deserialize, Serialize};

use super::{Authority, Regional, Scope, resource::regional};

/// Written by whoever makes one more of a kind that an account may have so many of: of
/// two calls that both see the last place free, one commits and the other looks again.
/// How many there are is what the view says; no count is kept that could go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaGuard {
    /// The account and region that the quota is of.
    pub scope: Scope,
    /// The kind that it bounds, as the store calls it.
    pub bounds: String,
}

regional! {
    QuotaGuard {
        kind: "quota-guards",
        key: bounds,
        indexes: [],
        authority: |_this| Authority::Free("it says nothing, and goes with what is made"),
    }
}

impl QuotaGuard {
    /// That of a kind in a scope.
    pub fn of<T: Regional>(scope: &Scope) -> Self {
        Self {
            scope: scope.clone(),
            bounds: T::KIND.to_owned(),
        }
    }
}
