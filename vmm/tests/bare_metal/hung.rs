//! A disk that doesn't answer is felt by its guest, and nowhere else.

use std::fs::File;

use hearth_vmm_api::{ExitRecord, MachineState};

use super::driver::{Function, looks_and_ejects};
use super::slow_disk::{Answers, SlowDisk};
use super::*;

/// How soon an answer is there.
const PROMPT: Duration = Duration::from_millis(100);
/// How soon a process that is to end has said so: a second for its disks, and a margin.
const END: Duration = Duration::from_millis(1500);

const ENGINES: [&str; 2] = ["io_uring", "threads"];

/// Once the button is pressed: a request that hangs. Then it looks at the bus all the
/// time, and ejects what it is asked for.
fn guest() -> Vec<u8> {
    let disk = Function::in_slot(1);
    [
        AWAIT_BUTTON.to_vec(),
        disk.place(),
        disk.bring_up(&[0]),
        disk.read_sector(0),
        looks_and_ejects(),
    ]
    .concat()
}

/// A machine with a request under way that its disk doesn't answer.
struct Hung {
    /// First, so that the process can be killed.
    disk: SlowDisk,
    vmm: Vmm,
    bench: Bench,
}

impl Hung {
    fn start(engine: &str, answers: Answers) -> Option<Self> {
        let hung = Self::with(SlowDisk::new()?, engine, answers)?;
        until("hangs", || hung.disk.hangs());
        Some(hung)
    }

    /// The guest has a request for this disk.
    fn with(disk: SlowDisk, engine: &str, answers: Answers) -> Option<Self> {
        let bench = Bench::new(&guest())?;
        let flag = format!("path={},id=slow,queues=1,engine={engine}", disk.path());
        let vmm = bench
            .command()
            .args(["--disk", &flag, "--pid-file"])
            .arg(bench.path("pid"))
            .start();
        bench.listens("socket");
        bench.machine();
        disk.answers(answers);
        bench.ask("PUT /v1/power-button");
        Some(Self { disk, vmm, bench })
    }

    fn ask(&self, request: &str) -> String {
        promptly(&self.bench, request)
    }

    fn waits(&self, state: MachineState) {
        let machine = self.bench.machine();
        assert_eq!(machine.state, state);
        assert_eq!(machine.waits_for, ["slow"]);
    }

    /// The guest goes on.
    fn guest_runs(&self) {
        let exits = || self.bench.metrics().vcpu_exits;
        let before = exits();
        until("it looks at the bus", || exits() > before + 500);
    }

    /// Has the guest eject its disk.
    fn eject(&self) {
        assert!(self.ask("DELETE /v1/disks/slow").contains(" 202 "));
        self.guest_runs();
        assert!(self.bench.machine().disks[0].unplug_requested);
    }

    /// It was asked to end at `asked`. Returns when that was done.
    fn ends(&self, asked: Instant) {
        until("it says why it ended", || {
            std::fs::read(self.bench.path("exit")).is_ok_and(|exit| !exit.is_empty())
        });
        let took = asked.elapsed();
        assert!(took < END, "{took:?}");
        let record = std::fs::read(self.bench.path("exit")).expect("exit file");
        let record: ExitRecord = serde_json::from_slice(&record).expect("JSON");
        assert_eq!(record.exit, Exit::Stopped);
        assert_eq!(record.unfinished, ["slow"]);
        assert!(!self.bench.path("socket").exists());
        assert!(!self.bench.path("pid").exists());
    }

    fn terminate(&self) {
        let pid = libc::pid_t::try_from(self.vmm.id()).expect("a pid");
        // SAFETY: a child that was not waited for has its pid.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }
}

/// Asks what may be asked again, until it was answered as soon as it should: others want
/// the processors too.
pub(super) fn promptly(bench: &Bench, request: &str) -> String {
    let mut times = Vec::new();
    for _ in 0..5 {
        let asked = Instant::now();
        let answer = bench.ask(request);
        times.push(asked.elapsed());
        if times.last() < Some(&PROMPT) {
            return answer;
        }
    }
    panic!("{request} took {times:?}")
}

#[test]
fn everything_is_answered_while_a_disk_hangs() {
    for engine in ENGINES {
        for answers in [Answers::NoTransfers, Answers::Nothing] {
            let Some(mut hung) = Hung::start(engine, answers) else {
                return;
            };
            hung.guest_runs();
            assert!(hung.ask("GET /v1/machine").contains("\"running\""));
            assert!(hung.ask("GET /v1/metrics").contains("slow"));
            assert!(hung.ask("PUT /v1/pause").contains(" 202 "));
            hung.waits(MachineState::Pausing);
            assert!(hung.ask("PUT /v1/pause").contains(" 202 "));
            assert!(hung.ask("PUT /v1/resume").contains(" 204 "));
            assert_eq!(hung.bench.machine().state, MachineState::Running);
            hung.guest_runs();
            hung.eject();
            let other = hung.bench.path("other");
            let file = File::create(&other);
            file.and_then(|file| file.set_len(1 << 20)).expect("a disk");
            let body = serde_json::json!({"id": "other", "path": other}).to_string();
            let added = hung.bench.send("POST /v1/disks", &body);
            assert!(added.contains(" 200 "), "{added}");
            assert!(hung.ask("PUT /v1/reset").contains(" 202 "));
            hung.waits(MachineState::Resetting);
            assert!(hung.ask("PUT /v1/pause").contains(" 409 "));
            assert!(hung.ask("GET /v1/metrics").contains("slow"));
            assert_eq!(hung.bench.machine().resets, 0);
            hung.terminate();
            hung.ends(Instant::now());
            if answers == Answers::NoTransfers {
                // The kernel lets nobody go who waits for what the disk has taken:
                // the process is there, as one that has ended, until it is answered.
                assert_eq!(hung.vmm.try_wait().expect("a child"), None);
                hung.disk.answers(Answers::Everything);
            }
            assert_eq!(hung.vmm.wait().expect("ends").code(), Some(0));
        }
    }
}

#[test]
fn a_machine_whose_disk_hangs_is_stopped() {
    for engine in ENGINES {
        for begun in ["GET /v1/machine", "PUT /v1/pause", "DELETE /v1/disks/slow"] {
            let Some(mut hung) = Hung::start(engine, Answers::Nothing) else {
                return;
            };
            hung.ask(begun);
            let asked = Instant::now();
            assert!(hung.bench.ask("PUT /v1/stop").contains(" 204 "));
            hung.ends(asked);
            assert_eq!(hung.vmm.wait().expect("ends").code(), Some(0));
        }
    }
}

#[test]
fn what_was_begun_is_done_when_the_disk_answers() {
    for engine in ENGINES {
        let begin = || Hung::start(engine, Answers::NoTransfers);
        // Held, and going on: the request was returned before.
        let Some(mut hung) = begin() else {
            return;
        };
        let state = || hung.bench.machine().state;
        assert!(hung.ask("PUT /v1/pause").contains(" 202 "));
        hung.disk.answers(Answers::Everything);
        until("held", || state() == MachineState::Paused);
        assert_eq!(hung.bench.metrics().devices["slow"]["reads"], 1);
        assert!(hung.bench.machine().waits_for.is_empty());
        assert!(hung.ask("PUT /v1/resume").contains(" 204 "));
        hung.guest_runs();
        hung.bench.ask("PUT /v1/stop");
        assert_eq!(hung.vmm.wait().expect("ends").code(), Some(0));

        let mut hung = begin().expect("as before");
        hung.eject();
        hung.disk.answers(Answers::Everything);
        until("ejected", || hung.bench.machine().disks.is_empty());
        hung.bench.ask("PUT /v1/stop");
        assert_eq!(hung.vmm.wait().expect("ends").code(), Some(0));

        let mut hung = begin().expect("as before");
        assert!(hung.ask("PUT /v1/reset").contains(" 202 "));
        hung.disk.answers(Answers::Everything);
        until("reset", || hung.bench.machine().resets == 1);
        assert_eq!(hung.bench.machine().state, MachineState::Running);
        // The guest begins anew, and drives the disk as before.
        let reads = || hung.bench.metrics().devices["slow"]["reads"];
        let before = reads();
        hung.bench.ask("PUT /v1/power-button");
        until("it reads", || reads() > before);
        hung.bench.ask("PUT /v1/stop");
        assert_eq!(hung.vmm.wait().expect("ends").code(), Some(0));
    }
}

/// Where the host writes back when a disk is closed, that may take for ever too.
#[test]
fn nobody_waits_for_a_disk_to_be_closed() {
    for engine in ENGINES {
        for ends in [false, true] {
            let begin = |disk| Hung::with(disk, engine, Answers::Everything);
            let Some(mut machine) = SlowDisk::with_flush().and_then(begin) else {
                return;
            };
            let bench = &machine.bench;
            until("it reads", || bench.metrics().devices["slow"]["reads"] == 1);
            machine.disk.answers(Answers::NoTransfers);
            if !ends {
                assert!(machine.ask("DELETE /v1/disks/slow").contains(" 202 "));
                until("it is closed", || machine.disk.hangs());
                machine.guest_runs();
                assert!(machine.ask("GET /v1/machine").contains("\"running\""));
                assert!(machine.ask("PUT /v1/reset").contains(" 204 "));
            }
            let asked = Instant::now();
            machine.bench.ask("PUT /v1/stop");
            until("it says why it ended", || {
                std::fs::read(machine.bench.path("exit")).is_ok_and(|exit| !exit.is_empty())
            });
            let took = asked.elapsed();
            assert!(took < END, "{took:?}");
            assert_eq!(machine.bench.exit(), Exit::Stopped);
            machine.disk.answers(Answers::Everything);
            assert_eq!(machine.vmm.wait().expect("ends").code(), Some(0));
        }
    }
}

/// A change of a disk, beside that its size is looked at.
const LIMITS: &str = r#"{"limits":{"ops":7}}"#;

/// Disks on storage that doesn't answer when they are opened, or asked for their size.
#[test]
fn a_look_that_hangs_does_not_hold_the_name_of_a_disk_that_is_gone() {
    let begin = |disk| Hung::with(disk, "threads", Answers::Everything);
    let Some(machine) = SlowDisk::unremembered().and_then(begin) else {
        return;
    };
    let bench = &machine.bench;
    until("it reads", || bench.metrics().devices["slow"]["reads"] == 1);
    machine.disk.answers(Answers::Nothing);
    let ask = |request: &'static str, body: &str| {
        let (socket, body) = (bench.path("socket"), body.to_owned());
        std::thread::spawn(move || jail::send_files(&socket, request, &body, &[]))
    };
    let mut looks = vec![(); 3]
        .into_iter()
        .map(|()| ask("PATCH /v1/disks/slow", LIMITS))
        .collect::<Vec<_>>();
    // The last to come is refused: no disk has all the threads.
    until("one is refused", || looks.iter().any(|l| l.is_finished()));
    until("its size is asked for", || machine.disk.hangs());
    let refused = looks.iter().position(|look| look.is_finished());
    let refused = looks.swap_remove(refused.expect("one"));
    let answer = refused.join().expect("an answer");
    assert!(answer.contains("was asked before"), "{answer}");
    // All of a change, or nothing: whoever is refused, and who isn't answered yet.
    assert!(bench.machine().disks[0].limits.is_none());
    assert!(machine.ask("DELETE /v1/disks/slow").contains(" 202 "));
    until("it is gone", || bench.machine().disks.is_empty());
    for look in looks {
        let answer = look.join().expect("an answer");
        assert!(answer.contains(" 404 "), "{answer}");
    }
    let good = bench.path("good");
    let file = File::create(&good);
    file.and_then(|file| file.set_len(1 << 20)).expect("a disk");
    let add = serde_json::json!({"id": "slow", "path": good}).to_string();
    let added = ask("POST /v1/disks", &add).join().expect("an answer");
    assert!(added.contains(" 200 "), "{added}");
    // Who waits as the machine ends is told so.
    let body = serde_json::json!({"id": "late", "path": machine.disk.path()}).to_string();
    let late = ask("POST /v1/disks", &body);
    until("it is being opened", || {
        let machine = bench.machine();
        machine.connecting.iter().any(|disk| disk.id == "late")
    });
    bench.ask("PUT /v1/stop");
    let answer = late.join().expect("an answer");
    assert!(
        answer.contains(" 409 ") && answer.contains("ended"),
        "{answer}"
    );
    machine.disk.answers(Answers::Everything);
}

#[test]
fn nobody_waits_for_a_disk_to_be_opened_but_who_asked_for_it() {
    let (Some(there), Some(new)) = (SlowDisk::unremembered(), SlowDisk::new()) else {
        return;
    };
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let flag = format!("path={},id=there", there.path());
    let mut vmm = bench.command().args(["--disk", &flag]).start();
    bench.listens("socket");
    bench.machine();
    there.answers(Answers::Nothing);
    new.answers(Answers::Nothing);
    let ask = |request: &'static str, body: &str| {
        let (socket, body) = (bench.path("socket"), body.to_owned());
        std::thread::spawn(move || jail::send_files(&socket, request, &body, &[]))
    };
    let looks = ask("PATCH /v1/disks/there", LIMITS);
    until("its size is asked for", || there.hangs());
    let add = serde_json::json!({"id": "new", "path": new.path()}).to_string();
    let adds = || ask("POST /v1/disks", &add);
    let added = adds();
    until("it is being opened", || new.hangs());
    assert_eq!(bench.machine().connecting[0].id, "new");
    promptly(&bench, "GET /v1/metrics");
    assert!(bench.send("POST /v1/disks", &add).contains("already"));
    assert!(!looks.is_finished() && !added.is_finished());
    // Whoever takes it away as often as it is asked for has no more threads than that.
    let (mut added, mut asked) = (added, 1);
    let refused = loop {
        assert!(promptly(&bench, "DELETE /v1/disks/new").contains(" 202 "));
        assert!(bench.machine().connecting.is_empty());
        let refused = added.join().expect("a client");
        assert!(
            refused.contains(" 409 ") && refused.contains("taken away"),
            "{refused}"
        );
        added = adds();
        until("it is begun or refused", || {
            added.is_finished() || !bench.machine().connecting.is_empty()
        });
        if bench.machine().connecting.is_empty() {
            break added.join().expect("a client");
        }
        asked += 1;
    };
    assert!(
        refused.contains(" 409 ") && refused.contains("too many other"),
        "{refused}"
    );
    assert_eq!(asked, 16, "beside the one that is looked at elsewhere");
    // Other storage is in nobody's way.
    let other = bench.path("other");
    let file = File::create(&other).expect("a file");
    file.set_len(1 << 20).expect("a disk");
    let other = serde_json::json!({"id": "other", "path": other}).to_string();
    let answer = bench.send("POST /v1/disks", &other);
    assert!(answer.contains(" 200 "), "{answer}");
    there.answers(Answers::Everything);
    let answer = looks.join().expect("a client");
    assert!(
        answer.contains(" 200 ") && answer.contains("\"size_bytes\":1048576"),
        "{answer}"
    );
    let disks = bench.machine().disks;
    let limited: Vec<_> = disks.iter().map(|disk| !disk.limits.is_none()).collect();
    assert_eq!(limited, [true, false]);
    new.answers(Answers::Everything);
    until("there is room again", || {
        bench.send("POST /v1/disks", &add).contains(" 200 ")
    });
    let machine = bench.machine();
    assert_eq!(machine.disks.len(), 3);
    assert!(machine.connecting.is_empty());
    bench.ask("PUT /v1/stop");
    assert_eq!(vmm.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_disk_that_was_taken_away_while_it_hung_can_be_put_in_again() {
    let (Some(disk), Some(bench)) = (SlowDisk::unremembered(), Bench::new(&HALT)) else {
        return;
    };
    let mut vmm = bench.command().start();
    bench.listens("socket");
    let add = serde_json::json!({"id": "new", "path": disk.path()}).to_string();
    let adds = || {
        let (socket, add) = (bench.path("socket"), add.clone());
        std::thread::spawn(move || jail::send_files(&socket, "POST /v1/disks", &add, &[]))
    };
    // It is open, and its size isn't told.
    disk.answers(Answers::OneLook);
    let first = adds();
    until("its size is asked for", || disk.hangs());
    assert!(bench.ask("DELETE /v1/disks/new").contains(" 202 "));
    let answer = first.join().expect("a client");
    assert!(answer.contains("taken away"), "{answer}");
    disk.answers(Answers::OneLook);
    let second = adds();
    until("it is as far as the first", || disk.answered_one_look());
    // Longer than is waited for a lock: nobody has one.
    std::thread::sleep(Duration::from_secs(2));
    disk.answers(Answers::Everything);
    let answer = second.join().expect("a client");
    assert!(answer.contains(" 200 "), "{answer}");
    bench.ask("PUT /v1/stop");
    assert_eq!(vmm.wait().expect("ends").code(), Some(0));
}
