//! EC2, in folders by resource, one file an action.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/>

mod account;
mod addresses;
mod images;
mod instance_types;
pub mod instances;
mod key_pairs;
mod launch_templates;
pub mod listing;
mod network_interfaces;
pub mod regions;
mod security_groups;
mod tags;
mod volumes;
mod vpcs;

use super::{
    error::Vocabulary,
    registry::{Iam, Registered, Service, action},
    wire::Protocol,
};
use crate::model::condition_key::ec2;

/// The service.
pub(super) fn service() -> Service {
    Service {
        signing_name: "ec2",
        version: "2016-11-15",
        protocol: Protocol::Ec2,
        namespace: "http://ec2.amazonaws.com/doc/2016-11-15/",
        dry_run: true,
        errors: &Vocabulary::EC2,
        iam: Iam {
            name: "ec2",
            tag_action: Some("CreateTags"),
            create_action_key: Some(ec2::CREATE_ACTION),
            region_key: Some(ec2::REGION),
            resource_tag_key: Some(ec2::RESOURCE_TAG),
        },
        botocore: "ec2",
        known: include_str!("operations.txt"),
        actions: actions(),
    }
}

/// The registry: one line an action.
fn actions() -> Vec<Registered> {
    vec![
        action::<addresses::AllocateAddress>(),
        action::<addresses::AssociateAddress>(),
        action::<security_groups::AuthorizeSecurityGroupEgress>(),
        action::<security_groups::AuthorizeSecurityGroupIngress>(),
        action::<key_pairs::CreateKeyPair>(),
        action::<security_groups::CreateSecurityGroup>(),
        action::<tags::CreateTags>(),
        action::<key_pairs::DeleteKeyPair>(),
        action::<security_groups::DeleteSecurityGroup>(),
        action::<tags::DeleteTags>(),
        action::<account::DescribeAccountAttributes>(),
        action::<addresses::DescribeAddresses>(),
        action::<account::DescribeAggregateIdFormat>(),
        action::<regions::DescribeAvailabilityZones>(),
        action::<account::DescribeIdFormat>(),
        action::<account::DescribeIdentityIdFormat>(),
        action::<images::DescribeImages>(),
        action::<instance_types::DescribeInstanceTypeOfferings>(),
        action::<instance_types::DescribeInstanceTypes>(),
        action::<key_pairs::DescribeKeyPairs>(),
        action::<network_interfaces::DescribeNetworkInterfaces>(),
        action::<account::DescribePrincipalIdFormat>(),
        action::<regions::DescribeRegions>(),
        action::<security_groups::DescribeSecurityGroupReferences>(),
        action::<security_groups::DescribeSecurityGroupRules>(),
        action::<security_groups::DescribeSecurityGroups>(),
        action::<security_groups::DescribeStaleSecurityGroups>(),
        action::<vpcs::DescribeSubnets>(),
        action::<tags::DescribeTags>(),
        action::<vpcs::DescribeVpcs>(),
        action::<account::DisableSerialConsoleAccess>(),
        action::<addresses::DisassociateAddress>(),
        action::<account::GetSerialConsoleAccessStatus>(),
        action::<key_pairs::ImportKeyPair>(),
        action::<account::ModifyIdFormat>(),
        action::<account::ModifyIdentityIdFormat>(),
        action::<security_groups::ModifySecurityGroupRules>(),
        action::<addresses::ReleaseAddress>(),
        action::<security_groups::RevokeSecurityGroupEgress>(),
        action::<security_groups::RevokeSecurityGroupIngress>(),
        action::<security_groups::UpdateSecurityGroupRuleDescriptionsEgress>(),
        action::<security_groups::UpdateSecurityGroupRuleDescriptionsIngress>(),
        action::<instances::TerminateInstances>(),
        action::<instances::StopInstances>(),
        action::<instances::SendDiagnosticInterrupt>(),
        action::<instances::StartInstances>(),
        action::<instances::RunInstances>(),
        action::<instances::RebootInstances>(),
        action::<instances::GetConsoleOutput>(),
        action::<instances::GetConsoleScreenshot>(),
        action::<instances::DescribeInstances>(),
        action::<instances::DescribeInstanceStatus>(),
        action::<instances::DescribeInstanceAttribute>(),
        action::<instances::ModifyInstanceAttribute>(),
        action::<instances::ModifyInstanceMetadataOptions>(),
        action::<instances::ResetInstanceAttribute>(),
        action::<launch_templates::CreateLaunchTemplate>(),
        action::<launch_templates::CreateLaunchTemplateVersion>(),
        action::<launch_templates::DeleteLaunchTemplate>(),
        action::<launch_templates::DeleteLaunchTemplateVersions>(),
        action::<launch_templates::DescribeLaunchTemplateVersions>(),
        action::<launch_templates::DescribeLaunchTemplates>(),
        action::<launch_templates::GetLaunchTemplateData>(),
        action::<launch_templates::ModifyLaunchTemplate>(),
        action::<volumes::DeleteVolume>(),
        action::<volumes::DescribeVolumes>(),
    ]
}
