//! Records to test with: VPC 172.31.0.0/16 with subnet 172.31.0.0/20.

use crate::model::*;
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
        owner: "000000000000".into(),
        vpc: vpc_id(),
        name: format!("group-{n}"),
        description: String::new(),
        rules,
    }
}

/// Instance `n` with one interface at 172.31.0.`n` in these groups.
pub(crate) fn instance(n: u8, groups: &[u128], state: InstanceState) -> (Instance, Eni) {
    let subnet = SubnetId::from_random(1);
    let id = InstanceId::from_random(n.into());
    // The digits that a tap's name keeps are the first eleven.
    let eni = Eni {
        id: EniId::from_random(u128::from(n) << 24),
        owner: "000000000000".into(),
        vpc: vpc_id(),
        subnet: subnet.clone(),
        description: String::new(),
        mac: [2, 0, 0, 0, 0, n],
        private_ip: [172, 31, 0, n].into(),
        public_ip: None,
        auto_public_ip: true,
        groups: groups.iter().map(|g| group_id(*g)).collect(),
        source_dest_check: true,
        instance: Some(id.clone()),
        device_index: 0,
        attachment: Some(EniAttachmentId::from_random(n.into())),
    };
    let at = jiff::Timestamp::UNIX_EPOCH;
    let instance = Instance {
        id,
        reservation: ReservationId::from_random(1),
        owner: "000000000000".into(),
        launch_index: 0,
        image: ImageId::from_random(1),
        instance_type: "t3.micro".into(),
        key_name: Some("my-key".into()),
        public_key: Some("ssh-ed25519 AAAA my-key".into()),
        vpc: vpc_id(),
        subnet,
        zone: "us-east-1a".into(),
        host: Some(HostId(HOST.into())),
        enis: vec![eni.id.clone()],
        root_volume: VolumeId::from_random(1),
        root_device_name: "/dev/xvda".into(),
        user_data: None,
        client_token: None,
        launched_at: at,
        on_shutdown: ShutdownBehavior::Stop,
        metadata: MetadataOptions {
            enabled: true,
            tokens_required: false,
            hop_limit: 1,
            tags_enabled: false,
        },
        protected: false,
        intent: Intent::Run,
        state,
        state_since: at,
        state_reason: None,
        transition_reason: String::new(),
        reboots_asked: 0,
        reboots_done: 0,
        reboot: None,
        boots: 1,
    };
    (instance, eni)
}

/// A view with the VPC and its subnet.
pub(crate) fn view() -> View {
    View::default()
        .with(Vpc {
            id: vpc_id(),
            owner: "000000000000".into(),
            cidr: "172.31.0.0/16".parse().unwrap(),
            is_default: true,
            dhcp_options: DhcpOptionsId::from_random(1),
        })
        .with(Subnet {
            id: SubnetId::from_random(1),
            owner: "000000000000".into(),
            vpc: vpc_id(),
            cidr: "172.31.0.0/20".parse().unwrap(),
            zone: "us-east-1a".into(),
            is_default: true,
            map_public_ip: true,
        })
}
