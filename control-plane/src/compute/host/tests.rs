//! With stand-ins for the VMM and the boot-file reader, as processes of this
//! machine, in a real control group where there is one.

use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use hearth_vmm_api::Exit;

use super::*;
use crate::compute::DiskSpec;
use crate::model::{BootMethod, VolumeId};

/// A daemon that keeps the VMM's contract: it returns when it serves, has its
/// pid file, answers on its socket, and says why it ended. The kernel's text
/// decides how it behaves.
const STAND_IN: &str = r#"#!/usr/bin/python3
import json, os, signal, socket, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
words = open(flags["--kernel"]).read().strip()
if words == "refuse":
    print("hearth-vmm: --kernel: not a bzImage", file=sys.stderr)
    sys.exit(2)
r, w = os.pipe()
if os.fork():
    os.close(w)
    sys.exit(0 if os.read(r, 1) == b"\n" else 2)
os.setsid()
with open(flags["--serial-log"], "w") as f: f.write("hello\n")
server = socket.socket(socket.AF_UNIX)
server.bind(flags["--socket"])
server.listen()
resets = 0
with open(flags["--pid-file"], "w") as f: f.write("%d\n" % os.getpid())
os.write(w, b"\n")
def end(reason):
    with open(flags["--exit-file"] + ".new", "w") as f: json.dump({"reason": reason}, f)
    os.rename(flags["--exit-file"] + ".new", flags["--exit-file"])
    os._exit(0)
while True:
    c, _ = server.accept()
    request = c.recv(65536).decode()
    line = request.split("\r\n")[0]
    machine = {"id": flags["--id"], "pid": os.getpid(), "state": "running", "vcpus": 1,
               "memory_bytes": 1, "resets": resets, "disks": [], "nics": [],
               "jail": ["cgroup", "namespaces", "chroot", "user", "capabilities", "landlock",
                        "seccomp", "io-uring"][:6 if words == "open" else 8]}
    body, status = "", "204 No Content"
    if line.startswith("GET /v1/machine"): body, status = json.dumps(machine), "200 OK"
    if line.startswith("PUT /v1/reset"): body, status = '{"error": "not now"}', "409 Conflict"
    if line.startswith("PUT /v1/reboot"):
        while "}" not in request: request += c.recv(65536).decode()
        if '{"resets":%d}' % resets in request: resets += 1
        else: body, status = '{"error": "reset since"}', "409 Conflict"
    head = "HTTP/1.1 %s\r\n" % status
    if body: head += "content-length: %d\r\n" % len(body)
    c.sendall((head + "\r\n" + body).encode())
    c.close()
    if line.startswith("PUT /v1/power-button"): end("guest-power-off")
"#;

/// Reads the "disk": its text is the kernel.
const READER: &str = "#!/bin/sh\nread -r words\ncase $words in broken*) echo 'no readable ext4' >&2; exit 1;; esac\necho \"$words\"\n";

struct Bench {
    dir: tempfile::TempDir,
}

/// Where a v2 hierarchy is mounted and may be written. Where there is none the
/// tests can't run: said aloud, and a failure in CI and in the lab.
fn hierarchy() -> Option<PathBuf> {
    let found = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|p| {
            let probe = p.join(format!("hearth-probe-{}", std::process::id()));
            Cgroups::without_limits(p).check().is_ok()
                && fs::create_dir(&probe).is_ok()
                && fs::remove_dir(&probe).is_ok()
        });
    if found.is_none() {
        let must = [("CI", "true"), ("HEARTH_IN_LAB", "1")]
            .into_iter()
            .find(|(name, value)| std::env::var(name).as_deref() == Ok(value));
        let message = "no cgroup v2 hierarchy can be written here";
        assert!(
            must.is_none(),
            "{message}, and {must:?} wants all tests run"
        );
        eprintln!("SKIPPED: {message}");
    }
    found
}

impl Bench {
    fn new() -> Option<(Self, PathBuf)> {
        // A root of its own for each test, so that they don't see each other.
        let root = hierarchy()?;
        let bench = Self {
            dir: tempfile::tempdir_in("/tmp").unwrap(),
        };
        let name = bench.dir.path().file_name()?.to_string_lossy().into_owned();
        let root = root.join(format!("hearth-test{name}"));
        fs::create_dir(&root).unwrap();
        fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (name, text) in [("vmm", STAND_IN), ("reader", READER)] {
            let path = bench.dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Some((bench, root))
    }

    /// As `hearth` opens it when it starts.
    fn open(&self, root: &Path) -> HostCompute {
        HostCompute::with(
            &self.dir.path().join("data"),
            &self.dir.path().join("vmm"),
            &self.dir.path().join("reader"),
            Cgroups::without_limits(root),
        )
        .unwrap()
    }

    fn spec(&self, disk: &str) -> LaunchSpec {
        let path = self.dir.path().join("disk.raw");
        fs::write(&path, format!("{disk}\n")).unwrap();
        LaunchSpec {
            instance: InstanceId::from_random(1),
            boot: 1,
            instance_type: "t2.nano".into(),
            vcpus: 1,
            memory_mib: 512,
            boot_method: BootMethod::Linux {
                partition: 1,
                kernel: "/vmlinuz".into(),
                initrd: None,
                cmdline: "console=ttyS0".into(),
            },
            disks: vec![DiskSpec {
                volume: VolumeId::from_random(1),
                path,
                read_only: false,
            }],
            nics: vec![],
            clone_of: None,
            trace: Default::default(),
        }
    }
}

/// Launches. A child that another test forks holds the lock as well, and the stand-in
/// open for writing, for as long as it has not become another program: that is
/// waited for.
async fn launch(host: &HostCompute, spec: &LaunchSpec) -> Result<(), ComputeError> {
    loop {
        match host.launch(spec, vec![]).await {
            Err(ComputeError::Host { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ExecutableFileBusy
                ) =>
            {
                tokio::task::yield_now().await;
            }
            outcome => return outcome,
        }
    }
}

async fn observed(host: &HostCompute, spec: &LaunchSpec) -> Option<Observed> {
    host.observe().await.unwrap().remove(&spec.instance)
}

/// Waits for a VMM's end to be noticed.
async fn an_end(exits: &mut broadcast::Receiver<InstanceId>) {
    tokio::time::timeout(Duration::from_secs(20), exits.recv())
        .await
        .expect("an end is noticed")
        .unwrap();
}

#[tokio::test]
async fn a_whole_life_and_another_boot() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let mut spec = bench.spec("kernel");
    let mut exits = host.exits();
    assert_eq!(observed(&host, &spec).await, None);

    launch(&host, &spec).await.unwrap();
    let Some(Observed::Running { pid, boot: 1 }) = observed(&host, &spec).await else {
        panic!()
    };
    assert!(host.cgroups.members(&spec.instance).unwrap().contains(&pid));
    assert!(!host.folder(&spec.instance).kernel().exists());
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");
    // The same boot again changes nothing.
    launch(&host, &spec).await.unwrap();
    assert_eq!(
        observed(&host, &spec).await,
        Some(Observed::Running { pid, boot: 1 })
    );
    assert_eq!(host.console(&spec.instance).await.unwrap(), b"hello\n");
    let refused = host.reset(&spec.instance).await.unwrap_err();
    assert!(format!("{refused:?}").contains("not now"));
    assert_eq!(host.resets(&spec.instance).await.unwrap(), 0);
    host.reboot(&spec.instance, 0).await.unwrap();
    assert_eq!(host.resets(&spec.instance).await.unwrap(), 1);
    let late = host.reboot(&spec.instance, 0).await.unwrap_err();
    assert!(format!("{late:?}").contains("reset since"));

    // hearth starts anew: the VMM is found again, and its end is seen.
    drop(host);
    let host = bench.open(&root);
    assert_eq!(
        observed(&host, &spec).await,
        Some(Observed::Running { pid, boot: 1 })
    );
    assert!(exits.try_recv().is_err());
    exits = host.exits();
    host.power_button(&spec.instance).await.unwrap();
    an_end(&mut exits).await;
    let exit = Exit::GuestPowerOff;
    assert_eq!(
        observed(&host, &spec).await,
        Some(Observed::Exited { boot: 1, exit })
    );
    let gone = host.power_button(&spec.instance).await.unwrap_err();
    assert!(matches!(gone, ComputeError::NotRunning(_)));

    spec.boot = 2;
    launch(&host, &spec).await.unwrap();
    assert!(matches!(
        observed(&host, &spec).await,
        Some(Observed::Running { boot: 2, .. })
    ));
    for _ in 0..2 {
        host.kill(&spec.instance).await.unwrap();
        assert!(matches!(
            observed(&host, &spec).await,
            Some(Observed::Exited {
                boot: 2,
                exit: Exit::Crashed { .. }
            })
        ));
    }
    for _ in 0..2 {
        host.forget(&spec.instance).await.unwrap();
        assert_eq!(observed(&host, &spec).await, None);
    }
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
    assert_eq!(
        fs::read_dir(bench.dir.path().join("data")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn a_fresh_clone_boots_its_images_files_and_later_boots_their_own() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let image = bench.dir.path().join("image.raw");
    // The reader counts how often it is run.
    let reader = format!(
        "#!/bin/sh\necho x >> {}/reads\n",
        bench.dir.path().display()
    );
    let reader = READER.replace("#!/bin/sh\n", &reader);
    fs::write(bench.dir.path().join("reader"), reader).unwrap();
    fs::write(&image, "kernel\n").unwrap();
    let reads = || {
        fs::read_to_string(bench.dir.path().join("reads"))
            .unwrap()
            .len()
            / 2
    };
    // What is on the root disk itself would be refused.
    let mut spec = bench.spec("refuse");
    spec.clone_of = Some(Box::new(crate::compute::CloneOf {
        image: crate::model::ImageId::from_random(1),
        path: image.clone(),
    }));
    let specs = [1, 2, 3].map(|n| LaunchSpec {
        instance: InstanceId::from_random(n),
        trace: trace::Trace::of(jiff::Timestamp::now()),
        ..spec.clone()
    });
    let all = futures_util::future::join_all(specs.iter().map(|spec| launch(&host, spec))).await;
    for (outcome, spec) in all.into_iter().zip(&specs) {
        outcome.unwrap();
        assert!(!host.folder(&spec.instance).kernel().exists());
    }
    assert_eq!(reads(), 1);
    spec = specs[2].clone();
    // How long it took is there to be shown.
    let data = bench.dir.path().join("data");
    let shown = trace_of(&data, &spec.instance).unwrap().unwrap();
    let steps: Vec<&str> = shown.steps.iter().map(|s| s.step.as_str()).collect();
    assert_eq!(steps.len(), 6, "{steps:?}");
    assert!(steps[4].starts_with("VMM's processes"), "{steps:?}");
    assert!(
        shown
            .asked
            .is_some_and(|asked| asked <= shown.steps[0].from)
    );
    assert_eq!(trace_of(&data, &InstanceId::from_random(9)).unwrap(), None);

    // The next boot's files are what is on the disk by then; and so are those of
    // a clone whose image is gone.
    host.kill(&spec.instance).await.unwrap();
    (spec.boot, spec.clone_of) = (2, None);
    let refused = launch(&host, &spec).await.unwrap_err();
    assert!(refused.to_string().contains("not a bzImage"), "{refused}");
    let failed = trace_of(&data, &spec.instance).unwrap().unwrap();
    assert!(failed.boot == 2 && failed.error.is_some(), "{failed:?}");
    spec.clone_of = Some(Box::new(crate::compute::CloneOf {
        image: crate::model::ImageId::from_random(1),
        path: bench.dir.path().join("gone"),
    }));
    let _ = launch(&host, &spec).await.unwrap_err();
    assert_eq!(reads(), 3);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
    assert_eq!(fs::read_dir(data).unwrap().count(), 0);
}

#[tokio::test]
async fn each_instance_has_a_user_of_its_own_until_it_is_forgotten() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let mut spec = bench.spec("kernel");
    let id = |n| InstanceId::from_random(n);
    let uid = |host: &HostCompute, n| host.folder(&id(n)).launch().unwrap().map(|l| l.uid);
    for n in 1..=2 {
        spec.instance = id(n);
        launch(&host, &spec).await.unwrap();
    }
    assert_eq!(
        (uid(&host, 1), uid(&host, 2)),
        (Some(FIRST_UID), Some(FIRST_UID + 1))
    );
    // Another process learns who has which.
    let host = bench.open(&root);
    host.forget(&id(1)).await.unwrap();
    for n in 3..=4 {
        spec.instance = id(n);
        launch(&host, &spec).await.unwrap();
    }
    assert_eq!(
        (uid(&host, 3), uid(&host, 4)),
        (Some(FIRST_UID), Some(FIRST_UID + 2))
    );
    host.forget(&id(2)).await.unwrap();
    spec.instance = id(5);
    launch(&host, &spec).await.unwrap();
    assert_eq!(uid(&host, 5), Some(FIRST_UID + 1));
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_launch_that_fails_leaves_no_process_and_says_why() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let spec = bench.spec("refuse");
    let e = launch(&host, &spec).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "hearth-vmm did not start: --kernel: not a bzImage"
    );
    assert_eq!(observed(&host, &spec).await, Some(Observed::Incomplete));
    let spec = bench.spec("open");
    let e = launch(&host, &spec).await.unwrap_err();
    let line = e.to_string();
    assert!(line.contains("layers seccomp, io-uring"), "{line}");
    assert!(host.cgroups.members(&spec.instance).unwrap().is_empty());
    let spec = bench.spec("broken");
    let e = launch(&host, &spec).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        "the root disk can't be booted: no readable ext4"
    );
    assert!(!host.cgroups.path(&spec.instance).exists());
    // And the next one succeeds.
    let spec = bench.spec("kernel");
    launch(&host, &spec).await.unwrap();
    assert!(matches!(
        observed(&host, &spec).await,
        Some(Observed::Running { .. })
    ));
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_vmm_that_was_never_noted_is_found() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let spec = bench.spec("kernel");
    launch(&host, &spec).await.unwrap();
    let before = observed(&host, &spec).await;
    let folder = host.folder(&spec.instance).path().to_owned();
    // As kill -9 before the last record leaves it.
    fs::remove_file(folder.join("identity.json")).unwrap();
    let host = bench.open(&root);
    assert_eq!(observed(&host, &spec).await, before);
    assert!(folder.join("identity.json").exists());

    // One that can't be found is ended by the next launch: never two at a disk.
    fs::remove_file(folder.join("identity.json")).unwrap();
    fs::remove_file(folder.join("vmm/vmm.pid")).unwrap();
    let old = host.cgroups.members(&spec.instance).unwrap();
    let host = bench.open(&root);
    assert_eq!(observed(&host, &spec).await, Some(Observed::Incomplete));
    launch(&host, &spec).await.unwrap();
    let new = host.cgroups.members(&spec.instance).unwrap();
    assert!(new.len() == 1 && !old.contains(&new[0]), "{old:?} {new:?}");

    // No folder, but a group: cleared away.
    fs::remove_dir_all(&folder).unwrap();
    let host = bench.open(&root);
    assert_eq!(observed(&host, &spec).await, Some(Observed::Incomplete));
    host.forget(&spec.instance).await.unwrap();
    assert_eq!(observed(&host, &spec).await, None);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[tokio::test]
async fn a_paused_instance_stands_still_goes_on_and_can_be_ended() {
    let Some((bench, root)) = Bench::new() else {
        return;
    };
    let host = bench.open(&root);
    let spec = bench.spec("kernel");
    let id = &spec.instance;
    host.set_paused(id, true).unwrap();
    launch(&host, &spec).await.unwrap();
    assert!(host.paused().unwrap().is_empty());
    host.set_paused(id, true).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string(host.cgroups.path(id).join("cgroup.events"))
        .unwrap()
        .contains("frozen 1")
    {
        assert!(
            std::time::Instant::now() < deadline,
            "it never stands still"
        );
        tokio::task::yield_now().await;
    }
    // Another hearth finds it so, and is told at once that it can't be asked.
    let host = bench.open(&root);
    assert_eq!(host.paused().unwrap(), [id.clone()].into());
    assert!(matches!(
        observed(&host, &spec).await,
        Some(Observed::Running { .. })
    ));
    let e = host.resets(id).await.unwrap_err();
    assert!(format!("{e:?}").contains("is paused"), "{e:?}");
    host.set_paused(id, false).unwrap();
    assert_eq!(host.resets(id).await.unwrap(), 0);
    host.set_paused(id, true).unwrap();
    host.forget(id).await.unwrap();
    assert_eq!(observed(&host, &spec).await, None);
    host.purge().await.unwrap();
    fs::remove_dir(&root).unwrap();
}

#[test]
fn limits_follow_the_instance_type() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench { dir };
    let mut spec = bench.spec("");
    (spec.vcpus, spec.memory_mib) = (2, 1024);
    let limits = cgroup::limits(&spec);
    let get = |name| &limits.iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!(get("cpu.max"), "200000 100000");
    assert_eq!(
        get("memory.max"),
        // The guest, its VMM, and page cache.
        &((1024_u64 + 16 + 8 + 128) << 20).to_string()
    );
    assert_eq!(get("pids.max"), "514");
}

#[tokio::test]
async fn a_program_begins_in_its_group_and_how_it_ends_is_known() {
    let Some(root) = hierarchy() else { return };
    let path = root.join(format!("hearth-clone-{}", std::process::id()));
    fs::create_dir(&path).unwrap();
    let group = fs::File::open(&path).unwrap();
    let mut log = tempfile::tempfile().unwrap();
    let spawn = async |program: &str, script: &str| {
        let arguments = ["-c", script].map(Into::into);
        let program = clone::Program {
            path: Path::new(program),
            arguments: &arguments,
            log: &log,
            inherited: &[],
        };
        clone::spawn(&program, group.as_fd()).await
    };
    let script = "env >&2; pwd >&2; cat /proc/self/cgroup >&2; exit 3";
    let status = spawn("/bin/sh", script)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(status.code(), Some(3));
    let mut killed = spawn("/bin/sh", "kill -9 $$").await.unwrap();
    assert_eq!(killed.wait().await.unwrap().code(), None);
    let missing = spawn("/none/such", "").await.err().map(|e| e.kind());
    assert_eq!(missing, Some(io::ErrorKind::NotFound));
    // One that nobody waits for any more is ended: its group can go.
    drop(spawn("/bin/sh", "exec sleep 1000").await.unwrap());
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while let Err(error) = fs::remove_dir(&path) {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut said = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut said).unwrap();
    assert!(said.lines().any(|line| line == "/"), "{said}");
    assert!(said.contains("/hearth-clone-"), "{said}");
    assert!(!said.contains("CARGO"), "{said}");
}

#[tokio::test]
async fn a_program_that_its_disk_withholds_holds_up_nobody() {
    let Some(root) = hierarchy() else { return };
    let path = root.join(format!("hearth-withheld-{}", std::process::id()));
    fs::create_dir(&path).unwrap();
    let group = fs::File::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    fs::copy("/bin/true", &program).unwrap();
    // Whoever opens a file with a lease waits until it is given back, or broken by
    // the kernel after 45 s, of which the holder is told by a signal.
    // <https://man7.org/linux/man-pages/man2/F_GETLEASE.2const.html>
    const F_SETSIG: i32 = 10;
    let held = fs::File::open(&program).unwrap();
    let lease = |request, value: i32| {
        // SAFETY: a descriptor that is open, and plain numbers.
        let done = unsafe { libc::fcntl(held.as_raw_fd(), request, value) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    lease(F_SETSIG, libc::SIGURG);
    lease(libc::F_SETLEASE, libc::F_WRLCK);
    let log = tempfile::tempfile().unwrap();
    let program = clone::Program {
        path: &program,
        arguments: &[],
        log: &log,
        inherited: &[],
    };
    let mut started = std::pin::pin!(clone::spawn(&program, group.as_fd()));
    // On the one thread that this test has.
    assert!(futures_util::poll!(&mut started).is_pending());
    lease(libc::F_SETLEASE, libc::F_UNLCK);
    assert!(started.await.unwrap().wait().await.unwrap().success());
    fs::remove_dir(&path).unwrap();
}
