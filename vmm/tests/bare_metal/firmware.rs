//! Firmware of a few bytes: where it begins, what it finds, and what it keeps.

use hearth_vmm_api::{Exit, MachineState};

use super::hung::promptly;
use super::slow_disk::{Answers, SlowDisk};
use super::{Bench, Start, until};

/// Prints what the configuration device says first and the first byte of its variables,
/// and stores the byte that follows. The first time, which it knows by a `0`, it resets
/// the machine; then it switches it off by PM1 control.
const CODE: [u8; 61] = [
    0xba, 0x10, 0x05, // mov dx, 0x510
    0x31, 0xc0, // xor ax, ax
    0xef, // out dx, ax
    0xb9, 0x04, 0x00, // mov cx, 4
    0xba, 0x11, 0x05, // again: mov dx, 0x511
    0xec, // in al, dx
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xe2, 0xf6, // loop again
    0x2e, 0xa0, 0x00, 0xe0, // mov al, cs:[0xe000]
    0xee, // out dx, al
    0x88, 0xc4, // mov ah, al
    0xfe, 0xc4, // inc ah
    0x2e, 0xc6, 0x06, 0x00, 0xe0, 0x10, // mov byte cs:[0xe000], 0x10: program
    0x2e, 0x88, 0x26, 0x00, 0xe0, // mov cs:[0xe000], ah
    0x2e, 0xc6, 0x06, 0x00, 0xe0, 0xff, // mov byte cs:[0xe000], 0xff: read
    0x3c, b'0', // cmp al, '0'
    0x75, 0x04, // jne off
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xba, 0x04, 0x06, // off: mov dx, 0x604
    0xb8, 0x00, 0x20, // mov ax, 0x2000
    0xef, // out dx, ax
    0xf4, // hlt
];

/// `jmp 0xf000`, at 0xfff0: to the beginning of a flash of 4 KiB.
const RESET_VECTOR: [u8; 3] = [0xe9, 0x0d, 0xf0];

/// A flash of 4 KiB with this code, beside one as large for variables.
fn bench(code: &[u8]) -> Option<Bench> {
    let bench = Bench::new(&[])?;
    let mut flash = vec![0xf4; 4096];
    flash[..code.len()].copy_from_slice(code);
    flash[0xff0..0xff3].copy_from_slice(&RESET_VECTOR);
    std::fs::write(bench.path("code"), flash).expect("code");
    let mut variables = vec![0xff; 4096];
    variables[0] = b'0';
    std::fs::write(bench.path("vars"), variables).expect("variables");
    Some(bench)
}

impl Bench {
    fn firmware(&self) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hearth-vmm"));
        let (code, vars) = (self.path("code"), self.path("vars"));
        command
            .args(["--memory", "64", "--firmware"])
            .arg(format!("{},vars={}", code.display(), vars.display()))
            .arg("--socket")
            .arg(self.path("socket"))
            .arg("--exit-file")
            .arg(self.path("exit"))
            .arg("--serial-log")
            .arg(self.path("serial"));
        command
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.path("serial")).expect("serial")
    }
}

#[test]
fn firmware_begins_at_the_reset_vector_and_keeps_its_variables() {
    let Some(bench) = bench(&CODE) else { return };
    let output = bench.firmware().output().expect("hearth-vmm runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(bench.exit(), Exit::GuestPowerOff);
    assert_eq!(bench.said(), "QEMU0QEMU1");
    let kept = std::fs::read(bench.path("vars")).expect("variables");
    assert_eq!(kept[..2], *b"2\xff");
    // In another process, and with all of the sandbox that is to be had here.
    let output = bench.firmware().arg("--jail=best-effort").output();
    assert!(output.expect("hearth-vmm runs").status.success());
    assert_eq!(bench.said(), "QEMU0QEMU1QEMU2");
    let kept = std::fs::read(bench.path("vars")).expect("variables");
    assert_eq!(kept[..2], *b"3\xff");
}

#[test]
fn a_machine_with_firmware_is_held_and_not_saved() {
    // Reads CMOS memory again and again.
    let Some(bench) = bench(&[0xe4, 0x71, 0xeb, 0xfc]) else {
        return;
    };
    let mut child = bench.firmware().start();
    bench.listens("socket");
    until("it has read", || {
        let exits = bench.metrics().exits;
        exits.iter().any(|count| count.device == "firmware")
    });
    bench.pause();
    let folder = bench.path("snap");
    std::fs::create_dir(&folder).expect("folder");
    let body = format!("{{\"path\":{:?}}}", folder.display().to_string());
    let answer = bench.send("PUT /v1/snapshot", &body);
    assert!(
        answer.contains("a machine with firmware can't be saved"),
        "{answer}"
    );
    assert_eq!(bench.machine().state, MachineState::Paused);
    bench.ask("PUT /v1/stop");
    child.wait().expect("ends");
    assert_eq!(bench.exit(), Exit::Stopped);
}

#[test]
fn what_is_no_firmware_is_refused() {
    let Some(bench) = bench(&CODE) else { return };
    std::fs::write(bench.path("vars"), b"short").expect("variables");
    let output = bench.firmware().output().expect("hearth-vmm runs");
    assert_eq!(output.status.code(), Some(2));
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(line.contains("flash has whole blocks of 4096"), "{line}");
}

/// Programs a byte of the variables and has it saved, without end.
const PROGRAMS: [u8; 20] = [
    0x2e, 0xc6, 0x06, 0x00, 0xe0, 0x10, // again: mov byte cs:[0xe000], 0x10: program
    0x2e, 0xc6, 0x06, 0x00, 0xe0, 0x55, // mov byte cs:[0xe000], 0x55
    0x2e, 0xc6, 0x06, 0x00, 0xe0, 0xff, // mov byte cs:[0xe000], 0xff: read
    0xeb, 0xec, // jmp again
];

#[test]
fn a_stop_does_not_wait_for_variables_that_a_disk_does_not_take() {
    let Some(bench) = bench(&PROGRAMS) else {
        return;
    };
    let Some(disk) = SlowDisk::new() else { return };
    std::fs::remove_file(bench.path("vars")).expect("removed");
    std::os::unix::fs::symlink(disk.path(), bench.path("vars")).expect("a link");
    let mut child = bench.firmware().start();
    bench.listens("socket");
    until("it programs", || {
        let exits = bench.metrics().exits;
        exits.iter().any(|count| count.device == "firmware")
    });
    disk.answers(Answers::NoTransfers);
    until("it hangs", || disk.hangs());
    bench.ask("PUT /v1/stop");
    until("it has said why", || bench.path("exit").exists());
    assert_eq!(bench.exit(), Exit::Stopped);
    drop(disk);
    child.wait().expect("ends");
}

/// Programs a byte of the variables, says so, and has it saved by no command.
const PROGRAMS_ONE: [u8; 21] = [
    0x2e, 0xc6, 0x06, 0x00, 0xe0, 0x10, // mov byte cs:[0xe000], 0x10: program
    0x2e, 0xc6, 0x06, 0x00, 0xe0, 0x55, // mov byte cs:[0xe000], 0x55
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'x', // mov al, 'x'
    0xee, // out dx, al
    0xf4, // halt: hlt
    0xeb, 0xfd, // jmp halt
];

/// They are saved as the machine is reset, and as it ends.
#[test]
fn nobody_waits_for_variables_that_a_disk_does_not_take() {
    let Some(bench) = bench(&PROGRAMS_ONE) else {
        return;
    };
    let Some(disk) = SlowDisk::new() else { return };
    std::fs::remove_file(bench.path("vars")).expect("removed");
    std::os::unix::fs::symlink(disk.path(), bench.path("vars")).expect("a link");
    let mut child = bench.firmware().start();
    bench.listens("socket");
    let said = |times| until("it programs", || bench.said() == "x".repeat(times));
    said(1);
    disk.answers(Answers::NoTransfers);
    // More than are kept waiting.
    for resets in 1..9 {
        bench.ask("PUT /v1/reset");
        said(1 + resets);
        until("it is being written", || disk.hangs());
        promptly(&bench, "GET /v1/machine");
    }
    assert_eq!(bench.machine().resets, 8);
    bench.ask("PUT /v1/stop");
    until("it has said why", || bench.path("exit").exists());
    assert_eq!(bench.exit(), Exit::Stopped);
    drop(disk);
    child.wait().expect("ends");
}
