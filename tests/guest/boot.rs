//! What a stock kernel finds.

use hearth_tests::Vm;

/// The machine of this size sees all of it.
fn sees(image: &str, vcpus: u8, mib: u64) {
    let mut vm = Vm::of(image).vcpus(vcpus).memory_mib(mib).boot();
    assert_eq!(
        vm.run("grep -c ^processor /proc/cpuinfo"),
        vcpus.to_string()
    );
    let online = match vcpus {
        1 => "0".to_owned(),
        _ => format!("0-{}", vcpus - 1),
    };
    assert_eq!(vm.run("cat /sys/devices/system/cpu/online"), online);
    let text = vm.run("grep MemTotal /proc/meminfo");
    let kib: u64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number");
    // The kernel keeps its own text, page structs and reservations out of MemTotal.
    assert!(
        kib <= mib * 1024 && kib > mib * 1024 * 2 / 3,
        "{kib} KiB of {mib} MiB"
    );
}

#[test]
fn micro_sees_the_machine_it_was_given() {
    // Below the hole, and past the 4 GiB line.
    for (vcpus, mib) in [(1, 128), (2, 256), (4, 5 * 1024), (32, 512)] {
        sees("micro", vcpus, mib);
    }
}

#[test]
fn debian_sees_the_machine_it_was_given() {
    for (vcpus, mib) in [(1, 128), (2, 5 * 1024), (4, 512)] {
        sees("debian-12", vcpus, mib);
    }
}

#[test]
fn spends_nothing_on_self_tests_and_bounce_buffers() {
    for image in ["micro", "debian-12"] {
        // Past the 4 GiB line, where the kernel would reserve the buffers.
        let mut vm = Vm::of(image).memory_mib(5 * 1024).boot();
        let notests = vm.run("cat /sys/module/cryptomgr/parameters/notests");
        assert_eq!(notests, "Y", "{image}");
        let reserved = vm.run("dmesg | grep 'software IO TLB: mapped'; true");
        assert_eq!(reserved, "", "{image}");
    }
}

#[test]
fn finds_its_devices_and_no_complaint() {
    let mut vm = Vm::of("micro").boot();
    assert_eq!(vm.run("cat /sys/block/vda/serial"), "vol0root");
    assert_eq!(
        vm.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "kvm-clock"
    );
    let log = vm.run(
        "dmesg | grep -iE 'bug:|acpi.*error|firmware bug|DMI not present' | grep -v spectre; true",
    );
    assert_eq!(log, "");
}

#[test]
fn two_machines_run_side_by_side() {
    let mut a = Vm::of("micro").boot();
    let mut b = Vm::of("micro").boot();
    assert_ne!(
        a.run("cat /proc/sys/kernel/random/boot_id"),
        b.run("cat /proc/sys/kernel/random/boot_id")
    );
}
