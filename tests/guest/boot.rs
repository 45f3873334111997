//! What a stock kernel finds.

use hearth_tests::Vm;

#[test]
fn sees_the_vcpus_it_was_given() {
    for vcpus in [1, 2, 4, 32] {
        let mut vm = Vm::of("micro").vcpus(vcpus).boot();
        assert_eq!(
            vm.run("grep -c ^processor /proc/cpuinfo"),
            vcpus.to_string()
        );
        assert_eq!(
            vm.run("cat /sys/devices/system/cpu/online"),
            if vcpus == 1 {
                "0".to_owned()
            } else {
                format!("0-{}", vcpus - 1)
            }
        );
    }
}

#[test]
fn sees_the_memory_it_was_given() {
    // Below the hole, and past the 4 GiB line.
    for mib in [128_u64, 5 * 1024] {
        let mut vm = Vm::of("micro").memory_mib(mib).boot();
        let kib: u64 = vm
            .run("awk '/MemTotal/ {print $2}' /proc/meminfo")
            .parse()
            .expect("a number");
        // The kernel keeps its own text, page structs and reservations out of MemTotal.
        assert!(
            kib <= mib * 1024 && kib > mib * 1024 * 2 / 3,
            "{kib} KiB of {mib} MiB"
        );
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
