//! Tags, of every kind of resource.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html>

mod create_tags;
mod delete_tags;
mod describe_tags;

pub(super) use create_tags::CreateTags;
pub(super) use delete_tags::DeleteTags;
pub(super) use describe_tags::DescribeTags;

use super::shared::{found, not_found, parse_id};
use crate::{
    api::{ApiError, wire::quoted},
    model::{
        Eni, EniId, GroupId, Image, ImageId, Instance, InstanceId, KeyPair, KeyPairId, RuleId,
        SecurityGroup, Subnet, SubnetId, Volume, VolumeId, Vpc, VpcId,
    },
    store::{Change, View},
};

/// The most resources in one call.
const MAX_RESOURCES: usize = 1000;

/// The prefixes of identifiers and EC2's names of the kinds that can have tags.
const KINDS: &[(&str, &str)] = &[
    ("ami", "image"),
    ("eni", "network-interface"),
    ("i", "instance"),
    ("key", "key-pair"),
    ("sg", "security-group"),
    ("sgr", "security-group-rule"),
    ("subnet", "subnet"),
    ("vol", "volume"),
    ("vpc", "vpc"),
];

/// EC2's name of the kind that an identifier is of.
fn kind(id: &str) -> Option<&'static str> {
    let (prefix, _) = id.rsplit_once('-')?;
    let (_, kind) = KINDS.iter().find(|(known, _)| *known == prefix)?;
    Some(kind)
}

/// Checks that a resource is there, and makes the transaction depend on that.
fn exists(view: &View, change: &mut Change<'_>, id: &str) -> Result<(), ApiError> {
    macro_rules! look {
        ($id:ty, $resource:ty) => {{
            found::<$id, $resource>(view, id)?;
            change.expect_unchanged::<$resource>(id);
            Ok(())
        }};
    }
    match kind(id) {
        Some("image") => look!(ImageId, Image),
        Some("network-interface") => look!(EniId, Eni),
        Some("instance") => look!(InstanceId, Instance),
        Some("security-group") => look!(GroupId, SecurityGroup),
        Some("subnet") => look!(SubnetId, Subnet),
        Some("volume") => look!(VolumeId, Volume),
        Some("vpc") => look!(VpcId, Vpc),
        Some("key-pair") => {
            let id: KeyPairId = parse_id(id)?;
            let pair = view.all::<KeyPair>().find(|pair| pair.id == id);
            let pair = pair.ok_or_else(|| not_found::<KeyPairId>(&id))?;
            change.expect_unchanged::<KeyPair>(&pair.name);
            Ok(())
        }
        Some("security-group-rule") => {
            let id: RuleId = parse_id(id)?;
            let group = view
                .all::<SecurityGroup>()
                .find(|group| group.rules.iter().any(|rule| rule.id == id));
            let group = group.ok_or_else(|| not_found::<RuleId>(&id))?;
            change.expect_unchanged::<SecurityGroup>(&group.id);
            Ok(())
        }
        _ => Err(ApiError::new(
            "InvalidID",
            format!("The ID '{}' is not valid", quoted(id)),
        )),
    }
}

/// Checks the list of resources of a call.
fn check_resources(resources: &[String]) -> Result<(), ApiError> {
    if resources.is_empty() {
        return Err(ApiError::missing("ResourceId"));
    }
    if resources.len() > MAX_RESOURCES {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("A request has at most {MAX_RESOURCES} resources"),
        ));
    }
    Ok(())
}
