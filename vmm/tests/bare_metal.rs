//! The whole program with guests of a few bytes, on whatever `/dev/kvm` is here:
//! what a power-off, a reset, a triple fault and a stop look like from outside.

#![allow(clippy::disallowed_methods, reason = "a test may start programs")]

use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use hearth_vmm_api::{Exit, Machine, Metrics, SandboxLayer};
use serde::de::DeserializeOwned;

/// `mov dx, port; mov al, value; out dx, al`, in long mode.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// S5: sleep type 5, sleep enable.
fn power_off() -> Vec<u8> {
    out(0x600, 5 << 2 | 1 << 5)
}

/// Asks for events until the power button was pressed: `mov dx, 0x610; in al, dx;
/// test al, 1; jz` to the beginning.
const AWAIT_BUTTON: [u8; 9] = [0x66, 0xba, 0x10, 0x06, 0xec, 0xa8, 0x01, 0x74, 0xf7];
/// `hlt; jmp` to it.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
/// An instruction that is none; without an IDT, a triple fault.
const UD2: [u8; 2] = [0x0f, 0x0b];

/// A bzImage whose 64-bit entry is `code`: the setup header of the Linux boot
/// protocol, and the code 0x200 bytes into the kernel.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024 + 512];
    image.extend_from_slice(code);
    image.extend_from_slice(&HALT);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x10_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x1_0000u32.to_le_bytes()); // init_size
    image
}

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// Nothing where there is no KVM, said aloud.
    fn new(code: &[u8]) -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: there is no /dev/kvm");
            return None;
        }
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("kernel"), bzimage(code)).expect("kernel");
        Some(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-vmm"));
        command
            .args(["--memory", "64", "--kernel"])
            .arg(self.path("kernel"))
            .arg("--socket")
            .arg(self.path("socket"))
            .arg("--serial-log")
            .arg(self.path("serial"))
            .arg("--exit-file")
            .arg(self.path("exit"));
        command
    }

    fn run(&self) -> Output {
        self.command().output().expect("hearth-vmm runs")
    }

    fn exit(&self) -> Exit {
        serde_json::from_slice(&std::fs::read(self.path("exit")).expect("exit file")).expect("JSON")
    }

    /// Waits until one of its sockets takes connections: there is a moment when its
    /// file is there and they are still refused.
    fn listens(&self, name: &str) {
        until("listens", || UnixStream::connect(self.path(name)).is_ok());
    }

    /// Asks the control socket.
    fn ask(&self, request: &str) -> String {
        self.send(request, "")
    }

    /// Asks the control socket, with a body.
    fn send(&self, request: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(self.path("socket")).expect("connects");
        let length = body.len();
        let head = format!("{request} HTTP/1.1\r\nHost: vmm\r\nContent-Length: {length}");
        write!(stream, "{head}\r\n\r\n{body}").expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        answer
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.ask(&format!("GET {path}"));
        let body = answer.split("\r\n\r\n").nth(1).expect("body");
        serde_json::from_str(body).expect("JSON")
    }

    fn machine(&self) -> Machine {
        self.get("/v1/machine")
    }

    fn metrics(&self) -> Metrics {
        self.get("/v1/metrics")
    }
}

/// A machine that a test started, and that ends with it, however that ends: one left
/// behind would hold the tests' own output open.
struct Vmm(Child);

impl Deref for Vmm {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Vmm {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It has ended by itself wherever nothing failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

trait Start {
    fn start(&mut self) -> Vmm;
}

impl Start for Command {
    fn start(&mut self) -> Vmm {
        Vmm(self.spawn().expect("hearth-vmm runs"))
    }
}

/// Waits for something to become true.
fn until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

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

/// Writes the generation id to the serial port: `mov esi, 0xdf010; mov ecx, 16; mov dx,
/// 0x3f8; lodsb; out dx, al; loop` to the `lodsb`.
const PRINT_GENERATION: [u8; 18] = [
    0xbe, 0x10, 0xf0, 0x0d, 0x00, 0xb9, 0x10, 0x00, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xac, 0xee,
    0xe2, 0xfc,
];

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
fn a_stop_takes_a_reboot_back() {
    let Some(bench) = Bench::new(&[AWAIT_BUTTON.to_vec(), power_off()].concat()) else {
        return;
    };
    let mut child = bench.command().start();
    bench.listens("socket");
    // Held, so that it can't answer the first before the second is there.
    bench.ask("PUT /v1/pause");
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
    bench.ask("PUT /v1/pause");
    let still = exits();
    assert_eq!(exits(), still);
    bench.ask("PUT /v1/resume");
    until("runs again", || exits() > still + 100);
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

/// `mov dx, port; mov eax, value; out dx, eax`.
fn out32(port: u16, value: u32) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb8, a, b, c, d, 0xef]
}

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

#[test]
fn the_jail_has_nothing_but_its_own_folder() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    // SAFETY: takes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    let mut command = bench.command();
    command.arg("--jail=best-effort");
    if is_root {
        std::os::unix::fs::chown(bench.folder.path(), Some(64_000), Some(64_000)).expect("chown");
        command.args(["--uid", "64000", "--gid", "64000"]);
    }
    let mut child = command.start();
    bench.listens("socket");
    let layers = bench.machine().jail;
    assert!(
        layers.contains(&SandboxLayer::Capabilities) && layers.contains(&SandboxLayer::Seccomp)
    );
    if is_root && layers.contains(&SandboxLayer::Chroot) {
        let root = PathBuf::from(format!("/proc/{}/root", child.id()));
        let mut folder = root.clone();
        for name in bench.folder.path().components().skip(1) {
            let inside: Vec<_> = std::fs::read_dir(&folder)
                .expect("list")
                .map(|entry| entry.expect("entry").file_name())
                .collect();
            assert_eq!(inside, [name.as_os_str()], "{}", folder.display());
            folder.push(name);
        }
        assert!(folder.join("kernel").exists());
    }
    for task in std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("tasks") {
        let status = task.expect("task").path().join("status");
        let status = std::fs::read_to_string(status).expect("status");
        for none in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert!(
                status.contains(&format!("{none}:\t0000000000000000")),
                "{status}"
            );
        }
        if is_root {
            assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
            assert!(status.contains("Uid:\t64000\t64000\t64000"), "{status}");
        }
    }
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(bench.exit(), Exit::Stopped);
    assert!(!bench.path("socket").exists());
}

#[test]
fn a_layer_that_must_stand_and_does_not_is_named() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    // Without --uid, root stays root; who is none can't make namespaces.
    // SAFETY: takes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    let missing = if is_root { "user" } else { "namespaces" };
    let others = SandboxLayer::ALL
        .iter()
        .map(|layer| layer.name())
        .filter(|name| *name != missing);
    let others = others.collect::<Vec<_>>().join(",");
    let mut command = bench.command();
    let output = command
        .args(["--jail", "--jail-optional", &others])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let line = String::from_utf8(output.stderr).expect("text");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains(&format!("no {missing} layer")), "{line}");
    assert!(!bench.path("exit").exists());
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
fn a_process_without_descriptors_still_answers() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let mut child = bench.command().start();
    bench.listens("socket");
    bench.machine();
    let open = || {
        let list = std::fs::read_dir(format!("/proc/{}/fd", child.id()));
        list.expect("its descriptors").count()
    };
    let pid = libc::pid_t::try_from(child.id()).expect("a pid");
    // A connection that was closed may still be counted.
    let mut least = open();
    until("settled", || {
        least = least.min(open());
        open() == least
    });
    let limit = libc::rlimit {
        rlim_cur: least as libc::rlim_t,
        rlim_max: 4096,
    };
    // SAFETY: the pointer is to a live rlimit, and none is asked for.
    let set = unsafe {
        libc::prlimit(
            pid,
            libc::RLIMIT_NOFILE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(set, 0);
    // One that sits there and says nothing, and those that come behind it.
    let silent = UnixStream::connect(bench.path("socket")).expect("connects");
    for _ in 0..20 {
        assert_eq!(bench.machine().pid, child.id());
    }
    drop(silent);
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_daemon_is_left_behind_and_ended_by_sigterm() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let output = bench
        .command()
        .arg("--daemonize")
        .arg("--pid-file")
        .arg(bench.path("pid"))
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let pid = std::fs::read_to_string(bench.path("pid")).expect("pid file");
    assert_eq!(bench.machine().pid.to_string(), pid.trim());
    let killed = Command::new("kill").arg(pid.trim()).status();
    assert!(killed.expect("kill runs").success());
    until("exit file", || bench.path("exit").exists());
    assert_eq!(bench.exit(), Exit::Stopped);
    assert!(!bench.path("pid").exists() && !bench.path("socket").exists());
}

#[test]
fn a_daemon_that_cannot_start_says_why_and_leaves_nothing() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    std::fs::write(bench.path("kernel"), "no kernel").expect("write");
    let output = bench.command().arg("--daemonize").output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    let line = String::from_utf8(output.stderr).expect("text");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("kernel"), "{line}");
    let left: Vec<_> = std::fs::read_dir(bench.folder.path())
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(left, ["kernel"]);
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
        .arg(format!("path={},id=a", bench.path("disk").display()))
        .arg("--balloon")
        .arg("--vsock")
        .arg(format!("cid=3,path={}", bench.path("vsock").display()))
        .start();
    bench.listens("socket");
    disk.set_len(2 << 20).expect("2 MiB");
    let answer = bench.ask("PATCH /v1/disks/a");
    assert!(answer.contains("\"size_bytes\":2097152"), "{answer}");
    assert_eq!(bench.machine().disks[0].size_bytes, 2 << 20);
    assert!(bench.ask("PATCH /v1/disks/b").contains(" 404 "));
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
