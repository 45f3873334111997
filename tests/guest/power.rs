//! Power: off, on again, and what the VMM says of it.

use hearth_tests::Vm;
use hearth_vmm_api::Exit;

use crate::hotplug::until;

#[test]
fn power_off_by_the_guest_ends_the_process() {
    let mut vm = Vm::of("micro").boot();
    vm.type_line("poweroff -f");
    assert_eq!(vm.wait_exit(60), (0, Some(Exit::GuestPowerOff)));
}

#[test]
fn the_power_button_reaches_the_guest() {
    let mut vm = Vm::of("micro").boot();
    // The shell is init here, and hears of nothing: what the image's init would run does
    // the rest by itself.
    vm.run(
        "mount -t tmpfs tmp /tmp; mkdir /tmp/PWRF; cd /tmp/PWRF; \
         printf '#!/bin/sh\npoweroff -f\n' > 00000080; chmod +x 00000080; cd /; \
         modprobe -a button evdev; acpid -c /tmp -l /dev/null",
    );
    // It goes into the background before it opens what it listens to.
    until(
        &mut vm,
        "ls -l /proc/$(pidof acpid)/fd | grep -q /dev/input/",
    );
    vm.api("PUT", "/v1/power-button", None);
    assert_eq!(vm.wait_exit(60), (0, Some(Exit::GuestPowerOff)));
}

#[test]
fn reboots_five_times_in_the_same_process() {
    let mut vm = Vm::of("micro").boot();
    for n in 1..=5 {
        vm.type_line("reboot -f");
        vm.wait_for_shell();
        assert_eq!(vm.api("GET", "/v1/machine", None)["resets"], n);
    }
}

#[test]
fn stop_by_the_socket_ends_the_process() {
    let mut vm = Vm::of("micro").boot();
    vm.api("PUT", "/v1/stop", None);
    assert_eq!(vm.wait_exit(30), (0, Some(Exit::Stopped)));
}

#[test]
fn an_nmi_reaches_every_processor() {
    let mut vm = Vm::of("micro").vcpus(2).append("panic=-1").boot();
    let seen = "[ $(awk '/NMI:/ { print ($2 > 0) + ($3 > 0) }' /proc/interrupts) = 2 ]";
    vm.api("PUT", "/v1/nmi", None);
    until(&mut vm, seen);
    // As a crash dump would be made.
    vm.run("echo 1 > /proc/sys/kernel/unknown_nmi_panic");
    vm.api("PUT", "/v1/nmi", None);
    vm.wait_for_shell();
    assert_eq!(vm.api("GET", "/v1/machine", None)["resets"], 1);
}

#[test]
fn a_guest_that_panics_is_reported() {
    let mut vm = Vm::of("micro").append("panic=-1").boot();
    vm.run("sync");
    vm.type_line("echo c > /proc/sysrq-trigger");
    // panic=-1 asks for a reset at once: the machine is re-created and boots again.
    vm.wait_for_shell();
    assert_eq!(vm.api("GET", "/v1/machine", None)["resets"], 1);
}
