//! Tags: kept apart from what they are on, keyed by its id, so that one pair of
//! actions serves every kind of resource.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Resource;

/// All tags of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// The id of what they are on, as `i-…`.
    pub resource: String,
    /// Their keys and values.
    pub tags: BTreeMap<String, String>,
}

impl Resource for Tags {
    const KIND: &'static str = "tags";
    fn id(&self) -> &str {
        &self.resource
    }
}
