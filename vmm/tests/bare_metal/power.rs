//! Ends of a machine and new beginnings: power-off, reset, reboot, triple fault, pause.

use super::*;

#[test]
fn output_is_logged_and_power_off_ends_the_process() {
    let hello: Vec<u8> = b"hello\n"
        .iter()
        .flat_map(|byte| out(0x3f8, *byte))
        .collect();
    let Some(bench) = Bench::new(&[hello, power_off()].concat()) else {
        return;
    };
    let output = bench.run();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(bench.exit(), Exit::GuestPowerOff);
    assert_eq!(
        std::fs::read(bench.path("serial")).expect("log"),
        b"hello\n"
    );
    assert!(!bench.path("socket").exists());
}

#[test]
fn a_triple_fault_is_reported_with_its_place() {
    let Some(bench) = Bench::new(&UD2) else {
        return;
    };
    let output = bench.run();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let Exit::Crashed { detail } = bench.exit() else {
        panic!("{:?}", bench.exit());
    };
    // Some hosts emulate the instruction, and give up on it instead of faulting.
    assert!(detail.starts_with("vCPU 0: "), "{detail}");
    assert!(detail.contains("rip=0x"), "{detail}");
}

#[test]
fn a_reset_keeps_the_process() {
    for code in [out(0x602, 1), out(0x64, 0xfe)] {
        let Some(bench) = Bench::new(&code) else {
            return;
        };
        let mut child = bench.command().start();
        bench.listens("socket");
        until("first entry", || bench.machine().start.entered_ns.is_some());
        let start = bench.machine().start;
        assert!(start.entered_ns >= Some(start.began_ns), "{start:?}");
        until("third reset", || bench.machine().resets >= 3);
        let machine = bench.machine();
        assert_eq!((machine.pid, machine.start), (child.id(), start));
        assert!(bench.ask("PUT /v1/stop").starts_with("HTTP/1.1 204"));
        assert_eq!(child.wait().expect("ends").code(), Some(0));
        assert_eq!(bench.exit(), Exit::Stopped);
    }
}

/// Who was told that it stands still may rely on that, whatever the guest had just asked
/// for.
#[test]
fn a_guest_that_resets_stays_held() {
    for code in [out(0x602, 1), out(0x64, 0xfe)] {
        let Some(bench) = Bench::new(&code) else {
            return;
        };
        let mut child = bench.command().start();
        bench.listens("socket");
        for _ in 0..100 {
            let resets = bench.machine().resets;
            until("it resets", || bench.machine().resets > resets);
            if !bench.ask("PUT /v1/pause").contains(" 204 ") {
                continue;
            }
            let held = bench.machine();
            for _ in 0..5 {
                let machine = bench.machine();
                assert_eq!(machine.state, MachineState::Paused);
                assert_eq!(machine.resets, held.resets);
            }
            let resume = bench.ask("PUT /v1/resume");
            assert!(resume.contains(" 204 "), "{resume}");
        }
        let resets = bench.machine().resets;
        until("it goes on", || bench.machine().resets > resets);
        assert!(bench.ask("PUT /v1/stop").contains(" 204 "));
        assert_eq!(child.wait().expect("ends").code(), Some(0));
    }
}

#[test]
fn a_generation_lasts_as_long_as_the_process() {
    let code = [&PRINT_GENERATION[..], &AWAIT_BUTTON, &power_off()].concat();
    let Some(bench) = Bench::new(&code) else {
        return;
    };
    let log = || std::fs::read(bench.path("serial")).unwrap_or_default();
    for printed in [0, 32] {
        let mut child = bench.command().start();
        until("printed once", || log().len() == printed + 16);
        bench.ask("PUT /v1/reset");
        until("printed again", || log().len() == printed + 32);
        bench.ask("PUT /v1/stop");
        assert_eq!(child.wait().expect("ends").code(), Some(0));
    }
    let log = log();
    let ids: Vec<_> = log.chunks(16).collect();
    assert_ne!(ids[0], [0; 16]);
    assert_eq!(ids[0], ids[1], "a reset keeps it");
    assert_ne!(ids[1], ids[2], "another process has another one");
    assert_eq!(ids[2], ids[3]);
}

#[test]
fn a_reboot_is_a_power_off_that_comes_back() {
    let Some(bench) = Bench::new(&[AWAIT_BUTTON.to_vec(), power_off()].concat()) else {
        return;
    };
    let mut child = bench.command().start();
    bench.listens("socket");
    for resets in 0..2 {
        let body = format!(r#"{{"resets":{resets}}}"#);
        let answer = bench.send("PUT /v1/reboot", &body);
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        until("back", || bench.machine().resets == resets + 1);
        let again = bench.send("PUT /v1/reboot", &body);
        assert!(again.starts_with("HTTP/1.1 409"), "{again}");
    }
    assert_eq!(bench.machine().pid, child.id());
    // And what comes after is a power-off again.
    bench.ask("PUT /v1/power-button");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(bench.exit(), Exit::GuestPowerOff);
}

#[test]
fn a_guest_that_has_no_word_for_an_nmi_crashes() {
    // Waits with its interrupts off: only an NMI wakes it, and finds no table to go by.
    let Some(bench) = Bench::new(&[0xfa, 0xf4, 0xeb, 0xfc]) else {
        return;
    };
    let mut child = bench.command().args(["--vcpus", "2"]).start();
    bench.listens("socket");
    bench.ask("PUT /v1/nmi");
    child.wait().expect("ends");
    let Exit::Crashed { detail } = bench.exit() else {
        panic!("{:?}", bench.exit());
    };
    assert!(detail.contains("triple fault"), "{detail}");
}

#[test]
fn a_stop_takes_a_reboot_back() {
    let Some(bench) = Bench::new(&[AWAIT_BUTTON.to_vec(), power_off()].concat()) else {
        return;
    };
    let mut child = bench.command().start();
    bench.listens("socket");
    // Held, so that it can't answer the first before the second is there.
    bench.pause();
    bench.send("PUT /v1/reboot", r#"{"resets":0}"#);
    bench.ask("PUT /v1/power-button");
    bench.ask("PUT /v1/resume");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(bench.exit(), Exit::GuestPowerOff);
}

#[test]
fn a_paused_machine_stands_still() {
    // Writes to an unclaimed port without end: every turn is an exit.
    let spin = [out(0x80, 0), vec![0xeb, 0xf7]].concat();
    let Some(bench) = Bench::new(&spin) else {
        return;
    };
    let mut child = bench.command().args(["--vcpus", "2"]).start();
    bench.listens("socket");
    let exits = || bench.metrics().vcpu_exits;
    until("runs", || exits() > 100);
    // Every thread of it is held.
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("tasks");
    for task in tasks {
        let status = task.expect("task").path().join("status");
        let status = std::fs::read_to_string(status).expect("status");
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    bench.pause();
    let still = exits();
    assert_eq!(exits(), still);
    bench.ask("PUT /v1/resume");
    until("runs again", || exits() > still + 100);
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}
