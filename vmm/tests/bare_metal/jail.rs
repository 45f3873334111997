//! What the jail leaves of the host.

use super::*;

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

#[test]
fn a_jailed_machine_is_reset_and_its_crash_has_registers() {
    let Some(bench) = Bench::new(&out(0x602, 1)) else {
        return;
    };
    let mut child = bench.command().arg("--jail=best-effort").start();
    bench.listens("socket");
    until("third reset", || bench.machine().resets >= 3);
    // As many filters as the main thread, and one of its own (proc_pid_status(5)).
    let filters = |wanted: &str| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("tasks");
        let mut statuses = tasks.filter_map(|task| {
            let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            status
                .contains(&format!("Name:\t{wanted}\n"))
                .then_some(status)
        });
        let status = statuses.next()?;
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("Seccomp_filters:\t"))?;
        count.parse::<u32>().ok()
    };
    let main = filters("hearth-vmm").expect("the main thread's");
    until("confined further", || filters("vcpu0") == Some(main + 1));
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));

    std::fs::write(bench.path("kernel"), bzimage(&UD2)).expect("kernel");
    let output = bench.command().arg("--jail=best-effort").output();
    assert_eq!(output.expect("runs").status.code(), Some(1));
    let Exit::Crashed { detail } = bench.exit() else {
        panic!("{:?}", bench.exit());
    };
    assert!(detail.contains("rip=0x"), "{detail}");
}

#[test]
fn a_jailed_daemon_is_known_by_the_pid_that_others_see() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let mut command = bench.command();
    command.args(["--jail=best-effort", "--daemonize", "--pid-file"]);
    let output = command.arg(bench.path("pid")).output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let machine = bench.machine();
    let pid = std::fs::read_to_string(bench.path("pid")).expect("pid file");
    let pid = pid.trim();
    assert_eq!(pid, machine.pid.to_string());
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    assert!(status.contains("Name:\thearth-vmm"), "{status}");
    let is_alone = status.contains(&format!("NSpid:\t{pid}\t1\n"));
    let has_namespaces = machine.jail.contains(&SandboxLayer::Namespaces);
    assert_eq!(is_alone, has_namespaces, "{status}");

    // Also the first process of a namespace hears who is outside.
    let killed = Command::new("kill").arg(pid).status();
    assert!(killed.expect("kill runs").success());
    until("exit file", || bench.path("exit").exists());
    assert_eq!(bench.exit(), Exit::Stopped);
}

/// Sends a request with open files (SCM_RIGHTS); the answer.
pub(super) fn send_files(
    socket: &Path,
    request: &str,
    body: &str,
    files: &[&std::fs::File],
) -> String {
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    let mut stream = UnixStream::connect(socket).expect("connects");
    let length = body.len();
    let text = format!("{request} HTTP/1.1\r\nHost: vmm\r\nContent-Length: {length}\r\n\r\n{body}");
    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    let slices = [std::io::IoSlice::new(text.as_bytes())];
    let sent = sendmsg(&stream, &slices, &mut ancillary, SendFlags::empty());
    assert_eq!(sent.expect("sent"), text.len());
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    answer
}

#[test]
fn a_jailed_machine_is_saved_and_goes_on_in_a_jail() {
    let Some(bench) = Bench::new(&[AWAIT_BUTTON.to_vec(), power_off()].concat()) else {
        return;
    };
    let inside = bench.path("inside");
    std::fs::create_dir(&inside).expect("folder");
    let outside = tempfile::tempdir().expect("folder");
    // SAFETY: takes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    let jailed = |mut command: Command| {
        command.arg("--jail=best-effort");
        if is_root {
            command.args(["--uid", "64000", "--gid", "64000"]);
        }
        command.start()
    };
    if is_root {
        for folder in [bench.folder.path(), &inside] {
            std::os::unix::fs::chown(folder, Some(64_000), Some(64_000)).expect("chown");
        }
    }
    let first = jailed(bench.command());
    bench.listens("socket");
    bench.pause();
    let body = |folder: &Path| format!(r#"{{"path":"{}"}}"#, folder.display());
    let answer = bench.send("PUT /v1/snapshot", &body(&inside));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // What is out of reach comes as open files.
    let answer = bench.send("PUT /v1/snapshot", &body(outside.path()));
    let layers = bench.machine().jail;
    if layers.contains(&SandboxLayer::Chroot) || layers.contains(&SandboxLayer::Landlock) {
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    }
    let made = tempfile::tempdir().expect("folder");
    let open = |name: &str| {
        let mut options = std::fs::File::options();
        let options = options.read(true).write(true).create(true);
        options.open(made.path().join(name)).expect("a file")
    };
    let files = [&open("memory"), &open("machine.json")];
    let answer = send_files(
        &bench.path("socket"),
        "PUT /v1/snapshot",
        &body(made.path()),
        &files[..1],
    );
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let answer = send_files(
        &bench.path("socket"),
        "PUT /v1/snapshot",
        &body(made.path()),
        &files,
    );
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(first);
    for folder in [inside.as_path(), made.path()] {
        let mut command = bench.command();
        command.arg("--restore").arg(folder);
        let mut child = jailed(command);
        bench.listens("socket");
        bench.ask("PUT /v1/power-button");
        assert_eq!(child.wait().expect("ends").code(), Some(0));
        assert_eq!(bench.exit(), Exit::GuestPowerOff);
    }
}

/// Threads of their own open disks, and ask for their size.
#[test]
fn a_jailed_machine_is_plugged_disks_by_path_and_open() {
    let Some(bench) = Bench::new(&HALT) else {
        return;
    };
    let folder = tempfile::tempdir().expect("folder");
    let disk = |name: &str| {
        let path = folder.path().join(name);
        let file = std::fs::File::create_new(&path).expect("a disk");
        file.set_len(1 << 20).expect("grows");
        let open = std::fs::File::options().read(true).write(true).open(&path);
        (path, open.expect("a disk"))
    };
    let mut child = bench.command().arg("--jail=best-effort").start();
    bench.listens("socket");
    let body = |id: &str, path: &Path| serde_json::json!({"id": id, "path": path}).to_string();
    let inside = bench.path("inside");
    let file = std::fs::File::create_new(&inside);
    file.and_then(|file| file.set_len(1 << 20)).expect("a disk");
    let answer = bench.send("POST /v1/disks", &body("inside", &inside));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let again = bench.send("POST /v1/disks", &body("again", &inside));
    assert!(again.contains("another machine uses this disk"), "{again}");
    let (path, open) = disk("outside");
    let socket = bench.path("socket");
    let answer = send_files(&socket, "POST /v1/disks", &body("outside", &path), &[&open]);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    open.set_len(1 << 21).expect("grows");
    let answer = bench.ask("PATCH /v1/disks/outside");
    assert!(answer.contains("\"size_bytes\":2097152"), "{answer}");
    let layers = bench.machine().jail;
    if layers.contains(&SandboxLayer::Chroot) || layers.contains(&SandboxLayer::Landlock) {
        let (path, _) = disk("unreached");
        let answer = bench.send("POST /v1/disks", &body("unreached", &path));
        assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    }
    assert_eq!(bench.machine().disks.len(), 2);
    bench.ask("PUT /v1/stop");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}
