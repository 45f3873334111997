//! What devices cost the host: descriptors, memory, and processors when nobody works.

use std::os::unix::process::CommandExt;

use super::driver::Function;
use super::*;

/// As [`Bench::command`] has it.
const GUEST_MIB: u64 = 64;

impl Bench {
    /// A disk of this name, as the flag has it.
    pub(super) fn disk(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let file = std::fs::File::create(&path);
        file.and_then(|file| file.set_len(1 << 20)).expect("a disk");
        path
    }
}

/// Has a process have so many descriptors at most.
fn with_descriptors(command: &mut Command, most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    let set = move || {
        // SAFETY: the pointer is to a live rlimit.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one system call, between fork and exec.
    unsafe { command.pre_exec(set) };
}

/// Time on processors, in clock ticks: 10 ms each.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields = stat.rsplit(')').next().expect("fields behind the name");
    let fields: Vec<_> = fields.split_whitespace().collect();
    // Fields 14 and 15 of proc_pid_stat(5); the first here is the third.
    let ticks = [11, 12].map(|at| fields[at].parse::<u64>().expect("ticks"));
    ticks.iter().sum()
}

/// What a process uses for itself, in KiB: no guest memory, and none of its program's file.
pub(super) fn memory(pid: u32) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its memory");
    let mut is_counted = false;
    let mut all = 0;
    for line in maps.lines() {
        let value = |name| {
            let kib = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
            kib.parse::<u64>().ok()
        };
        if let Some(size) = value("Size:") {
            is_counted &= size < GUEST_MIB << 10;
        } else if let Some(kib) = value("Rss:") {
            all += if is_counted { kib } else { 0 };
        } else if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            // The head of a mapping, which begins with its addresses.
            is_counted = !line.contains('/');
        }
    }
    all
}

fn count(pid: u32, of: &str) -> usize {
    let list = std::fs::read_dir(format!("/proc/{pid}/{of}"));
    list.expect("its list").count()
}

#[test]
fn a_disk_for_which_there_are_no_descriptors_is_refused_when_it_is_plugged() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let mut command = bench.command();
    // As many queues as a disk can have.
    command.args(["--vcpus", "16"]);
    with_descriptors(&mut command, 1024);
    let mut child = command.start();
    bench.listens("socket");
    let pid = child.id();
    let mut plugged = 0;
    for index in 0..30 {
        let id = format!("disk{index}");
        let path = bench.disk(&id);
        let body = serde_json::json!({"id": id, "path": path}).to_string();
        let counts = || (count(pid, "fd"), count(pid, "task"));
        let before = counts();
        let answer = bench.send("POST /v1/disks", &body);
        if answer.contains(" 200 ") {
            plugged += 1;
            assert_eq!(plugged, index + 1, "none that is smaller fits behind it");
            continue;
        }
        assert!(answer.contains(" 409 "), "{answer}");
        assert!(answer.contains("Too many open files"), "{answer}");
        // A thread that was joined is listed for a moment more.
        until("a refused disk leaves nothing", || counts() == before);
    }
    assert!((8..30).contains(&plugged), "{plugged}");
    assert_eq!(bench.machine().disks.len(), plugged);
    let (began, at) = (ticks(pid), Instant::now());
    until("a second is over", || {
        std::thread::sleep(Duration::from_millis(100));
        bench.machine();
        at.elapsed() > Duration::from_secs(1)
    });
    let spent = ticks(pid) - began;
    assert!(spent < 20, "{spent} ticks in a second");
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn more_disks_than_there_are_descriptors_for_are_refused_at_the_start() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    for engine in ["auto", "threads"] {
        let mut command = bench.command();
        for index in 0..30 {
            let path = bench.disk(&format!("disk{index}"));
            let flag = format!("path={},queues=16,engine={engine}", path.display());
            command.args(["--disk", &flag]);
        }
        with_descriptors(&mut command, 1024);
        let output = command.output().expect("runs");
        assert_eq!(output.status.code(), Some(2));
        let line = String::from_utf8(output.stderr).expect("text");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains("--disk"), "{line}");
        assert!(line.contains("Too many open files"), "{line}");
    }
}

#[test]
fn an_idle_queue_costs_little() {
    let cost = |engine: &str, queues: u16| {
        let disk = Function::in_slot(1);
        let all: Vec<u16> = (0..queues).collect();
        let done = out(0x3f8, b'.');
        let bench = Bench::new(&[disk.place(), disk.bring_up(&all), done].concat())?;
        let path = bench.disk("disk");
        let flag = format!("path={},queues={queues},engine={engine}", path.display());
        let mut child = bench.command().args(["--disk", &flag]).start();
        bench.listens("socket");
        let log = || std::fs::read(bench.path("serial")).unwrap_or_default();
        until("it is brought up", || log() == b".");
        bench.machine();
        let cost = memory(child.id());
        bench.ask("PUT /v1/stop");
        assert_eq!(child.wait().expect("ends").code(), Some(0));
        Some(cost)
    };
    for engine in ["io_uring", "threads"] {
        let (Some(one), Some(all)) = (cost(engine, 1), cost(engine, 16)) else {
            return;
        };
        assert!(all < one + 1024, "{one} KiB with a queue, {all} with 16");
    }
}

/// The code of the dynamic loader, which a program that runs hardly needs, in KiB: what of
/// it is mapped and in use, and all. (The program's own may lie in huge pages.)
fn loader(pid: u32) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its memory");
    let (mut is_loader, mut used, mut all) = (false, 0, 0);
    for line in maps.lines() {
        let value = |name| {
            let kib = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
            kib.parse::<u64>().ok()
        };
        if let Some(kib) = value("Size:") {
            all += if is_loader { kib } else { 0 };
        } else if let Some(kib) = value("Rss:") {
            used += if is_loader { kib } else { 0 };
        } else if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            // The head of a mapping.
            is_loader = line.contains(" r-xp ") && line.contains("/ld-linux");
        }
    }
    (used, all)
}

#[test]
fn a_machine_that_runs_lets_go_of_the_code_that_built_it() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let mut child = bench.command().start();
    bench.listens("socket");
    bench.machine();
    let pid = child.id();
    until("most of it is let go of", || {
        let (used, all) = loader(pid);
        used <= all / 2
    });
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}
