//! Records to test with: VPC 172.31.0.0/16 with subnet 172.31.0.0/20.

use crate::model::{samples, *};
use crate::store::View;

pub(crate) const HOST: &str = "here";

pub(crate) fn vpc_id() -> VpcId {
    VpcId::from_random(0x0aaa << 56)
}

pub(crate) fn group_id(n: u128) -> GroupId {
    GroupId::from_random(n)
}

pub(crate) fn rule(n: u128, direction: Direction, matcher: Protocol, peer: Peer) -> Rule {
    Rule {
        id: RuleId::from_random(n),
        direction,
        matcher,
        peer,
        description: None,
    }
}

pub(crate) fn anywhere() -> Peer {
    Peer::Ipv4(ipnet::Ipv4Net::default())
}

pub(crate) fn group(n: u128, rules: Vec<Rule>) -> SecurityGroup {
    SecurityGroup {
        id: group_id(n),
        scope: samples::scope(),
        vpc: vpc_id(),
        name: format!("group-{n}"),
        description: String::new(),
        rules,
        deleting: false,
    }
}

/// Instance `n` with one interface at 172.31.0.`n` in these groups.
pub(crate) fn instance(n: u8, groups: &[u128], state: InstanceState) -> (Instance, Eni) {
    let eni = Eni {
        // The digits that a tap's name keeps are the first eleven.
        id: EniId::from_random(u128::from(n) << 24),
        vpc: vpc_id(),
        public_ip: None,
        groups: groups.iter().map(|g| group_id(*g)).collect(),
        ..samples::eni(n)
    };
    let instance = Instance {
        vpc: vpc_id(),
        host: Some(HostId(HOST.into())),
        enis: vec![eni.id.clone()],
        key_name: Some("my-key".into()),
        public_key: Some("ssh-ed25519 AAAA my-key".into()),
        instance_type: "t3.micro".into(),
        state,
        ..samples::instance(n)
    };
    (instance, eni)
}

/// A view with the VPC and its subnet.
pub(crate) fn view() -> View {
    let (id, vpc) = (vpc_id(), vpc_id());
    View::default()
        .with(Vpc {
            id,
            ..samples::vpc()
        })
        .with(Subnet {
            vpc,
            ..samples::subnet()
        })
}
