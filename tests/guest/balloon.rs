//! The balloon: what the host takes back, and what the guest gives by itself.

use hearth_tests::{Vm, wait};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A guest with so many MiB and its balloon's driver.
fn with_balloon(mib: u64) -> Vm {
    let mut vm = Vm::of("debian-12")
        .memory_mib(mib)
        .args(&["--balloon"])
        .boot();
    vm.run("modprobe virtio_balloon");
    vm
}

/// What of the VMM is in memory, guest memory included, in bytes.
fn resident(vm: &Vm) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).expect("it runs");
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("VmRSS") << 10
}

fn free(vm: &mut Vm) -> u64 {
    let kib: u64 = vm
        .run("awk '/MemFree/ {print $2}' /proc/meminfo")
        .parse()
        .expect("a number");
    kib << 10
}

/// Asks for `bytes` and waits until the guest says that it gave them.
fn blow_to(vm: &Vm, bytes: u64) {
    vm.api(
        "PUT",
        "/v1/balloon",
        Some(&json!({ "target_bytes": bytes })),
    );
    wait::until("the balloon's size", 60, || {
        let state = vm.api("GET", "/v1/balloon", None);
        if state["actual_bytes"] == bytes {
            Ok(())
        } else {
            Err(state)
        }
    });
}

#[test]
fn memory_is_taken_and_given_back() {
    let mut vm = with_balloon(512);
    let before = free(&mut vm);
    blow_to(&vm, 128 * MIB);
    let taken = free(&mut vm);
    assert!(
        taken + 100 * MIB < before,
        "{before} bytes free, then {taken}"
    );
    blow_to(&vm, 0);
    let given = free(&mut vm);
    assert!(
        given > taken + 100 * MIB,
        "{taken} bytes free, then {given}"
    );
}

#[test]
fn what_the_guest_frees_is_free_on_the_host() {
    let mut vm = with_balloon(512);
    vm.run("mount -t tmpfs -o size=90% tmp /tmp");
    vm.run("dd if=/dev/zero of=/tmp/large bs=1M count=192");
    let full = resident(&vm);
    vm.run("rm /tmp/large");
    // The kernel reports free pages within seconds, in blocks of 2 or 4 MiB.
    wait::until("the memory is the host's again", 60, || {
        let now = resident(&vm);
        if now + 128 * MIB < full {
            Ok(())
        } else {
            Err(format!("{} MiB of {} MiB", now / MIB, full / MIB))
        }
    });
}

#[test]
fn a_guest_out_of_memory_gets_the_balloons() {
    let mut vm = with_balloon(384);
    vm.run("mount -t tmpfs -o size=90% tmp /tmp");
    let most = free(&mut vm) - 64 * MIB;
    blow_to(&vm, most / MIB * MIB);
    // More than the balloon left; without deflation the shell would be killed.
    vm.run("dd if=/dev/zero of=/tmp/large bs=1M count=128");
    assert_eq!(vm.run("stat -c %s /tmp/large"), (128 * MIB).to_string());
    let state = vm.api("GET", "/v1/balloon", None);
    assert!(state["actual_bytes"].as_u64() < Some(most), "{state}");
}
