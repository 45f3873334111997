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
    /// What they are on: [`Tags::id`].
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

impl Tags {
    /// What the tags of a resource are kept under: the ids of EC2 are unique by
    /// themselves, as `i-…`; those of other services have them and their kind in front,
    /// as `iam:user/…`.
    pub fn id(service: &str, kind: &str, id: &str) -> String {
        match service {
            "ec2" => id.to_owned(),
            _ => format!("{service}:{kind}/{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_same_id_in_two_services_has_not_the_same_tags() {
        assert_eq!(Tags::id("ec2", "instance", "i-1"), "i-1");
        assert_eq!(Tags::id("iam", "user", "i-1"), "iam:user/i-1");
    }
}
