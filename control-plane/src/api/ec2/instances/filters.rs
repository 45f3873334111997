//! What the filters of DescribeInstances and DescribeInstanceStatus look at.

use std::collections::BTreeMap;

use super::answer::{self, InstanceItem};
use crate::{api::ec2::shared::Filterable, model::Instance, store::View};

/// An instance as filters see it.
pub struct Candidate<'v> {
    pub(super) instance: &'v Instance,
    item: InstanceItem,
    tags: &'v BTreeMap<String, String>,
}

impl<'v> Candidate<'v> {
    /// The instance as the view has it.
    pub fn new(view: &'v View, region: &str, instance: &'v Instance) -> Self {
        Self {
            instance,
            item: answer::instance(view, region, instance),
            tags: view.tags(&instance.id),
        }
    }
}

impl Filterable for Candidate<'_> {
    const FILTERS: &'static [&'static str] = &[
        "architecture",
        "availability-zone",
        "block-device-mapping.delete-on-termination",
        "block-device-mapping.device-name",
        "block-device-mapping.status",
        "block-device-mapping.volume-id",
        "client-token",
        "dns-name",
        "hypervisor",
        "image-id",
        "instance-id",
        "instance-state-code",
        "instance-state-name",
        "instance-type",
        "instance.group-id",
        "instance.group-name",
        "ip-address",
        "key-name",
        "launch-index",
        "launch-time",
        "metadata-options.http-endpoint",
        "metadata-options.http-tokens",
        "network-interface.addresses.private-ip-address",
        "network-interface.association.public-ip",
        "network-interface.group-id",
        "network-interface.group-name",
        "network-interface.mac-address",
        "network-interface.network-interface-id",
        "network-interface.private-dns-name",
        "network-interface.subnet-id",
        "network-interface.vpc-id",
        "owner-id",
        "placement-group-name",
        "private-dns-name",
        "private-ip-address",
        "reason",
        "reservation-id",
        "root-device-name",
        "root-device-type",
        "source-dest-check",
        "state-reason-code",
        "state-reason-message",
        "subnet-id",
        "tenancy",
        "virtualization-type",
        "vpc-id",
    ];

    fn values(&self, filter: &str) -> Vec<String> {
        let (i, item) = (self.instance, &self.item);
        let one = |s: &str| vec![s.to_owned()];
        let maybe = |s: &Option<String>| s.iter().cloned().collect::<Vec<_>>();
        let nics = &item.network_interface_set;
        let devices = &item.block_device_mapping;
        match filter {
            "architecture" => one(&item.architecture),
            "availability-zone" => one(&i.zone),
            "block-device-mapping.delete-on-termination" => devices
                .iter()
                .map(|d| d.ebs.delete_on_termination.to_string())
                .collect(),
            "block-device-mapping.device-name" => {
                devices.iter().map(|d| d.device_name.clone()).collect()
            }
            "block-device-mapping.status" => devices.iter().map(|d| d.ebs.status.clone()).collect(),
            "block-device-mapping.volume-id" => {
                devices.iter().map(|d| d.ebs.volume_id.clone()).collect()
            }
            "client-token" => maybe(&i.client_token),
            "dns-name" => one(&item.dns_name),
            "hypervisor" => one(&item.hypervisor),
            "image-id" => one(&item.image_id),
            "instance-id" => one(&item.instance_id),
            "instance-state-code" => one(&item.instance_state.code.to_string()),
            "instance-state-name" => one(&item.instance_state.name),
            "instance-type" => one(&i.instance_type),
            "instance.group-id" => item.group_set.iter().map(|g| g.group_id.clone()).collect(),
            "instance.group-name" => item
                .group_set
                .iter()
                .map(|g| g.group_name.clone())
                .collect(),
            "ip-address" => maybe(&item.ip_address),
            "key-name" => maybe(&i.key_name),
            "launch-index" => one(&i.launch_index.to_string()),
            "launch-time" => one(&item.launch_time.to_string()),
            "metadata-options.http-endpoint" => one(&item.metadata_options.http_endpoint),
            "metadata-options.http-tokens" => one(&item.metadata_options.http_tokens),
            "network-interface.addresses.private-ip-address" => {
                nics.iter().map(|n| n.private_ip_address.clone()).collect()
            }
            "network-interface.association.public-ip" => nics
                .iter()
                .filter_map(|n| Some(n.association.as_ref()?.public_ip.clone()))
                .collect(),
            "network-interface.group-id" => nics
                .iter()
                .flat_map(|n| n.group_set.iter().map(|g| g.group_id.clone()))
                .collect(),
            "network-interface.group-name" => nics
                .iter()
                .flat_map(|n| n.group_set.iter().map(|g| g.group_name.clone()))
                .collect(),
            "network-interface.mac-address" => nics.iter().map(|n| n.mac_address.clone()).collect(),
            "network-interface.network-interface-id" => nics
                .iter()
                .map(|n| n.network_interface_id.clone())
                .collect(),
            "network-interface.private-dns-name" => {
                nics.iter().map(|n| n.private_dns_name.clone()).collect()
            }
            "network-interface.subnet-id" => nics.iter().map(|n| n.subnet_id.clone()).collect(),
            "network-interface.vpc-id" => nics.iter().map(|n| n.vpc_id.clone()).collect(),
            "owner-id" => one(&i.owner),
            "placement-group-name" => one(&item.placement.group_name),
            "private-dns-name" => one(&item.private_dns_name),
            "private-ip-address" => maybe(&item.private_ip_address),
            "reason" => one(&item.reason),
            "reservation-id" => one(i.reservation.as_str()),
            "root-device-name" => one(&item.root_device_name),
            "root-device-type" => one(&item.root_device_type),
            "source-dest-check" => item
                .source_dest_check
                .iter()
                .map(ToString::to_string)
                .collect(),
            "state-reason-code" => item.state_reason.iter().map(|r| r.code.clone()).collect(),
            "state-reason-message" => item
                .state_reason
                .iter()
                .map(|r| r.message.clone())
                .collect(),
            "subnet-id" => maybe(&item.subnet_id),
            "tenancy" => one(&item.placement.tenancy),
            "virtualization-type" => one(&item.virtualization_type),
            "vpc-id" => maybe(&item.vpc_id),
            _ => Vec::new(),
        }
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(self.tags)
    }
}
