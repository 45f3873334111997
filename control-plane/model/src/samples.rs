//! Records for tests, all of one small cloud: instance `n` has interface,
//! volume and private address `n` in VPC, subnet, group and image 1.

#![allow(clippy::unwrap_used)]

mod other_services;

use std::net::Ipv4Addr;

use jiff::Timestamp;

pub use self::other_services::*;
use super::*;

/// The time at which every sample was made.
pub fn time() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// The account.
pub const ACCOUNT: &str = "000000000000";

/// The account's part of the region.
pub fn scope() -> Scope {
    Scope::new(ACCOUNT, "us-east-1")
}

/// Instance `n`: pending, with everything allocated, not yet placed.
pub fn instance(n: u8) -> Instance {
    Instance {
        id: InstanceId::from_random(n.into()),
        reservation: ReservationId::from_random(n.into()),
        scope: scope(),
        launch_index: 0,
        image: ImageId::from_random(1),
        boot: None,
        instance_type: "t2.micro".into(),
        key_name: None,
        public_key: None,
        vpc: VpcId::from_random(1),
        subnet: SubnetId::from_random(1),
        zone: "us-east-1a".into(),
        host: None,
        enis: vec![EniId::from_random(n.into())],
        root_volume: VolumeId::from_random(n.into()),
        root_device_name: "/dev/xvda".into(),
        client_token: None,
        launched_at: time(),
        settings: Settings::default(),
        own_user_data: None,
        hibernated: None,
        intent: Intent::Run,
        state: InstanceState::Pending,
        state_since: time(),
        state_reason: None,
        transition_reason: String::new(),
        reboots_asked: 0,
        reboots_done: 0,
        reboot: None,
        boots: 1,
    }
}

/// The primary interface of instance `n`, with public address 203.0.113.`n`.
pub fn eni(n: u8) -> Eni {
    Eni {
        id: EniId::from_random(n.into()),
        scope: scope(),
        vpc: VpcId::from_random(1),
        subnet: SubnetId::from_random(1),
        description: String::new(),
        mac: [2, 0, 0, 0, 0, n],
        private_ip: Ipv4Addr::new(172, 31, 0, n),
        public_ip: Some(Ipv4Addr::new(203, 0, 113, n)),
        last_public_ip: None,
        auto_public_ip: true,
        groups: vec![GroupId::from_random(1)],
        source_dest_check: true,
        instance: Some(InstanceId::from_random(n.into())),
        device_index: 0,
        attachment: Some(EniAttachmentId::from_random(n.into())),
    }
}

/// The root volume of instance `n`, which goes with it.
pub fn volume(n: u8) -> Volume {
    Volume {
        id: VolumeId::from_random(n.into()),
        scope: scope(),
        zone: "us-east-1a".into(),
        host: None,
        size_gib: 8,
        volume_type: "gp3".into(),
        image: Some(ImageId::from_random(1)),
        created: time(),
        deleting: false,
        attachment: Some(VolumeAttachment {
            instance: InstanceId::from_random(n.into()),
            device: "/dev/xvda".into(),
            attached: time(),
            delete_on_termination: true,
        }),
    }
}

/// A launch of so many, without public addresses.
pub fn launch(count: u8, subnet: &Subnet, group: &GroupId) -> Launch {
    let member = |n: u8| {
        let n = 0x1000 + u128::from(n);
        Member {
            instance: InstanceId::from_random(n),
            eni: EniId::from_random(n),
            attachment: EniAttachmentId::from_random(n),
            mac: [2, 0, 0, 0, 1, 1],
            volume: VolumeId::from_random(n),
        }
    };
    let Instance {
        image,
        root_device_name,
        instance_type,
        zone,
        settings,
        ..
    } = instance(1);
    Launch {
        members: (0..count).map(member).collect(),
        image,
        root_device_name,
        instance_type,
        key_name: None,
        public_key: None,
        vpc: subnet.vpc.clone(),
        subnet: subnet.id.clone(),
        zone,
        groups: vec![group.clone()],
        public: false,
        description: String::new(),
        volume_gib: 8,
        volume_type: "gp3".into(),
        delete_on_termination: true,
        client_token: None,
        settings,
        instance_tags: Default::default(),
        volume_tags: Default::default(),
        interface_tags: Default::default(),
        refused: false,
    }
}

/// The image.
pub fn image() -> Image {
    Image {
        id: ImageId::from_random(1),
        scope: scope(),
        manifest: Manifest {
            name: "micro".into(),
            description: "a small image".into(),
            architecture: "x86_64".into(),
            root_device_name: "/dev/xvda".into(),
            default_user: "root".into(),
            disk: "micro.raw".into(),
            disk_size: 64 << 20,
            sha256: "00".repeat(32),
            created: time(),
            boot: BootMethod::Linux {
                partition: 0,
                kernel: "/vmlinuz".into(),
                initrd: None,
                cmdline: "console=ttyS0".into(),
            },
            warm: false,
        },
    }
}

/// The default VPC.
pub fn vpc() -> Vpc {
    Vpc {
        id: VpcId::from_random(1),
        scope: scope(),
        cidr: "172.31.0.0/16".parse().unwrap(),
        is_default: true,
        dhcp_options: DhcpOptionsId::from_random(1),
    }
}

/// Its default subnet.
pub fn subnet() -> Subnet {
    Subnet {
        id: SubnetId::from_random(1),
        scope: scope(),
        vpc: VpcId::from_random(1),
        cidr: "172.31.0.0/20".parse().unwrap(),
        zone: "us-east-1a".into(),
        is_default: true,
        map_public_ip: true,
    }
}

/// A host.
pub fn host(id: &str, vcpus: u32) -> Host {
    Host {
        id: HostId(id.into()),
        zone: "us-east-1a".into(),
        vcpus,
        memory_mib: 1024,
        disk_gib: 1000,
    }
}
