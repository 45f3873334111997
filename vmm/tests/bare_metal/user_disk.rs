//! A disk that qemu-storage-daemon serves (vhost-user-blk): driven, held, copied, followed,
//! and without its back end.

use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::disk::{SECTORS, write_for_ever};
use super::*;

/// Debian's package qemu-system-common has it.
const DAEMON: &str = "qemu-storage-daemon";

/// The daemon, with a file of 1 MiB; ended when dropped.
pub(super) struct Daemon {
    child: Vmm,
    socket: PathBuf,
    disk: PathBuf,
}

impl Daemon {
    /// Nothing where there is none, said aloud.
    pub(super) fn start(bench: &Bench) -> Option<Self> {
        let disk = bench.path("disk");
        if !disk.exists() {
            let file = std::fs::File::create_new(&disk).expect("a disk");
            file.set_len(1 << 20).expect("grows");
        }
        let socket = bench.path("disk.sock");
        let _ = std::fs::remove_file(&socket);
        let node = format!("driver=file,node-name=disk,filename={}", disk.display());
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on",
            socket.display()
        );
        let arguments = ["--blockdev", &node, "--export", &export];
        let child = match Command::new(DAEMON).args(arguments).spawn() {
            Ok(child) => Vmm(child),
            Err(error) => {
                eprintln!("SKIPPED: {DAEMON}: {error}");
                return None;
            }
        };
        until("the daemon listens", || socket.exists());
        Some(Self {
            child,
            socket,
            disk,
        })
    }

    pub(super) fn flag(&self) -> String {
        format!("socket={},id=user", self.socket.display())
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid");
        // SAFETY: a child that was not waited for has its pid.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// What a sector begins with.
    fn read(&self, sector: u32) -> u32 {
        let mut bytes = [0; 4];
        let disk = std::fs::File::open(&self.disk).expect("the disk");
        disk.read_exact_at(&mut bytes, u64::from(sector) * 512)
            .expect("read");
        u32::from_le_bytes(bytes)
    }
}

/// The same machine with shared memory.
pub(super) fn shared(command: &Command) -> Command {
    let mut shared = Command::new(command.get_program());
    let shares = |argument| match argument == "64" {
        true => "64,shared".as_ref(),
        false => argument,
    };
    shared.args(command.get_args().map(shares));
    shared
}

/// Waits until the guest has written more.
fn writes(bench: &Bench) {
    let before = bench.log().len();
    until("it writes", || bench.log().len() > before + 40);
}

/// What the guest has said so far counts up from one, and is on the disk.
fn is_whole(bench: &Bench, daemon: &Daemon) {
    is_whole_from(bench, daemon, 0);
}

/// So does what it has said since a reset, when there was so much.
fn is_whole_from(bench: &Bench, daemon: &Daemon, begin: usize) {
    let log = bench.log().split_off(begin);
    for (at, (said, count)) in log.iter().zip(1u32..).enumerate() {
        assert_eq!(*said, count.to_le_bytes()[0], "at {at}");
    }
    let count = u32::try_from(log.len()).expect("not so many");
    // One more may be on its way.
    let written = [count, count + 1].map(|count| daemon.read(count % SECTORS) == count);
    assert!(written.contains(&true), "{count}");
}

fn back_end(bench: &Bench) -> hearth_vmm_api::BackEnd {
    let machine = bench.machine();
    machine.disks[0].back_end.clone().expect("one")
}

#[test]
fn another_process_serves_a_disk() {
    let Some(bench) = Bench::new(&write_for_ever()) else {
        return;
    };
    let Some(daemon) = Daemon::start(&bench) else {
        return;
    };
    let child = shared(&bench.command())
        .args(["--disk", &daemon.flag()])
        .start();
    bench.listens("socket");
    writes(&bench);
    let machine = bench.machine();
    let disk = &machine.disks[0];
    assert_eq!((disk.size_bytes, disk.read_only), (1 << 20, false));
    assert_eq!(disk.path, daemon.socket);
    assert!(back_end(&bench).connected);
    // Held and let go; reset by force.
    bench.pause();
    is_whole(&bench, &daemon);
    bench.ask("PUT /v1/resume");
    writes(&bench);
    let change = r#"{"limits":{"ops":1}}"#;
    let limited = bench.send("PATCH /v1/disks/user", change);
    assert!(
        limited.contains(" 409 ") && limited.contains("throttle"),
        "{limited}"
    );
    assert!(bench.ask("PATCH /v1/disks/user").contains(" 200 "));
    bench.stop(child);
    is_whole(&bench, &daemon);
}

#[test]
fn a_disk_of_another_process_goes_on_in_a_copy() {
    let Some(bench) = Bench::new(&write_for_ever()) else {
        return;
    };
    let Some(daemon) = Daemon::start(&bench) else {
        return;
    };
    let disk = ["--disk", &daemon.flag()];
    let mut child = shared(&bench.command()).args(disk).start();
    bench.listens("socket");
    let base = |name: &str| format!(r#","follow":true,"base":"{}""#, bench.path(name).display());
    for round in 0..3 {
        writes(&bench);
        let (whole, since) = (format!("whole-{round}"), format!("since-{round}"));
        // What the back end writes is marked for the second.
        bench.snapshot_with(&whole, r#","follow":true"#);
        bench.ask("PUT /v1/resume");
        writes(&bench);
        bench.snapshot_with(&since, &base(&whole));
        bench.stop(child);
        child = shared(&bench.restored(&since)).args(disk).start();
        bench.listens("socket");
    }
    writes(&bench);
    bench.stop(child);
    is_whole(&bench, &daemon);
}

#[test]
fn a_disk_whose_process_hangs_is_felt_by_nobody_else() {
    let Some(bench) = Bench::new(&write_for_ever()) else {
        return;
    };
    let Some(daemon) = Daemon::start(&bench) else {
        return;
    };
    let mut child = shared(&bench.command())
        .args(["--disk", &daemon.flag()])
        .start();
    bench.listens("socket");
    writes(&bench);
    daemon.signal(libc::SIGSTOP);
    let ask = |request| hung::promptly(&bench, request);
    assert!(ask("GET /v1/machine").contains("\"running\""));
    assert!(ask("PUT /v1/pause").contains(" 202 "));
    let machine = bench.machine();
    assert_eq!(machine.state, MachineState::Pausing);
    assert_eq!(machine.waits_for, ["user"]);
    assert!(ask("PATCH /v1/disks/user").contains(" 200 "));
    daemon.signal(libc::SIGCONT);
    until("held", || bench.machine().state == MachineState::Paused);
    is_whole(&bench, &daemon);
    bench.ask("PUT /v1/resume");
    writes(&bench);
    daemon.signal(libc::SIGSTOP);
    // Another one, which nobody answers for: it is not there yet.
    let other = format!(r#"{{"id":"other","socket":"{}"}}"#, daemon.socket.display());
    let added = bench.send("POST /v1/disks", &other);
    assert!(added.contains(" 202 "), "{added}");
    assert_eq!(bench.machine().connecting[0].id, "other");
    // Its name is taken all the same.
    let own = format!(r#"{{"id":"other","path":"{}"}}"#, daemon.disk.display());
    let added = bench.send("POST /v1/disks", &own);
    assert!(
        added.contains(" 409 ") && added.contains("already"),
        "{added}"
    );
    assert!(ask("DELETE /v1/disks/other").contains(" 202 "));
    assert!(bench.machine().connecting.is_empty());
    assert!(ask("PUT /v1/reset").contains(" 202 "));
    assert_eq!(bench.machine().waits_for, ["user"]);
    assert!(ask("PUT /v1/stop").contains(" 204 "));
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(bench.exit(), Exit::Stopped);
    daemon.signal(libc::SIGCONT);
}

#[test]
fn a_back_end_comes_again() {
    let Some(bench) = Bench::new(&write_for_ever()) else {
        return;
    };
    let Some(mut daemon) = Daemon::start(&bench) else {
        return;
    };
    let child = shared(&bench.command())
        .args(["--disk", &daemon.flag()])
        .start();
    bench.listens("socket");
    for _ in 0..3 {
        writes(&bench);
        // Held: all that was begun is done.
        bench.pause();
        drop(daemon);
        until("it is gone", || !back_end(&bench).connected);
        bench.ask("PUT /v1/resume");
        assert!(back_end(&bench).error.is_some());
        daemon = Daemon::start(&bench).expect("as before");
        until("it is back", || back_end(&bench).connected);
        writes(&bench);
    }
    bench.pause();
    is_whole(&bench, &daemon);
    // Another disk is none that the guest knows.
    drop(daemon);
    let file = std::fs::File::options()
        .write(true)
        .open(bench.path("disk"));
    file.and_then(|file| file.set_len(1 << 19)).expect("cut");
    let other = Daemon::start(&bench).expect("as before");
    until("it is seen", || {
        let error = back_end(&bench).error;
        error.is_some_and(|error| error.contains("another disk"))
    });
    drop(other);
    bench.ask("PUT /v1/resume");
    bench.stop(child);
}

#[test]
fn what_a_back_end_had_begun_is_lost_with_it_or_done() {
    let Some(bench) = Bench::new(&write_for_ever()) else {
        return;
    };
    let Some(mut daemon) = Daemon::start(&bench) else {
        return;
    };
    let child = shared(&bench.command())
        .args(["--disk", &daemon.flag()])
        .start();
    bench.listens("socket");
    let counted = |name: &str| bench.metrics().devices["user"][name];
    let (mut begin, mut lost) = (0, 0);
    for _ in 0..8 {
        writes(&bench);
        // At any moment of a request, and this one keeps no note of them.
        drop(daemon);
        until("it is gone", || !back_end(&bench).connected);
        daemon = Daemon::start(&bench).expect("as before");
        until("it is back", || back_end(&bench).connected);
        if counted("given_up") > lost {
            lost += 1;
            assert_eq!((counted("given_up"), counted("failures")), (lost, lost));
            // The guest begins anew.
            bench.pause();
            begin = bench.log().len();
            bench.ask("PUT /v1/reset");
        }
        writes(&bench);
        bench.pause();
        is_whole_from(&bench, &daemon, begin);
        bench.ask("PUT /v1/resume");
    }
    bench.stop(child);
}

/// Each has a thread that waits for its back end, until that answers or is given up.
#[test]
fn disks_that_are_asked_for_and_taken_away_again_do_not_pile_up() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    // Whoever connects waits for an answer.
    let silent = bench.path("silent.sock");
    let listener = UnixListener::bind(&silent).expect("listens");
    let child = shared(&bench.command()).start();
    bench.listens("socket");
    let threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("tasks");
        let names = tasks.map(|task| {
            let name = task.expect("a task").path().join("comm");
            std::fs::read_to_string(name).unwrap_or_default()
        });
        names.filter(|name| name.starts_with("vhost-user")).count()
    };
    let body = format!(r#"{{"id":"one","socket":"{}"}}"#, silent.display());
    let mut asked = 0;
    let refused = loop {
        let added = bench.send("POST /v1/disks", &body);
        if !added.contains(" 202 ") {
            break added;
        }
        asked += 1;
        assert!(asked <= 16 && threads() <= 16, "{asked}");
        assert!(bench.ask("DELETE /v1/disks/one").contains(" 202 "));
        assert!(bench.machine().connecting.is_empty());
        assert!(bench.ask("DELETE /v1/disks/one").contains(" 404 "));
    };
    assert!(
        refused.contains(" 409 ") && refused.contains("too many others"),
        "{refused}"
    );
    // They hang up, and there is room again.
    listener.set_nonblocking(true).expect("nonblocking");
    until("all are gone", || {
        while listener.accept().is_ok() {}
        threads() == 0
    });
    let added = bench.send("POST /v1/disks", &body);
    assert!(added.contains(" 202 "), "{added}");
    bench.stop(child);
}

#[test]
fn what_can_not_be_is_refused() {
    let Some(bench) = Bench::new(&write_for_ever()) else {
        return;
    };
    let refused = |mut command: Command, disk: &str| {
        let output = command.args(["--disk", disk]).output();
        let output = output.expect("hearth-vmm runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let socket = format!("socket={}", bench.path("nobody").display());
    let line = refused(bench.command(), &socket);
    assert!(line.contains("--memory MIB,shared"), "{line}");
    let line = refused(shared(&bench.command()), &socket);
    assert!(line.contains("No such file"), "{line}");
    let Some(daemon) = Daemon::start(&bench) else {
        return;
    };
    let many = format!("{},queues=2", daemon.flag());
    let line = refused(shared(&bench.command()), &many);
    assert!(line.contains("the back end has 1 queues"), "{line}");
    let child = shared(&bench.command()).start();
    bench.listens("socket");
    let add = |body: String| bench.send("POST /v1/disks", &body);
    let nobody = add(format!(
        r#"{{"id":"one","socket":"{}"}}"#,
        bench.path("nobody").display()
    ));
    assert!(
        nobody.contains(" 409 ") && nobody.contains("No such file"),
        "{nobody}"
    );
    let both = add(r#"{"id":"one","socket":"/a","path":"/b"}"#.to_owned());
    assert!(both.contains(" 400 "), "{both}");
    let serial = add(r#"{"id":"one","socket":"/a","serial":"b"}"#.to_owned());
    assert!(serial.contains(" 400 "), "{serial}");
    let added = add(format!(
        r#"{{"id":"one","socket":"{}"}}"#,
        daemon.socket.display()
    ));
    assert!(
        added.contains(" 200 ") || added.contains(" 202 "),
        "{added}"
    );
    until("it is there", || bench.machine().disks.len() == 1);
    bench.stop(child);
}
