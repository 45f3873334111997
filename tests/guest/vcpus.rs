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

#[test]
fn a_vcpu_that_was_never_set_to_work_comes_again() {
    let mut vm = Vm::of("micro").vcpus_of(1, 2).boot();
    for round in 0..2 {
        for is_used in [false, true] {
            change(&vm, 2);
            until(&mut vm, "[ -e /sys/devices/system/cpu/cpu1/online ]");
            if is_used {
                vm.run("echo 1 > /sys/devices/system/cpu/cpu1/online");
                assert_eq!(online(&mut vm), "0-1", "{round}");
                vm.run("taskset 2 true");
            }
            change(&vm, 1);
            until(&mut vm, "[ ! -e /sys/devices/system/cpu/cpu1 ]");
            are(&vm, 1);
            assert_eq!(online(&mut vm), "0", "{round}");
        }
    }
}
