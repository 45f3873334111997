//! The console's other end, of COM1 and of hvc0: clients of its socket, standard output.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;

use super::driver::{Function, await_used, store16, store32};
use super::*;

/// Writes what comes from the serial port back to it, up to a 'q': `mov dx, 0x3fd; in
/// al, dx; test al, 1; jz` to the beginning; `mov dx, 0x3f8; in al, dx; out dx, al; cmp
/// al, 'q'; jne` to the beginning.
const ECHO: [u8; 19] = [
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c,
    b'q', 0x75, 0xed,
];

#[test]
fn clients_sit_at_the_console_also_of_a_jailed_machine() {
    let Some(bench) = Bench::new(&[out(0x3f8, b'>'), ECHO.to_vec(), power_off()].concat()) else {
        return;
    };
    let mut child = bench
        .command()
        .arg("--jail=best-effort")
        .arg("--console-socket")
        .arg(bench.path("console"))
        .start();
    bench.listens("console");
    let attach = || UnixStream::connect(bench.path("console")).expect("connects");
    let receive = |client: &mut UnixStream, wanted: &[u8]| {
        let mut got = vec![0; wanted.len()];
        client.read_exact(&mut got).expect("output");
        assert_eq!(got, wanted);
    };
    let mut first = attach();
    first.write_all(b"hi").expect("types");
    receive(&mut first, b">hi");
    let mut second = attach();
    receive(&mut second, b">hi");
    second.write_all(b"bye, q").expect("types");
    for client in [&mut first, &mut second] {
        receive(client, b"bye, q");
        assert_eq!(client.read(&mut [0]).expect("the end"), 0);
    }
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(
        std::fs::read(bench.path("serial")).expect("log"),
        b">hibye, q"
    );
    assert!(!bench.path("console").exists());
}

/// Says "hvc0" at a virtio console, awaits input there and says its first byte.
fn hvc_echo(console: Function) -> Vec<u8> {
    let [received, sent] = [0, 1].map(|queue| console.table(queue) + 0x3000);
    [
        console.place(),
        store32(sent, u32::from_le_bytes(*b"hvc0")),
        console.describe(0, 0, (received, 64, 2, 0)),
        console.describe(1, 0, (sent, 4, 0, 0)),
        store16(console.available_index(0), 1),
        store16(console.available_index(1), 1),
        console.bring_up(&[0, 1]),
        await_used(console, 1),
        await_used(console, 0),
        console.describe(1, 0, (received, 1, 0, 0)),
        store16(console.available_index(1), 2),
        console.ring(1),
        await_used(console, 1),
    ]
    .concat()
}

#[test]
fn a_virtio_console_is_the_same_console_also_in_a_jail() {
    // Behind the entropy source.
    let console = Function::in_slot(2);
    let code = [out(0x3f8, b'>'), hvc_echo(console), power_off()].concat();
    let Some(bench) = Bench::new(&code) else {
        return;
    };
    let mut child = bench
        .command()
        .args(["--jail=best-effort", "--virtio-console"])
        .arg("--console-socket")
        .arg(bench.path("console"))
        .start();
    bench.listens("console");
    let mut client = UnixStream::connect(bench.path("console")).expect("connects");
    let mut got = [0; 5];
    client.read_exact(&mut got).expect("output");
    assert_eq!(&got, b">hvc0");
    client.write_all(b"q").expect("types");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).expect("the end");
    assert_eq!(rest, b"q");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(std::fs::read(bench.path("serial")).expect("log"), b">hvc0q");
}

/// Writes 100,000 bytes: `mov ecx, 100000; mov dx, 0x3f8; mov al, '.'; out dx, al; loop`
/// to the `out`.
const FLOOD: [u8; 14] = [
    0xb9, 0xa0, 0x86, 0x01, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xe2, 0xfd,
];

#[test]
fn a_pipe_that_nobody_reads_holds_up_nothing() {
    let code = [FLOOD.to_vec(), AWAIT_BUTTON.to_vec(), out(0x3f8, b'!')];
    let Some(bench) = Bench::new(&[code.concat(), power_off()].concat()) else {
        return;
    };
    let mut command = bench.unlogged();
    command.arg("--jail=best-effort");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).start();
    let mut pipe = child.stdout.take().expect("a pipe");
    // As small as can be.
    // SAFETY: no memory is involved.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    bench.listens("socket");
    until("all is written", || bench.metrics().vcpu_exits > 100_000);
    bench.ask("PUT /v1/power-button");
    let mut text = String::new();
    pipe.read_to_string(&mut text).expect("reads");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    let (before, rest) = text.split_once("\r\n[hearth-vmm: ").expect("a notice");
    let (lost, after) = rest
        .split_once(" bytes were missed here]\r\n")
        .expect("all of it");
    let lost: usize = lost.parse().expect("a number");
    assert_eq!(before.len() + lost + after.len(), 100_001);
    assert!(after.ends_with(".!"), "the last words");
}

/// Starts a flood into `output`, and returns once it has ended.
fn flood_into(output: Stdio) {
    let Some(bench) = Bench::new(&[FLOOD.to_vec(), power_off()].concat()) else {
        return;
    };
    let mut command = bench.unlogged();
    let mut child = command.stdin(Stdio::null()).stdout(output).start();
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(bench.exit(), Exit::GuestPowerOff);
}

#[test]
fn a_pipe_that_stays_full_does_not_keep_the_process() {
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    flood_into(writer.into());
}

#[test]
fn a_terminal_that_stands_still_does_not_keep_the_process() {
    let (mut ours, mut its) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: the first two pointers are to live ints; the others may be null.
    let made = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut its,
            none,
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(made, 0);
    // SAFETY: openpty has just made both, and nobody else owns them.
    let (_ours, its) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) };
    flood_into(its.into());
}
