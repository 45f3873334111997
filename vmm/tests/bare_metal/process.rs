//! The process on its host: as a daemon, and short of descriptors.

use super::*;

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
