//! Tags in requests and answers, with EC2's limits.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::{ApiError, wire::quoted};

/// The most tags on one resource.
pub const MAX_TAGS: usize = 50;
/// The longest key, in characters.
const MAX_KEY: usize = 128;
/// The longest value, in characters.
const MAX_VALUE: usize = 256;

/// A tag in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Tag {
    /// A resource's tags as an answer has them: left out when there are none.
    pub fn set(tags: &BTreeMap<String, String>) -> Option<Vec<Self>> {
        let tag = |(key, value): (&String, &String)| Self {
            key: key.clone(),
            value: value.clone(),
        };
        (!tags.is_empty()).then(|| tags.iter().map(tag).collect())
    }
}

/// A tag in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct TagInput {
    /// Its key.
    pub key: String,
    /// Its value; none is an empty one.
    pub value: Option<String>,
}

/// One of a request's `TagSpecifications`: tags for what the action makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct TagSpecification {
    /// The kind of resource, as `instance`.
    pub resource_type: Option<String>,
    /// The tags.
    #[serde(default, rename = "Tag")]
    pub tags: Vec<TagInput>,
}

/// The tags of a request, checked.
///
/// # Errors
/// When a key or value is too long, a key is reserved or there twice, or there
/// are too many.
pub fn checked(tags: &[TagInput]) -> Result<BTreeMap<String, String>, ApiError> {
    let invalid = |message: String| ApiError::new("InvalidParameterValue", message);
    let mut out = BTreeMap::new();
    for tag in tags {
        let value = tag.value.clone().unwrap_or_default();
        let shown = quoted(&tag.key);
        if tag.key.is_empty() || tag.key.chars().count() > MAX_KEY {
            return Err(invalid(format!(
                "Tag key '{shown}' must be 1 to {MAX_KEY} characters long"
            )));
        }
        if value.chars().count() > MAX_VALUE {
            return Err(invalid(format!(
                "The value of tag '{shown}' is longer than {MAX_VALUE} characters"
            )));
        }
        if reserved(&tag.key) {
            return Err(invalid(format!(
                "Value ( {shown} ) for parameter key is invalid. Tag keys starting with 'aws:' are reserved for internal use"
            )));
        }
        if out.insert(tag.key.clone(), value).is_some() {
            return Err(invalid(format!("Duplicate tag key '{shown}' specified.")));
        }
    }
    within_limit(&out)?;
    Ok(out)
}

/// Whether a key begins with `aws:`, in any case.
pub fn reserved(key: &str) -> bool {
    key.get(..4).is_some_and(|k| k.eq_ignore_ascii_case("aws:"))
}

/// Checks the number of all tags on a resource.
///
/// # Errors
/// `TagLimitExceeded`.
pub fn within_limit(tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if tags.keys().filter(|key| !reserved(key)).count() <= MAX_TAGS {
        return Ok(());
    }
    Err(ApiError::new(
        "TagLimitExceeded",
        format!("The maximum number of tags on a resource is {MAX_TAGS}"),
    ))
}

/// A request's tags by the kind of resource they are for; `allowed` are the
/// kinds that the action makes.
///
/// # Errors
/// When a kind is none of them or there twice, or a tag is not allowed.
pub fn specified(
    specifications: &[TagSpecification],
    allowed: &[&'static str],
) -> Result<BTreeMap<&'static str, BTreeMap<String, String>>, ApiError> {
    let mut out = BTreeMap::new();
    for specification in specifications {
        let given = specification
            .resource_type
            .as_deref()
            .ok_or_else(|| ApiError::missing("TagSpecification.ResourceType"))?;
        let Some(kind) = allowed.iter().find(|kind| **kind == given) else {
            let given = quoted(given);
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("'{given}' is not a valid taggable resource type for this operation."),
            ));
        };
        if out.insert(*kind, checked(&specification.tags)?).is_some() {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("The resource type '{kind}' is specified more than once"),
            ));
        }
    }
    Ok(out)
}

/// [`specified`] for an action that makes one kind of resource.
///
/// # Errors
/// As there.
pub fn specified_for(
    specifications: &[TagSpecification],
    kind: &'static str,
) -> Result<BTreeMap<String, String>, ApiError> {
    Ok(specified(specifications, &[kind])?
        .remove(kind)
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(key: &str, value: &str) -> TagInput {
        TagInput {
            key: key.into(),
            value: Some(value.into()),
        }
    }

    fn code(tags: &[TagInput]) -> String {
        checked(tags).unwrap_err().code.into_owned()
    }

    #[test]
    fn limits() {
        let most: Vec<_> = (0..50).map(|i| input(&i.to_string(), "")).collect();
        assert_eq!(checked(&most).unwrap().len(), 50);
        let more: Vec<_> = (0..51).map(|i| input(&i.to_string(), "")).collect();
        assert_eq!(code(&more), "TagLimitExceeded");
        assert!(checked(&[input(&"é".repeat(128), &"é".repeat(256))]).is_ok());
        for bad in [
            input("", ""),
            input(&"k".repeat(129), ""),
            input("k", &"v".repeat(257)),
            input("aws:x", ""),
            input("AWS:x", ""),
        ] {
            assert_eq!(code(&[bad]), "InvalidParameterValue");
        }
        assert_eq!(
            code(&[input("a", "1"), input("a", "2")]),
            "InvalidParameterValue"
        );
    }

    #[test]
    fn a_kind_that_the_action_does_not_make_is_refused() {
        let specification = |kind: &str| TagSpecification {
            resource_type: Some(kind.into()),
            tags: vec![input("a", "b")],
        };
        let ok = specified_for(&[specification("key-pair")], "key-pair").unwrap();
        assert_eq!(ok["a"], "b");
        assert!(specified_for(&[specification("volume")], "key-pair").is_err());
        let twice = [specification("key-pair"), specification("key-pair")];
        assert!(specified_for(&twice, "key-pair").is_err());
    }
}
