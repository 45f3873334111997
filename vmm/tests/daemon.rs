//! A daemon in the jail is pid 1 to itself: what those outside know of it, and whether
//! they can still end it.

#![allow(clippy::disallowed_methods, reason = "a test may start programs")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hearth_vmm_api::{Exit, Machine, SandboxLayer};
use rustix::process::{Pid, Signal, kill_process};

/// A user that nobody is.
const USER: &str = "64002";

/// A bzImage that halts: `hlt; jmp` to it. The fields are those of the real-mode kernel
/// header, Documentation/arch/x86/boot.rst.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 1024 + 512];
    let fields: [(usize, &[u8]); 7] = [
        (0x1f1, &[1]),             // setup_sects
        (0x202, b"HdrS"),          // header
        (0x206, &[0x0f, 2]),       // version
        (0x211, &[1]),             // loadflags: LOADED_HIGH
        (0x214, &[0, 0, 0x10, 0]), // code32_start
        (0x236, &[1]),             // xloadflags: XLF_KERNEL_64
        (0x238, &[0xff, 7]),       // cmdline_size
    ];
    for (at, bytes) in fields {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image.extend([0xf4, 0xeb, 0xfd]);
    image
}

/// `GET /v1/machine`.
fn machine(socket: &Path) -> Machine {
    let mut stream = UnixStream::connect(socket).expect("connects");
    write!(stream, "GET /v1/machine HTTP/1.1\r\nHost: vmm\r\n\r\n").expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    serde_json::from_str(body).expect("JSON")
}

#[test]
fn a_jailed_daemon_is_known_by_the_pid_that_others_see() {
    if !Path::new("/dev/kvm").exists() || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root and /dev/kvm");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    let user = USER.parse().ok();
    std::os::unix::fs::chown(folder.path(), user, user).expect("chown");
    fs::write(path("kernel"), kernel()).expect("kernel");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-vmm"));
    command.args(["--memory", "64", "--jail=best-effort", "--daemonize"]);
    command.args(["--uid", USER, "--gid", USER]);
    for (flag, name) in [
        ("--kernel", "kernel"),
        ("--socket", "socket"),
        ("--serial-log", "serial"),
        ("--exit-file", "exit"),
        ("--pid-file", "pid"),
    ] {
        command.arg(flag).arg(path(name));
    }
    let output = command.output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let machine = machine(&path("socket"));
    let pid = fs::read_to_string(path("pid")).expect("pid file");
    assert_eq!(pid.trim(), machine.pid.to_string());
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("it lives");
    assert!(status.contains("Name:\thearth-vmm"), "{status}");
    let is_alone = status.contains(&format!("NSpid:\t{}\t1\n", pid.trim()));
    let has_namespaces = machine.jail.contains(&SandboxLayer::Namespaces);
    assert_eq!(is_alone, has_namespaces, "{status}");

    let process = i32::try_from(machine.pid).ok().and_then(Pid::from_raw);
    kill_process(process.expect("a pid"), Signal::TERM).expect("signalled");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path("exit").exists() {
        assert!(Instant::now() < deadline, "it never ended");
        std::thread::yield_now();
    }
    let exit = fs::read(path("exit")).expect("exit file");
    assert_eq!(
        serde_json::from_slice::<Exit>(&exit).expect("JSON"),
        Exit::Stopped
    );
}
