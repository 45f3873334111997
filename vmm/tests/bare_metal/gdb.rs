//! A debugger: its protocol, and what it does to a guest that runs.

use super::slow_disk::{Answers, SlowDisk};
use super::snapshot::saves_to;
use super::*;

/// Where the guest's code is: a bzImage's 64-bit entry.
const CODE: u64 = 0x10_0200;

/// `inc rax; nop; mov [rbx], rax; jmp` to the beginning.
const COUNT: [u8; 9] = [0x48, 0xff, 0xc0, 0x90, 0x48, 0x89, 0x03, 0xeb, 0xf7];
/// Where it has its `nop`, its `mov` and its `jmp`.
const NOP: u64 = CODE + 3;
const MOV: u64 = CODE + 4;
const JMP: u64 = CODE + 7;
/// `mov ebx, DATA`, and the loop behind it, at [`CODE`] too.
const DATA: u64 = 0x20_0000;

/// As much of gdb as a test needs.
struct Gdb {
    stream: UnixStream,
}

impl Gdb {
    fn attach(bench: &Bench) -> Self {
        until("listens", || bench.path("gdb").exists());
        let mut connected = None;
        until("attached", || {
            connected = UnixStream::connect(bench.path("gdb")).ok();
            connected.is_some()
        });
        let stream = connected.expect("just so");
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).expect("timeout");
        let mut gdb = Self { stream };
        assert!(
            gdb.ask("qSupported:hwbreak+;swbreak+")
                .contains("PacketSize")
        );
        gdb
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        write!(self.stream, "${packet}#{sum:02x}").expect("sends");
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).expect("an answer");
        byte[0]
    }

    /// The next packet, its runs written out ("Overview", Remote Serial Protocol).
    fn receive(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text = Vec::new();
        loop {
            match self.byte() {
                b'#' => break,
                b'*' => {
                    let count = usize::from(self.byte() - 29);
                    let last = *text.last().expect("something to repeat");
                    text.extend(std::iter::repeat_n(last, count));
                }
                byte => text.push(byte),
            }
        }
        for _ in 0..2 {
            self.byte();
        }
        // It may have been the last word.
        let _ = self.stream.write_all(b"+");
        String::from_utf8(text).expect("text")
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.receive()
    }

    fn ok(&mut self, packet: &str) {
        assert_eq!(self.ask(packet), "OK", "{packet}");
    }

    fn interrupt(&mut self) -> String {
        self.stream.write_all(b"\x03").expect("sends");
        self.receive()
    }

    fn registers(&mut self) -> Vec<u8> {
        unhex(&self.ask("g"))
    }

    fn register(&mut self, at: usize) -> u64 {
        let all = self.registers();
        u64::from_le_bytes(all[at..at + 8].try_into().expect("eight bytes"))
    }

    fn rip(&mut self) -> u64 {
        self.register(RIP)
    }

    fn rax(&mut self) -> u64 {
        self.register(0)
    }

    fn set(&mut self, at: usize, value: u64) {
        let mut all = self.registers();
        all[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self.ok(&format!("G{}", hex(&all)));
    }

    fn memory(&mut self, address: u64, count: usize) -> Vec<u8> {
        unhex(&self.ask(&format!("m{address:x},{count:x}")))
    }
}

/// Places in the packet of all registers.
const RBX: usize = 8;
const RIP: usize = 16 * 8;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    let pairs = pairs.map(|pair| std::str::from_utf8(pair).expect("text"));
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("{text}")))
        .collect()
}

/// A guest that counts, and a debugger that has stopped it somewhere in the loop.
fn counting(arguments: &[&str]) -> Option<(Bench, Vmm, Gdb)> {
    let (bench, child, mut gdb) = stopped(&COUNT, arguments)?;
    gdb.set(RBX, DATA);
    Some((bench, child, gdb))
}

/// A guest of this code that a debugger has stopped.
fn stopped(code: &[u8], arguments: &[&str]) -> Option<(Bench, Vmm, Gdb)> {
    let bench = Bench::new(code)?;
    let mut command = bench.command();
    command.arg("--gdb").arg(bench.path("gdb")).args(arguments);
    let child = command.start();
    let mut gdb = Gdb::attach(&bench);
    assert!(gdb.ask("?").starts_with("T05"));
    Some((bench, child, gdb))
}

fn stop(bench: &Bench, mut child: Vmm) {
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

fn is_in_loop(rip: u64) -> bool {
    [CODE, NOP, MOV, JMP].contains(&rip)
}

#[test]
fn a_debugger_stops_reads_writes_and_lets_go() {
    for arguments in [&["--vcpus", "2"][..], &["--jail=best-effort"]] {
        let Some((bench, child, mut gdb)) = counting(arguments) else {
            return;
        };
        assert!(is_in_loop(gdb.rip()));
        assert_eq!(gdb.memory(CODE, COUNT.len()), COUNT);
        // Across a page, and where there is nothing.
        gdb.ok(&format!("M{:x},4:01020304", DATA + 0xffe));
        assert_eq!(gdb.memory(DATA + 0xffd, 6), [0, 1, 2, 3, 4, 0]);
        let nothing = 0x7fff_0000_0000u64;
        assert!(gdb.ask(&format!("m{nothing:x},4")).starts_with('E'));
        assert!(gdb.ask(&format!("M{nothing:x},1:00")).starts_with('E'));

        gdb.set(0, 1 << 40);
        assert_eq!(gdb.rax(), 1 << 40);
        gdb.send("c");
        assert!(bench.machine().vcpus > 0, "the control socket is served");
        let count = || bench.metrics().vcpu_exits;
        let before = count();
        let stopped = gdb.interrupt();
        assert!(stopped.starts_with("T02"), "{stopped}");
        assert!(count() >= before);
        let rax = gdb.rax();
        assert!(rax >= 1 << 40 && is_in_loop(gdb.rip()), "{rax:#x}");
        assert_eq!(gdb.rax(), rax, "it stands still");

        // Detached, it goes on.
        gdb.ok("D");
        drop(gdb);
        let mut gdb = Gdb::attach(&bench);
        until("it ran", || {
            let now = gdb.rax();
            gdb.ok("D");
            gdb = Gdb::attach(&bench);
            now > rax
        });
        stop(&bench, child);
    }
}

#[test]
fn vcpus_are_threads() {
    let Some((bench, child, mut gdb)) = counting(&["--vcpus", "3"]) else {
        return;
    };
    assert_eq!(gdb.ask("qfThreadInfo"), "m01,02,03");
    assert_eq!(gdb.ask("qsThreadInfo"), "l");
    let named = unhex(&gdb.ask("qThreadExtraInfo,2"));
    assert_eq!(named, b"vCPU 1");
    gdb.ok("Hg2");
    assert!(!is_in_loop(gdb.rip()), "it waits to be started");
    gdb.ok("Hg1");
    assert!(is_in_loop(gdb.rip()));
    stop(&bench, child);
}

#[test]
fn a_step_is_one_instruction() {
    let Some((bench, child, mut gdb)) = counting(&[]) else {
        return;
    };
    for _ in 0..12 {
        let before = gdb.rip();
        let stopped = gdb.ask("vCont;s:1");
        assert!(stopped.starts_with("T05"), "{stopped}");
        let next = match before {
            CODE => NOP,
            NOP => MOV,
            MOV => JMP,
            JMP => CODE,
            other => panic!("{other:#x}"),
        };
        assert_eq!(gdb.rip(), next);
    }
    stop(&bench, child);
}

#[test]
fn hardware_breakpoints_and_watchpoints_stop_it() {
    let Some((bench, child, mut gdb)) = counting(&[]) else {
        return;
    };
    gdb.ok(&format!("Z1,{NOP:x},1"));
    for _ in 0..3 {
        let stopped = gdb.ask("c");
        assert!(stopped.contains("hwbreak"), "{stopped}");
        assert_eq!(gdb.rip(), NOP);
        // Past it, as gdb does.
        gdb.ok(&format!("z1,{NOP:x},1"));
        gdb.ask("vCont;s:1");
        gdb.ok(&format!("Z1,{NOP:x},1"));
    }
    gdb.ok(&format!("z1,{NOP:x},1"));
    // It can't watch for reads alone.
    assert!(gdb.ask(&format!("Z3,{DATA:x},8")).starts_with('E'));
    gdb.ok(&format!("Z2,{DATA:x},8"));
    gdb.send("c");
    // Where one works, it is hit at once, and a stop that was asked for comes second.
    let stopped = gdb.interrupt();
    if stopped.contains("watch:") {
        assert!(stopped.contains(&format!("watch:{DATA:x};")), "{stopped}");
        assert_eq!(gdb.rip(), JMP, "behind what wrote");
    } else {
        eprintln!("SKIPPED: this KVM has no watchpoints");
    }
    stop(&bench, child);
}

#[test]
fn software_breakpoints_stop_it() {
    let Some((bench, mut child, mut gdb)) = counting(&[]) else {
        return;
    };
    gdb.ok(&format!("Z0,{NOP:x},1"));
    assert_eq!(gdb.memory(NOP, 1), [0xcc]);
    let stopped = gdb.ask("c");
    if stopped == "W01" {
        child.wait().expect("ends");
        let exit = format!("{:?}", bench.exit());
        assert!(exit.contains("emulation failure"), "{exit}");
        eprintln!("SKIPPED: this KVM can't execute int3: {exit}");
        return;
    }
    assert!(stopped.contains("swbreak"), "{stopped}");
    assert_eq!(gdb.rip(), NOP);
    gdb.ok(&format!("z0,{NOP:x},1"));
    assert_eq!(gdb.memory(CODE, COUNT.len()), COUNT);
    gdb.ok(&format!("Z0,{MOV:x},1"));
    assert!(gdb.ask("c").contains("swbreak"));
    assert_eq!(gdb.rip(), MOV);

    gdb.ok(&format!("z0,{MOV:x},1"));
    gdb.send("c");
    assert!(gdb.interrupt().starts_with("T02"));
    stop(&bench, child);
}

#[test]
fn a_debugger_that_is_gone_has_undone_all() {
    let Some((bench, child, mut gdb)) = counting(&[]) else {
        return;
    };
    // Behind the code: nothing is to run into it.
    let free = CODE + 0x100;
    for runs in [false, true] {
        gdb.ok(&format!("Z0,{free:x},1"));
        gdb.ok(&format!("Z1,{:x},1", free + 1));
        assert_eq!(gdb.memory(free, 1), [0xcc]);
        if runs {
            gdb.send("c");
        }
        drop(gdb);
        gdb = Gdb::attach(&bench);
        assert_eq!(gdb.memory(free, 1), [0]);
        assert!(is_in_loop(gdb.rip()));
    }
    let rax = gdb.rax();
    until("it runs", || {
        gdb.send("c");
        gdb.interrupt();
        gdb.rax() > rax
    });
    stop(&bench, child);
}

#[test]
fn a_reset_stops_at_the_first_instruction() {
    // Writes to an unclaimed port without end: every turn is an exit.
    let spin = [out(0x80, 0), vec![0xeb, 0xf7]].concat();
    let Some((bench, child, mut gdb)) = stopped(&spin, &[]) else {
        return;
    };
    let free = CODE + 0x100;
    gdb.ok(&format!("Z0,{free:x},1"));
    let goes_on = |gdb: &mut Gdb| {
        let before = bench.metrics().vcpu_exits;
        gdb.send("c");
        until("it runs", || bench.metrics().vcpu_exits > before + 10);
    };
    goes_on(&mut gdb);
    bench.ask("PUT /v1/reset");
    assert!(gdb.receive().starts_with("T05"));
    assert_eq!(gdb.rip(), CODE);
    // What was in the memory is gone with it, and gdb may take it out all the same.
    assert_eq!(gdb.memory(free, 1), [0]);
    gdb.ok(&format!("z0,{free:x},1"));
    assert_eq!(gdb.memory(free, 1), [0]);
    goes_on(&mut gdb);
    assert!(gdb.interrupt().starts_with("T02"));
    // And under a debugger that has it stopped.
    bench.ask("PUT /v1/reset");
    until("reset", || bench.machine().resets == 2);
    assert_eq!(gdb.rip(), CODE);
    goes_on(&mut gdb);
    gdb.interrupt();
    gdb.ok("D");
    stop(&bench, child);
}

#[test]
fn a_pause_and_a_debugger_hold_it_each() {
    let Some((bench, child, mut gdb)) = counting(&[]) else {
        return;
    };
    gdb.send("c");
    bench.ask("PUT /v1/pause");
    gdb.interrupt();
    let rax = gdb.rax();
    gdb.send("c");
    gdb.interrupt();
    assert_eq!(gdb.rax(), rax, "it is paused");
    bench.ask("PUT /v1/resume");
    assert_eq!(gdb.rax(), rax, "gdb has it stopped");
    gdb.send("c");
    gdb.interrupt();
    stop(&bench, child);
}

#[test]
fn what_is_being_saved_is_read_and_not_written() {
    let (Some(disk), Some((bench, child, mut gdb))) = (SlowDisk::new(), counting(&[])) else {
        return;
    };
    let free = CODE + 0x100;
    gdb.ok(&format!("Z0,{free:x},1"));
    let before = gdb.registers();
    bench.pause();
    disk.answers(Answers::NoTransfers);
    let state = tempfile::tempfile().expect("a file");
    let client = saves_to(&bench, &disk, &state);
    until("it is being written", || disk.hangs());
    assert_eq!(bench.machine().state, MachineState::Saving);
    let busy = [
        format!("M{DATA:x},1:55"),
        format!("G{}", hex(&[0x55; 8].repeat(before.len() / 8))),
        format!("Z0,{:x},1", free + 1),
        format!("z0,{free:x},1"),
    ];
    for packet in &busy {
        assert_eq!(gdb.ask(packet), "E10", "{packet}");
    }
    assert_eq!(gdb.registers(), before);
    assert_eq!(gdb.memory(free, 2), [0xcc, 0]);
    // It goes, and what it did to the guest is undone when that can be.
    drop(gdb);
    bench.machine();
    assert!(!client.is_finished());
    disk.answers(Answers::Everything);
    let answer = client.join().expect("a client");
    assert!(answer.contains(" 200 "), "{answer}");
    let mut gdb = Gdb::attach(&bench);
    assert_eq!(gdb.memory(free, 2), [0, 0]);
    gdb.ok(&format!("M{DATA:x},1:55"));
    gdb.ok("D");
    stop(&bench, child);
}

#[test]
fn the_end_of_the_machine_is_told() {
    let Some(bench) = Bench::new(&[AWAIT_BUTTON.to_vec(), power_off()].concat()) else {
        return;
    };
    let mut command = bench.command();
    command.arg("--gdb").arg(bench.path("gdb"));
    let mut child = command.start();
    let mut gdb = Gdb::attach(&bench);
    // A second debugger is let go.
    let mut second = UnixStream::connect(bench.path("gdb")).expect("connects");
    assert_eq!(second.read(&mut [0]).expect("closed"), 0);
    gdb.send("c");
    bench.ask("PUT /v1/power-button");
    assert_eq!(gdb.receive(), "W00");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert!(!bench.path("gdb").exists());
}
