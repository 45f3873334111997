//! What records of the sample cloud say of themselves: to policies, to indexes and to
//! whoever counts what a host has left.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use crate::{samples, *};

/// The keys that a record is found under in an index.
fn keys<T>(index: Index<T>, record: &T) -> Vec<String> {
    let mut keys = Vec::new();
    (index.keys)(record, &mut |key| keys.push(key.to_owned()));
    keys
}

/// A resource's conditions, a line each.
fn conditions<T: Described>(record: &T) -> String {
    let conditions = record.condition_keys();
    let lines = conditions
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"));
    lines.collect()
}

fn group() -> SecurityGroup {
    SecurityGroup {
        id: GroupId::from_random(2),
        scope: samples::scope(),
        vpc: VpcId::from_random(1),
        name: "web".into(),
        description: String::new(),
        rules: Vec::new(),
        deleting: false,
    }
}

fn rule(n: u128, peer: Peer) -> Rule {
    Rule {
        id: RuleId::from_random(n),
        direction: Direction::Ingress,
        matcher: Protocol::All,
        peer,
        description: None,
    }
}

fn key_pair() -> KeyPair {
    KeyPair {
        id: KeyPairId::from_random(1),
        scope: samples::scope(),
        name: "me".into(),
        key_type: "ed25519".into(),
        fingerprint: String::new(),
        public_key: String::new(),
        created: samples::time(),
    }
}

const VPC: &str = "vpc-00000000000000001";
const VPC_ARN: &str = "arn:aws:ec2:us-east-1:000000000000:vpc/vpc-00000000000000001";

#[test]
fn policies_may_ask_what_ec2_documents_of_each_resource() {
    let mut instance = samples::instance(2);
    instance.settings.metadata.tokens_required = true;
    assert_eq!(
        conditions(&instance),
        "ec2:AvailabilityZone=us-east-1a\n\
         ec2:AvailabilityZoneId=use1-az1\n\
         ec2:InstanceID=i-00000000000000002\n\
         ec2:InstanceType=t2.micro\n\
         ec2:EbsOptimized=false\n\
         ec2:InstanceMarketType=on-demand\n\
         ec2:RootDeviceType=ebs\n\
         ec2:Tenancy=default\n\
         ec2:InstanceMetadataTags=disabled\n\
         ec2:MetadataHttpEndpoint=enabled\n\
         ec2:MetadataHttpPutResponseHopLimit=1\n\
         ec2:MetadataHttpTokens=required\n"
    );
    assert_eq!(
        conditions(&samples::eni(2)),
        format!(
            "ec2:NetworkInterfaceID=eni-00000000000000002\n\
             ec2:Subnet=arn:aws:ec2:us-east-1:000000000000:subnet/subnet-00000000000000001\n\
             ec2:Vpc={VPC_ARN}\n"
        )
    );
    assert_eq!(
        conditions(&samples::volume(2)),
        "ec2:AvailabilityZone=us-east-1a\n\
         ec2:AvailabilityZoneId=use1-az1\n\
         ec2:Encrypted=false\n\
         ec2:VolumeID=vol-00000000000000002\n\
         ec2:VolumeSize=8\n\
         ec2:VolumeType=gp3\n"
    );
    assert_eq!(
        conditions(&samples::image()),
        "ec2:ImageID=ami-00000000000000001\n\
         ec2:ImageType=machine\n\
         ec2:Owner=000000000000\n\
         ec2:Public=true\n\
         ec2:RootDeviceType=ebs\n"
    );
    assert_eq!(
        conditions(&samples::vpc()),
        format!("ec2:Tenancy=default\nec2:VpcID={VPC}\n")
    );
    assert_eq!(
        conditions(&samples::subnet()),
        format!(
            "ec2:AvailabilityZone=us-east-1a\n\
             ec2:AvailabilityZoneId=use1-az1\n\
             ec2:SubnetID=subnet-00000000000000001\n\
             ec2:Vpc={VPC_ARN}\n"
        )
    );
    assert_eq!(
        conditions(&group()),
        format!("ec2:SecurityGroupID=sg-00000000000000002\nec2:Vpc={VPC_ARN}\n")
    );
    assert_eq!(
        conditions(&key_pair()),
        "ec2:KeyPairName=me\nec2:KeyPairType=ed25519\n"
    );
}

#[test]
fn a_key_pair_is_kept_and_named_by_its_name() {
    let key = key_pair();
    assert_eq!(key.key(), "/key-pairs/000000000000/us-east-1/me");
    assert_eq!(
        key.arn().to_string(),
        "arn:aws:ec2:us-east-1:000000000000:key-pair/me"
    );
    assert_eq!(key.described_id().as_str(), "key-00000000000000001");
}

#[test]
fn a_part_has_an_arn_of_its_own_and_is_found_by_it() {
    let id = RuleId::from_random(7);
    assert_eq!(
        <RuleId as Part>::arn_at(&samples::scope(), id.as_str()).to_string(),
        "arn:aws:ec2:us-east-1:000000000000:security-group-rule/sgr-00000000000000007"
    );
    let mut group = group();
    group.rules = vec![rule(7, Peer::Ipv4("0.0.0.0/0".parse().unwrap()))];
    assert_eq!(keys(RuleId::INDEX, &group), [id.as_str()]);
}

#[test]
fn an_image_is_seen_in_its_whole_region_and_nowhere_else() {
    let image = samples::image();
    assert!(image.visible_from(&Scope::new("111122223333", "us-east-1")));
    assert!(!image.visible_from(&Scope::new(samples::ACCOUNT, "eu-west-1")));
}

#[test]
fn a_group_is_found_by_its_name_in_its_vpc_and_by_the_groups_that_it_names() {
    let mut group = group();
    let other = GroupId::from_random(3);
    group.rules = vec![
        rule(1, Peer::Group(group.id.clone())),
        rule(2, Peer::Group(other.clone())),
        rule(3, Peer::Ipv4("10.0.0.0/8".parse().unwrap())),
    ];
    assert_eq!(keys(SecurityGroup::BY_NAME, &group), [format!("{VPC} web")]);
    assert_eq!(keys(SecurityGroup::BY_PEER, &group), [other.as_str()]);
    assert!(keys(SecurityGroup::DELETING, &group).is_empty());
    group.deleting = true;
    assert_eq!(keys(SecurityGroup::DELETING, &group), [""]);
    let name = GroupName::of(&group);
    assert_eq!((name.name, name.group), (format!("{VPC} web"), group.id));
}

#[test]
fn an_interface_is_found_by_its_addresses() {
    let mut eni = samples::eni(2);
    assert_eq!(keys(Eni::BY_ADDRESS, &eni), [format!("{VPC} 172.31.0.2")]);
    assert_eq!(keys(Eni::BY_PUBLIC_ADDRESS, &eni), ["203.0.113.2"]);
    eni.public_ip = None;
    assert!(keys(Eni::BY_PUBLIC_ADDRESS, &eni).is_empty());
    assert_eq!(eni.region(), "us-east-1");
    assert_eq!(eni.mac_string(), "02:00:00:00:00:02");
}

#[test]
fn what_waits_for_a_host_is_found_in_the_order_that_it_came() {
    let mut instance = samples::instance(2);
    let came = keys(Instance::UNPLACED, &instance);
    let mut later = instance.clone();
    later.launch_index = 10;
    assert!(came < keys(Instance::UNPLACED, &later));
    later.launch_index = 0;
    later.launched_at = samples::time() + jiff::Span::new().seconds(1);
    assert!(came < keys(Instance::UNPLACED, &later));
    // Numbers of any length stand in their order, and so does what is older than
    // numbers can say.
    instance.launched_at = jiff::Timestamp::from_second(-1).unwrap();
    assert!(keys(Instance::UNPLACED, &instance) < came);

    later.state = InstanceState::Terminated;
    assert!(keys(Instance::UNPLACED, &later).is_empty());
    later.state = InstanceState::Stopped;
    assert_eq!(keys(Instance::UNPLACED, &later).len(), 1);
    later.host = Some(HostId("h".into()));
    assert!(keys(Instance::UNPLACED, &later).is_empty());
    assert_eq!(keys(Instance::BY_HOST, &later), ["h"]);
    assert_eq!(
        keys(Instance::BY_VPC_AND_HOST, &later),
        [format!("{VPC}/h")]
    );
    assert_eq!(keys(Instance::BY_STATE, &later), ["stopped"]);
}

#[test]
fn a_deleted_volume_is_garbage_when_nothing_holds_it() {
    let mut volume = samples::volume(2);
    assert_eq!(keys(Volume::BY_INSTANCE, &volume), ["i-00000000000000002"]);
    volume.deleting = true;
    assert!(keys(Volume::DELETING, &volume).is_empty());
    volume.attachment = None;
    assert_eq!(keys(Volume::DELETING, &volume), [""]);
    assert!(keys(Volume::BY_INSTANCE, &volume).is_empty());
    volume.deleting = false;
    assert!(keys(Volume::DELETING, &volume).is_empty());
}

#[test]
fn a_host_gives_to_what_is_on_it_and_not_stopped() {
    let host = HostId("h".into());
    let mut instance = samples::instance(2);
    assert_eq!(instance.claim(), None);
    instance.host = Some(host.clone());
    // The guest's 1024 MiB, and what its VMM needs: 16 and one part in 128.
    let taken = Quota {
        vcpus: 1,
        memory_mib: 1024 + 16 + 8,
        disk_gib: 0,
    };
    for (state, occupies) in [
        (InstanceState::Pending, true),
        (InstanceState::Running, true),
        (InstanceState::Stopping, true),
        (InstanceState::Stopped, false),
        (InstanceState::ShuttingDown, true),
        (InstanceState::Terminated, false),
    ] {
        instance.state = state;
        assert_eq!(
            instance.claim(),
            occupies.then_some((&host, taken)),
            "{state:?}"
        );
        // Room for its memory is set aside for as long as it lives.
        let mut may_hibernate = instance.clone();
        may_hibernate.settings.may_hibernate = true;
        let room = u64::from(state != InstanceState::Terminated);
        let (_, with_room) = may_hibernate.claim().unwrap_or((&host, Quota::default()));
        assert_eq!(with_room.disk_gib, room, "{state:?}");
        assert_eq!(with_room.vcpus, u64::from(occupies), "{state:?}");
    }

    let mut volume = samples::volume(2);
    assert_eq!(volume.claim(), None);
    volume.host = Some(host.clone());
    let disk = Quota {
        disk_gib: 8,
        ..Quota::default()
    };
    assert_eq!(volume.claim(), Some((&host, disk)));
}

#[test]
fn a_type_that_is_not_known_needs_more_than_any_host_has() {
    let mut instance = samples::instance(2);
    instance.instance_type = "z9.huge".into();
    let all = samples::host("h", u32::MAX).quota();
    assert_eq!((all.vcpus, all.memory_mib), (u64::from(u32::MAX), 1024));
    assert_eq!(all.disk_gib, 1000);
    assert!(instance.quota().vcpus > all.vcpus);
    // An exbibyte, in MiB.
    assert!(instance.quota().memory_mib >= 1 << 40);
}

#[test]
fn quotas_add_up_and_never_fall_below_nothing() {
    let quota = |vcpus, memory_mib, disk_gib| Quota {
        vcpus,
        memory_mib,
        disk_gib,
    };
    let both = quota(2, 30, 400).plus(quota(1, 10, 100));
    assert_eq!(both, quota(3, 40, 500));
    assert_eq!(both.less(quota(1, 10, 100)), quota(2, 30, 400));
    assert_eq!(both.less(quota(4, 41, 501)), Quota::default());
}

#[test]
fn states_have_ec2s_numbers_and_names() {
    for (state, code, name) in [
        (InstanceState::Pending, 0, "pending"),
        (InstanceState::Running, 16, "running"),
        (InstanceState::ShuttingDown, 32, "shutting-down"),
        (InstanceState::Terminated, 48, "terminated"),
        (InstanceState::Stopping, 64, "stopping"),
        (InstanceState::Stopped, 80, "stopped"),
    ] {
        assert_eq!((state.code(), state.name()), (code, name));
    }
}

#[test]
fn a_reasons_message_begins_with_its_code() {
    for (reason, message) in [
        (
            StateReason::user_initiated(),
            "Client.UserInitiatedShutdown: User initiated shutdown",
        ),
        (
            StateReason::instance_initiated(),
            "Client.InstanceInitiatedShutdown: Instance initiated shutdown",
        ),
        (StateReason::client_error("x"), "Client.InternalError: x"),
        (StateReason::internal_error("x"), "Server.InternalError: x"),
        (
            StateReason::no_private_address(),
            "Client.InsufficientFreeAddressesInSubnet: \
             There are not enough free addresses in the subnet",
        ),
        (
            StateReason::no_public_address(),
            "Server.InsufficientAddressCapacity: \
             There are no free addresses in the pool of public addresses",
        ),
        (
            StateReason::insufficient_capacity(),
            "Server.InsufficientInstanceCapacity: Insufficient capacity to place the instance",
        ),
    ] {
        assert_eq!(reason.message, message);
        assert_eq!(Some(reason.code.as_str()), message.split(": ").next());
    }
}

#[test]
fn a_subnet_gives_all_but_its_first_four_addresses_and_the_last() {
    let mut subnet = samples::subnet();
    assert_eq!(subnet.router(), Ipv4Addr::new(172, 31, 0, 1));
    assert_eq!(subnet.usable(), 4096 - 5);
    subnet.cidr = "10.0.0.16/28".parse().unwrap();
    assert_eq!(subnet.usable(), 11);
    assert_eq!(subnet.usable_at(0), Ipv4Addr::new(10, 0, 0, 20));
    assert_eq!(subnet.usable_at(10), Ipv4Addr::new(10, 0, 0, 30));
}

#[test]
fn what_was_seen_of_another_boot_or_before_a_reboot_counts_for_nothing() {
    let instance = samples::instance(2);
    let seen = |boot, reboots| Reachability {
        scope: samples::scope(),
        instance: instance.id.clone(),
        boot,
        reboots,
        answers: true,
        since: samples::time(),
    };
    assert!(seen(1, 0).is_of(&instance));
    assert!(!seen(0, 0).is_of(&instance));
    assert!(!seen(1, 1).is_of(&instance));
}

#[test]
fn hosts_are_those_that_were_named() {
    let [a, b, c] = ["a", "b", "c"].map(|id| HostId(id.into()));
    let hosts: Hosts = [b.clone(), a.clone()].into_iter().collect();
    assert_eq!(hosts.iter().collect::<Vec<_>>(), [&a, &b]);
    assert!(hosts.have(Some(&a)) && hosts.have(Some(&b)));
    assert!(!hosts.have(Some(&c)) && !hosts.have(None));
    assert_eq!(Hosts::one(a.clone()), [a].into_iter().collect());
}

#[test]
fn what_all_share_has_no_scope_in_its_key_and_still_an_owner() {
    let mut address = PublicAddress {
        address: "203.0.113.1".into(),
        holder: AddressHolder::Interface(EniId::from_random(1)),
        owner: Some(samples::scope()),
    };
    assert_eq!(address.key(), "/public-addresses/203.0.113.1");
    assert_eq!(address.owner(), Some(&samples::scope()));
    address.owner = None;
    assert_eq!(address.owner(), None);
    let instance = samples::instance(1);
    assert_eq!(instance.owner(), Some(&samples::scope()));
    assert_eq!(instance.owner(), instance.scope());
    assert_eq!(samples::scope().path("x"), "000000000000/us-east-1/x");
    assert_eq!(samples::scope().prefix(), "000000000000/us-east-1/");
    let mark = DefaultVpcMark::of(&samples::scope());
    assert_eq!(mark.key(), "/settlements/000000000000/us-east-1/settled");
}

#[test]
fn a_private_address_is_one_record_in_its_subnet() {
    let taken = PrivateAddress::new(
        &samples::scope(),
        &SubnetId::from_random(1),
        Ipv4Addr::new(172, 31, 0, 4),
        EniId::from_random(2),
    );
    assert_eq!(taken.key, "subnet-00000000000000001:172.31.0.4");
    assert_eq!(taken.eni, EniId::from_random(2));
}

#[test]
fn an_unknown_version_of_a_record_is_an_error() {
    let error = Volume::upgrade(2, serde_json::Value::Null).unwrap_err();
    assert_eq!(error, "version 2 of volumes is not known here");
}

#[test]
fn an_instance_of_the_first_form_may_not_hibernate() {
    let instance = samples::instance(1);
    let mut old = serde_json::to_value(&instance).unwrap();
    for field in ["may_hibernate", "hibernated"] {
        old.as_object_mut().unwrap().remove(field).unwrap();
    }
    let new = <Instance as Resource>::upgrade(1, old.clone()).unwrap();
    assert_eq!(serde_json::from_value::<Instance>(new).unwrap(), instance);
    for (version, record) in [(0, old), (1, serde_json::Value::Null)] {
        <Instance as Resource>::upgrade(version, record).unwrap_err();
    }
}

#[test]
fn a_pool_ends_before_its_end() {
    let [first, end] = [1, 4].map(|n| Ipv4Addr::new(203, 0, 113, n));
    let pool = PublicPool::new(first, end);
    assert_eq!((pool.count(), pool.at(0)), (3, first));
    assert_eq!(pool.at(2), Ipv4Addr::new(203, 0, 113, 3));
    assert_eq!(PublicPool::new(end, first).count(), 0);
}

#[test]
fn a_condition_keys_name_is_its_text_and_a_part_follows_a_slash() {
    let key = ConditionKey::sample("ec2:ResourceTag");
    assert_eq!(String::from(key), "ec2:ResourceTag");
    assert_eq!(key.of("team"), "ec2:ResourceTag/team");
}

#[test]
fn a_launch_says_that_it_was_refused_and_nothing_else() {
    let group = group();
    let mut launch = samples::launch(1, &samples::subnet(), &group.id);
    let form = |launch: &Launch| serde_json::to_value(launch).unwrap();
    assert_eq!(form(&launch).get("refused"), None);
    launch.refused = true;
    assert_eq!(form(&launch)["refused"], true);
}
