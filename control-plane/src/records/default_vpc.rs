//! What an account has in a region before it has asked for anything: a default
//! VPC with a subnet in each zone and a security group.
//!
//! <https://docs.aws.amazon.com/vpc/latest/userguide/default-vpc.html>

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::{
    model::{
        DefaultVpcMark, DhcpOptionsId, Direction, GroupId, GroupName, Peer, Protocol, Rule, RuleId,
        SecurityGroup, Subnet, SubnetId, Vpc, VpcId,
    },
    store::{Change, Scoped},
};

/// The default VPC's addresses, as EC2's.
const VPC: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 31, 0, 0), 16);
/// The length of its subnets' prefixes.
const SUBNET: u8 = 20;
const ANYWHERE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// Whether the account was given these in this region: also when it has
/// deleted them since.
pub fn was_made(view: Scoped<'_>) -> bool {
    view.get::<DefaultVpcMark>(DefaultVpcMark::ID).is_some()
}

/// Gives them to it, unless it was given them before.
pub fn make(view: Scoped<'_>, change: &mut Change<'_>, zones: &[String]) {
    if was_made(view) {
        return;
    }
    let scope = view.scope();
    let vpc = Vpc {
        id: VpcId::from_random(rand::random()),
        scope: scope.clone(),
        cidr: VPC,
        is_default: true,
        dhcp_options: DhcpOptionsId::from_random(rand::random()),
    };
    // 172.31.0.0/20, 172.31.16.0/20, … There is room for sixteen.
    let cidrs = VPC.subnets(SUBNET).into_iter().flatten();
    for (zone, cidr) in zones.iter().zip(cidrs) {
        change.create(&Subnet {
            id: SubnetId::from_random(rand::random()),
            scope: scope.clone(),
            vpc: vpc.id.clone(),
            cidr,
            zone: zone.clone(),
            is_default: true,
            map_public_ip: true,
        });
    }
    let group = default_group(&vpc);
    change.create(&GroupName::of(&group));
    change.create(&group);
    change.create(&vpc);
    change.create(&DefaultVpcMark::of(scope));
}

/// The group that a VPC is born with: its members may all talk to each other,
/// and to anybody.
///
/// <https://docs.aws.amazon.com/vpc/latest/userguide/default-security-group.html>
fn default_group(vpc: &Vpc) -> SecurityGroup {
    let id = GroupId::from_random(rand::random());
    let rule = |direction, peer| Rule {
        id: RuleId::from_random(rand::random()),
        direction,
        matcher: Protocol::All,
        peer,
        description: None,
    };
    SecurityGroup {
        scope: vpc.scope.clone(),
        vpc: vpc.id.clone(),
        name: SecurityGroup::DEFAULT.into(),
        description: "default VPC security group".into(),
        rules: vec![
            rule(Direction::Ingress, Peer::Group(id.clone())),
            rule(Direction::Egress, Peer::Ipv4(ANYWHERE)),
        ],
        deleting: false,
        id,
    }
}
