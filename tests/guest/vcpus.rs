//! vCPUs that come and go under stock kernels.

use hearth_tests::{Vm, wait};
use serde_json::json;

use crate::hotplug::until;

fn change(vm: &Vm, vcpus: u8) {
    vm.api("PATCH", "/v1/machine", Some(&json!({ "vcpus": vcpus })));
}

/// Waits until the guest has let go of all but so many.
fn are(vm: &Vm, vcpus: u8) {
    wait::until(&format!("vCPUs are {vcpus}"), 60, || {
        let there = vm.api("GET", "/v1/machine", None)["vcpus"].take();
        match there == vcpus {
            true => Ok(()),
            false => Err(there),
        }
    });
}

fn online(vm: &mut Vm) -> String {
    vm.run("cat /sys/devices/system/cpu/online")
}

#[test]
fn vcpus_come_and_go_under_stock_kernels() {
    for image in ["micro", "debian-12"] {
        let mut vm = Vm::of(image).vcpus_of(1, 4).boot();
        assert_eq!(vm.run("cat /sys/devices/system/cpu/possible"), "0-3");
        assert_eq!(vm.run("cat /sys/devices/system/cpu/present"), "0");
        for round in 0..3 {
            change(&vm, 3);
            until(&mut vm, "[ -e /sys/devices/system/cpu/cpu2 ]");
            assert_eq!(online(&mut vm), "0", "no kernel onlines them by itself");
            vm.run("for n in 1 2; do echo 1 > /sys/devices/system/cpu/cpu$n/online; done");
            assert_eq!(online(&mut vm), "0-2", "{image}, {round}");
            // Work on each.
            vm.run("for n in 0 1 2; do taskset $((1 << n)) true || exit 1; done");
            change(&vm, 2);
            until(&mut vm, "[ ! -e /sys/devices/system/cpu/cpu2 ]");
            are(&vm, 2);
            assert_eq!(online(&mut vm), "0-1");
            change(&vm, 1);
            are(&vm, 1);
            assert_eq!(online(&mut vm), "0");
        }
    }
}

/// Whoever else onlines them is user space.
#[test]
fn debian_needs_one_udev_rule_to_use_a_vcpu_that_came() {
    const RULE: &str =
        r#"SUBSYSTEM=="cpu", ACTION=="add", TEST=="online", ATTR{online}=="0", ATTR{online}="1""#;
    let mut vm = Vm::of("debian-12").vcpus_of(1, 2).boot();
    vm.run("mount -t tmpfs none /run; /lib/systemd/systemd-udevd --daemon");
    change(&vm, 2);
    until(&mut vm, "[ -e /sys/devices/system/cpu/cpu1 ]");
    vm.run("udevadm settle");
    assert_eq!(online(&mut vm), "0");
    change(&vm, 1);
    are(&vm, 1);
    vm.run(&format!(
        "mkdir -p /run/udev/rules.d; echo '{RULE}' > /run/udev/rules.d/90-cpu.rules"
    ));
    vm.run("udevadm control --reload");
    change(&vm, 2);
    until(&mut vm, "grep -qx 0-1 /sys/devices/system/cpu/online");
}
