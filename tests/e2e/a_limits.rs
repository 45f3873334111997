//! What an instance may take of its host: cgroup v2 holds its VMM to its type.

use hearth_tests::Cloud;

/// What the VMM may have beside its guest's memory: a share of that, for page
/// tables, and a fixed part.
fn memory_max(guest: u64) -> u64 {
    guest + guest / 64 + (192 << 20)
}

#[test]
fn an_instance_is_held_to_its_type() {
    let cloud = Cloud::running();
    let running = "Name=instance-state-name,Values=running";
    let found = cloud
        .aws
        .call(&["ec2", "describe-instances", "--filters", running]);
    let first = &found["Reservations"][0]["Instances"][0];
    let text = |name: &str| {
        let value = first[name].as_str();
        value.unwrap_or_else(|| panic!("nothing runs after scripts/up: {found}"))
    };
    let (id, kind) = (text("InstanceId"), text("InstanceType"));
    let kinds = cloud
        .aws
        .call(&["ec2", "describe-instance-types", "--instance-types", kind]);
    let kind = &kinds["InstanceTypes"][0];
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let vcpus = number(&kind["VCpuInfo"]["DefaultVCpus"]);
    let guest = number(&kind["MemoryInfo"]["SizeInMiB"]) << 20;

    let group = format!("/sys/fs/cgroup/hearth/{id}");
    let file = |name: &str| cloud.host.run(&format!("cat {group}/{name}"));
    assert_eq!(file("cpu.max"), format!("{} 100000", vcpus * 100_000));
    assert_eq!(file("memory.max"), memory_max(guest).to_string());
    assert_eq!(file("memory.oom.group"), "1");
    assert_eq!(file("pids.max"), (vcpus + 512).to_string());

    // It is the VMM that they hold, all of it and nothing else.
    let programs = cloud.host.run(&format!(
        "for pid in $(cat {group}/cgroup.procs); do cat /proc/$pid/comm; done"
    ));
    assert_eq!(programs, "hearth-vmm");
    let used: u64 = file("memory.current").parse().expect("bytes");
    assert!(used < memory_max(guest), "{used}");
}
