//! vCPUs that come and go.

use super::driver::{forever, in32, out32, start_second, store32};
use super::*;

/// The registers of processor hotplug, and the first one's neighbours.
const UP: u16 = 0x620;
const DOWN: u16 = 0x624;
const THERE: u16 = 0x628;

/// Without end: starts the second processor when it was plugged, which says so by a byte,
/// and ejects what the machine asks for (`mov dx, 0x628; out dx, eax`). Its own local APIC
/// is as it will be before any is plugged, as that of an operating system.
fn takes_what_comes() -> Vec<u8> {
    // In real mode: `mov dx, 0x3f8; mov al, '+'; out dx, al; hlt; jmp` to the hlt.
    let hello = [0xba, 0xf8, 0x03, 0xb0, b'+', 0xee, 0xf4, 0xeb, 0xfd];
    let start = start_second(&hello);
    let length = u32::try_from(start.len()).expect("short code");
    // `test eax, eax; jz` over it.
    let if_any = [&[0x85, 0xc0, 0x0f, 0x84][..], &length.to_le_bytes()].concat();
    let eject = [0x66, 0xba, 0x28, 0x06, 0xef];
    let again = [in32(UP), if_any, start, in32(DOWN), eject.to_vec()];
    [store32(0xfee0_00f0, 0x1ff), forever(again.concat())].concat()
}

impl Bench {
    /// Has so many vCPUs be there, and says how many there are by then.
    fn change_vcpus(&self, vcpus: u8) -> Machine {
        let answer = self.send("PATCH /v1/machine", &format!(r#"{{"vcpus":{vcpus}}}"#));
        assert!(answer.contains(" 200 "), "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).expect("body");
        serde_json::from_str(body).expect("JSON")
    }

    fn refused_vcpus(&self, vcpus: u8) -> String {
        self.send("PATCH /v1/machine", &format!(r#"{{"vcpus":{vcpus}}}"#))
    }
}

#[test]
fn a_vcpu_comes_and_goes_and_comes_again() {
    let Some(bench) = Bench::new(&takes_what_comes()) else {
        return;
    };
    let vcpus = ["--vcpus", "1,max=2"];
    let mut child = bench.command().args(vcpus).start();
    bench.listens("socket");
    let log = || std::fs::read_to_string(bench.path("serial")).unwrap_or_default();
    let said = |times| until("it runs", || log() == "+".repeat(times));
    let threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", bench.machine().pid));
        tasks.expect("tasks").count()
    };
    for round in 1..4 {
        let machine = bench.change_vcpus(2);
        assert_eq!((machine.vcpus, machine.vcpus_requested), (2, 2));
        said(round);
        let machine = bench.change_vcpus(1);
        assert_eq!((machine.vcpus_requested, machine.vcpus_max), (1, 2));
        until("it was let go of", || bench.machine().vcpus == 1);
    }
    let before = threads();
    bench.change_vcpus(2);
    said(4);
    assert_eq!(threads(), before, "it is the one of before");
    // A copy has as many as there were, and goes on with them.
    bench.snapshot("snapshot");
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    let mut child = bench.restored("snapshot").args(vcpus).start();
    bench.listens("socket");
    assert_eq!(bench.machine().vcpus, 2);
    bench.change_vcpus(1);
    until("it was let go of", || bench.machine().vcpus == 1);
    bench.change_vcpus(2);
    said(5);
    // And so has a machine that was reset.
    bench.ask("PUT /v1/reset");
    until("reset", || bench.machine().resets == 1);
    let machine = bench.machine();
    assert_eq!((machine.vcpus, machine.vcpus_requested), (2, 2));
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

/// A thread's stack is the last thing that a new vCPU needs, and KVM has made it by then.
#[test]
fn a_vcpu_whose_plug_failed_comes_when_it_is_asked_for_again() {
    let Some(bench) = Bench::new(&takes_what_comes()) else {
        return;
    };
    let mut child = bench.command().args(["--vcpus", "1,max=3"]).start();
    bench.listens("socket");
    bench.machine();
    let limit = |address_space: libc::rlim_t| {
        let pid = libc::pid_t::try_from(child.id()).expect("a pid");
        let limit = libc::rlimit {
            rlim_cur: address_space,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the pointer is to a live rlimit, and none is asked for.
        let set =
            unsafe { libc::prlimit(pid, libc::RLIMIT_AS, &raw const limit, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    };
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", child.id()));
    let pages: libc::rlim_t = statm
        .expect("its memory")
        .split(' ')
        .next()
        .and_then(|pages| pages.parse().ok())
        .expect("a number");
    // Room for what KVM shows of a vCPU, and for a heap that grows once, and none for
    // 256 KiB.
    limit((pages * 4096) + (200 << 10));
    for _ in 0..2 {
        let refused = bench.refused_vcpus(2);
        assert!(
            refused.contains(" 500 ") && refused.contains("vCPU thread"),
            "{refused}"
        );
        assert_eq!(bench.machine().vcpus, 1);
    }
    limit(libc::RLIM_INFINITY);
    assert_eq!(bench.change_vcpus(3).vcpus, 3);
    let log = || std::fs::read_to_string(bench.path("serial")).unwrap_or_default();
    until("they run", || log().contains('+'));
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_guest_that_lets_go_of_none_keeps_them_until_its_reset() {
    // Ejects whatever there is, before anybody has asked; then nothing.
    let greedy = [out32(THERE, u32::MAX), HALT.to_vec()].concat();
    let Some(bench) = Bench::new(&greedy) else {
        return;
    };
    let mut child = bench.command().args(["--vcpus", "4,max=4"]).start();
    bench.listens("socket");
    until("it halts", || bench.metrics().vcpu_exits > 0);
    assert_eq!(bench.machine().vcpus, 4, "nobody asked for any");
    let machine = bench.change_vcpus(2);
    assert_eq!((machine.vcpus, machine.vcpus_requested), (4, 2));
    assert_eq!(bench.change_vcpus(3).vcpus_requested, 3);
    bench.pause();
    assert_eq!(
        bench.change_vcpus(2).vcpus_requested,
        2,
        "also while it is held"
    );
    bench.ask("PUT /v1/reset");
    until("reset", || bench.machine().resets == 1);
    let machine = bench.machine();
    assert_eq!((machine.vcpus, machine.vcpus_requested), (2, 2));
    for (vcpus, why) in [(0, "vcpus: 1 to 4 are allowed"), (5, "1 to 4")] {
        let refused = bench.refused_vcpus(vcpus);
        assert!(
            refused.contains(" 400 ") && refused.contains(why),
            "{refused}"
        );
    }
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_machine_without_a_most_keeps_its_vcpus() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let mut child = bench.command().args(["--vcpus", "2"]).start();
    bench.listens("socket");
    let machine = bench.machine();
    assert_eq!(
        (machine.vcpus, machine.vcpus_requested, machine.vcpus_max),
        (2, 2, 2)
    );
    let refused = bench.refused_vcpus(1);
    assert!(
        refused.contains(" 409 ") && refused.contains("max=N"),
        "{refused}"
    );
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}
