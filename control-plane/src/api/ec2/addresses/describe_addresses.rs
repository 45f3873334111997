//! `DescribeAddresses`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeAddresses.html>

use serde::{Deserialize, Serialize};

use super::{POOL, by_address};
use crate::{
    api::{
        ApiError,
        ec2::listing::{Filtered, Row, Table, describe},
        shared::Tag,
        wire::quoted,
    },
    model::{ElasticIp, Eni},
    records::elastic_ip,
};

describe! {
    DescribeAddresses {
        ids: "AllocationId",
        set: addresses_set of Item,
        more: {
            #[serde(default, rename = "PublicIp")]
            addresses: Vec<String>,
        },
        pages: none,
        page: |asked, more| {
            let addresses = &more.addresses;
            let unknown = addresses.iter().find(|a| by_address(asked.view, a).is_none());
            if let Some(address) = unknown {
                let message = format!("Address '{}' not found.", quoted(address));
                return Err(ApiError::new("InvalidAddress.NotFound", message));
            }
            let named = |elastic: &ElasticIp| {
                addresses.is_empty() || addresses.contains(&elastic.address.to_string())
            };
            let (rows, next_token) = asked.rows(named)?;
            Ok((rows.iter().map(Item::new).collect(), next_token))
        },
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    allocation_id: String,
    public_ip: String,
    domain: String,
    public_ipv4_pool: String,
    network_border_group: String,
    association_id: Option<String>,
    instance_id: Option<String>,
    network_interface_id: Option<String>,
    network_interface_owner_id: Option<String>,
    private_ip_address: Option<String>,
    tag_set: Option<Vec<Tag>>,
}

/// The interface that has it.
fn interface<'v>(row: &Row<'v, ElasticIp>) -> Option<&'v Eni> {
    elastic_ip::interface(row.view, row.resource)
}

impl Item {
    fn new(row: &Row<'_, ElasticIp>) -> Self {
        let (elastic, eni) = (row.resource, interface(row));
        let association = elastic.association.as_ref();
        Self {
            allocation_id: elastic.id.to_string(),
            public_ip: elastic.address.to_string(),
            domain: "vpc".into(),
            public_ipv4_pool: POOL.into(),
            network_border_group: elastic.scope.region.clone(),
            association_id: association.map(|a| a.id.to_string()),
            instance_id: eni.and_then(|eni| eni.instance.as_ref().map(ToString::to_string)),
            network_interface_id: eni.map(|eni| eni.id.to_string()),
            network_interface_owner_id: eni.map(|eni| eni.scope.account.clone()),
            private_ip_address: eni.map(|eni| eni.private_ip.to_string()),
            tag_set: Tag::set(row.tags()),
        }
    }
}

impl Filtered for ElasticIp {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on("allocation-id", |e, out| out.add(&e.id))
            .on("association-id", |e, out| {
                out.extend(e.association.iter().map(|a| &a.id));
            })
            .on("domain", |_, out| out.add("vpc"))
            .on("instance-id", |e, out| {
                out.extend(interface(e).and_then(|eni| eni.instance.as_ref()));
            })
            .on("network-border-group", |e, out| out.add(&e.scope.region))
            .on("network-interface-id", |e, out| {
                out.extend(interface(e).map(|eni| &eni.id));
            })
            .on("network-interface-owner-id", |e, out| {
                out.extend(interface(e).map(|eni| &eni.scope.account));
            })
            .on("private-ip-address", |e, out| {
                out.extend(interface(e).map(|eni| eni.private_ip));
            })
            .on("public-ip", |e, out| out.add(e.address))
    }
}
