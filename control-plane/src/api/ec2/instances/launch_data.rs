//! The parameters that RunInstances and launch templates have in common.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RequestLaunchTemplateData.html>

use serde::{Deserialize, Serialize};

use super::metadata_options;
use crate::api::shared::{TagSpecification, tag::TagInput};

/// A value that a request has in place of, or beside, what is in a launch template.
pub(in crate::api::ec2) trait Over {
    /// This value over the other.
    fn over(self, under: Self) -> Self;
}

macro_rules! replaces {
    ($($kind:ty),*) => {$(
        impl Over for $kind {
            fn over(self, _: Self) -> Self {
                self
            }
        }
    )*};
}

replaces!(bool, u32, i64, String);

impl<T: Over> Over for Option<T> {
    fn over(self, under: Self) -> Self {
        match (self, under) {
            (Some(this), Some(under)) => Some(this.over(under)),
            (this, under) => this.or(under),
        }
    }
}

impl Over for Vec<String> {
    fn over(self, under: Self) -> Self {
        if self.is_empty() { under } else { self }
    }
}

/// An item of a list that is known by one of its values: those of the request change
/// those of the template that are about the same, and the others stay.
trait Keyed: Over {
    fn is_about_the_same(&self, other: &Self) -> bool;
}

impl<T: Keyed> Over for Vec<T> {
    fn over(mut self, under: Self) -> Self {
        for below in under {
            match self.iter().position(|this| this.is_about_the_same(&below)) {
                Some(at) => {
                    let this = self.remove(at);
                    self.insert(at, this.over(below));
                }
                None => self.push(below),
            }
        }
        self
    }
}

/// A structure whose members each replace those below.
macro_rules! structure {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub struct $name {
            $($(#[$attr])* pub $field: $kind,)*
        }

        impl Over for $name {
            fn over(self, under: Self) -> Self {
                Self { $($field: self.$field.over(under.$field),)* }
            }
        }
    };
}

structure! {
    /// `HibernationOptions`.
    HibernationInput {
        /// Whether it may be.
        configured: Option<bool>,
    }
}

structure! {
    /// A volume of the request.
    BlockDeviceMapping {
        /// The device: the image's root device.
        device_name: Option<String>,
        /// The volume.
        ebs: Option<EbsInput>,
    }
}

impl Keyed for BlockDeviceMapping {
    fn is_about_the_same(&self, other: &Self) -> bool {
        self.device_name == other.device_name
    }
}

structure! {
    /// The volume there.
    EbsInput {
        /// In GiB.
        volume_size: Option<u32>,
        /// `gp2`, `gp3` or `standard`.
        volume_type: Option<String>,
        /// Whether it goes with the instance.
        delete_on_termination: Option<bool>,
    }
}

structure! {
    /// `Placement`.
    PlacementInput {
        /// The zone.
        availability_zone: Option<String>,
    }
}

structure! {
    /// `NetworkInterface`.
    InterfaceInput {
        /// Whether it gets a public address.
        associate_public_ip_address: Option<bool>,
        /// Whether it goes with the instance: it does.
        delete_on_termination: Option<bool>,
        /// In words.
        description: Option<String>,
        /// 0, the primary.
        device_index: Option<u32>,
        /// Its groups.
        #[serde(default, rename = "SecurityGroupId")]
        groups: Vec<String>,
        /// Its subnet.
        subnet_id: Option<String>,
    }
}

impl Keyed for InterfaceInput {
    fn is_about_the_same(&self, other: &Self) -> bool {
        self.device_index == other.device_index
    }
}

impl Over for metadata_options::Input {
    fn over(self, under: Self) -> Self {
        Self {
            http_tokens: self.http_tokens.over(under.http_tokens),
            http_put_response_hop_limit: self
                .http_put_response_hop_limit
                .over(under.http_put_response_hop_limit),
            http_endpoint: self.http_endpoint.over(under.http_endpoint),
            instance_metadata_tags: self
                .instance_metadata_tags
                .over(under.instance_metadata_tags),
        }
    }
}

impl Over for TagInput {
    fn over(self, _: Self) -> Self {
        self
    }
}

impl Keyed for TagInput {
    fn is_about_the_same(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Over for TagSpecification {
    fn over(self, under: Self) -> Self {
        Self {
            resource_type: self.resource_type,
            tags: self.tags.over(under.tags),
        }
    }
}

impl Keyed for TagSpecification {
    fn is_about_the_same(&self, other: &Self) -> bool {
        self.resource_type == other.resource_type
    }
}

/// A request with these parameters, after those of its own.
macro_rules! with_launch_data {
    ($(#[$doc:meta])* $name:ident { $($own:tt)* }) => {
        $crate::api::ec2::instances::launch_data::with_launch_data! {
            @with [$(#[$doc])*] $name { $($own)* }
            /// The image.
            image_id: Option<String>,
            /// The instance type; must be given, the type that EC2 defaults to is not there.
            instance_type: Option<String>,
            /// The key pair.
            key_name: Option<String>,
            /// The security groups by id.
            #[serde(default, rename = "SecurityGroupId")]
            security_group_ids: Vec<String>,
            /// The security groups by name, in the default VPC.
            #[serde(default, rename = "SecurityGroup")]
            security_groups: Vec<String>,
            /// User data, base64.
            user_data: Option<String>,
            /// Tags for what is made.
            #[serde(default, rename = "TagSpecification")]
            tag_specifications: Vec<$crate::api::shared::TagSpecification>,
            /// The root volume.
            #[serde(default, rename = "BlockDeviceMapping")]
            block_device_mappings: Vec<$crate::api::ec2::instances::launch_data::BlockDeviceMapping>,
            /// How the instance may ask for metadata.
            metadata_options: Option<$crate::api::ec2::instances::metadata_options::Input>,
            /// What the guest's own power-off leads to.
            instance_initiated_shutdown_behavior: Option<String>,
            /// Termination protection.
            disable_api_termination: Option<bool>,
            /// Protection from being stopped.
            disable_api_stop: Option<bool>,
            /// Where.
            placement: Option<$crate::api::ec2::instances::launch_data::PlacementInput>,
            /// The primary interface.
            #[serde(default, rename = "NetworkInterface")]
            network_interfaces: Vec<$crate::api::ec2::instances::launch_data::InterfaceInput>,
            /// Whether it may be hibernated.
            hibernation_options: Option<$crate::api::ec2::instances::launch_data::HibernationInput>,
        }
    };
    // The parameters alone.
    (@with [$(#[$doc:meta])*] $name:ident {} $($(#[$attr:meta])* $field:ident: $kind:ty,)*) => {
        $(#[$doc])*
        #[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$attr])* pub $field: $kind,)*
        }
    };
    (@with [$(#[$doc:meta])*] $name:ident { $($own:tt)* }
        $($(#[$attr:meta])* $field:ident: $kind:ty,)*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub struct $name {
            $($own)*
            $($(#[$attr])* pub $field: $kind,)*
        }

        impl $name {
            /// With what is in a launch template where it says nothing itself.
            #[must_use]
            pub(in crate::api::ec2) fn over(
                mut self,
                mut under: $crate::api::ec2::instances::launch_data::LaunchData,
            ) -> Self {
                use $crate::api::ec2::instances::launch_data::Over as _;
                // Two ways to say the same.
                if !self.security_group_ids.is_empty() || !self.security_groups.is_empty() {
                    under.security_group_ids.clear();
                    under.security_groups.clear();
                }
                $(self.$field = self.$field.over(under.$field);)*
                self
            }
        }
    };
}
pub(in crate::api::ec2) use with_launch_data;

with_launch_data! {
    /// What a launch template has: `LaunchTemplateData`.
    LaunchData {}
}

/// The names of those that EC2 knows and Hearth doesn't do, each after `$prefix`, and
/// others.
macro_rules! unsupported_launch_data {
    ($prefix:literal $(, $own:literal)* $(,)?) => {
        &[
            concat!($prefix, "BlockDeviceMapping.Ebs.EbsCardIndex"),
            concat!($prefix, "BlockDeviceMapping.Ebs.Encrypted"),
            concat!($prefix, "BlockDeviceMapping.Ebs.Iops"),
            concat!($prefix, "BlockDeviceMapping.Ebs.KmsKeyId"),
            concat!($prefix, "BlockDeviceMapping.Ebs.SnapshotId"),
            concat!($prefix, "BlockDeviceMapping.Ebs.Throughput"),
            concat!($prefix, "BlockDeviceMapping.Ebs.VolumeInitializationRate"),
            concat!($prefix, "BlockDeviceMapping.NoDevice"),
            concat!($prefix, "BlockDeviceMapping.VirtualName"),
            concat!($prefix, "CapacityReservationSpecification"),
            concat!($prefix, "CpuOptions"),
            concat!($prefix, "CreditSpecification"),
            concat!($prefix, "EbsOptimized"),
            concat!($prefix, "ElasticGpuSpecification"),
            concat!($prefix, "ElasticInferenceAccelerator"),
            concat!($prefix, "EnclaveOptions"),
            concat!($prefix, "IamInstanceProfile"),
            concat!($prefix, "InstanceMarketOptions"),
            concat!($prefix, "KernelId"),
            concat!($prefix, "LicenseSpecification"),
            concat!($prefix, "MaintenanceOptions"),
            concat!($prefix, "MetadataOptions.HttpProtocolIpv6"),
            concat!($prefix, "Monitoring"),
            concat!($prefix, "NetworkInterface.AssociateCarrierIpAddress"),
            concat!($prefix, "NetworkInterface.ConnectionTrackingSpecification"),
            concat!($prefix, "NetworkInterface.EnaQueueCount"),
            concat!($prefix, "NetworkInterface.EnaSrdSpecification"),
            concat!($prefix, "NetworkInterface.InterfaceType"),
            concat!($prefix, "NetworkInterface.Ipv4Prefix"),
            concat!($prefix, "NetworkInterface.Ipv4PrefixCount"),
            concat!($prefix, "NetworkInterface.Ipv6AddressCount"),
            concat!($prefix, "NetworkInterface.Ipv6Addresses"),
            concat!($prefix, "NetworkInterface.Ipv6Prefix"),
            concat!($prefix, "NetworkInterface.Ipv6PrefixCount"),
            concat!($prefix, "NetworkInterface.NetworkCardIndex"),
            concat!($prefix, "NetworkInterface.NetworkInterfaceId"),
            concat!($prefix, "NetworkInterface.PrimaryIpv6"),
            concat!($prefix, "NetworkInterface.PrivateIpAddress"),
            concat!($prefix, "NetworkInterface.PrivateIpAddresses"),
            concat!($prefix, "NetworkInterface.SecondaryPrivateIpAddressCount"),
            concat!($prefix, "NetworkPerformanceOptions"),
            concat!($prefix, "Operator"),
            concat!($prefix, "Placement.Affinity"),
            concat!($prefix, "Placement.AvailabilityZoneId"),
            concat!($prefix, "Placement.GroupId"),
            concat!($prefix, "Placement.GroupName"),
            concat!($prefix, "Placement.HostId"),
            concat!($prefix, "Placement.HostResourceGroupArn"),
            concat!($prefix, "Placement.PartitionNumber"),
            concat!($prefix, "Placement.SpreadDomain"),
            concat!($prefix, "Placement.Tenancy"),
            concat!($prefix, "PrivateDnsNameOptions"),
            concat!($prefix, "SecondaryInterface"),
            $($own,)*
        ]
    };
}
pub(in crate::api::ec2) use unsupported_launch_data;

/// What of them changes nothing, each after `$prefix`, and others.
macro_rules! launch_data_no_ops {
    ($prefix:literal $(, $own:expr)* $(,)?) => {
        &[
            (concat!($prefix, "BlockDeviceMapping.Ebs.Encrypted"), "false"),
            (
                concat!($prefix, "CapacityReservationSpecification.CapacityReservationPreference"),
                "open",
            ),
            (concat!($prefix, "EbsOptimized"), "false"),
            (concat!($prefix, "EnclaveOptions.Enabled"), "false"),
            (concat!($prefix, "IamInstanceProfile"), ""),
            (concat!($prefix, "IamInstanceProfile.Arn"), ""),
            (concat!($prefix, "IamInstanceProfile.Name"), ""),
            (concat!($prefix, "MaintenanceOptions.AutoRecovery"), "default"),
            (concat!($prefix, "MetadataOptions.HttpProtocolIpv6"), "disabled"),
            (concat!($prefix, "Monitoring.Enabled"), "false"),
            (concat!($prefix, "NetworkInterface.InterfaceType"), "interface"),
            (concat!($prefix, "NetworkInterface.Ipv6AddressCount"), "0"),
            (concat!($prefix, "NetworkInterface.NetworkCardIndex"), "0"),
            (concat!($prefix, "NetworkInterface.SecondaryPrivateIpAddressCount"), "0"),
            (concat!($prefix, "Placement"), ""),
            (concat!($prefix, "Placement.GroupName"), ""),
            (concat!($prefix, "Placement.Tenancy"), ""),
            (concat!($prefix, "Placement.Tenancy"), "default"),
            (concat!($prefix, "TagSpecification.Tag"), ""),
            $($own,)*
        ]
    };
}
pub(in crate::api::ec2) use launch_data_no_ops;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::ec2::instances::run_instances::Request;

    fn data(json: Value) -> LaunchData {
        serde_json::from_value(json).unwrap()
    }

    fn request(mut json: Value) -> Request {
        json["MinCount"] = 1.into();
        json["MaxCount"] = 1.into();
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_a_request_says_replaces_what_a_template_says_of_the_same() {
        let template = data(json!({
            "ImageId": "ami-1",
            "InstanceType": "t3.micro",
            "SecurityGroupId": ["sg-1", "sg-2"],
            "BlockDeviceMapping": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 4, "VolumeType": "gp2"}}],
            "TagSpecification": [
                {"ResourceType": "instance", "Tag": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "1"}]},
                {"ResourceType": "volume", "Tag": [{"Key": "c", "Value": "1"}]},
            ],
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        }));
        let asked = request(json!({
            "InstanceType": "t3.nano",
            "SecurityGroup": ["default"],
            "BlockDeviceMapping": [
                {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 8}},
                {"DeviceName": "/dev/sdb"},
            ],
            "TagSpecification": [{"ResourceType": "instance", "Tag": [{"Key": "b", "Value": "2"}]}],
            "MetadataOptions": {"HttpPutResponseHopLimit": 3},
        }));
        let expected = request(json!({
            "ImageId": "ami-1",
            "InstanceType": "t3.nano",
            "SecurityGroup": ["default"],
            "BlockDeviceMapping": [
                {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 8, "VolumeType": "gp2"}},
                {"DeviceName": "/dev/sdb"},
            ],
            "TagSpecification": [
                {"ResourceType": "instance", "Tag": [{"Key": "b", "Value": "2"}, {"Key": "a", "Value": "1"}]},
                {"ResourceType": "volume", "Tag": [{"Key": "c", "Value": "1"}]},
            ],
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 3},
        }));
        assert_eq!(asked.clone().over(template), expected);
        assert_eq!(asked.clone().over(LaunchData::default()), asked);
    }
}
