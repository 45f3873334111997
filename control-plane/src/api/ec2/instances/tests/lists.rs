//! What lists show of instances, and what a page costs.

use super::*;

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
