//! Instances that go on from a template, each as one of its own.
//!
//! By hand, in a cloud that `HEARTH_WARM_TEMPLATES=2 scripts/up` started and whose
//! `hearth.env` is in the environment: `cargo test -p hearth-tests --test warm`. The cloud
//! of `scripts/test` has no templates.

use std::collections::BTreeMap;

use hearth_tests::{Cloud, wait};

/// Says on the console what must be this instance's alone, a line for each.
const SAYS: &str = r#"#!/bin/sh
say() { echo "own $1 $2"; }
say random "$(head -c 16 /dev/urandom | hexdump -ve '1/1 "%02x"')"
say boot "$(cat /proc/sys/kernel/random/boot_id)"
say uuid "$(cat /sys/class/dmi/id/product_uuid)"
say serial "$(cat /sys/class/dmi/id/product_serial)"
say tag "$(cat /sys/class/dmi/id/board_asset_tag)"
say hostname "$(hostname)"
say address "$(ip -4 addr show dev eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')"
say ed25519 "$(md5sum < /etc/dropbear/dropbear_ed25519_host_key | cut -c 1-32)"
say ecdsa "$(md5sum < /etc/dropbear/dropbear_ecdsa_host_key | cut -c 1-32)"
say late "$(( ($(date +%s) - NOW) / 600 ))"
say end end
"#;

/// The step of a launch that goes on from a template.
const STEP: &str = "a template, to go on from";

/// Those that two instances may not share.
const OWN: [&str; 9] = [
    "random", "boot", "uuid", "serial", "tag", "hostname", "address", "ed25519", "ecdsa",
];

/// How many are launched at once: `HEARTH_WARM_LAUNCHES`, or three.
fn launches() -> usize {
    let said = std::env::var("HEARTH_WARM_LAUNCHES").ok();
    said.and_then(|text| text.parse().ok()).unwrap_or(3)
}

fn run(cloud: &Cloud, count: usize, user_data: &str) -> Vec<String> {
    let launched = cloud.aws.call(&[
        "ec2",
        "run-instances",
        "--image-id",
        &cloud.image("micro"),
        "--instance-type",
        "t2.nano",
        "--count",
        &count.to_string(),
        "--user-data",
        user_data,
    ]);
    let instances = launched["Instances"].as_array().expect("instances").iter();
    let id = |instance: &serde_json::Value| {
        let id = instance["InstanceId"].as_str().expect("an id");
        id.to_owned()
    };
    instances.map(id).collect()
}

/// What an instance says of itself, once it has said all.
fn says(cloud: &Cloud, id: &str) -> BTreeMap<String, String> {
    wait::until(&format!("{id} says what it is"), 240, || {
        let output =
            cloud
                .aws
                .try_call(&["ec2", "get-console-output", "--latest", "--instance-id", id]);
        let output = output.map_err(|failure| failure.to_string())?;
        let text = output["Output"].as_str().unwrap_or_default().to_owned();
        let lines = text
            .lines()
            .filter_map(|line| line.trim().split_once("own "));
        let own = lines.filter_map(|(_, own)| own.split_once(' '));
        let own: BTreeMap<_, _> = own
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        assert!(!text.contains("hearth.hold"), "{text}");
        match own.contains_key("end") && text.contains(&format!("instance {id}")) {
            true => Ok(own),
            false => Err(text),
        }
    })
}

#[test]
fn launches_from_a_template_are_instances_of_their_own() {
    let cloud = Cloud::running();
    let host = &cloud.host;
    let flags = host.run("tr '\\0' ' ' < /proc/$(hearth_pid)/cmdline");
    assert!(
        flags.contains(" --warm-templates "),
        "this cloud has no templates; start one with HEARTH_WARM_TEMPLATES=2 scripts/up: {flags}"
    );
    // Those of an earlier run: a hearth makes anew what isn't there.
    host.run("rm -rf $data/templates/*");
    // The first of its type boots, and a template is made.
    let first = run(&cloud, 1, "#!/bin/sh\n");
    cloud.wait_for(&first[0], "running", 60);
    let trace = |id: &str| {
        host.run(&format!(
            "exe=$(readlink -f /proc/$(hearth_pid)/exe); $exe trace --data-dir $data {id}"
        ))
    };
    assert!(!trace(&first[0]).contains(STEP));
    wait::until("a template of its type", 240, || {
        let there = host.run(&format!(
            "grep -l t2.nano $data/templates/*/machine.json 2>/dev/null | wc -l; \
             tail -n 3 $data/instances/{}/vmm/console.log",
            first[0]
        ));
        match there.starts_with('1') {
            true => Ok(()),
            false => Err(there),
        }
    });
    let now = host.run("date +%s");
    let ids = run(&cloud, launches(), &SAYS.replace("NOW", &now));
    let mut seen: BTreeMap<(&str, String), String> = BTreeMap::new();
    for id in &ids {
        cloud.wait_for(id, "running", 120);
        let trace = trace(id);
        assert!(trace.contains(STEP), "{trace}");
        let own = says(&cloud, id);
        for key in OWN {
            let value = own.get(key).filter(|value| !value.is_empty());
            let value = value.unwrap_or_else(|| panic!("{id} has no {key}: {own:?}"));
            if let Some(other) = seen.insert((key, value.clone()), id.clone()) {
                panic!("{id} and {other} have the same {key}: {value}");
            }
        }
        // As a cold boot has them.
        assert_eq!(own["tag"], **id);
        assert_eq!(own["uuid"], own["serial"]);
        assert!(own["uuid"].starts_with("ec2"), "{own:?}");
        let described = cloud.instance(id);
        assert_eq!(own["address"], described.private_ip());
        let name = described.0["PrivateDnsName"].as_str().unwrap_or_default();
        assert!(name.starts_with(&own["hostname"]), "{name}: {own:?}");
        assert_eq!(own["late"], "0", "its clock is right");
    }
    for id in first.iter().chain(&ids) {
        cloud
            .aws
            .call(&["ec2", "terminate-instances", "--instance-ids", id]);
    }
    for id in first.iter().chain(&ids) {
        cloud.wait_for(id, "terminated", 120);
    }
}
