//! A machine that another process takes over while it runs.

use super::driver::{Function, add16, await_used, forever, inc32, say8, store32};
use super::jail::send_files;
use super::*;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use hearth_vmm::handover::{Message, Word, hear, receive_state};
use rustix::net::RecvFlags;

const DISK: Function = Function { slot: 1 };

/// The sector that is written.
fn data() -> u32 {
    DISK.table(0) + 0x3000 + 0x200
}

/// Counts in what it writes to its disk, and says each number when it is there.
fn writes() -> Vec<u8> {
    let buffers = DISK.table(0) + 0x3000;
    let begin = [
        DISK.place(),
        DISK.bring_up(&[0]),
        // VIRTIO_BLK_T_OUT, as virtio 1.2, section 5.2.6 has it.
        store32(buffers, 1),
        DISK.describe(0, 0, (buffers, 16, 1, 1)),
        DISK.describe(0, 1, (data(), 512, 1, 2)),
        DISK.describe(0, 2, (buffers + 0x100, 1, 2, 0)),
    ];
    let again = [
        inc32(data()),
        add16(DISK.available_index(0), 1),
        DISK.ring(0),
        await_used(DISK, 0),
        say8(data()),
    ];
    [begin.concat(), forever(again.concat())].concat()
}

/// A machine of that guest, and how it is started.
struct Updated {
    bench: Bench,
    more: Vec<String>,
}

impl Updated {
    fn new(more: &[&str]) -> Option<Self> {
        let bench = Bench::new(&writes())?;
        let disk = File::create_new(bench.path("disk")).expect("a disk");
        disk.set_len(1 << 20).expect("grows");
        let more = more.iter().map(|one| (*one).to_owned()).collect();
        Some(Self { bench, more })
    }

    fn command(&self, more: &[String]) -> Command {
        let path = |name| self.bench.path(name).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-vmm"));
        for (flag, name) in [
            ("--kernel", "kernel"),
            ("--socket", "socket"),
            ("--exit-file", "exit"),
            ("--serial-log", "serial"),
            ("--pid-file", "pid"),
            ("--console-socket", "console"),
            ("--gdb", "gdb"),
        ] {
            command.args([flag, &path(name)]);
        }
        command
            .args(["--disk", &format!("path={}", path("disk"))])
            .args(["--vsock", &format!("cid=3,path={}", path("vsock"))])
            .args(more);
        command
    }

    fn start(&self) -> Vmm {
        let child = self.command(&self.more).start();
        self.bench.listens("socket");
        self.goes_on();
        child
    }

    fn taking_over(&self) -> Command {
        self.taking_over_with(&self.more)
    }

    fn taking_over_with(&self, more: &[String]) -> Command {
        let mut command = self.command(more);
        command.arg("--take-over").arg(self.bench.path("socket"));
        command
    }

    /// The guest writes and says more.
    fn goes_on(&self) {
        let before = self.bench.log().len();
        until("it goes on", || self.bench.log().len() > before + 50);
        assert_eq!(self.bench.machine().state, MachineState::Running);
    }

    /// Everything that the guest has said is one more than what it said before, and its
    /// disk has the last.
    fn ends(&self, child: Vmm) {
        self.bench.stop(child);
        assert_eq!(self.bench.exit(), Exit::Stopped);
        for name in ["socket", "console", "gdb", "vsock", "pid"] {
            assert!(!self.bench.path(name).exists(), "{name} is left");
        }
        let log = self.bench.log();
        for (index, pair) in log.windows(2).enumerate() {
            assert_eq!(pair[1], pair[0].wrapping_add(1), "at {index}");
        }
        let disk = std::fs::read(self.bench.path("disk")).expect("a disk");
        let last = *log.last().expect("it said something");
        assert!([0, 1].contains(&disk[0].wrapping_sub(last)));
    }

    /// Asks for the machine as another process would.
    fn ask(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let theirs = File::from(OwnedFd::from(theirs));
        let answer = self.send(&[&theirs]);
        assert!(answer.contains(" 202 "), "{answer}");
        ours
    }

    fn send(&self, files: &[&File]) -> String {
        send_files(&self.bench.path("socket"), "PUT /v1/hand-over", "", files)
    }
}

/// Hears all that comes before memory.
fn prepared(stream: &mut UnixStream) -> Vec<Message> {
    let mut all = Vec::new();
    loop {
        let (message, _) = hear(stream).expect("heard");
        all.push(message);
        if let Some(Message::Prepared { .. }) = all.last() {
            return all;
        }
    }
}

#[test]
fn a_machine_is_updated_again_and_again_under_its_disks_work() {
    for (rounds, more) in [
        (4, &["--memory", "64"][..]),
        (12, &["--memory", "64,shared", "--vcpus", "2"]),
        (4, &["--memory", "64", "--jail=best-effort", "--balloon"]),
        (3, &["--memory", "64,max=128", "--vcpus", "1,max=3"]),
    ] {
        let Some(updated) = Updated::new(more) else {
            return;
        };
        let bench = &updated.bench;
        let mut child = updated.start();
        for round in 0..rounds {
            let mut next = updated.taking_over().start();
            until("the old one ends", || {
                assert_eq!(next.try_wait().expect("waits"), None, "in round {round}");
                child.try_wait().expect("waits").is_some()
            });
            let status = child.wait().expect("ends");
            assert_eq!(status.code(), Some(0), "the old one in round {round}");
            child = next;
            updated.goes_on();
            assert!(!bench.path("exit").exists());
            let pid = std::fs::read_to_string(bench.path("pid")).expect("a pid");
            assert_eq!(pid.trim(), child.id().to_string());
            // Not gdb's: who connects there holds the machine.
            for name in ["console", "vsock"] {
                bench.listens(name);
            }
        }
        updated.ends(child);
    }
}

#[test]
fn a_machine_that_is_held_stays_so() {
    let Some(updated) = Updated::new(&["--memory", "64"]) else {
        return;
    };
    let mut first = updated.start();
    updated.bench.pause();
    let second = updated.taking_over().start();
    assert_eq!(first.wait().expect("ends").code(), Some(0));
    assert_eq!(updated.bench.machine().state, MachineState::Paused);
    let before = updated.bench.log().len();
    updated.bench.ask("PUT /v1/resume");
    until("it goes on", || updated.bench.log().len() > before + 50);
    updated.ends(second);
}

#[test]
fn a_kernel_that_is_there_no_more_is_what_a_reset_boots() {
    let Some(updated) = Updated::new(&["--memory", "64"]) else {
        return;
    };
    let mut first = updated.start();
    let bench = &updated.bench;
    let version = bench.machine().version;
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    std::fs::remove_file(bench.path("kernel")).expect("removed");
    let mut command = updated.taking_over();
    let mut all: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let kernel = all.iter().position(|one| one == "--kernel").expect("named");
    all.drain(kernel..kernel + 2);
    command = Command::new(command.get_program());
    let second = command.args(all).start();
    assert_eq!(first.wait().expect("ends").code(), Some(0));
    updated.goes_on();
    // It begins anew, and counts from one.
    let resets = || bench.machine().resets;
    let before = resets();
    bench.ask("PUT /v1/reset");
    until("it is reset", || resets() > before);
    let said = bench.log().len();
    until("it goes on", || bench.log().len() > said + 50);
    bench.stop(second);
    assert_eq!(bench.exit(), Exit::Stopped);
}

#[test]
fn who_can_not_go_on_with_it_leaves_it_where_it_was() {
    let Some(updated) = Updated::new(&["--memory", "64"]) else {
        return;
    };
    let child = updated.start();
    for (wrong, said) in [
        (&["--vcpus", "2"][..], "vCPUs"),
        (&["--balloon"], "its devices are"),
        (&["--initrd", "/nowhere"], "--initrd /nowhere"),
        (
            &[
                "--template",
                "1",
                "--smbios",
                "asset-tag=i-0123456789abcdef",
            ],
            "it is no template",
        ),
    ] {
        let output = updated.taking_over().args(wrong).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let line = String::from_utf8(output.stderr).expect("text");
        assert!(line.contains(said) && line.lines().count() == 1, "{line}");
        updated.goes_on();
    }
    for memory in ["32", "64,shared"] {
        let other = ["--memory", memory].map(str::to_owned).to_vec();
        let output = updated.taking_over_with(&other).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let line = String::from_utf8(output.stderr).expect("text");
        assert!(line.contains("memory"), "{line}");
        updated.goes_on();
    }
    for name in ["socket", "console", "gdb", "vsock", "pid"] {
        assert!(updated.bench.path(name).exists(), "{name} is gone");
    }
    updated.ends(child);
}

#[test]
fn what_can_not_be_handed_over_goes_on() {
    let Some(updated) = Updated::new(&["--memory", "64"]) else {
        return;
    };
    let child = updated.start();
    let mut debugger = UnixStream::connect(updated.bench.path("gdb")).expect("connects");
    // Why it has stopped, which is answered once it has.
    debugger.write_all(b"$?#3f").expect("asks");
    debugger.read_exact(&mut [0]).expect("answers");
    let (_ours, theirs) = UnixStream::pair().expect("sockets");
    let answer = updated.send(&[&File::from(OwnedFd::from(theirs))]);
    assert!(
        answer.contains(" 409 ") && answer.contains("a debugger has the machine"),
        "{answer}"
    );
    drop(debugger);
    updated.goes_on();
    updated.ends(child);
}

#[test]
fn one_that_dies_before_it_has_it_gives_it_back() {
    let Some(updated) = Updated::new(&["--memory", "64"]) else {
        return;
    };
    let child = updated.start();
    // At once.
    drop(updated.ask());
    updated.goes_on();
    // When it has the files, and in the midst of memory.
    for memory in [0, 1 << 16] {
        let mut stream = updated.ask();
        let said = prepared(&mut stream);
        assert!(
            said.contains(&Message::Device("disk0".to_owned())),
            "{said:?}"
        );
        assert_eq!(updated.bench.machine().state, MachineState::HandingOver);
        let resumed = updated.bench.ask("PUT /v1/resume");
        assert!(resumed.contains(" 409 "), "{resumed}");
        let mut bytes = vec![0; memory];
        stream.read_exact(&mut bytes).expect("memory");
        drop(stream);
        updated.goes_on();
    }
    // Nonsense.
    let mut stream = updated.ask();
    prepared(&mut stream);
    stream.write_all(b"yes").expect("said");
    updated.goes_on();
    let none = updated.send(&[]);
    assert!(none.contains(" 400 "), "{none}");
    updated.ends(child);
}

#[test]
fn one_that_dies_as_it_takes_it_leaves_a_reason() {
    let Some(updated) = Updated::new(&["--memory", "64,shared"]) else {
        return;
    };
    let mut child = updated.start();
    // With everything, and nothing said yet: it goes on where it was.
    let mut stream = updated.ask();
    prepared(&mut stream);
    receive_state(&mut stream).expect("the state");
    drop(stream);
    updated.goes_on();
    let mut stream = updated.ask();
    prepared(&mut stream);
    receive_state(&mut stream).expect("the state");
    Word::Ready.say(&stream).expect("said");
    assert!(
        Word::Yours
            .is_said(&stream, RecvFlags::empty())
            .expect("said")
    );
    // It has it, and the old one waits for no one but it.
    assert_eq!(child.try_wait().expect("waits"), None);
    drop(stream);
    assert_eq!(child.wait().expect("ends").code(), Some(1));
    let Exit::Crashed { detail } = updated.bench.exit() else {
        panic!("no crash");
    };
    assert!(detail.contains("took the machine over"), "{detail}");
}

#[test]
fn one_that_is_stopped_meanwhile_is_stopped() {
    let Some(updated) = Updated::new(&["--memory", "64"]) else {
        return;
    };
    let mut child = updated.start();
    let mut stream = updated.ask();
    prepared(&mut stream);
    assert!(updated.bench.ask("PUT /v1/stop").contains(" 204 "));
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(updated.bench.exit(), Exit::Stopped);
    let mut rest = Vec::new();
    // What was sent, and then the end.
    let _ = stream.read_to_end(&mut rest);
    assert!(Word::Yours.is_said(&stream, RecvFlags::empty()).is_err());
}

#[test]
fn a_machine_whose_process_dies_is_not_gone_on_with() {
    let Some(updated) = Updated::new(&["--memory", "64"]) else {
        return;
    };
    let listener = UnixListener::bind(updated.bench.path("socket")).expect("binds");
    let mut command = updated.taking_over();
    let child = command.stderr(Stdio::piped()).start();
    let (mut client, _) = listener.accept().expect("asks");
    let wanted = b"PUT /v1/hand-over HTTP/1.1\r\nHost: vmm\r\n\r\n";
    let mut asked = vec![0; wanted.len()];
    client.read_exact(&mut asked).expect("a request");
    assert_eq!(asked, wanted);
    client
        .write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        .expect("answers");
    // Its socket is gone: reading without recvmsg(2) has closed it.
    drop((client, listener));
    let Vmm(child) = &mut { child };
    let status = child.wait().expect("ends");
    assert_eq!(status.code(), Some(2));
    let mut line = String::new();
    let errors = child.stderr.take().expect("a pipe");
    { errors }.read_to_string(&mut line).expect("text");
    assert!(line.contains("it was not handed over"), "{line}");
    assert!(!updated.bench.path("exit").exists());
}

/// As a cloud's: each in a PID namespace of its own, and of another user than who started it.
#[test]
fn a_daemon_in_its_jail_gives_way_to_another() {
    let Some(updated) = Updated::new(&["--memory", "64", "--daemonize"]) else {
        return;
    };
    let bench = &updated.bench;
    let mut more = updated.more.clone();
    if rustix::process::geteuid().is_root() {
        let folder = bench.path("socket");
        let folder = folder.parent().expect("a folder");
        std::os::unix::fs::chown(folder, Some(64000), Some(64000)).expect("chown");
        more.extend(["--uid", "64000", "--gid", "64000"].map(str::to_owned));
    }
    more.push("--jail=best-effort".to_owned());
    let run = |mut command: Command| {
        let output = command.output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        let pid = std::fs::read_to_string(bench.path("pid")).expect("a pid");
        pid.trim().parse::<i32>().expect("a number")
    };
    let is_alive = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    let mut pid = run(updated.command(&more));
    for round in 0..4 {
        updated.goes_on();
        let next = run(updated.taking_over_with(&more));
        until("the old one ends", || !is_alive(pid));
        assert!(next != pid && is_alive(next), "in round {round}");
        pid = next;
        let machine = bench.machine();
        assert_eq!(machine.pid, pid.unsigned_abs());
        assert!(!bench.path("exit").exists());
    }
    updated.goes_on();
    bench.ask("PUT /v1/stop");
    until("it ends", || !is_alive(pid));
    assert_eq!(bench.exit(), Exit::Stopped);
}
