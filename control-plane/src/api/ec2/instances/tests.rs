//! The handlers against a small cloud, with the controllers' part played by hand.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::{super::security_groups::*, *};
use crate::{
    api::{
        Action, ApiError, Ctx, Idempotency,
        wire::{Form, Protocol, from_form},
    },
    bootstrap::{Machine, bootstrap},
    config::Config,
    model::*,
    store::Db,
};

async fn cloud() -> Ctx {
    cloud_on(Db::in_memory().await).await
}

pub(in crate::api) async fn cloud_on(db: Db) -> Ctx {
    // Room for eight t2.micro by vCPU.
    with_machine(db, 2).await
}

/// With room for this many t2.micro.
async fn cloud_of(room: u32) -> Ctx {
    with_machine(Db::in_memory().await, room / 4).await
}

pub(super) async fn with_machine(db: Db, cpus: u32) -> Ctx {
    let machine = Machine {
        cpus,
        memory_mib: u64::from(cpus) * 8 * 1024,
        disk_gib: 1000,
    };
    bootstrap(&db, &Config::for_tests(), machine).await.unwrap();
    db.transact(|_, change| {
        change.overwrite(&samples::image());
        Ok::<_, ()>(())
    })
    .await
    .unwrap();
    Ctx::for_tests(db)
}

fn request<T: DeserializeOwned>(text: &str) -> T {
    from_form(&Form::parse(text.as_bytes()).unwrap(), Protocol::Ec2).unwrap()
}

pub(super) async fn call<A: Action>(ctx: &Ctx, text: &str) -> Result<A::Response, ApiError> {
    A::handle(ctx, request(text)).await
}

pub(super) async fn code<A: Action>(ctx: &Ctx, text: &str) -> String {
    match call::<A>(ctx, text).await {
        Ok(_) => "no error".into(),
        Err(error) => error.code.into_owned(),
    }
}

pub(in crate::api) const RUN: &str =
    "ImageId=ami-00000000000000001&InstanceType=t2.micro&MinCount=1&MaxCount=1";

async fn run(ctx: &Ctx, more: &str) -> run_instances::Response {
    call::<RunInstances>(ctx, &format!("{RUN}{more}"))
        .await
        .unwrap()
}

/// What the controllers write when a step is done, as far as handlers look.
async fn becomes(ctx: &Ctx, id: &str, state: InstanceState) {
    ctx.transact(|view, change| {
        let instance = view.get::<Instance>(id).unwrap().clone();
        for id in &instance.enis {
            let eni = view.get::<Eni>(id).unwrap().clone();
            if let (InstanceState::Stopped, Some(address)) = (state, eni.public_ip) {
                let taken = view.shared::<PublicAddress>(address.to_string());
                change.delete(taken.unwrap());
                change.overwrite(&Eni {
                    public_ip: None,
                    last_public_ip: Some(address),
                    ..eni
                });
            }
        }
        change.overwrite(&Instance {
            host: Some(HostId("test-host".into())),
            state,
            ..instance
        });
        Ok(())
    })
    .await
    .unwrap();
}

async fn described(ctx: &Ctx, id: &str) -> answer::InstanceItem {
    let text = format!("InstanceId.1={id}");
    let mut answer = call::<DescribeInstances>(ctx, &text).await.unwrap();
    answer.reservation_set.remove(0).instances_set.remove(0)
}

#[tokio::test]
async fn an_instance_is_made_whole() {
    let ctx = cloud().await;
    let made = run(
        &ctx,
        "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=web\
         &TagSpecification.2.ResourceType=volume&TagSpecification.2.Tag.1.Key=a&TagSpecification.2.Tag.1.Value=b",
    )
    .await;
    let i = &made.instances_set[0];
    assert_eq!(i.instance_state.name, "pending");
    let public = i.ip_address.clone().unwrap();
    assert!(public.starts_with("203.0.113."), "{public}");
    let dashed = public.replace('.', "-");
    assert_eq!(i.dns_name, format!("ec2-{dashed}.compute-1.amazonaws.com"));
    assert!(i.private_dns_name.starts_with("ip-172-31-"));
    assert_eq!(i.group_set[0].group_name, "default");
    assert_eq!(i.tag_set.as_ref().unwrap()[0].value, "web");
    let device = &i.block_device_mapping[0];
    assert_eq!(device.device_name, "/dev/xvda");
    assert_eq!(ctx.view().view().tags(&device.ebs.volume_id)["a"], "b");
    let nic = &i.network_interface_set[0];
    assert!(nic.mac_address.starts_with("02:"));
    assert_eq!(nic.association.as_ref().unwrap().public_ip, public);
}

#[tokio::test]
async fn several_have_addresses_of_their_own() {
    let ctx = cloud().await;
    let text = RUN.replace("MaxCount=1", "MaxCount=5");
    let made = call::<RunInstances>(&ctx, &text).await.unwrap();
    let distinct = |f: fn(&answer::InstanceItem) -> String| {
        made.instances_set
            .iter()
            .map(f)
            .collect::<BTreeSet<_>>()
            .len()
    };
    assert_eq!(distinct(|i| i.private_ip_address.clone().unwrap()), 5);
    assert_eq!(distinct(|i| i.ip_address.clone().unwrap()), 5);
    assert_eq!(
        distinct(|i| i.network_interface_set[0].mac_address.clone()),
        5
    );
    assert_eq!(made.instances_set[4].ami_launch_index, 4);
}

#[tokio::test]
async fn as_many_as_fit_or_none() {
    let ctx = cloud().await;
    let many = RUN.replace("MaxCount=1", "MaxCount=20");
    let none = many.replace("MinCount=1", "MinCount=9");
    assert_eq!(
        code::<RunInstances>(&ctx, &none).await,
        "InsufficientInstanceCapacity"
    );
    assert_eq!(ctx.view().view().all::<Instance>().count(), 0);
    assert_eq!(
        call::<RunInstances>(&ctx, &many)
            .await
            .unwrap()
            .instances_set
            .len(),
        8
    );
    assert_eq!(
        code::<RunInstances>(&ctx, RUN).await,
        "InsufficientInstanceCapacity"
    );
}

#[tokio::test]
async fn a_token_makes_one_instance() {
    let mut ctx = cloud().await;
    let token = |digest: &str| Idempotency {
        key: "RunInstances:t".into(),
        digest: digest.into(),
    };
    ctx = ctx.with_token(token("1"));
    let first = run(&ctx, "&ClientToken=t").await;
    let second = run(&ctx, "&ClientToken=t").await;
    assert_eq!(first.reservation_id, second.reservation_id);
    let id = &first.instances_set[0].instance_id;
    assert_eq!(*id, second.instances_set[0].instance_id);
    assert_eq!(ctx.view().view().all::<Instance>().count(), 1);
    let again = format!("{RUN}&ClientToken=t");
    becomes(&ctx, id, InstanceState::Terminated).await;
    assert_eq!(
        code::<RunInstances>(&ctx, &again).await,
        "IdempotentInstanceTerminated"
    );
    ctx = ctx.with_token(token("2"));
    assert_eq!(
        code::<RunInstances>(&ctx, &again).await,
        "IdempotentParameterMismatch"
    );
}

#[tokio::test]
async fn a_big_launch_is_several_transactions_whose_rest_anybody_can_make() {
    let ctx = cloud_of(100).await;
    let text = RUN.replace("MaxCount=1", "MaxCount=60");
    let tagged = "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=a";
    let before = ctx.view().view().whole().revision().0;
    let made = call::<RunInstances>(&ctx, &format!("{text}{tagged}")).await;
    let made = made.unwrap();
    let indexes = made.instances_set.iter().map(|i| i.ami_launch_index);
    assert!(indexes.eq(0..60));
    assert!(made.instances_set.iter().all(|i| i.tag_set.is_some()));
    // The reservation, and fifteen in each of the others.
    let after = ctx.view().view().whole().revision().0;
    assert_eq!(after - before, 5);

    // What only got as far as its reservation: nobody else gets the room or the
    // group, and whoever comes by makes the rest.
    let first = ctx.view();
    let reservation = first.view().all::<Reservation>().next().unwrap();
    assert!(reservation.pending.is_none());
    call::<CreateSecurityGroup>(&ctx, "GroupName=g&GroupDescription=d")
        .await
        .unwrap();
    let picture = ctx.view();
    let view = picture.view();
    let group = view.all::<SecurityGroup>().find(|g| g.name == "g").unwrap();
    let subnet = view.all::<Subnet>().next().unwrap();
    let cut = Reservation {
        id: ReservationId::from_random(7),
        pending: Some(Box::new(samples::launch(30, subnet, &group.id))),
        ..reservation.clone()
    };
    ctx.transact(|_, change| {
        change.overwrite(&cut);
        Ok(())
    })
    .await
    .unwrap();
    let more = RUN
        .replace("MinCount=1", "MinCount=11")
        .replace("MaxCount=1", "MaxCount=11");
    assert_eq!(
        code::<RunInstances>(&ctx, &more).await,
        "InsufficientInstanceCapacity"
    );
    let delete = format!("GroupId={}", group.id);
    assert_eq!(
        code::<DeleteSecurityGroup>(&ctx, &delete).await,
        "DependencyViolation"
    );
    let pool = ctx.config.public_addresses();
    let mut rounds = 0;
    while !ctx
        .transact(|view, change| {
            let cut = view.get::<Reservation>(&cut.id).unwrap();
            Ok(crate::records::launch::expand(view, change, cut, pool))
        })
        .await
        .unwrap()
    {
        rounds += 1;
    }
    assert_eq!(rounds, 1);
    let picture = ctx.view();
    let all = picture.view().by(Instance::BY_RESERVATION, cut.id.as_str());
    assert_eq!(all.count(), 30);
    assert!(picture.view().by(Reservation::PENDING, "").next().is_none());
}

#[tokio::test]
async fn a_dry_run_is_refused_what_the_call_would_be_and_changes_nothing() {
    let ctx = cloud().await;
    let id = run(&ctx, "").await.instances_set[0].instance_id.clone();
    let one = format!("InstanceId.1={id}");
    let ctx = ctx.dry();
    let revision = ctx.view().view().whole().revision();
    for (answer, expected) in [
        (code::<RunInstances>(&ctx, RUN).await, "DryRunOperation"),
        (
            code::<RunInstances>(&ctx, &format!("{RUN}&KeyName=none")).await,
            "InvalidKeyPair.NotFound",
        ),
        (
            code::<RunInstances>(&ctx, &RUN.replace("MaxCount=1", "MaxCount=0")).await,
            "InvalidParameterValue",
        ),
        (
            code::<StopInstances>(&ctx, &one).await,
            "IncorrectInstanceState",
        ),
        (
            code::<TerminateInstances>(&ctx, &one).await,
            "DryRunOperation",
        ),
    ] {
        assert_eq!(answer, expected);
    }
    assert_eq!(ctx.view().view().whole().revision(), revision);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let ctx = cloud().await;
    let long = "A".repeat(21848);
    for (more, expected) in [
        ("&KeyName=none", "InvalidKeyPair.NotFound"),
        (
            "&SubnetId=subnet-00000000000000009",
            "InvalidSubnetID.NotFound",
        ),
        (
            "&SecurityGroupId.1=sg-00000000000000009",
            "InvalidGroup.NotFound",
        ),
        ("&SecurityGroup.1=none", "InvalidGroup.NotFound"),
        ("&UserData=***", "InvalidParameterValue"),
        (&format!("&UserData={long}"), "InvalidParameterValue"),
        (
            "&Placement.AvailabilityZone=us-east-1z",
            "InvalidParameterValue",
        ),
        (
            "&InstanceInitiatedShutdownBehavior=explode",
            "InvalidParameterValue",
        ),
        (
            "&MetadataOptions.HttpPutResponseHopLimit=65",
            "InvalidParameterValue",
        ),
        ("&MetadataOptions.HttpTokens=maybe", "InvalidParameterValue"),
        ("&NetworkInterface.1.DeviceIndex=1", "UnsupportedOperation"),
        ("&NetworkInterface.1.Description=x", "MissingParameter"),
        (
            "&NetworkInterface.1.DeviceIndex=0&SecurityGroup.1=default",
            "InvalidParameterCombination",
        ),
        (
            "&BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.Ebs.VolumeSize=0",
            "InvalidBlockDeviceMapping",
        ),
        (
            "&BlockDeviceMapping.1.DeviceName=/dev/xvda&BlockDeviceMapping.1.Ebs.VolumeType=io2",
            "UnsupportedOperation",
        ),
        (
            "&BlockDeviceMapping.1.DeviceName=/dev/sdb&BlockDeviceMapping.1.Ebs.VolumeSize=9",
            "UnsupportedOperation",
        ),
        (
            "&TagSpecification.1.ResourceType=vpc&TagSpecification.1.Tag.1.Key=a",
            "InvalidParameterValue",
        ),
    ] {
        assert_eq!(
            code::<RunInstances>(&ctx, &format!("{RUN}{more}")).await,
            expected,
            "{more}"
        );
    }
    for (from, to, expected) in [
        ("MinCount=1", "MinCount=0", "InvalidParameterValue"),
        ("MinCount=1", "MinCount=2", "InvalidParameterValue"),
        ("MaxCount=1", "MaxCount=1001", "InstanceLimitExceeded"),
        (
            "ami-00000000000000001",
            "ami-00000000000000002",
            "InvalidAMIID.NotFound",
        ),
        ("ami-00000000000000001", "x", "InvalidAMIID.Malformed"),
        ("t2.micro", "z9.nano", "InvalidParameterValue"),
    ] {
        assert_eq!(
            code::<RunInstances>(&ctx, &RUN.replace(from, to)).await,
            expected,
            "{to}"
        );
    }
    assert_eq!(ctx.view().view().all::<Instance>().count(), 0);
    assert_eq!(ctx.view().view().all::<PrivateAddress>().count(), 0);
}

#[tokio::test]
async fn a_life() {
    let ctx = cloud().await;
    let id = run(&ctx, "").await.instances_set[0].instance_id.clone();
    let one = format!("InstanceId.1={id}");
    let name = |changes: StateChanges| changes.instances_set[0].current_state.name.clone();

    assert_eq!(
        code::<StopInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
    assert_eq!(
        code::<RebootInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
    becomes(&ctx, &id, InstanceState::Running).await;
    let public = described(&ctx, &id).await.ip_address;
    assert!(call::<RebootInstances>(&ctx, &one).await.is_ok());
    assert_eq!(
        ctx.view()
            .view()
            .get::<Instance>(&id)
            .unwrap()
            .reboots_asked,
        1
    );

    assert_eq!(
        name(call::<StopInstances>(&ctx, &one).await.unwrap()),
        "stopping"
    );
    assert_eq!(
        code::<StartInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
    call::<StopInstances>(&ctx, &format!("{one}&Force=true"))
        .await
        .unwrap();
    assert_eq!(
        ctx.view().view().get::<Instance>(&id).unwrap().intent,
        Intent::ForceStop
    );
    becomes(&ctx, &id, InstanceState::Stopped).await;
    let stopped = described(&ctx, &id).await;
    assert_eq!(
        (stopped.ip_address, stopped.dns_name),
        (None, String::new())
    );
    assert_eq!(
        stopped.state_reason.unwrap().code,
        "Client.UserInitiatedShutdown"
    );
    assert!(stopped.reason.starts_with("User initiated ("));
    let private = stopped.private_ip_address;

    assert_eq!(
        name(call::<StartInstances>(&ctx, &one).await.unwrap()),
        "pending"
    );
    let started = described(&ctx, &id).await;
    // Another public address, the same private one.
    assert_ne!(started.ip_address, public);
    assert!(started.ip_address.is_some());
    assert_eq!(started.private_ip_address, private);
    assert_eq!(ctx.view().view().get::<Instance>(&id).unwrap().boots, 2);
    becomes(&ctx, &id, InstanceState::Running).await;

    assert_eq!(
        name(call::<TerminateInstances>(&ctx, &one).await.unwrap()),
        "shutting-down"
    );
    becomes(&ctx, &id, InstanceState::Terminated).await;
    assert_eq!(
        name(call::<TerminateInstances>(&ctx, &one).await.unwrap()),
        "terminated"
    );
    assert_eq!(
        code::<StartInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
}

#[tokio::test]
async fn one_that_is_protected_stays_and_so_do_those_with_it() {
    let ctx = cloud().await;
    let plain = run(&ctx, "").await.instances_set[0].instance_id.clone();
    let kept = run(&ctx, "&DisableApiTermination=true").await.instances_set[0]
        .instance_id
        .clone();
    let both = format!("InstanceId.1={plain}&InstanceId.2={kept}");
    assert_eq!(
        code::<TerminateInstances>(&ctx, &both).await,
        "OperationNotPermitted"
    );
    assert_eq!(described(&ctx, &plain).await.instance_state.name, "pending");
}

#[tokio::test]
async fn filters_pages_and_unknown_ids() {
    let ctx = cloud().await;
    call::<RunInstances>(&ctx, &RUN.replace("MaxCount=1", "MaxCount=7"))
        .await
        .unwrap();
    let named = "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=Name&TagSpecification.1.Tag.1.Value=web";
    let web = run(&ctx, named).await.instances_set[0].instance_id.clone();
    let count = |r: &describe_instances::Response| {
        r.reservation_set
            .iter()
            .map(|r| r.instances_set.len())
            .sum::<usize>()
    };
    for (filter, value, expected) in [
        ("tag:Name", "w*", 1),
        ("tag-key", "Name", 1),
        ("instance-id", web.as_str(), 1),
        ("instance-state-name", "pending", 8),
        ("instance-state-code", "16", 0),
        ("instance.group-name", "default", 8),
        ("vpc-id", "vpc-*", 8),
        ("launch-index", "6", 1),
    ] {
        let text = format!("Filter.1.Name={filter}&Filter.1.Value.1={value}");
        let found = call::<DescribeInstances>(&ctx, &text).await.unwrap();
        assert_eq!(count(&found), expected, "{filter}");
    }
    let bad = "Filter.1.Name=colour&Filter.1.Value.1=red";
    assert_eq!(
        code::<DescribeInstances>(&ctx, bad).await,
        "InvalidParameterValue"
    );

    let first = call::<DescribeInstances>(&ctx, "MaxResults=5")
        .await
        .unwrap();
    let rest = format!(
        "MaxResults=5&NextToken={}",
        first.next_token.as_ref().unwrap()
    );
    let rest = call::<DescribeInstances>(&ctx, &rest).await.unwrap();
    assert_eq!(
        (count(&first), count(&rest), rest.next_token.is_none()),
        (5, 3, true)
    );

    for (id, expected) in [
        ("i-00000000000000009", "InvalidInstanceID.NotFound"),
        ("i-9", "InvalidInstanceID.Malformed"),
    ] {
        let text = format!("InstanceId.1={id}");
        assert_eq!(code::<DescribeInstances>(&ctx, &text).await, expected);
        assert_eq!(code::<StopInstances>(&ctx, &text).await, expected);
        assert_eq!(
            code::<GetConsoleOutput>(&ctx, &format!("InstanceId={id}")).await,
            expected
        );
    }
}

#[tokio::test]
async fn status_is_of_running_instances_unless_all_are_asked_for() {
    let ctx = cloud().await;
    let id = run(&ctx, "").await.instances_set[0].instance_id.clone();
    let none = call::<DescribeInstanceStatus>(&ctx, "").await.unwrap();
    assert!(none.instance_status_set.is_empty());
    let all = call::<DescribeInstanceStatus>(&ctx, "IncludeAllInstances=true")
        .await
        .unwrap();
    assert_eq!(
        all.instance_status_set[0].system_status.status,
        "not-applicable"
    );
    becomes(&ctx, &id, InstanceState::Running).await;
    let up = call::<DescribeInstanceStatus>(&ctx, "").await.unwrap();
    assert_eq!(up.instance_status_set[0].system_status.status, "ok");

    let status = async |answers| {
        if let Some((boot, answers)) = answers {
            ctx.transact(|_, change| {
                change.overwrite(&Reachability {
                    scope: samples::scope(),
                    instance: id.parse().unwrap(),
                    boot,
                    reboots: 0,
                    answers,
                    since: samples::time(),
                });
                Ok(())
            })
            .await
            .unwrap();
        }
        let mut answer = call::<DescribeInstanceStatus>(&ctx, "").await.unwrap();
        let summary = answer.instance_status_set.remove(0).instance_status;
        let detail = summary.details.unwrap().remove(0);
        let impaired = detail.impaired_since.is_some();
        format!("{} {} {impaired}", summary.status, detail.status)
    };
    for (seen, expected) in [
        (None, "initializing initializing false"),
        (Some((0, true)), "initializing initializing false"),
        (Some((1, true)), "ok passed false"),
        (Some((1, false)), "impaired failed true"),
    ] {
        assert_eq!(status(seen).await, expected);
    }
}

#[tokio::test]
async fn many_are_several_transactions_and_one_that_is_refused_keeps_all() {
    let ctx = cloud_of(100).await;
    let text = RUN.replace("MaxCount=1", "MaxCount=60");
    let made = call::<RunInstances>(&ctx, &text).await.unwrap();
    let ids: Vec<String> = made
        .instances_set
        .into_iter()
        .map(|i| i.instance_id)
        .collect();
    let all: Vec<String> = (1..)
        .zip(&ids)
        .map(|(n, id)| format!("InstanceId.{n}={id}"))
        .collect();
    let all = all.join("&");
    let last = format!("InstanceId={}&DisableApiTermination.Value", ids[59]);
    let protect = format!("{last}=true");
    call::<ModifyInstanceAttribute>(&ctx, &protect)
        .await
        .unwrap();
    assert_eq!(
        code::<TerminateInstances>(&ctx, &all).await,
        "OperationNotPermitted"
    );
    let pending = || -> usize {
        let picture = ctx.view();
        picture
            .view()
            .by(Instance::BY_STATE, "pending")
            .map(|_| 1)
            .sum()
    };
    assert_eq!(pending(), 60);
    let free = format!("{last}=false");
    call::<ModifyInstanceAttribute>(&ctx, &free).await.unwrap();
    let ended = call::<TerminateInstances>(&ctx, &all).await.unwrap();
    let ended = ended.instances_set.iter().map(|c| &c.instance_id);
    assert!(ended.eq(&ids));
    assert_eq!(pending(), 0);
}

/// What Describe and a commit cost, against the number of instances. No test of
/// time: `HEARTH_MEASURE=1 cargo test --release what_a_page_costs -- --ignored
/// --nocapture` prints it.
#[tokio::test]
#[ignore = "a measurement"]
async fn what_a_page_costs() {
    if std::env::var_os("HEARTH_MEASURE").is_none() {
        return;
    }
    println!(
        "instances  page of 5  one id  page of 1000  filtered page  commit (us, median of 21)"
    );
    for count in [100u32, 1000, 10_000, 30_000] {
        let db = Db::in_memory().await;
        let ctx = cloud_on(db.clone()).await;
        let record = |n: u32| Instance {
            id: InstanceId::from_random(n.into()),
            reservation: ReservationId::from_random(u128::from(n / 50)),
            enis: vec![EniId::from_random(n.into())],
            root_volume: VolumeId::from_random(n.into()),
            state: InstanceState::Running,
            ..samples::instance(1)
        };
        let numbers: Vec<u32> = (0..count).collect();
        for numbers in numbers.chunks(500) {
            ctx.transact(|_, change| {
                for &n in numbers {
                    let instance = record(n);
                    change.overwrite(&Eni {
                        id: instance.enis[0].clone(),
                        instance: Some(instance.id.clone()),
                        public_ip: None,
                        ..samples::eni(1)
                    });
                    let mut volume = samples::volume(1);
                    volume.id = instance.root_volume.clone();
                    if let Some(attachment) = &mut volume.attachment {
                        attachment.instance = instance.id.clone();
                    }
                    change.overwrite(&volume);
                    change.overwrite(&instance);
                }
                Ok(())
            })
            .await
            .unwrap();
        }
        let mut columns = Vec::new();
        for text in [
            "MaxResults=5".to_owned(),
            format!("InstanceId.1={}", record(count / 2).id),
            "MaxResults=1000".to_owned(),
            "MaxResults=1000&Filter.1.Name=instance-state-name&Filter.1.Value.1=stopped".to_owned(),
        ] {
            let mut times = Vec::new();
            for _ in 0..21 {
                let began = std::time::Instant::now();
                call::<DescribeInstances>(&ctx, &text).await.unwrap();
                times.push(began.elapsed().as_micros());
            }
            times.sort_unstable();
            columns.push(times[10]);
        }
        let mut times = Vec::new();
        for launch_index in 0..21 {
            let began = std::time::Instant::now();
            ctx.transact(|_, change| {
                change.overwrite(&Instance {
                    launch_index,
                    ..record(count / 2)
                });
                Ok(())
            })
            .await
            .unwrap();
            times.push(began.elapsed().as_micros());
        }
        times.sort_unstable();
        columns.push(times[10]);
        println!("{count:9}  {columns:?}");
    }
}
