//! A host that reboots: what ran is started again, as the same machine. The host of
//! these tests doesn't reboot, but all goes that a reboot takes: every process of the
//! cloud at once, its namespaces and rules, its control groups, /run; and the kernel
//! says that it is another boot.

use hearth_tests::{Cloud, Host, Outside, wait};

/// The kernel's id of this boot, until this is dropped another one.
struct AnotherBoot<'a>(&'a Host);

impl<'a> AnotherBoot<'a> {
    fn new(host: &'a Host) -> Self {
        host.run(
            "cat /proc/sys/kernel/random/uuid > /run/test-boot-id
             mount --bind /run/test-boot-id /proc/sys/kernel/random/boot_id",
        );
        Self(host)
    }
}

impl Drop for AnotherBoot<'_> {
    fn drop(&mut self) {
        self.0
            .try_run("umount /proc/sys/kernel/random/boot_id; rm -f /run/test-boot-id");
    }
}

/// Takes from the host all that a reboot would, and says how hearth ran, as the lines
/// of a script that runs it so again.
fn power_cut(host: &Host) -> String {
    host.run(
        "pid=$(hearth_pid); exe=$(readlink -f /proc/$pid/exe)
         mapfile -d '' args < /proc/$pid/cmdline
         log=$(readlink -f /proc/$pid/fd/2); [ -f \"$log\" ] || log=/dev/null
         run=/run/$label
         for ((n = 0; n < ${#args[@]}; n++)); do
             [ \"${args[n]}\" != --run-dir ] || run=${args[n + 1]}
         done
         all=\"$pid $(hearth_vmms) $(hearth_vmms templates/)\"
         kill -9 $all
         for p in $all; do
             for ((try = 0; ; try++)); do
                 [ -e /proc/$p ] && ! grep -q ^State:.Z /proc/$p/status || break
                 [ $try -lt 600 ] || { echo \"$p doesn't end:\"; cat /proc/$p/status; exit 1; } >&2
                 sleep 0.1
             done
         done
         for ns in $(ip netns list | awk -v l=$label 'index($1, l \"-vpc-\") == 1 {print $1}'); do
             ip netns del $ns
         done
         nft list tables | awk -v l=$label '$3 == l {print $2, $3}' | while read -r table; do
             nft delete table $table
         done
         for group in $(find /sys/fs/cgroup/$label -depth -type d); do
             for try in 1 2 3 4 5 6 7 8 9 10; do rmdir $group && break; sleep 0.1; done
         done
         rm -rf \"$run\"
         awk -v d=\"$data/\" 'index($2, d) == 1 {print $2}' /proc/mounts | while read -r folder; do
             umount \"$folder\"
         done
         printf 'setsid %q' \"$exe\"; printf ' %q' \"${args[@]:1}\"
         printf ' >> %q 2>&1 < /dev/null &\\n' \"$log\"",
    )
}

/// All instances that run: id, private and public address.
fn running(cloud: &Cloud) -> Vec<String> {
    let found = cloud.aws.call(&[
        "ec2",
        "describe-instances",
        "--filters",
        "Name=instance-state-name,Values=running",
        "--query",
        "sort(Reservations[].Instances[].join(' ', [InstanceId, PrivateIpAddress, \
         PublicIpAddress]))",
    ]);
    let found = found.as_array().expect("a list");
    let lines = found.iter().map(|line| line.as_str().expect("a line"));
    lines.map(str::to_owned).collect()
}

#[test]
fn what_ran_runs_again_after_a_reboot_of_the_host() {
    let cloud = Cloud::running();
    let (aws, host) = (&cloud.aws, &cloud.host);
    let outside = Outside::new(host);
    let key = aws.call(&[
        "ec2",
        "create-key-pair",
        "--key-name",
        "reboot",
        "--key-type",
        "ed25519",
    ]);
    let key = key["KeyMaterial"].as_str().expect("the private key");
    // ssh from anywhere, by scripts/up's group.
    let groups = aws.call(&[
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
        "reboot",
        "--security-group-ids",
        groups.as_str().expect("a group"),
        "--user-data",
        "#!/bin/sh\nmkdir -p /srv; echo once >> /srv/runs; sync\n",
    ]);
    let id = launched["Instances"][0]["InstanceId"]
        .as_str()
        .expect("an instance id");
    let instance = cloud.wait_for(id, "running", 60);
    let ip = instance.public_ip().expect("a public address");
    let ssh =
        |command: &str| wait::until(command, 120, || outside.ssh(key, "ec2-user", ip, command));
    assert_eq!(ssh("cat /srv/runs"), "once");
    let boot = ssh("cat /proc/sys/kernel/random/boot_id");
    let before = running(&cloud);
    assert!(
        before.len() > 1,
        "scripts/up's first instance should run: {before:?}"
    );

    let another = AnotherBoot::new(host);
    let again = power_cut(host);
    assert_eq!(host.run("hearth_vmms"), "");
    host.run(&again);
    wait::until("hearth answers again", 60, || {
        aws.try_call(&["ec2", "describe-regions"])
    });
    // The same machines at the same addresses, as the API and the host have them.
    wait::until("all run again", 120, || {
        let vmms = host.run("hearth_vmms | wc -l");
        let now = running(&cloud);
        if now == before && vmms == before.len().to_string() {
            Ok(())
        } else {
            Err(format!("{now:?} with {vmms} VMMs"))
        }
    });
    assert_ne!(ssh("cat /proc/sys/kernel/random/boot_id"), boot);
    assert_eq!(ssh("cat /srv/runs"), "once", "user data ran again");

    // Back in the boot that this host is in: a second reboot.
    let again = power_cut(host);
    drop(another);
    host.run(&again);
    wait::until("hearth answers again", 60, || {
        aws.try_call(&["ec2", "describe-regions"])
    });
    wait::until("all run once more", 120, || {
        let now = running(&cloud);
        if now == before {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
    aws.call(&["ec2", "terminate-instances", "--instance-ids", id]);
    cloud.wait_for(id, "terminated", 60);
    aws.call(&["ec2", "delete-key-pair", "--key-name", "reboot"]);
}
