//! `DescribeSecurityGroups`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSecurityGroups.html>

use serde::{Deserialize, Serialize};

use super::{
    default_vpc, named,
    permission::{Permission, collect, ports, protocol_name},
};
use crate::{
    api::{
        ec2::listing::{Filtered, Row, Table, Values, describe},
        shared::Tag,
    },
    model::{Described as _, Direction, GroupId, Peer, Rule, SecurityGroup},
};

describe! {
    DescribeSecurityGroups {
        ids: "GroupId",
        set: security_group_info of Item,
        more: {
            #[serde(default, rename = "GroupName")]
            names: Vec<String>,
        },
        pages: 5..=1000,
        page: |mut asked, more| {
            for name in &more.names {
                let vpc = default_vpc(asked.view)?;
                let group = named(asked.view, &vpc.id, name)?;
                asked.ids.push(group.id.to_string());
            }
            asked.show(Item::new)
        },
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    owner_id: String,
    group_id: String,
    group_name: String,
    group_description: String,
    vpc_id: String,
    security_group_arn: String,
    ip_permissions: Vec<Permission>,
    ip_permissions_egress: Vec<Permission>,
    tag_set: Option<Vec<Tag>>,
}

impl Filtered for SecurityGroup {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        use Direction::{Egress, Ingress};
        Table::<Row<'v, Self>>::new()
            .on("description", |g, out| out.add(&g.description))
            .on("egress.ip-permission.cidr", |g, out| cidr(g, Egress, out))
            .on("egress.ip-permission.from-port", |g, out| {
                from_port(g, Egress, out);
            })
            .on("egress.ip-permission.group-id", |g, out| {
                group_id(g, Egress, out);
            })
            .on("egress.ip-permission.group-name", |g, out| {
                group_name(g, Egress, out);
            })
            .on("egress.ip-permission.ipv6-cidr", |g, out| {
                ipv6_cidr(g, Egress, out);
            })
            .on("egress.ip-permission.protocol", |g, out| {
                protocol(g, Egress, out);
            })
            .on("egress.ip-permission.to-port", |g, out| {
                to_port(g, Egress, out);
            })
            .on("egress.ip-permission.user-id", |g, out| {
                user_id(g, Egress, out);
            })
            .on("group-id", |g, out| out.add(&g.id))
            .on("group-name", |g, out| out.add(&g.name))
            .on("ip-permission.cidr", |g, out| cidr(g, Ingress, out))
            .on("ip-permission.from-port", |g, out| {
                from_port(g, Ingress, out);
            })
            .on("ip-permission.group-id", |g, out| group_id(g, Ingress, out))
            .on("ip-permission.group-name", |g, out| {
                group_name(g, Ingress, out);
            })
            .on("ip-permission.ipv6-cidr", |g, out| {
                ipv6_cidr(g, Ingress, out);
            })
            .on("ip-permission.protocol", |g, out| protocol(g, Ingress, out))
            .on("ip-permission.to-port", |g, out| to_port(g, Ingress, out))
            .on("ip-permission.user-id", |g, out| user_id(g, Ingress, out))
            .on("owner-id", |g, out| out.add(&g.scope.account))
            .on("vpc-id", |g, out| out.add(&g.vpc))
    }
}

type Group<'v> = Row<'v, SecurityGroup>;

fn rules(group: &SecurityGroup, direction: Direction) -> impl Iterator<Item = &Rule> {
    let rules = group.rules.iter();
    rules.filter(move |rule| rule.direction == direction)
}

fn cidr(group: &Group<'_>, direction: Direction, out: &mut Values<'_>) {
    out.extend(rules(group, direction).filter_map(|rule| match &rule.peer {
        Peer::Ipv4(net) => Some(net),
        _ => None,
    }));
}

fn ipv6_cidr(group: &Group<'_>, direction: Direction, out: &mut Values<'_>) {
    out.extend(rules(group, direction).filter_map(|rule| match &rule.peer {
        Peer::Ipv6(net) => Some(net),
        _ => None,
    }));
}

/// The groups that the rules name.
fn peers(group: &SecurityGroup, direction: Direction) -> impl Iterator<Item = &GroupId> {
    rules(group, direction).filter_map(|rule| match &rule.peer {
        Peer::Group(id) => Some(id),
        _ => None,
    })
}

fn group_id(group: &Group<'_>, direction: Direction, out: &mut Values<'_>) {
    out.extend(peers(group, direction));
}

fn group_name(group: &Group<'_>, direction: Direction, out: &mut Values<'_>) {
    let named = peers(group, direction).filter_map(|id| group.view.get::<SecurityGroup>(id));
    out.extend(named.map(|named| &named.name));
}

fn user_id(group: &Group<'_>, direction: Direction, out: &mut Values<'_>) {
    out.extend(peers(group, direction).map(|_| &group.scope.account));
}

fn from_port(group: &Group<'_>, direction: Direction, out: &mut Values<'_>) {
    out.extend(rules(group, direction).filter_map(|rule| ports(rule.matcher).0));
}

fn to_port(group: &Group<'_>, direction: Direction, out: &mut Values<'_>) {
    out.extend(rules(group, direction).filter_map(|rule| ports(rule.matcher).1));
}

fn protocol(group: &Group<'_>, direction: Direction, out: &mut Values<'_>) {
    out.extend(rules(group, direction).map(|rule| protocol_name(rule.matcher)));
}

impl Item {
    fn new(group: &Group<'_>) -> Self {
        Self {
            owner_id: group.scope.account.clone(),
            group_id: group.id.to_string(),
            group_name: group.name.clone(),
            group_description: group.description.clone(),
            vpc_id: group.vpc.to_string(),
            security_group_arn: group.arn().to_string(),
            ip_permissions: collect(group, Direction::Ingress),
            ip_permissions_egress: collect(group, Direction::Egress),
            tag_set: Tag::set(group.tags()),
        }
    }
}
