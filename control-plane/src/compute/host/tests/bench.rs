//! The stand-ins, and a host that runs them.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::{
    compute::DiskSpec,
    model::{BootMethod, VolumeId},
};

/// A daemon that keeps the VMM's contract: it returns when it serves, has its
/// pid file, answers on its socket, and says why it ended. The kernel's text
/// decides how it behaves. How each begins is in the file `starts` beside it, and in `saves`
/// each snapshot that is begun. One whose kernel is `slow`, or `stubborn` and deaf to
/// whoever gives a snapshot up, writes one in its time and once there is a file `go`. None
/// goes on from what was saved while there is a file `lacking`, which is its exit status and
/// what it says.
///
/// One that takes over waits before it says that it has the machine while there is a file
/// `early`, and before it serves while there is a `late`; where there is `dies`, it does so
/// in between. With `keeps` none is handed over.
const STAND_IN: &str = r#"#!/usr/bin/python3
import json, os, signal, socket, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
here = os.path.dirname(sys.argv[0])
old = None
if "--take-over" in flags:
    old = socket.socket(socket.AF_UNIX)
    old.connect(flags["--take-over"])
    old.sendall(b"PUT /v1/hand-over HTTP/1.1\r\n\r\n")
    told, passed, _, _ = socket.recv_fds(old, 65536, 1)
    told = json.loads(told)
    if "error" in told:
        print("hearth-vmm: --take-over: " + told["error"], file=sys.stderr)
        sys.exit(2)
words = told["words"] if old else open(flags["--kernel"]).read().strip()
if words == "refuse":
    print("hearth-vmm: --kernel: not a bzImage", file=sys.stderr)
    sys.exit(2)
saved = flags.get("--restore")
if saved and not os.path.exists(saved + "/machine.json"):
    print("hearth-vmm: --restore: machine.json: No such file or directory (os error 2)", file=sys.stderr)
    sys.exit(3)
if saved and open(saved + "/machine.json").read() != '"saved"':
    print("hearth-vmm: --restore: machine.json: is damaged", file=sys.stderr)
    sys.exit(3)
memory = open(saved + "/memory") if saved else None
if saved and os.path.exists(os.path.dirname(sys.argv[0]) + "/lacking"):
    status, why = open(os.path.dirname(sys.argv[0]) + "/lacking").read().split(" ", 1)
    print("hearth-vmm: " + why, file=sys.stderr)
    sys.exit(int(status))
r, w = os.pipe()
if os.fork():
    os.close(w)
    sys.exit(0 if os.read(r, 1) == b"\n" else 2)
os.setsid()
def wait_while(name):
    while os.path.exists(here + "/" + name): time.sleep(0.01)
if old: wait_while("early")
with open(flags["--pid-file"], "w") as f: f.write("%d\n" % os.getpid())
with open(os.path.dirname(sys.argv[0]) + "/starts", "a") as f:
    f.write("memory %s\n" % memory.read() if saved else "taken\n" if old else "cold\n")
if old:
    old.sendall(b"t")
    if os.path.exists(here + "/dies"): os._exit(1)
    wait_while("late")
if saved and words == "dies": sys.exit(1)
with open(flags["--serial-log"], "a") as f:
    f.write("warm\n" if saved else "taken\n" if old else "hello\n")
    if "--template" in flags: f.write(words + "\n")
server = socket.socket(fileno=passed[0]) if old else socket.socket(socket.AF_UNIX)
if not old:
    server.bind(flags["--socket"])
    server.listen()
resets, state, busy, saving = told["resets"] if old else 0, "running", 2, None
os.write(w, b"\n")
def end(reason):
    with open(flags["--exit-file"] + ".new", "w") as f: json.dump({"reason": reason}, f)
    os.rename(flags["--exit-file"] + ".new", flags["--exit-file"])
    os._exit(0)
def say(c, status, body):
    head = "HTTP/1.1 %s\r\n" % status
    if body: head += "content-length: %d\r\n" % len(body)
    try: c.sendall((head + "\r\n" + body).encode())
    except OSError: pass
    c.close()
def write(files):
    os.write(files[0], b"of boot")
    os.write(files[1], b'"saved"')
while True:
    # Before it takes another: who asks all the time how far it is holds up nothing.
    if saving and os.path.exists(here + "/go"):
        write(saving[1])
        for file in saving[1]: os.close(file)
        state = "paused"
        say(saving[0], "200 OK", '{"written_bytes": 7}')
        saving = None
    server.settimeout(0.01 if saving else None)
    try: c, _ = server.accept()
    except TimeoutError: continue
    request, files, _, _ = socket.recv_fds(c, 65536, 4)
    request = request.decode()
    line = request.split("\r\n")[0]
    machine = {"id": flags["--id"], "pid": os.getpid(), "version": "1.2.3", "state": state, "vcpus": 1,
               "memory_bytes": 1, "resets": resets, "disks": [], "nics": [],
               "jail": ["cgroup", "namespaces", "chroot", "user", "capabilities", "landlock",
                        "seccomp", "io-uring"][:6 if words == "open" else 8]}
    body, status = "", "204 No Content"
    if line.startswith("PUT /v1/hand-over"):
        if os.path.exists(here + "/keeps"):
            c.sendall(b'{"error": "a debugger has the machine"}')
        else:
            told = {"words": words, "resets": resets}
            socket.send_fds(c, [json.dumps(told).encode()], [server.fileno()])
            if c.recv(1) == b"t": os._exit(0)
        c.close()
        continue
    if line.startswith("GET /v1/machine"): body, status = json.dumps(machine), "200 OK"
    if line.startswith("PUT /v1/pause") and not saving: state = "paused"
    if line.startswith("PUT /v1/resume"):
        if saving: body, status = '{"error": "it is saved"}', "409 Conflict"
        else: state = "running"
    if line.startswith("DELETE /v1/snapshot"):
        if words == "stubborn": body, status = '{"error": "takes PUT"}', "405 Method Not Allowed"
        elif saving:
            say(saving[0], "500 Internal Server Error", '{"error": "cancelled"}')
            for file in saving[1]: os.close(file)
            state, saving = "paused", None
    if line.startswith("PUT /v1/snapshot"):
        with open(here + "/saves", "a") as f: f.write(flags["--id"] + "\n")
        if state == "paused" and words in ("slow", "stubborn"):
            state, saving = "saving", (c, files)
            continue
        busy -= words == "busy"
        if state != "paused" or words == "unsaved":
            body, status = '{"error": "no"}', "500 Internal Server Error"
        elif words == "busy" and busy:
            body, status, state = '{"error": "a reset is due"}', "409 Conflict", "resetting"
        else:
            write(files)
            body, status = '{"written_bytes": 7}', "200 OK"
    for file in files: os.close(file)
    if line.startswith("PUT /v1/power-button") and state != "running":
        continue
    if line.startswith("PUT /v1/reset"): body, status = '{"error": "not now"}', "409 Conflict"
    if line.startswith("PUT /v1/reboot"):
        while "}" not in request: request += c.recv(65536).decode()
        if '{"resets":%d}' % resets in request: resets += 1
        else: body, status = '{"error": "reset since"}', "409 Conflict"
    say(c, status, body)
    if line.startswith("PUT /v1/power-button"): end("guest-power-off")
"#;

/// Reads the "disk": its text is the kernel.
pub(super) const READER: &str = "#!/bin/sh\nread -r words\ncase $words in broken*) echo 'no readable ext4' >&2; exit 1;; esac\necho \"$words\"\n";

/// A folder with the stand-ins in it.
pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
}

/// Where a v2 hierarchy is mounted and may be written. Where there is none the
/// tests can't run: said aloud, and a failure in CI and in the lab.
pub(super) fn hierarchy() -> Option<PathBuf> {
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
    pub(super) fn new() -> Option<(Self, PathBuf)> {
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
    pub(super) fn open(&self, root: &Path) -> HostCompute {
        self.open_keeping(root, 0)
    }

    /// The same, with so many bytes of the disk kept free.
    pub(super) fn open_keeping(&self, root: &Path, reserve: u64) -> HostCompute {
        let mut host = HostCompute::with(
            &self.dir.path().join("data"),
            &self.dir.path().join("vmm"),
            &self.dir.path().join("reader"),
            Cgroups::without_limits(root),
            4,
        )
        .unwrap();
        host.available_mib = || Ok(1 << 20);
        // So much is free as the file says, where there is one.
        let free = self.dir.path().join("free");
        let free = move || match fs::read_to_string(&free) {
            Ok(bytes) => bytes.trim().parse().map_err(io::Error::other),
            Err(_) => Ok(1 << 40),
        };
        host.with_disk_reserve(reserve, Arc::new(free))
    }

    /// Has so many bytes be free on the disk.
    pub(super) fn set_free(&self, bytes: u64) {
        let free = self.dir.path().join("free");
        fs::write(free.with_extension("new"), bytes.to_string()).unwrap();
        fs::rename(free.with_extension("new"), free).unwrap();
    }

    pub(super) fn spec(&self, disk: &str) -> LaunchSpec {
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
            resume: None,
            trace: Default::default(),
        }
    }
}

/// Launches. A child that another test forks holds the lock as well, and the stand-in
/// open for writing, for as long as it has not become another program: that is
/// waited for.
pub(super) async fn launch(host: &HostCompute, spec: &LaunchSpec) -> Result<(), ComputeError> {
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

pub(super) async fn observed(host: &HostCompute, spec: &LaunchSpec) -> Option<Observed> {
    host.observe().await.unwrap().remove(&spec.instance)
}

/// Waits for a VMM's end to be noticed.
pub(super) async fn an_end(exits: &mut broadcast::Receiver<InstanceId>) {
    tokio::time::timeout(Duration::from_secs(60), exits.recv())
        .await
        .expect("an end is noticed")
        .unwrap();
}
