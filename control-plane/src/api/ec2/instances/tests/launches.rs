//! RunInstances: what it makes, in how many transactions, and what it refuses.

use super::*;
use crate::api::{
    Idempotency,
    ec2::security_groups::{CreateSecurityGroup, DeleteSecurityGroup},
};

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
