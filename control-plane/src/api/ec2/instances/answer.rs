//! An instance as the answers show it.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Instance.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::State;
use crate::{
    api::{ec2::listing::Row, ec2::regions::zone_id, shared::Tag, wire::Time},
    model::{
        Eni, GroupId, Image, Instance, InstanceState, InstanceType, ReservationId, SecurityGroup,
        Volume, VolumeAttachment, dns_names,
    },
    records::elastic_ip,
    store::Scoped,
};

macro_rules! shapes {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_attr:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[allow(missing_docs)] // EC2's own names, and EC2's own page says what they are.
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name { $($(#[$field_attr])* pub $field: $kind,)* }
    )*};
}

shapes! {
    /// One call's instances.
    Reservation {
        reservation_id: String,
        owner_id: String,
        group_set: Vec<Group>,
        instances_set: Vec<InstanceItem>,
    }
    /// An instance.
    InstanceItem {
        instance_id: String,
        image_id: String,
        instance_state: State,
        private_dns_name: String,
        dns_name: String,
        reason: String,
        key_name: Option<String>,
        ami_launch_index: u32,
        instance_type: String,
        launch_time: Time,
        placement: Placement,
        monitoring: Monitoring,
        subnet_id: Option<String>,
        vpc_id: Option<String>,
        private_ip_address: Option<String>,
        ip_address: Option<String>,
        source_dest_check: Option<bool>,
        group_set: Vec<Group>,
        state_reason: Option<Reason>,
        architecture: String,
        root_device_type: String,
        root_device_name: String,
        block_device_mapping: Vec<BlockDevice>,
        virtualization_type: String,
        client_token: String,
        tag_set: Option<Vec<Tag>>,
        hypervisor: String,
        network_interface_set: Vec<Interface>,
        ebs_optimized: bool,
        ena_support: bool,
        cpu_options: CpuOptions,
        metadata_options: Metadata,
        hibernation_options: Hibernation,
        platform_details: String,
    }
    /// Where it is.
    Placement {
        availability_zone: String,
        availability_zone_id: String,
        group_name: String,
        tenancy: String,
    }
    /// Detailed monitoring.
    Monitoring {
        state: String,
    }
    /// A security group.
    Group {
        group_id: String,
        group_name: String,
    }
    /// Why it changed its state.
    Reason {
        code: String,
        message: String,
    }
    /// A volume's place.
    BlockDevice {
        device_name: String,
        ebs: Ebs,
    }
    /// The volume there.
    Ebs {
        volume_id: String,
        status: String,
        attach_time: Time,
        delete_on_termination: bool,
    }
    /// An interface.
    Interface {
        network_interface_id: String,
        subnet_id: String,
        vpc_id: String,
        description: String,
        owner_id: String,
        status: String,
        mac_address: String,
        private_ip_address: String,
        private_dns_name: String,
        source_dest_check: bool,
        group_set: Vec<Group>,
        attachment: Attachment,
        association: Option<Association>,
        private_ip_addresses_set: Vec<Address>,
        interface_type: String,
    }
    /// How it is attached.
    Attachment {
        attachment_id: String,
        device_index: u32,
        status: String,
        attach_time: Time,
        delete_on_termination: bool,
        network_card_index: u32,
    }
    /// Its public address.
    Association {
        public_ip: String,
        public_dns_name: String,
        ip_owner_id: String,
    }
    /// One of its private addresses.
    Address {
        private_ip_address: String,
        private_dns_name: String,
        primary: bool,
        association: Option<Association>,
    }
    /// Its vCPUs.
    CpuOptions {
        core_count: u32,
        threads_per_core: u32,
    }
    /// Whether it may be hibernated.
    Hibernation {
        configured: bool,
    }
    /// How it may ask for metadata.
    Metadata {
        state: String,
        http_tokens: String,
        http_put_response_hop_limit: u8,
        http_endpoint: String,
        #[serde(rename = "httpProtocolIpv6")]
        http_protocol_ipv6: String,
        instance_metadata_tags: String,
    }
}

/// EC2's name for whatever is no Nitro metal; it has no word for KVM.
pub(super) const HYPERVISOR: &str = "xen";
pub(super) const TENANCY: &str = "default";
pub(super) const VIRTUALIZATION: &str = "hvm";

/// The interfaces of an instance, the primary first.
pub(in crate::api::ec2) fn interfaces<'v>(
    row: &Row<'v, Instance>,
) -> impl Iterator<Item = &'v Eni> {
    let (view, instance) = (row.view, row.resource);
    instance.enis.iter().filter_map(move |id| view.get(id))
}

/// Its primary interface; a terminated instance has none.
pub(super) fn primary<'v>(row: &Row<'v, Instance>) -> Option<&'v Eni> {
    interfaces(row).next()
}

/// The volumes that are attached to it.
pub(in crate::api::ec2) fn volumes<'v>(
    row: &Row<'v, Instance>,
) -> impl Iterator<Item = (&'v Volume, &'v VolumeAttachment)> {
    let volumes = row.view.by(Volume::BY_INSTANCE, row.id.as_str());
    volumes.filter_map(|volume| Some((volume, volume.attachment.as_ref()?)))
}

/// How far its volumes' attachments are.
pub(super) fn attachment_status(instance: &Instance) -> &'static str {
    if instance.boots <= 1 && instance.state == InstanceState::Pending {
        "attaching"
    } else {
        "attached"
    }
}

/// The architecture of its image.
pub(super) fn architecture<'v>(row: &Row<'v, Instance>) -> &'v str {
    row.view
        .visible::<Image>(&row.resource.image)
        .map_or("x86_64", |image| &image.manifest.architecture)
}

/// How it may ask for metadata: what is written holds for the next request.
pub(in crate::api::ec2) fn metadata(instance: &Instance) -> Metadata {
    Metadata {
        state: "applied".into(),
        http_tokens: metadata_tokens(instance).into(),
        http_put_response_hop_limit: instance.settings.metadata.hop_limit,
        http_endpoint: metadata_endpoint(instance).into(),
        http_protocol_ipv6: "disabled".into(),
        instance_metadata_tags: enabled(instance.settings.metadata.tags_enabled).into(),
    }
}

pub(super) fn metadata_endpoint(instance: &Instance) -> &'static str {
    enabled(instance.settings.metadata.enabled)
}

pub(super) fn metadata_tokens(instance: &Instance) -> &'static str {
    if instance.settings.metadata.tokens_required {
        "required"
    } else {
        "optional"
    }
}

pub(in crate::api::ec2) fn groups(view: Scoped<'_>, ids: &[GroupId]) -> Vec<Group> {
    ids.iter()
        .map(|id| Group {
            group_id: id.to_string(),
            group_name: view
                .get::<SecurityGroup>(id)
                .map_or_else(String::new, |g| g.name.clone()),
        })
        .collect()
}

fn enabled(yes: bool) -> &'static str {
    if yes { "enabled" } else { "disabled" }
}

fn interface(view: Scoped<'_>, instance: &Instance, eni: &Eni) -> Interface {
    let private_name = dns_names::private_name(eni.region(), eni.private_ip);
    let association = eni.public_ip.map(|ip| Association {
        public_ip: ip.to_string(),
        public_dns_name: dns_names::public_name(eni.region(), ip),
        // An Elastic IP address is the account's, and else the pool's.
        ip_owner_id: match elastic_ip::at(view, eni) {
            Some(elastic) => elastic.scope.account.clone(),
            None => "amazon".into(),
        },
    });
    Interface {
        network_interface_id: eni.id.to_string(),
        subnet_id: eni.subnet.to_string(),
        vpc_id: eni.vpc.to_string(),
        description: eni.description.clone(),
        owner_id: eni.scope.account.clone(),
        status: "in-use".into(),
        mac_address: eni.mac_string(),
        private_ip_address: eni.private_ip.to_string(),
        private_dns_name: private_name.clone(),
        source_dest_check: eni.source_dest_check,
        group_set: groups(view, &eni.groups),
        attachment: Attachment {
            attachment_id: eni
                .attachment
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            device_index: eni.device_index,
            status: "attached".into(),
            attach_time: instance.launched_at.into(),
            delete_on_termination: true,
            network_card_index: 0,
        },
        association: association.clone(),
        private_ip_addresses_set: vec![Address {
            private_ip_address: eni.private_ip.to_string(),
            private_dns_name: private_name,
            primary: true,
            association,
        }],
        interface_type: "interface".into(),
    }
}

fn block_devices(row: &Row<'_, Instance>) -> Vec<BlockDevice> {
    volumes(row)
        .map(|(volume, attachment)| BlockDevice {
            device_name: attachment.device.clone(),
            ebs: Ebs {
                volume_id: volume.id.to_string(),
                status: attachment_status(row).into(),
                attach_time: attachment.attached.into(),
                delete_on_termination: attachment.delete_on_termination,
            },
        })
        .collect()
}

/// The instance as the view has it.
pub fn instance(row: &Row<'_, Instance>) -> InstanceItem {
    let (view, instance) = (row.view, row.resource);
    let primary = primary(row);
    let public = primary.and_then(|e| Some((e, e.public_ip?)));
    let kind = InstanceType::find(&instance.instance_type);
    InstanceItem {
        instance_id: instance.id.to_string(),
        image_id: instance.image.to_string(),
        instance_state: instance.state.into(),
        // Both names go with their addresses; a terminated instance has none.
        private_dns_name: primary
            .map(|e| dns_names::private_name(e.region(), e.private_ip))
            .unwrap_or_default(),
        dns_name: public
            .map(|(e, ip)| dns_names::public_name(e.region(), ip))
            .unwrap_or_default(),
        reason: instance.transition_reason.clone(),
        key_name: instance.key_name.clone(),
        ami_launch_index: instance.launch_index,
        instance_type: instance.instance_type.clone(),
        launch_time: instance.launched_at.into(),
        placement: Placement {
            availability_zone: instance.zone.clone(),
            availability_zone_id: zone_id(&instance.zone),
            group_name: String::new(),
            tenancy: TENANCY.into(),
        },
        monitoring: Monitoring {
            state: "disabled".into(),
        },
        subnet_id: primary.map(|e| e.subnet.to_string()),
        vpc_id: primary.map(|e| e.vpc.to_string()),
        private_ip_address: primary.map(|e| e.private_ip.to_string()),
        ip_address: public.map(|(_, ip)| ip.to_string()),
        source_dest_check: primary.map(|e| e.source_dest_check),
        group_set: primary.map(|e| groups(view, &e.groups)).unwrap_or_default(),
        state_reason: instance.state_reason.as_ref().map(|r| Reason {
            code: r.code.clone(),
            message: r.message.clone(),
        }),
        architecture: architecture(row).to_owned(),
        root_device_type: "ebs".into(),
        root_device_name: instance.root_device_name.clone(),
        block_device_mapping: block_devices(row),
        virtualization_type: VIRTUALIZATION.into(),
        client_token: instance.client_token.clone().unwrap_or_default(),
        tag_set: Tag::set(row.tags()),
        hypervisor: HYPERVISOR.into(),
        network_interface_set: interfaces(row)
            .map(|eni| interface(view, instance, eni))
            .collect(),
        ebs_optimized: false,
        // The interface is virtio, not ENA.
        ena_support: false,
        cpu_options: CpuOptions {
            core_count: kind.map_or(0, |k| u32::from(k.vcpus)),
            threads_per_core: 1,
        },
        metadata_options: metadata(instance),
        hibernation_options: Hibernation {
            configured: instance.settings.may_hibernate,
        },
        platform_details: "Linux/UNIX".into(),
    }
}

/// Instances by the calls that made them, in the order they come.
pub fn reservations(rows: &[Row<'_, Instance>]) -> Vec<Reservation> {
    let mut out: Vec<Reservation> = Vec::new();
    let mut places: BTreeMap<&ReservationId, usize> = BTreeMap::new();
    for row in rows {
        let place = *places.entry(&row.resource.reservation).or_insert_with(|| {
            out.push(Reservation {
                reservation_id: row.reservation.to_string(),
                owner_id: row.scope.account.clone(),
                group_set: Vec::new(),
                instances_set: Vec::new(),
            });
            out.len() - 1
        });
        out[place].instances_set.push(instance(row));
    }
    for reservation in &mut out {
        reservation
            .instances_set
            .sort_by_key(|i| i.ami_launch_index);
    }
    out
}
