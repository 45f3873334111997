//! Two accounts on one cloud: neither sees, names or changes what the other has.

use super::{
    super::{key_pairs::*, security_groups::*, tags::*, volumes::*, vpcs::*},
    tests::{RUN, call, cloud_on, code},
    *,
};
use crate::{
    api::Ctx,
    bootstrap::ensure_default_vpc,
    config::Config,
    model::{Eni, Regional as _, Scope, SecurityGroup, Tags, Volume, Vpc},
    store::Db,
};

/// The first account, which has something of everything, and another.
async fn two() -> (Ctx, Ctx) {
    let db = Db::in_memory().await;
    let first = cloud_on(db.clone()).await;
    let scope = Scope::new("111111111111", "us-east-1");
    ensure_default_vpc(&db, &Config::for_tests(), &scope)
        .await
        .unwrap();
    let other = Ctx::for_tests_at(db, &scope);
    (first, other)
}

async fn all_of(ctx: &Ctx) -> [usize; 6] {
    [
        call::<DescribeInstances>(ctx, "")
            .await
            .unwrap()
            .reservation_set
            .len(),
        call::<DescribeInstanceStatus>(ctx, "IncludeAllInstances=true")
            .await
            .unwrap()
            .instance_status_set
            .len(),
        ctx.view().view().all::<Volume>().count(),
        ctx.view().view().all::<SecurityGroup>().count(),
        ctx.view().view().all::<Vpc>().count(),
        ctx.view().view().all::<Tags>().count(),
    ]
}

#[tokio::test]
async fn nothing_of_another_account_is_seen_or_moves() {
    let (first, other) = two().await;
    let tagged = "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=a";
    let run = format!("{RUN}{tagged}");
    let made = call::<RunInstances>(&first, &run).await.unwrap();
    let i = &made.instances_set[0];
    let (instance, volume) = (&i.instance_id, &i.block_device_mapping[0].ebs.volume_id);
    let (group, subnet) = (&i.group_set[0].group_id, i.subnet_id.as_ref().unwrap());
    let vpc = i.vpc_id.as_ref().unwrap();
    let revision = first.view().view().whole().revision();

    let one = format!("InstanceId={instance}");
    let list = format!("InstanceId.1={instance}");
    let ctx = &other;
    for (answer, expected) in [
        (
            code::<DescribeInstances>(ctx, &list).await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<TerminateInstances>(ctx, &list).await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<StopInstances>(ctx, &list).await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<StartInstances>(ctx, &list).await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<RebootInstances>(ctx, &list).await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<GetConsoleOutput>(ctx, &one).await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<DescribeInstanceAttribute>(ctx, &format!("{one}&Attribute=userData")).await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<ModifyInstanceAttribute>(ctx, &format!("{one}&SourceDestCheck.Value=false"))
                .await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<DescribeVolumes>(ctx, &format!("VolumeId.1={volume}")).await,
            "InvalidVolume.NotFound",
        ),
        (
            code::<DeleteVolume>(ctx, &format!("VolumeId={volume}")).await,
            "InvalidVolume.NotFound",
        ),
        (
            code::<DescribeSecurityGroups>(ctx, &format!("GroupId.1={group}")).await,
            "InvalidGroup.NotFound",
        ),
        (
            code::<DeleteSecurityGroup>(ctx, &format!("GroupId={group}")).await,
            "InvalidGroup.NotFound",
        ),
        (
            code::<CreateSecurityGroup>(
                ctx,
                &format!("GroupName=x&GroupDescription=d&VpcId={vpc}"),
            )
            .await,
            "InvalidVpcID.NotFound",
        ),
        (
            code::<DescribeVpcs>(ctx, &format!("VpcId.1={vpc}")).await,
            "InvalidVpcID.NotFound",
        ),
        (
            code::<RunInstances>(ctx, &format!("{RUN}&SubnetId={subnet}")).await,
            "InvalidSubnetID.NotFound",
        ),
        (
            code::<RunInstances>(ctx, &format!("{RUN}&SecurityGroupId.1={group}")).await,
            "InvalidGroup.NotFound",
        ),
        (
            code::<CreateTags>(ctx, &format!("ResourceId.1={instance}&Tag.1.Key=b")).await,
            "InvalidInstanceID.NotFound",
        ),
        (
            code::<DeleteTags>(ctx, &format!("ResourceId.1={instance}")).await,
            "InvalidInstanceID.NotFound",
        ),
    ] {
        assert_eq!(answer, expected);
    }
    assert_eq!(first.view().view().whole().revision(), revision);
    // Its own default VPC and group, and nothing else.
    assert_eq!(all_of(&other).await, [0, 0, 0, 1, 1, 0]);

    // Names are each account's own; images are everybody's.
    for ctx in [&first, &other] {
        let made = call::<CreateSecurityGroup>(ctx, "GroupName=web&GroupDescription=d").await;
        made.unwrap();
        let key = "KeyName=me&KeyType=ed25519";
        assert_eq!(code::<CreateKeyPair>(ctx, key).await, "no error");
        assert_eq!(
            code::<CreateKeyPair>(ctx, key).await,
            "InvalidKeyPair.Duplicate"
        );
    }
    let theirs = call::<RunInstances>(&other, RUN).await.unwrap();
    assert_eq!(theirs.owner_id, "111111111111");
    let picture = other.view();
    let eni = picture.view().all::<Eni>().next().unwrap();
    assert_eq!(eni.home(), other.scope());
    assert_eq!(all_of(&first).await[0], 1);
}
