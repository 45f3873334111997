//! The whole program with guests of a few bytes, on whatever `/dev/kvm` is here:
//! what a power-off, a reset, a triple fault and a stop look like from outside.

#![allow(clippy::disallowed_methods, reason = "a test may start programs")]

mod chaos;
mod console;
mod copies;
mod cost;
mod devices;
mod disk;
mod driver;
mod firmware;
mod floods;
mod followed;
mod gdb;
mod held;
mod hung;
#[path = "../image/mod.rs"]
mod image;
mod jail;
mod memory;
mod ports;
mod power;
mod process;
mod slow_disk;
mod snapshot;
mod template;
mod trace;
mod update;
mod user_disk;
mod vcpus;

use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use hearth_vmm_api::{Exit, ExitStatus, Machine, MachineState, Metrics, SandboxLayer};
use serde::de::DeserializeOwned;

use image::{AWAIT_BUTTON, HALT, bzimage};

/// `mov dx, port; mov al, value; out dx, al`, in long mode.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// S5: sleep type 5, sleep enable.
fn power_off() -> Vec<u8> {
    out(0x600, 5 << 2 | 1 << 5)
}

/// An instruction that is none; without an IDT, a triple fault.
const UD2: [u8; 2] = [0x0f, 0x0b];

/// Writes the generation id to the serial port: `mov esi, 0xdf010; mov ecx, 16; mov dx,
/// 0x3f8; lodsb; out dx, al; loop` to the `lodsb`.
const PRINT_GENERATION: [u8; 18] = [
    0xbe, 0x10, 0xf0, 0x0d, 0x00, 0xb9, 0x10, 0x00, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xac, 0xee,
    0xe2, 0xfc,
];

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
        let mut command = self.unlogged();
        command.arg("--serial-log").arg(self.path("serial"));
        command
    }

    /// The serial port's output goes to standard output.
    fn unlogged(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-vmm"));
        command
            .args(["--memory", "64", "--kernel"])
            .arg(self.path("kernel"))
            .arg("--socket")
            .arg(self.path("socket"))
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

    /// Holds the machine, and waits until it stands still.
    fn pause(&self) {
        self.ask("PUT /v1/pause");
        until("it stands still", || {
            self.machine().state == MachineState::Paused
        });
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
