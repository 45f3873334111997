//! `DescribeSubnets`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSubnets.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        ec2::listing::{Filtered, Row, Table, describe},
        ec2::regions::zone_id,
        shared::Tag,
    },
    model::{Described as _, Subnet},
    records::launch::free_in,
};

describe! {
    DescribeSubnets {
        ids: "SubnetId",
        set: subnet_set of Item,
        pages: 5..=1000,
        page: |asked, _| asked.show(Item::new),
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    subnet_id: String,
    subnet_arn: String,
    owner_id: String,
    state: String,
    vpc_id: String,
    cidr_block: String,
    available_ip_address_count: usize,
    availability_zone: String,
    availability_zone_id: String,
    default_for_az: bool,
    map_public_ip_on_launch: bool,
    assign_ipv6_address_on_creation: bool,
    ipv6_native: bool,
    tag_set: Option<Vec<Tag>>,
}

fn available(row: &Row<'_, Subnet>) -> usize {
    free_in(row.view, row.resource)
}

impl Filtered for Subnet {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on_each(["availability-zone", "availabilityZone"], |s, out| {
                out.add(&s.zone);
            })
            .on_each(["availability-zone-id", "availabilityZoneId"], |s, out| {
                out.add(zone_id(&s.zone));
            })
            .on("available-ip-address-count", |s, out| out.add(available(s)))
            .on_each(["cidr", "cidr-block", "cidrBlock"], |s, out| {
                out.add(s.cidr);
            })
            .on_each(["default-for-az", "defaultForAz"], |s, out| {
                out.add(s.is_default);
            })
            .on("ipv6-native", |_, out| out.add(false))
            .on("map-public-ip-on-launch", |s, out| out.add(s.map_public_ip))
            .on("owner-id", |s, out| out.add(&s.scope.account))
            .on("state", |_, out| out.add("available"))
            .on("subnet-arn", |s, out| out.add(s.arn().to_string()))
            .on("subnet-id", |s, out| out.add(&s.id))
            .on("vpc-id", |s, out| out.add(&s.vpc))
    }
}

impl Item {
    fn new(row: &Row<'_, Subnet>) -> Self {
        Self {
            subnet_id: row.id.to_string(),
            owner_id: row.scope.account.clone(),
            state: "available".into(),
            vpc_id: row.vpc.to_string(),
            cidr_block: row.cidr.to_string(),
            available_ip_address_count: available(row),
            availability_zone: row.zone.clone(),
            availability_zone_id: zone_id(&row.zone),
            default_for_az: row.is_default,
            map_public_ip_on_launch: row.map_public_ip,
            assign_ipv6_address_on_creation: false,
            ipv6_native: false,
            tag_set: Tag::set(row.tags()),
            subnet_arn: row.arn().to_string(),
        }
    }
}
