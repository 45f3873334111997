//! Memory that comes and goes under a stock kernel.

use hearth_tests::{Vm, wait};
use serde_json::json;

use crate::hotplug::wait_paused;

const MIB: u64 = 1 << 20;

/// Asks the guest to have so much, and waits until it has. What can't be moved at once,
/// Linux leaves for the better part of a minute, and then for longer.
fn change(vm: &Vm, mib: u64) {
    let body = json!({ "memory_bytes": mib * MIB });
    vm.api("PATCH", "/v1/machine", Some(&body));
    wait::until(&format!("the guest has {mib} MiB"), 300, || {
        let there = vm.api("GET", "/v1/machine", None)["memory_bytes"].take();
        match there == mib * MIB {
            true => Ok(()),
            false => Err(there),
        }
    });
}

#[test]
fn memory_comes_and_goes_under_a_stock_kernel() {
    let mut vm = Vm::of("debian-12")
        .memory_of(256, 512)
        .append("memhp_default_state=online_movable")
        .boot();
    vm.run("modprobe virtio_mem");
    change(&vm, 384);
    let total = "$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)";
    vm.run(&format!("[ {total} -gt 256 ]"));
    // Some of what lies there must move when it goes.
    vm.run("mount -t tmpfs tmp /mnt && head -c 20000000 /dev/urandom > /mnt/data");
    let sum = vm.run("md5sum < /mnt/data");
    change(&vm, 512);
    change(&vm, 384);
    vm.api("PUT", "/v1/pause", None);
    wait_paused(&vm);
    let snapshot = vm.dir.path().join("snapshot");
    std::fs::create_dir(&snapshot).expect("a folder");
    vm.api("PUT", "/v1/snapshot", Some(&json!({ "path": snapshot })));
    vm.restore(&snapshot);
    assert_eq!(vm.run("md5sum < /mnt/data"), sum);
    change(&vm, 512);
    change(&vm, 256);
    vm.run(&format!("[ {total} -lt 256 ]"));
    assert_eq!(vm.run("md5sum < /mnt/data"), sum);
}
