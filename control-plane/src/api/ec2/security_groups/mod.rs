//! Security groups and their rules.
//!
//! Every change of a group is a write of its one record, so two changes of one
//! group at the same time are two transactions of which one is tried again.
//!
//! <https://docs.aws.amazon.com/vpc/latest/userguide/vpc-security-groups.html>

mod authorize;
mod create_security_group;
mod delete_security_group;
mod describe_security_group_references;
mod describe_security_group_rules;
mod describe_security_groups;
mod describe_stale_security_groups;
mod flat;
mod modify_security_group_rules;
mod permission;
mod revoke;
mod update_descriptions;

pub(super) use authorize::{AuthorizeSecurityGroupEgress, AuthorizeSecurityGroupIngress};
pub(super) use create_security_group::CreateSecurityGroup;
#[cfg(test)]
pub(super) use create_security_group::MAX_GROUPS;
pub(super) use delete_security_group::DeleteSecurityGroup;
pub(super) use describe_security_group_references::DescribeSecurityGroupReferences;
pub(super) use describe_security_group_rules::DescribeSecurityGroupRules;
pub(super) use describe_security_groups::DescribeSecurityGroups;
pub(super) use describe_stale_security_groups::DescribeStaleSecurityGroups;
pub(super) use modify_security_group_rules::ModifySecurityGroupRules;
pub(super) use revoke::{RevokeSecurityGroupEgress, RevokeSecurityGroupIngress};
pub(super) use update_descriptions::{
    UpdateSecurityGroupRuleDescriptionsEgress, UpdateSecurityGroupRuleDescriptionsIngress,
};

use crate::{
    api::{
        ApiError, Targets,
        shared::{found, not_found},
        wire::quoted,
    },
    model::{GroupId, SecurityGroup, Vpc, VpcId},
    store::{Change, Scoped},
};

/// The account's default VPC.
fn default_vpc(view: Scoped<'_>) -> Result<&Vpc, ApiError> {
    view.all::<Vpc>()
        .find(|vpc| vpc.is_default)
        .ok_or_else(|| ApiError::new("VPCIdNotSpecified", "No default VPC for this user"))
}

/// The group that a request names: by its id, or by its name in the default VPC.
fn find<'v>(
    view: Scoped<'v>,
    id: Option<&str>,
    name: Option<&str>,
) -> Result<&'v SecurityGroup, ApiError> {
    match (id, name) {
        (Some(id), name) => {
            let group = found::<SecurityGroup>(view, id)?;
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

/// Resolves the group that a request names, for the authorization.
fn target(to: &mut Targets<'_>, id: Option<&str>, name: Option<&str>) {
    match find(to.view(), id, name) {
        Ok(group) => to.existing(group),
        Err(_) => to.absent::<SecurityGroup>(id.or(name).unwrap_or_default()),
    }
}

/// The group of this name in a VPC.
fn named<'v>(view: Scoped<'v>, vpc: &VpcId, name: &str) -> Result<&'v SecurityGroup, ApiError> {
    view.by(SecurityGroup::BY_NAME, &SecurityGroup::named(vpc, name))
        .next()
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

/// The group with this id, for something that is going to refer to it: the
/// transaction depends on its being there, and not about to be deleted.
pub(super) fn refer_to<'v>(
    view: Scoped<'v>,
    change: &mut Change<'_>,
    id: &GroupId,
) -> Result<&'v SecurityGroup, ApiError> {
    let group = view
        .get::<SecurityGroup>(id)
        .filter(|group| !group.deleting)
        .ok_or_else(|| not_found::<GroupId>(id))?;
    change.expect_unchanged(group);
    Ok(group)
}
