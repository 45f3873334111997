//! Devices as a guest and the control socket reach them.

use hearth_vmm_api::ExitReason;

use super::driver::out32;
use super::*;

/// Rings 65,536 times at a port: `mov dx, port; mov ax, queue; mov ecx, 65536; out dx,
/// ax; loop` to the `out`.
fn ring(port: u16, queue: u16) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let mut code = vec![0x66, 0xba, low, high];
    let [low, high] = queue.to_le_bytes();
    code.extend([0x66, 0xb8, low, high, 0xb9, 0, 0, 1, 0]);
    code.extend([0x66, 0xef, 0xe2, 0xfc]);
    code
}

#[test]
fn a_doorbell_is_no_exit() {
    // Slot 1, the command register: I/O space on. Then its BAR moves.
    let enable = [out32(0xcf8, 0x8000_0804), out32(0xcfc, 1)];
    let home = [enable.concat(), ring(0x1000, 0)];
    let moved = [out32(0xcf8, 0x8000_0818), out32(0xcfc, 0x1ffc)];
    let moved = [moved.concat(), ring(0x1ffc, 0), out(0x3f8, b'.')];
    let Some(bench) = Bench::new(&[home.concat(), moved.concat()].concat()) else {
        return;
    };
    let mut child = bench.command().start();
    bench.listens("socket");
    let log = || std::fs::read(bench.path("serial")).unwrap_or_default();
    until("rung", || log() == b".");
    let exits = bench.metrics().vcpu_exits;
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert!(exits < 100, "{exits}");
}

/// Ejects every slot, over and over: `mov dx, port; mov eax, -1; out dx, eax; jmp` to
/// the `out`.
const EJECT_ALL: [u8; 12] = [
    0x66, 0xba, 0x1c, 0x06, 0xb8, 0xff, 0xff, 0xff, 0xff, 0xef, 0xeb, 0xfd,
];

#[test]
fn a_guest_ejects_nothing_that_was_not_asked_for() {
    let Some(bench) = Bench::new(&EJECT_ALL) else {
        return;
    };
    std::fs::File::create(bench.path("disk"))
        .and_then(|file| file.set_len(1 << 20))
        .expect("a disk");
    let mut child = bench
        .command()
        .arg("--disk")
        .arg(format!("path={},id=root", bench.path("disk").display()))
        .arg("--balloon")
        .start();
    bench.listens("socket");
    let heap = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.expect("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("KiB")
    };
    until("it floods", || bench.metrics().vcpu_exits > 1000);
    let before = heap();
    let exits = bench.metrics().vcpu_exits;
    until("it goes on", || bench.metrics().vcpu_exits > exits + 20_000);
    let metrics = bench.metrics();
    let ejects = metrics.exits.iter().find(|count| count.device == "acpi");
    let ejects = ejects.expect("the eject register is ACPI's");
    assert_eq!(ejects.reason, ExitReason::PortWrite);
    assert!(
        ejects.exits > 20_000 && ejects.ns > ejects.exits,
        "{ejects:?}"
    );
    let latency = metrics.exit_latency.iter();
    let latency = latency.filter(|latency| latency.reason == ExitReason::PortWrite);
    let counted: u64 = latency
        .flat_map(|latency| latency.buckets.iter().map(|(_, exits)| exits))
        .sum();
    assert!(counted > 20_000, "{counted}");
    let text = bench.ask("GET /v1/prometheus");
    assert!(text.contains("text/plain; version=0.0.4"), "{text}");
    let line = "hearth_vmm_exits_total{reason=\"port-write\",device=\"acpi\"} ";
    assert!(text.contains(line), "{text}");
    assert!(heap() < before + 1024, "{before} to {} KiB", heap());
    assert_eq!(bench.machine().disks.len(), 1);
    assert!(bench.metrics().devices.contains_key("balloon"));
    // What is asked for, it may.
    let asked = bench.ask("DELETE /v1/disks/root");
    assert!(asked.contains(" 202 "), "{asked}");
    until("ejected", || bench.machine().disks.is_empty());
    assert!(bench.metrics().devices.contains_key("balloon"));
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn two_machines_never_write_to_one_disk() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let disk = bench.path("disk");
    std::fs::File::create(&disk)
        .and_then(|file| file.set_len(1 << 20))
        .expect("a disk");
    let flag = format!("path={}", disk.display());
    let mut first = bench.command().args(["--disk", &flag]).start();
    bench.listens("socket");
    // It listens before it has its disk, and answers once it has.
    bench.machine();
    for also in ["", ",readonly"] {
        let second = Command::new(env!("CARGO_BIN_EXE_hearth-vmm"))
            .arg("--kernel")
            .arg(bench.path("kernel"))
            .args(["--disk", &format!("{flag}{also}")])
            .output()
            .expect("runs");
        assert_eq!(second.status.code(), Some(2));
        let line = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(line.contains("another machine uses this disk"), "{line}");
    }
    bench.ask("PUT /v1/stop");
    assert_eq!(first.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_grown_disk_is_seen_and_a_balloon_asked() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let disk = std::fs::File::create(bench.path("disk")).expect("a disk");
    disk.set_len(1 << 20).expect("1 MiB");
    let mut child = bench
        .command()
        .arg("--disk")
        .arg(format!("path={},id=a,ops=9", bench.path("disk").display()))
        .arg("--balloon")
        .arg("--vsock")
        .arg(format!("cid=3,path={}", bench.path("vsock").display()))
        .start();
    bench.listens("socket");
    let limits = bench.machine().disks[0].limits;
    assert_eq!((limits.ops, limits.ops_burst), (Some(9), Some(9)));
    disk.set_len(2 << 20).expect("2 MiB");
    let answer = bench.ask("PATCH /v1/disks/a");
    assert!(answer.contains("\"size_bytes\":2097152"), "{answer}");
    assert_eq!(bench.machine().disks[0].size_bytes, 2 << 20);
    assert!(bench.ask("PATCH /v1/disks/b").contains(" 404 "));
    let limits = r#"{"limits":{"bytes":1000,"bytes_burst":500}}"#;
    let answer = bench.send("PATCH /v1/disks/a", limits);
    assert!(answer.contains(limits.trim_matches(['{', '}'])), "{answer}");
    assert_eq!(bench.machine().disks[0].limits.bytes, Some(1000));
    for (path, body, status) in [
        ("/v1/disks/a", r#"{"limits":{"ops":0}}"#, " 400 "),
        ("/v1/disks/b", limits, " 404 "),
        ("/v1/nics/a", limits, " 404 "),
        ("/v1/nics/a", "", " 400 "),
    ] {
        let answer = bench.send(&format!("PATCH {path}"), body);
        assert!(answer.contains(status), "{path} {body}: {answer}");
    }
    bench.send("PATCH /v1/disks/a", r#"{"limits":{}}"#);
    assert!(bench.machine().disks[0].limits.is_none());
    let metrics = bench.metrics().devices;
    let names: Vec<_> = metrics.keys().map(String::as_str).collect();
    assert_eq!(names, ["a", "balloon", "rng", "vsock"]);
    assert_eq!(metrics["a"]["interrupts"], 0);
    let state = bench.ask("GET /v1/balloon");
    assert!(state.contains("\"target_bytes\":0"), "{state}");
    assert!(bench.path("vsock").exists());
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert!(!bench.path("vsock").exists());
}
