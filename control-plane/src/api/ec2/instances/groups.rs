//! The security groups that a request wants an interface to be in.

use crate::{
    api::{ApiError, shared::all_found},
    model::{GroupId, SecurityGroup, VpcId},
    store::Scoped,
};

/// The most security groups of an interface.
pub(in crate::api::ec2) const MAX: usize = 16;

/// Groups of a VPC, by their ids.
pub(super) fn by_id(
    view: Scoped<'_>,
    vpc: &VpcId,
    ids: &[String],
) -> Result<Vec<GroupId>, ApiError> {
    let groups = all_found::<SecurityGroup>(view, ids)?;
    if let Some(other) = groups.iter().find(|group| group.vpc != *vpc) {
        let message = format!(
            "The security group '{}' does not exist in VPC '{vpc}'",
            other.id
        );
        return Err(ApiError::new("InvalidGroup.NotFound", message));
    }
    Ok(groups.into_iter().map(|group| group.id.clone()).collect())
}

/// Each once, and not too many.
pub(super) fn distinct(mut groups: Vec<GroupId>) -> Result<Vec<GroupId>, ApiError> {
    groups.sort();
    groups.dedup();
    if groups.len() > MAX {
        return Err(ApiError::new(
            "SecurityGroupsPerInterfaceLimitExceeded",
            format!("The maximum number of security groups per interface is {MAX}"),
        ));
    }
    Ok(groups)
}
