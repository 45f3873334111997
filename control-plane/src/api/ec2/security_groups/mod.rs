//! Security groups and their rules.
//!
//! Every change of a group is a write of its one record, so two changes of one
//! group at the same time are two transactions of which one is tried again.
//!
//! <https://docs.aws.amazon.com/vpc/latest/userguide/vpc-security-groups.html>

mod authorize;
mod create_security_group;
mod delete_security_group;
mod describe_security_group_rules;
mod describe_security_groups;
mod flat;
mod permission;
mod revoke;

pub(super) use authorize::{AuthorizeSecurityGroupEgress, AuthorizeSecurityGroupIngress};
pub(super) use create_security_group::CreateSecurityGroup;
pub(super) use delete_security_group::DeleteSecurityGroup;
pub(super) use describe_security_group_rules::DescribeSecurityGroupRules;
pub(super) use describe_security_groups::DescribeSecurityGroups;
pub(super) use revoke::{RevokeSecurityGroupEgress, RevokeSecurityGroupIngress};

use super::shared::found;
use crate::{
    api::{ApiError, wire::quoted},
    model::{GroupId, SecurityGroup, Vpc},
    store::View,
};

/// The account's default VPC.
fn default_vpc(view: &View) -> Result<&Vpc, ApiError> {
    view.all::<Vpc>()
        .find(|vpc| vpc.is_default)
        .ok_or_else(|| ApiError::new("VPCIdNotSpecified", "No default VPC for this user"))
}

/// The group that a request names: by its id, or by its name in the default VPC.
fn find<'v>(
    view: &'v View,
    id: Option<&str>,
    name: Option<&str>,
) -> Result<&'v SecurityGroup, ApiError> {
    match (id, name) {
        (Some(id), name) => {
            let group = found::<GroupId, SecurityGroup>(view, id)?;
            if name.is_some_and(|name| name != group.name) {
                return Err(ApiError::combination(
                    "The group that GroupId names has another GroupName",
                ));
            }
            Ok(group)
        }
        (None, Some(name)) => named(view, &default_vpc(view)?.id, name),
        (None, None) => Err(ApiError::missing("GroupId")),
    }
}

/// The group of this name in a VPC.
fn named<'v>(
    view: &'v View,
    vpc: &crate::model::VpcId,
    name: &str,
) -> Result<&'v SecurityGroup, ApiError> {
    view.all::<SecurityGroup>()
        .find(|group| group.vpc == *vpc && group.name == name)
        .ok_or_else(|| {
            let message = format!(
                "The security group '{}' does not exist in VPC '{vpc}'",
                quoted(name)
            );
            ApiError::new("InvalidGroup.NotFound", message)
        })
}

/// What EC2 allows in names and descriptions of groups and rules.
fn plain_text(text: &str) -> bool {
    text.chars().count() <= 255
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c))
}
