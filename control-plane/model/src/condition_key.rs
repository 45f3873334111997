//! The condition keys of policies, each declared once: what a resource says of itself
//! and what is asked about one that is being made can't differ in a letter.
//!
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html#amazonec2-policy-keys>

use std::fmt;

/// The name of a condition key, as `ec2:InstanceType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConditionKey(&'static str);

impl ConditionKey {
    /// The key of one part, as `ec2:ResourceTag/team`.
    pub fn of(self, part: &str) -> String {
        format!("{self}/{part}")
    }

    /// One of a service that isn't there.
    #[cfg(any(test, feature = "samples"))]
    pub const fn sample(name: &'static str) -> Self {
        Self(name)
    }
}

impl fmt::Display for ConditionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl From<ConditionKey> for String {
    fn from(key: ConditionKey) -> Self {
        key.0.to_owned()
    }
}

macro_rules! condition_keys {
    ($(#[$doc:meta])* $service:ident { $($key:ident = $name:literal,)* }) => {
        $(#[$doc])*
        pub mod $service {
            use super::ConditionKey;

            $(
                #[doc = concat!("`", stringify!($service), ":", $name, "`.")]
                pub const $key: ConditionKey =
                    ConditionKey(concat!(stringify!($service), ":", $name));
            )*

            /// All of them.
            pub const ALL: &[ConditionKey] = &[$($key),*];
        }
    };
}

condition_keys! {
    /// Those of every service.
    aws {
        REQUESTED_REGION = "RequestedRegion",
        REQUEST_TAG = "RequestTag",
        RESOURCE_TAG = "ResourceTag",
        TAG_KEYS = "TagKeys",
    }
}

condition_keys! {
    /// EC2's.
    ec2 {
        ALLOCATION_ID = "AllocationId",
        ASSOCIATE_PUBLIC_IP_ADDRESS = "AssociatePublicIpAddress",
        ATTRIBUTE = "Attribute",
        AVAILABILITY_ZONE = "AvailabilityZone",
        AVAILABILITY_ZONE_ID = "AvailabilityZoneId",
        CREATE_ACTION = "CreateAction",
        DOMAIN = "Domain",
        EBS_OPTIMIZED = "EbsOptimized",
        ENCRYPTED = "Encrypted",
        IMAGE_ID = "ImageID",
        IMAGE_TYPE = "ImageType",
        INSTANCE_ID = "InstanceID",
        INSTANCE_MARKET_TYPE = "InstanceMarketType",
        INSTANCE_METADATA_TAGS = "InstanceMetadataTags",
        INSTANCE_TYPE = "InstanceType",
        KEY_PAIR_NAME = "KeyPairName",
        KEY_PAIR_TYPE = "KeyPairType",
        METADATA_HTTP_ENDPOINT = "MetadataHttpEndpoint",
        METADATA_HTTP_PUT_RESPONSE_HOP_LIMIT = "MetadataHttpPutResponseHopLimit",
        METADATA_HTTP_TOKENS = "MetadataHttpTokens",
        NETWORK_INTERFACE_ID = "NetworkInterfaceID",
        OWNER = "Owner",
        PUBLIC = "Public",
        PUBLIC_IP_ADDRESS = "PublicIpAddress",
        REGION = "Region",
        RESOURCE_TAG = "ResourceTag",
        ROOT_DEVICE_TYPE = "RootDeviceType",
        SECURITY_GROUP_ID = "SecurityGroupID",
        SUBNET = "Subnet",
        SUBNET_ID = "SubnetID",
        TENANCY = "Tenancy",
        VOLUME_ID = "VolumeID",
        VOLUME_SIZE = "VolumeSize",
        VOLUME_TYPE = "VolumeType",
        VPC = "Vpc",
        VPC_ID = "VpcID",
    }
}
