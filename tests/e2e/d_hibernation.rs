//! Hibernation: what was in memory is there again, once.

use hearth_tests::{Cloud, Outside, wait};

/// What the guest keeps in memory alone, and who counts there.
const REMEMBER: &str =
    "sudo mkdir -p /kept; sudo mount -t tmpfs -o mode=777 none /kept; echo word > /kept/word
    cat > /kept/count.sh <<'SH'
n=0; while :; do n=$((n+1)); echo $n > /kept/new; mv /kept/new /kept/count; sleep 0.2; done
SH
    setsid sh /kept/count.sh > /dev/null 2>&1 < /dev/null & sleep 1; cat /kept/count";

#[test]
#[allow(clippy::too_many_lines)] // one list of steps, as a person would type them
fn a_guests_memory_lives_on() {
    let cloud = Cloud::running();
    let (aws, host) = (&cloud.aws, &cloud.host);
    let outside = Outside::new(host);
    let key = aws.call(&[
        "ec2",
        "create-key-pair",
        "--key-name",
        "hibernation",
        "--key-type",
        "ed25519",
    ]);
    let key = key["KeyMaterial"].as_str().expect("the private key");
    // ssh from anywhere, by scripts/up's group.
    let group = aws.call(&[
        "ec2",
        "describe-security-groups",
        "--group-names",
        "first",
        "--query",
        "SecurityGroups[0].GroupId",
    ]);
    let launched = aws.call(&[
        "ec2",
        "run-instances",
        "--image-id",
        &cloud.image("micro"),
        "--instance-type",
        "t3.nano",
        "--key-name",
        "hibernation",
        "--hibernation-options",
        "Configured=true",
        "--security-group-ids",
        group.as_str().expect("a group"),
        "--user-data",
        "#!/bin/sh\nmkdir -p /srv; echo once >> /srv/runs; sync\n",
    ]);
    let id = launched["Instances"][0]["InstanceId"]
        .as_str()
        .expect("an instance id");
    let ssh = |command: &str| {
        let ip = cloud.instance(id);
        let ip = ip.public_ip().expect("a public address");
        wait::until(command, 120, || outside.ssh(key, "ec2-user", ip, command))
    };
    let hibernate = || {
        aws.call(&["ec2", "stop-instances", "--instance-ids", id, "--hibernate"]);
    };
    let start = || {
        aws.call(&["ec2", "start-instances", "--instance-ids", id]);
        cloud.wait_for(id, "running", 120)
    };
    let boot = || ssh("cat /proc/sys/kernel/random/boot_id");
    // Its memory's files on the host: mode, owner, name.
    let files = || {
        host.run(&format!("cd $data/instances/{id} && find memory* -type f -printf '%m %u %p\\n' 2>/dev/null | sort; true"))
    };

    let running = cloud.wait_for(id, "running", 120);
    assert_eq!(ssh("cat /srv/runs"), "once");
    let first_boot = boot();
    let count: u64 = ssh(REMEMBER).parse().expect("a number");

    hibernate();
    let stopped = cloud.wait_for(id, "stopped", 240);
    let reason = &stopped.0["StateReason"]["Code"];
    assert_eq!(reason, "Client.UserInitiatedHibernate", "{}", stopped.0);
    assert_eq!(stopped.public_ip(), None);
    assert_eq!(
        files(),
        "600 root memory-1/machine.json\n600 root memory-1/memory"
    );
    assert_eq!(
        host.run(&format!("pgrep -fc 'hearth-vmm .*{id}'; true")),
        "0"
    );

    let started = start();
    assert_ne!(started.public_ip(), running.public_ip());
    assert_eq!(started.private_ip(), running.private_ip());
    assert_eq!(ssh("cat /kept/word"), "word");
    assert_eq!(boot(), first_boot, "it booted");
    assert_eq!(ssh("cat /srv/runs"), "once", "user data ran again");
    let before: u64 = ssh("cat /kept/count").parse().expect("a number");
    assert!(before >= count, "{before} after {count}");
    wait::until("it counts on", 60, || {
        let now: u64 = ssh("cat /kept/count").parse().expect("a number");
        (now > before).then_some(()).ok_or(now)
    });
    assert_eq!(files(), "", "given out once");
    // Its clock is right, and its metadata are there.
    let ahead: i64 = ssh("date +%s").parse::<i64>().expect("seconds")
        - host.run("date +%s").parse::<i64>().expect("seconds");
    assert!(ahead.abs() < 30, "{ahead} s");
    let own = "wget -q -T 5 -O - http://169.254.169.254/latest/meta-data/instance-id";
    assert_eq!(ssh(own), id);

    // Memory that is damaged is a boot from cold.
    hibernate();
    cloud.wait_for(id, "stopped", 240);
    host.run(&format!(
        "truncate -s 1000 $data/instances/{id}/memory-2/machine.json"
    ));
    start();
    let second_boot = boot();
    assert_ne!(second_boot, first_boot);
    assert_eq!(ssh("cat /srv/runs"), "once", "user data ran again");
    assert_eq!(files(), "");

    // Nor does a control plane that is killed leave anything between.
    ssh(REMEMBER);
    hibernate();
    cloud.kill_and_restart();
    let stopped = cloud.wait_for(id, "stopped", 240);
    aws.call(&["ec2", "start-instances", "--instance-ids", id]);
    cloud.kill_and_restart();
    cloud.wait_for(id, "running", 120);
    match boot() == second_boot {
        true => assert_eq!(ssh("cat /kept/word"), "word"),
        // Killed between taking memory and the VMM that it was for.
        false => eprintln!("it booted from cold: {}", stopped.0["StateReason"]),
    }
    let complaints = ssh("dmesg | grep -iE 'ext4.*error|lockup|i/o error' || echo none");
    assert_eq!(complaints, "none");
    assert_eq!(files(), "");

    // Nothing is left of one that is terminated as it hibernates.
    hibernate();
    cloud.wait_for(id, "stopped", 240);
    aws.call(&["ec2", "terminate-instances", "--instance-ids", id]);
    cloud.wait_for(id, "terminated", 60);
    wait::until("nothing left on the host", 60, || {
        let left = host.run(&format!("ls -d $data/instances/{id} 2>/dev/null; true"));
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    aws.call(&["ec2", "delete-key-pair", "--key-name", "hibernation"]);
}
