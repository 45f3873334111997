//! The security groups that a request wants an interface to be in.

use crate::{
    api::{ApiError, shared::found},
    model::{GroupId, SecurityGroup, VpcId},
    store::Scoped,
};

/// The most security groups of an interface.
const MAX: usize = 16;

/// Groups of a VPC, by their ids.
pub(super) fn by_id(
    view: Scoped<'_>,
    vpc: &VpcId,
    ids: &[String],
) -> Result<Vec<GroupId>, ApiError> {
    ids.iter()
        .map(|text| {
            let group = found::<SecurityGroup>(view, text)?;
            if group.vpc != *vpc {
                return Err(ApiError::new(
                    "InvalidGroup.NotFound",
                    format!(
                        "The security group '{}' does not exist in VPC '{vpc}'",
                        group.id
                    ),
                ));
            }
            Ok(group.id.clone())
        })
        .collect()
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
