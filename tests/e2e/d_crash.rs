//! `kill -9` of the control plane: instances run on, and what was half done gets
//! finished.

use hearth_tests::{Cloud, wait};

#[test]
fn instances_outlive_the_control_plane() {
    let cloud = Cloud::running();
    let before = cloud.host.run("hearth_vmms | sort");
    assert!(
        !before.is_empty(),
        "nothing runs: scripts/up's first instance should"
    );
    cloud.kill_and_restart();
    assert_eq!(cloud.host.run("hearth_vmms | sort"), before);
    let found = cloud.aws.call(&[
        "ec2",
        "describe-instances",
        "--filters",
        "Name=instance-state-name,Values=running",
    ]);
    let running = found["Reservations"].as_array().map_or(0, |r| {
        r.iter()
            .map(|r| r["Instances"].as_array().map_or(0, Vec::len))
            .sum()
    });
    assert_eq!(running, before.lines().count(), "{found}");
    let first = cloud.aws.call(&[
        "ec2",
        "describe-instances",
        "--filters",
        "Name=tag:made-by,Values=scripts/up",
        "Name=instance-state-name,Values=running",
    ]);
    let ip = first["Reservations"][0]["Instances"][0]["PublicIpAddress"]
        .as_str()
        .expect("a public address");
    wait::until("its page, still", 60, || {
        cloud.host.curl(&format!("http://{ip}/"))
    });
}

#[test]
fn a_launch_that_was_cut_off_is_finished() {
    let cloud = Cloud::running();
    let image = cloud.image("micro");
    let launched = cloud.aws.call(&[
        "ec2",
        "run-instances",
        "--image-id",
        &image,
        "--instance-type",
        "t3.nano",
        "--count",
        "2",
    ]);
    let ids: Vec<String> = launched["Instances"]
        .as_array()
        .expect("instances")
        .iter()
        .map(|i| i["InstanceId"].as_str().expect("an id").to_owned())
        .collect();
    cloud.kill_and_restart();
    for id in &ids {
        cloud.wait_for(id, "running", 120);
        assert_eq!(
            cloud.host.run(&format!("pgrep -fc 'hearth-vmm .*{id}'")),
            "1",
            "one VMM for {id}, no more"
        );
    }
    let all = [
        &["ec2", "terminate-instances", "--instance-ids"][..],
        &ids.iter().map(String::as_str).collect::<Vec<_>>(),
    ]
    .concat();
    cloud.aws.call(&all);
    cloud.kill_and_restart();
    for id in &ids {
        cloud.wait_for(id, "terminated", 120);
        wait::until("its VMM is gone", 20, || {
            match cloud
                .host
                .try_run(&format!("pgrep -f 'hearth-vmm .*{id}'"))
                .stdout
            {
                s if s.is_empty() => Ok(()),
                s => Err(s),
            }
        });
    }
}
