//! What an instance may take of its host, and what a guest that broke out of its
//! VMM would find: cgroup v2 holds the VMM to the instance's type, and the jail
//! holds it to its own files.

use hearth_tests::Cloud;
use serde_json::{Value, json};

/// What the VMM may have beside its guest's memory: what it was admitted with,
/// a share of that for page tables and a fixed part; and page cache.
fn memory_max(guest: u64) -> u64 {
    guest + guest / 128 + (16 << 20) + (128 << 20)
}

/// The instance that `scripts/up` left running.
fn first(cloud: &Cloud) -> Value {
    let running = "Name=instance-state-name,Values=running";
    let found = cloud
        .aws
        .call(&["ec2", "describe-instances", "--filters", running]);
    let first = found["Reservations"][0]["Instances"][0].clone();
    assert!(first.is_object(), "nothing runs after scripts/up: {found}");
    first
}

fn text<'v>(instance: &'v Value, name: &str) -> &'v str {
    let value = instance[name].as_str();
    value.unwrap_or_else(|| panic!("no {name}: {instance}"))
}

/// The instance's control group.
fn group(instance: &Value) -> String {
    format!("/sys/fs/cgroup/$label/{}", text(instance, "InstanceId"))
}

/// The one process in a control group. KVM puts a thread of the kernel's beside
/// it, which is no program.
fn process(cloud: &Cloud, group: &str) -> u32 {
    let found = cloud.host.run(&format!(
        "for pid in $(cat {group}/cgroup.procs); do
            ! readlink /proc/$pid/exe > /dev/null || echo $pid
         done"
    ));
    found.parse().unwrap_or_else(|_| panic!("{group}: {found}"))
}

#[test]
fn an_instance_is_held_to_its_type() {
    let cloud = Cloud::running();
    let first = first(&cloud);
    let kind = text(&first, "InstanceType");
    let kinds = cloud
        .aws
        .call(&["ec2", "describe-instance-types", "--instance-types", kind]);
    let kind = &kinds["InstanceTypes"][0];
    let number = |value: &Value| value.as_u64().expect("a number");
    let vcpus = number(&kind["VCpuInfo"]["DefaultVCpus"]);
    let guest = number(&kind["MemoryInfo"]["SizeInMiB"]) << 20;

    let group = group(&first);
    let file = |name: &str| cloud.host.run(&format!("cat {group}/{name}"));
    assert_eq!(file("cpu.max"), format!("{} 100000", vcpus * 100_000));
    assert_eq!(file("memory.max"), memory_max(guest).to_string());
    assert_eq!(file("memory.oom.group"), "1");
    assert_eq!(file("pids.max"), (vcpus + 512).to_string());

    // It is the VMM that they hold, all of it and nothing else.
    let vmm = process(&cloud, &group);
    assert_eq!(
        cloud.host.run(&format!("cat /proc/{vmm}/comm")),
        "hearth-vmm"
    );
    // When the host's own memory runs out, it goes long before hearth does.
    let score = |pid: &str| cloud.host.run(&format!("cat /proc/{pid}/oom_score_adj"));
    assert_eq!(score(&vmm.to_string()), "500");
    let hearth = "grep -lx hearth /proc/[0-9]*/comm | head -n 1 | cut -d / -f 3";
    assert_eq!(score(&cloud.host.run(hearth)), "-900");
}

#[test]
fn its_vmm_is_in_the_jail() {
    let cloud = Cloud::running();
    let vmm = process(&cloud, &group(&first(&cloud)));
    let machine = cloud.host.run(&format!(
        "socket=$(tr '\\0' '\\n' < /proc/{vmm}/cmdline | grep -x -A 1 -e --socket | tail -n 1)
         curl -sS --max-time 30 --unix-socket $socket http://vmm/v1/machine"
    ));
    let machine: Value = serde_json::from_str(&machine).expect("JSON");
    let layers = [
        "cgroup",
        "namespaces",
        "chroot",
        "user",
        "capabilities",
        "landlock",
        "seccomp",
        "io-uring",
    ];
    assert_eq!(machine["jail"], json!(layers));
    // As its host sees it: no user that anybody is, and no way to any privilege.
    let status = cloud.host.run(&format!("cat /proc/{vmm}/status"));
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line} in\n{status}");
    }
    assert!(!status.contains("Uid:\t0\t"), "{status}");
}
