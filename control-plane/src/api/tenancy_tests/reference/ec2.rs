//! AWS's tables of EC2.
//!
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html>

use super::Table;
use crate::model::condition_key;

pub(super) const TABLE: Table = Table {
    service: "ec2",
    types: TYPES,
    no_type: NO_TYPE,
    tagging: TAGGING,
    keys: KEYS,
    made: MADE,
    common: "Attribute CreateAction Region ResourceTag",
    declared: condition_key::ec2::ALL,
    nobodys: &["image"],
    more: MORE,
};

const TYPES: &[(&str, &str)] = &[
    ("AllocateAddress", "elastic-ip"),
    (
        "AssociateAddress",
        "elastic-ip? instance? network-interface?",
    ),
    (
        "AuthorizeSecurityGroupEgress",
        "security-group security-group-rule?",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        "security-group security-group-rule?",
    ),
    ("CreateKeyPair", "key-pair"),
    ("CreateLaunchTemplate", "launch-template"),
    ("CreateLaunchTemplateVersion", "launch-template"),
    ("CreateSecurityGroup", "security-group vpc?"),
    ("DeleteKeyPair", "key-pair?"),
    ("DeleteLaunchTemplate", "launch-template"),
    ("DeleteLaunchTemplateVersions", "launch-template"),
    ("DeleteSecurityGroup", "security-group"),
    ("DeleteVolume", "volume"),
    ("DescribeInstanceAttribute", "instance"),
    ("DisassociateAddress", "elastic-ip?"),
    ("GetConsoleOutput", "instance"),
    ("GetConsoleScreenshot", "instance"),
    ("GetLaunchTemplateData", "instance"),
    ("ImportKeyPair", "key-pair"),
    (
        "ModifyInstanceAttribute",
        "instance security-group? volume?",
    ),
    ("ModifyInstanceMetadataOptions", "instance"),
    ("ModifyLaunchTemplate", "launch-template"),
    (
        "ModifySecurityGroupRules",
        "security-group security-group-rule",
    ),
    ("RebootInstances", "instance"),
    ("ReleaseAddress", "elastic-ip?"),
    ("ResetInstanceAttribute", "instance"),
    ("RevokeSecurityGroupEgress", "security-group"),
    ("RevokeSecurityGroupIngress", "security-group"),
    (
        "RunInstances",
        "image instance network-interface security-group subnet key-pair? launch-template? \
         volume?",
    ),
    ("SendDiagnosticInterrupt", "instance"),
    ("StartInstances", "instance"),
    ("StopInstances", "instance"),
    ("TerminateInstances", "instance"),
    (
        "UpdateSecurityGroupRuleDescriptionsEgress",
        "security-group",
    ),
    (
        "UpdateSecurityGroupRuleDescriptionsIngress",
        "security-group",
    ),
];

const NO_TYPE: &[&str] = &[
    "DescribeAccountAttributes",
    "DescribeAddresses",
    "DescribeAggregateIdFormat",
    "DescribeAvailabilityZones",
    "DescribeIdFormat",
    "DescribeIdentityIdFormat",
    "DescribeImages",
    "DescribeInstanceStatus",
    "DescribeInstanceTypeOfferings",
    "DescribeInstanceTypes",
    "DescribeInstances",
    "DescribeKeyPairs",
    "DescribeNetworkInterfaces",
    "DescribePrincipalIdFormat",
    "DescribeLaunchTemplateVersions",
    "DescribeLaunchTemplates",
    "DescribeRegions",
    "DescribeSecurityGroupReferences",
    "DescribeSecurityGroupRules",
    "DescribeSecurityGroups",
    "DescribeStaleSecurityGroups",
    "DescribeSubnets",
    "DescribeTags",
    "DescribeVolumes",
    "DescribeVpcs",
    "DisableSerialConsoleAccess",
    "GetSerialConsoleAccessStatus",
    "ModifyIdFormat",
    "ModifyIdentityIdFormat",
];

/// What the tables have more is of what isn't here: placement groups,
/// profiles, snapshots, provisioned throughput, AMD SEV, managed resources.
const KEYS: &[(&str, &str)] = &[
    ("elastic-ip", "AllocationId Domain PublicIpAddress"),
    ("image", "ImageID ImageType Owner Public RootDeviceType"),
    (
        "instance",
        "AvailabilityZone AvailabilityZoneId EbsOptimized InstanceID InstanceMarketType \
         InstanceMetadataTags InstanceType MetadataHttpEndpoint \
         MetadataHttpPutResponseHopLimit MetadataHttpTokens RootDeviceType Tenancy",
    ),
    ("key-pair", "KeyPairName KeyPairType"),
    ("launch-template", ""),
    // Its zone, too, which its record doesn't have.
    ("network-interface", "NetworkInterfaceID Subnet Vpc"),
    ("security-group", "SecurityGroupID Vpc"),
    ("security-group-rule", ""),
    ("subnet", "AvailabilityZone AvailabilityZoneId SubnetID Vpc"),
    (
        "volume",
        "AvailabilityZone AvailabilityZoneId Encrypted VolumeID VolumeSize VolumeType",
    ),
    ("vpc", "Tenancy VpcID"),
];

const MADE: &[(&str, &str, &str)] = &[
    ("AllocateAddress", "elastic-ip", ""),
    ("AuthorizeSecurityGroupEgress", "security-group-rule", ""),
    ("AuthorizeSecurityGroupIngress", "security-group-rule", ""),
    ("CreateKeyPair", "key-pair", "KeyPairType"),
    ("CreateSecurityGroup", "security-group", ""),
    ("CreateLaunchTemplate", "launch-template", ""),
    ("ImportKeyPair", "key-pair", ""),
    (
        "RunInstances",
        "instance",
        "AvailabilityZone AvailabilityZoneId EbsOptimized InstanceMarketType \
         InstanceMetadataTags InstanceType MetadataHttpEndpoint \
         MetadataHttpPutResponseHopLimit MetadataHttpTokens RootDeviceType Tenancy",
    ),
    (
        "RunInstances",
        "network-interface",
        "AssociatePublicIpAddress AvailabilityZone Subnet Vpc",
    ),
    (
        "RunInstances",
        "volume",
        "AvailabilityZone AvailabilityZoneId Encrypted VolumeSize VolumeType",
    ),
];

const TAGGING: &[&str] = &["CreateTags", "DeleteTags"];

const MORE: &[(&str, &[(&str, &str)])] = &[(
    "ModifyInstanceAttribute",
    &[
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
    ],
)];
