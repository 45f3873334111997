//! Identifiers in requests: EC2 has its own pair of error codes for each kind.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>

use std::str::FromStr;

use crate::{
    api::{ApiError, wire::quoted},
    model::{
        EniId, GroupId, ImageId, InstanceId, KeyPairId, Resource, RuleId, SnapshotId, SubnetId,
        VolumeId, VpcId,
    },
    store::View,
};

/// A kind of identifier with EC2's errors for it.
pub trait ApiId: FromStr {
    /// The code for what is no such identifier.
    const MALFORMED: &'static str;
    /// The code for one that names nothing.
    const NOT_FOUND: &'static str;
    /// What EC2 calls it in the message.
    const NOUN: &'static str;
}

macro_rules! api_ids {
    ($($id:ty: $malformed:literal $not_found:literal $noun:literal;)*) => {$(
        impl ApiId for $id {
            const MALFORMED: &'static str = $malformed;
            const NOT_FOUND: &'static str = $not_found;
            const NOUN: &'static str = $noun;
        }
    )*};
}

api_ids! {
    EniId: "InvalidNetworkInterfaceId.Malformed" "InvalidNetworkInterfaceID.NotFound" "networkInterface ID";
    GroupId: "InvalidGroupId.Malformed" "InvalidGroup.NotFound" "security group";
    ImageId: "InvalidAMIID.Malformed" "InvalidAMIID.NotFound" "image id";
    InstanceId: "InvalidInstanceID.Malformed" "InvalidInstanceID.NotFound" "instance ID";
    KeyPairId: "InvalidParameterValue" "InvalidKeyPair.NotFound" "key pair ID";
    RuleId: "InvalidSecurityGroupRuleId.Malformed" "InvalidSecurityGroupRuleId.NotFound" "security group rule ID";
    SnapshotId: "InvalidSnapshotID.Malformed" "InvalidSnapshot.NotFound" "snapshot";
    SubnetId: "InvalidSubnetID.Malformed" "InvalidSubnetID.NotFound" "subnet ID";
    VolumeId: "InvalidVolumeID.Malformed" "InvalidVolume.NotFound" "volume";
    VpcId: "InvalidVpcID.Malformed" "InvalidVpcID.NotFound" "vpc ID";
}

/// Reads an identifier.
///
/// # Errors
/// The kind's `Malformed` code.
pub fn parse_id<I: ApiId>(text: &str) -> Result<I, ApiError> {
    text.parse().map_err(|_| {
        let text = quoted(text);
        ApiError::new(I::MALFORMED, format!("Invalid id: \"{text}\""))
    })
}

/// The error for an identifier that names nothing.
pub fn not_found<I: ApiId>(id: impl AsRef<str>) -> ApiError {
    let id = quoted(id.as_ref());
    ApiError::new(
        I::NOT_FOUND,
        format!("The {} '{id}' does not exist", I::NOUN),
    )
}

/// The resource that an identifier of a request names.
///
/// # Errors
/// The kind's `Malformed` or `NotFound`.
pub fn found<'v, I: ApiId + AsRef<str>, T: Resource>(
    view: &'v View,
    id: &str,
) -> Result<&'v T, ApiError> {
    let id = parse_id::<I>(id)?;
    view.get::<T>(&id).ok_or_else(|| not_found::<I>(&id))
}
