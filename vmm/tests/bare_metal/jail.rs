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
