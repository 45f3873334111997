//! Tags: kept apart from what they are on, keyed by its id, so that one pair of
//! actions serves every kind of resource.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Authority, Scope, resource::regional};

/// All tags of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// The account and region that they are in.
    pub scope: Scope,
    /// The id of what they are on, as `i-…`.
    pub resource: String,
    /// Their keys and values.
    pub tags: BTreeMap<String, String>,
}

regional! {
    Tags {
        kind: "tags",
        key: resource,
        indexes: [],
        authority: |_this| Authority::Closed("tags are written with what they are on: `put_tags`"),
    }
}
