//! `DescribeNetworkInterfaces`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeNetworkInterfaces.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        ec2::{
            instances::answer::{Group, groups},
            listing::{Filtered, Row, Table, describe},
            regions::zone_id,
        },
        shared::Tag,
        wire::Time,
    },
    model::{ElasticIp, Eni, Instance, SecurityGroup, Subnet, dns_names},
    records::elastic_ip,
};

describe! {
    DescribeNetworkInterfaces {
        ids: "NetworkInterfaceId",
        set: network_interface_set of Item,
        unsupported: ["IncludeManagedResources"],
        pages: 5..=1000,
        page: |asked, _| {
            asked.ids_or_pages("networkInterfaceSet")?;
            asked.show(Item::new)
        },
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    network_interface_id: String,
    subnet_id: String,
    vpc_id: String,
    availability_zone: String,
    availability_zone_id: String,
    description: String,
    owner_id: String,
    requester_managed: bool,
    status: String,
    mac_address: String,
    private_ip_address: String,
    private_dns_name: String,
    source_dest_check: bool,
    group_set: Vec<Group>,
    attachment: Option<Attachment>,
    association: Option<Association>,
    private_ip_addresses_set: Vec<Address>,
    interface_type: String,
    tag_set: Vec<Tag>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    attachment_id: String,
    instance_id: String,
    instance_owner_id: String,
    device_index: u32,
    network_card_index: u32,
    status: String,
    attach_time: Time,
    delete_on_termination: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Association {
    public_ip: String,
    public_dns_name: String,
    ip_owner_id: String,
    allocation_id: Option<String>,
    association_id: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    private_ip_address: String,
    private_dns_name: String,
    primary: bool,
    association: Option<Association>,
}

/// The instance that it is attached to: until that is terminated, which it doesn't live to
/// see.
fn instance<'v>(row: &Row<'v, Eni>) -> Option<&'v Instance> {
    row.view.get(row.resource.instance.as_ref()?)
}

fn status(row: &Row<'_, Eni>) -> &'static str {
    match instance(row) {
        Some(_) => "in-use",
        None => "available",
    }
}

fn zone<'v>(row: &Row<'v, Eni>) -> &'v str {
    let subnet = row.view.get::<Subnet>(&row.resource.subnet);
    subnet.map_or("", |subnet| &subnet.zone)
}

fn private_name(eni: &Eni) -> String {
    dns_names::private_name(eni.region(), eni.private_ip)
}

fn elastic<'v>(row: &Row<'v, Eni>) -> Option<&'v ElasticIp> {
    elastic_ip::at(row.view, row.resource)
}

/// Whose its public address is: an Elastic IP address is the account's.
fn ip_owner(row: &Row<'_, Eni>) -> String {
    elastic(row).map_or_else(|| "amazon".to_owned(), |e| e.scope.account.clone())
}

impl Item {
    fn new(row: &Row<'_, Eni>) -> Self {
        let eni = row.resource;
        let attachment = instance(row).map(|instance| Attachment {
            attachment_id: eni
                .attachment
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            instance_id: instance.id.to_string(),
            instance_owner_id: instance.scope.account.clone(),
            device_index: eni.device_index,
            network_card_index: 0,
            status: "attached".into(),
            attach_time: instance.launched_at.into(),
            delete_on_termination: true,
        });
        let elastic = elastic(row);
        let association = eni.public_ip.map(|ip| Association {
            public_ip: ip.to_string(),
            public_dns_name: dns_names::public_name(eni.region(), ip),
            ip_owner_id: ip_owner(row),
            allocation_id: elastic.map(|e| e.id.to_string()),
            association_id: elastic.and_then(|e| Some(e.association.as_ref()?.id.to_string())),
        });
        let zone = zone(row);
        Self {
            network_interface_id: eni.id.to_string(),
            subnet_id: eni.subnet.to_string(),
            vpc_id: eni.vpc.to_string(),
            availability_zone: zone.to_owned(),
            availability_zone_id: zone_id(zone),
            description: eni.description.clone(),
            owner_id: eni.scope.account.clone(),
            requester_managed: false,
            status: status(row).into(),
            mac_address: eni.mac_string(),
            private_ip_address: eni.private_ip.to_string(),
            private_dns_name: private_name(eni),
            source_dest_check: eni.source_dest_check,
            group_set: groups(row.view, &eni.groups),
            attachment,
            association: association.clone(),
            private_ip_addresses_set: vec![Address {
                private_ip_address: eni.private_ip.to_string(),
                private_dns_name: private_name(eni),
                primary: true,
                association,
            }],
            interface_type: "interface".into(),
            tag_set: Tag::set(row.tags()).unwrap_or_default(),
        }
    }
}

impl Filtered for Eni {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on("addresses.association.owner-id", |e, out| {
                out.extend(e.public_ip.map(|_| ip_owner(e)));
            })
            .on("addresses.association.public-ip", |e, out| {
                out.extend(e.public_ip)
            })
            .on("addresses.primary", |_, out| out.add(true))
            .on("addresses.private-ip-address", |e, out| {
                out.add(e.private_ip)
            })
            .on("association.allocation-id", |e, out| {
                out.extend(elastic(e).map(|elastic| &elastic.id));
            })
            .on("association.association-id", |e, out| {
                let association = elastic(e).and_then(|elastic| elastic.association.as_ref());
                out.extend(association.map(|association| &association.id));
            })
            .on("association.ip-owner-id", |e, out| {
                out.extend(e.public_ip.map(|_| ip_owner(e)));
            })
            .on("association.public-dns-name", |e, out| {
                out.extend(e.public_ip.map(|ip| dns_names::public_name(e.region(), ip)));
            })
            .on("association.public-ip", |e, out| out.extend(e.public_ip))
            .on("attachment.attach-time", |e, out| {
                out.extend(instance(e).map(|instance| Time(instance.launched_at)));
            })
            .on("attachment.attachment-id", |e, out| {
                out.extend(instance(e).and(e.attachment.as_ref()));
            })
            .on("attachment.delete-on-termination", |e, out| {
                out.extend(instance(e).map(|_| true));
            })
            .on("attachment.device-index", |e, out| {
                out.extend(instance(e).map(|_| e.device_index));
            })
            .on("attachment.instance-id", |e, out| {
                out.extend(instance(e).map(|instance| &instance.id));
            })
            .on("attachment.instance-owner-id", |e, out| {
                out.extend(instance(e).map(|instance| &instance.scope.account));
            })
            .on("attachment.status", |e, out| {
                out.extend(instance(e).map(|_| "attached"));
            })
            .on("availability-zone", |e, out| out.add(zone(e)))
            .on("availability-zone-id", |e, out| out.add(zone_id(zone(e))))
            .on("description", |e, out| out.add(&e.description))
            .on("group-id", |e, out| out.extend(&e.groups))
            .on("group-name", |e, out| {
                let groups = e
                    .groups
                    .iter()
                    .filter_map(|id| e.view.get::<SecurityGroup>(id));
                out.extend(groups.map(|group| &group.name));
            })
            .on("interface-type", |_, out| out.add("interface"))
            .on("mac-address", |e, out| out.add(e.mac_string()))
            .on("network-interface-id", |e, out| out.add(&e.id))
            .on("owner-id", |e, out| out.add(&e.scope.account))
            .on("private-dns-name", |e, out| out.add(private_name(e)))
            .on("private-ip-address", |e, out| out.add(e.private_ip))
            .on("requester-managed", |_, out| out.add(false))
            .on("source-dest-check", |e, out| out.add(e.source_dest_check))
            .on("status", |e, out| out.add(status(e)))
            .on("subnet-id", |e, out| out.add(&e.subnet))
            .on("vpc-id", |e, out| out.add(&e.vpc))
    }
}
