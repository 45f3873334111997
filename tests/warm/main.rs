//! Instances that go on from a template, each as one of its own.
//!
//! In the cloud of the tests in `e2e`, after those, which are of launches from cold: its
//! control plane is started anew with templates, and in the end without. Where a cloud has
//! templates from its start (`HEARTH_WARM_TEMPLATES=2 scripts/up`), those tests are of warm
//! launches, too.

use std::collections::BTreeMap;

use hearth_tests::{Cloud, Outside, wait};

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
say late "$(( ($(date +%s) - NOW) / 600 ))"
say end end
"#;

/// The step of a launch that goes on from a template.
const STEP: &str = "a template, to go on from";

/// Those that two instances may not share.
const OWN: [&str; 8] = [
    "random", "boot", "uuid", "serial", "tag", "hostname", "address", "ed25519",
];

/// How many are launched, in all and at most at once: `HEARTH_WARM_LAUNCHES`, or three. A
/// lab has memory for a dozen.
fn launches() -> (usize, usize) {
    let said = std::env::var("HEARTH_WARM_LAUNCHES").ok();
    (said.and_then(|text| text.parse().ok()).unwrap_or(3), 5)
}

fn run(cloud: &Cloud, count: usize, user_data: &str) -> Vec<String> {
    let launched = cloud.aws.call(&[
        "ec2",
        "run-instances",
        "--image-id",
        &cloud.image("micro"),
        "--instance-type",
        "t2.nano",
        "--key-name",
        "warm",
        "--security-groups",
        "first",
        "--hibernation-options",
        "Configured=true",
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

fn terminate(cloud: &Cloud, ids: &[String]) {
    let ids = ids.iter().map(String::as_str);
    let all = ["ec2", "terminate-instances", "--instance-ids"].into_iter();
    let all: Vec<_> = all.chain(ids.clone()).collect();
    cloud.aws.call(&all);
    for id in ids {
        cloud.wait_for(id, "terminated", 120);
    }
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

/// The steps of an instance's last launch.
fn trace(cloud: &Cloud, id: &str) -> String {
    cloud.host.run(&format!(
        "exe=$(readlink -f /proc/$(hearth_pid)/exe); $exe trace --data-dir $data {id}"
    ))
}

/// Waits for these, each of which went on from the template, and proves that none is
/// another, or one of those before it.
fn are_their_own(cloud: &Cloud, ids: &[String], seen: &mut BTreeMap<(&str, String), String>) {
    for id in ids {
        cloud.wait_for(id, "running", 120);
        let trace = trace(cloud, id);
        assert!(trace.contains(STEP), "{trace}");
        let own = says(cloud, id);
        for key in OWN {
            let value = own.get(key).filter(|value| !value.is_empty());
            let value = value.unwrap_or_else(|| panic!("{id} has no {key}: {own:?}"));
            if let Some(other) = seen.insert((key, value.clone()), id.clone()) {
                // An address is another's again, once who had it is gone.
                let both = [id, &other].map(|id| ids.contains(id));
                let again = matches!(key, "address" | "hostname") && both != [true, true];
                assert!(again, "{id} and {other} have the same {key}: {value}");
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
}

/// What is asked of an instance later is what is asked of one that booted: it hibernates
/// and goes on, and a reboot is a boot.
fn lives_as_any_other(cloud: &Cloud, id: &str, key: &str) {
    let (aws, outside) = (&cloud.aws, Outside::new(&cloud.host));
    let ssh = |command: &str| {
        let ip = cloud.instance(id);
        let ip = ip.public_ip().expect("a public address");
        wait::until(command, 120, || outside.ssh(key, "ec2-user", ip, command))
    };
    let boot = || ssh("cat /proc/sys/kernel/random/boot_id");
    let first = boot();
    aws.call(&["ec2", "stop-instances", "--instance-ids", id, "--hibernate"]);
    let stopped = cloud.wait_for(id, "stopped", 240);
    let reason = &stopped.0["StateReason"]["Code"];
    assert_eq!(reason, "Client.UserInitiatedHibernate", "{}", stopped.0);
    aws.call(&["ec2", "start-instances", "--instance-ids", id]);
    cloud.wait_for(id, "running", 120);
    assert_eq!(boot(), first, "it booted");
    aws.call(&["ec2", "reboot-instances", "--instance-ids", id]);
    wait::until("it has booted", 120, || match boot() {
        again if again == first => Err(again),
        again => Ok(again),
    });
    assert_eq!(
        ssh("cat /sys/class/dmi/id/board_asset_tag; grep -c hearth.hold /proc/cmdline; true"),
        format!("{id}\n0")
    );
}

#[test]
fn launches_from_a_template_are_instances_of_their_own() {
    let cloud = Cloud::running();
    let host = &cloud.host;
    let flags = host.run("tr '\\0' ' ' < /proc/$(hearth_pid)/cmdline");
    let had_templates = flags.contains(" --warm-templates ");
    if !had_templates {
        cloud.kill_and_restart_with("args+=(--warm-templates 2)");
    }
    // Those of an earlier run: a hearth makes anew what isn't there.
    host.run("rm -rf $data/templates/*");
    let key = cloud.aws.call(&[
        "ec2",
        "create-key-pair",
        "--key-name",
        "warm",
        "--key-type",
        "ed25519",
    ]);
    let key = key["KeyMaterial"].as_str().expect("the private key");

    // The first of its type boots, and a template is made.
    let first = run(&cloud, 1, "#!/bin/sh\n");
    cloud.wait_for(&first[0], "running", 60);
    assert!(!trace(&cloud, &first[0]).contains(STEP));
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
    terminate(&cloud, &first);

    // A hearth that is killed finds it again.
    cloud.kill_and_restart();
    let (mut left, at_once) = launches();
    let mut seen = BTreeMap::new();
    while left > 0 {
        let now = host.run("date +%s");
        let ids = run(&cloud, left.min(at_once), &SAYS.replace("NOW", &now));
        left -= ids.len();
        are_their_own(&cloud, &ids, &mut seen);
        if left == 0 {
            lives_as_any_other(&cloud, &ids[0], key);
        }
        terminate(&cloud, &ids);
    }
    cloud
        .aws
        .call(&["ec2", "delete-key-pair", "--key-name", "warm"]);

    if !had_templates {
        let without = "for n in \"${!args[@]}\"; do
             [ \"${args[n]}\" != --warm-templates ] || unset \"args[n]\" \"args[n+1]\"
         done";
        cloud.kill_and_restart_with(without);
        assert_eq!(host.run("ls $data/templates 2>/dev/null; true"), "");
    }
}
