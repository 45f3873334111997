//! One machine in `hearth-vmm`, without the cloud: a guest test is a list of
//! what a person would type at its console.

use std::ffi::{OsStr, OsString};
use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hearth_vmm_api::Exit;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::Value;

use crate::Output;

/// A machine that isn't started yet.
pub struct Builder {
    image: String,
    vcpus: String,
    /// In MiB, and how much there may be.
    memory: (u64, Option<u64>),
    /// Whether back ends in processes of their own can map it.
    shared: bool,
    init: Option<&'static str>,
    has_disk: bool,
    args: Vec<String>,
    append: String,
    netns: Option<String>,
    user: Option<u32>,
    kernel: Option<(PathBuf, PathBuf)>,
}

/// A running machine, with a root shell on its serial console.
pub struct Vm {
    child: Child,
    stdin: ChildStdin,
    console: Arc<Console>,
    /// Its folder: disk, socket, exit file.
    pub dir: tempfile::TempDir,
    /// How much of the console has been read by [`Vm::run`].
    seen: usize,
    /// How it was started.
    line: Vec<OsString>,
}

#[derive(Default)]
struct Console {
    text: Mutex<Vec<u8>>,
    more: Condvar,
}

/// Where the images are: `HEARTH_IMAGES`, or target/images.
fn images() -> PathBuf {
    std::env::var_os("HEARTH_IMAGES").map_or_else(
        || crate::host::repository().join("target/images"),
        PathBuf::from,
    )
}

/// The binary under test: `HEARTH_VMM`, or the release build.
pub fn binary(name: &str, variable: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || crate::host::repository().join("target/release").join(name),
        PathBuf::from,
    )
}

/// A folder for guest disks: in a lab on its data disk, which is large and can
/// clone. On any other machine that folder may be a cloud's.
pub fn scratch() -> PathBuf {
    let data = Path::new("/var/lib/hearth");
    if std::env::var_os("HEARTH_IN_LAB").is_some() && data.is_dir() {
        data.to_owned()
    } else {
        std::env::temp_dir()
    }
}

impl Builder {
    /// The image `micro` or `debian-12`, with one vCPU and 256 MiB, its init
    /// replaced by a shell on the console.
    pub fn new(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            vcpus: "1".to_owned(),
            memory: (256, None),
            shared: false,
            init: Some("/bin/sh"),
            has_disk: true,
            args: Vec::new(),
            append: String::new(),
            netns: None,
            user: None,
            kernel: None,
        }
    }

    /// How many vCPUs.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u8) -> Self {
        self.vcpus = vcpus.to_string();
        self
    }

    /// How many vCPUs, and how many there may be.
    #[must_use]
    pub fn vcpus_of(mut self, vcpus: u8, most: u8) -> Self {
        self.vcpus = format!("{vcpus},max={most}");
        self
    }

    /// How much memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory = (mib, None);
        self
    }

    /// How much memory, in MiB, and how much there may be.
    #[must_use]
    pub fn memory_of(mut self, mib: u64, most: u64) -> Self {
        self.memory = (mib, Some(most));
        self
    }

    /// Puts memory where other processes can map it.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Boots the image's own init.
    #[must_use]
    pub fn own_init(mut self) -> Self {
        self.init = None;
        self
    }

    /// Boots without a disk: as far as its initramfs.
    #[must_use]
    pub fn without_disk(mut self) -> Self {
        self.has_disk = false;
        self
    }

    /// Adds flags of `hearth-vmm`.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|s| (*s).to_owned()));
        self
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn append(mut self, words: &str) -> Self {
        self.append += " ";
        self.append += words;
        self
    }

    /// Starts it in this network namespace, where its taps are.
    #[must_use]
    pub fn netns(mut self, name: &str) -> Self {
        self.netns = Some(name.to_owned());
        self
    }

    /// Boots this kernel and initrd, instead of those of the image.
    #[must_use]
    pub fn kernel(mut self, kernel: &Path, initrd: &Path) -> Self {
        self.kernel = Some((kernel.to_owned(), initrd.to_owned()));
        self
    }

    /// Puts it in the jail, as this user and group.
    #[must_use]
    pub fn jailed(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Starts it; returns at once.
    ///
    /// # Panics
    /// When the image or the binary is missing.
    pub fn start(self) -> Vm {
        let dir = tempfile::Builder::new()
            .prefix("vm-")
            .tempdir_in(scratch())
            .expect("a scratch folder");
        let manifest: Value = serde_json::from_slice(
            &std::fs::read(images().join(format!("{}.json", self.image))).unwrap_or_else(|e| {
                panic!(
                    "image {} in {}: {e}; make it with images/build",
                    self.image,
                    images().display()
                )
            }),
        )
        .expect("the manifest is JSON");
        let disk = dir.path().join("root.raw");
        let source = images().join(manifest["disk"].as_str().expect("disk"));
        let copied = Command::new("cp")
            .args(["--reflink=auto", "--sparse=always"])
            .arg(&source)
            .arg(&disk)
            .status();
        assert!(
            copied.is_ok_and(|s| s.success()),
            "can't copy {}",
            source.display()
        );
        let (kernel, initrd) = self.kernel.unwrap_or_else(|| boot_files(&disk, dir.path()));
        let mut args = self.args;
        if let Some(user) = self.user {
            // Its folder is its own; the disk stays ours, it is handed in open.
            std::os::unix::fs::chown(dir.path(), Some(user), Some(user)).expect("root");
            let user = user.to_string();
            // Who runs a test puts it in no cgroup with a limit.
            let jail = ["--jail", "--jail-optional", "cgroup"];
            args.extend(jail.map(str::to_owned));
            args.extend(["--uid", &user, "--gid", &user].map(str::to_owned));
        }

        let mut cmdline = manifest["boot"]["cmdline"]
            .as_str()
            .expect("cmdline")
            .to_owned();
        if let Some(init) = self.init {
            // Errors and the shell, no more: `run` reads what is left.
            cmdline += &format!(" loglevel=4 init={init}");
        }
        cmdline += &self.append;
        let (mib, most) = self.memory;
        let mut memory = mib.to_string();
        if let Some(most) = most {
            memory += &format!(",max={most}");
        }
        if self.shared {
            memory += ",shared";
        }
        let vmm = binary("hearth-vmm", "HEARTH_VMM");
        let mut line: Vec<OsString> = Vec::new();
        if let Some(name) = &self.netns {
            line.extend(["ip", "netns", "exec", name].map(OsString::from));
        }
        line.push(vmm.into());
        // The command line is put together as that of a command that never runs.
        let mut flags = Command::new("");
        flags
            .args(["--id", "test", "--vcpus", &self.vcpus, "--memory", &memory])
            .arg("--kernel")
            .arg(kernel)
            .arg("--initrd")
            .arg(initrd)
            .args(["--cmdline", &cmdline])
            .arg("--socket")
            .arg(dir.path().join("vmm.sock"))
            .arg("--exit-file")
            .arg(dir.path().join("exit.json"));
        if self.has_disk {
            let root = format!("path={},id=root,serial=vol0root", disk.display());
            flags.args(["--disk", &root]);
        }
        flags.args(&args);
        line.extend(flags.get_args().map(OsStr::to_owned));
        let (child, stdin, console) = start(&line);
        Vm {
            child,
            stdin,
            console,
            dir,
            seen: 0,
            line,
        }
    }

    /// Starts it and waits for the shell.
    pub fn boot(self) -> Vm {
        let mut vm = self.start();
        vm.wait_for_shell();
        vm
    }
}

/// Starts a process, and remembers what it writes.
fn start(line: &[OsString]) -> (Child, ChildStdin, Arc<Console>) {
    let mut child = Command::new(&line[0])
        .args(&line[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hearth-vmm starts");
    let console = Arc::new(Console::default());
    let mut from = child.stdout.take().expect("piped");
    let to = Arc::clone(&console);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            to.text
                .lock()
                .expect("no panic while held")
                .extend_from_slice(&buffer[..n]);
            to.more.notify_all();
        }
    });
    let stdin = child.stdin.take().expect("piped");
    (child, stdin, console)
}

impl Vm {
    /// Kills the VMM, and starts another with the same flags that goes on from this
    /// snapshot.
    pub fn restore(&mut self, snapshot: &Path) {
        self.kill();
        std::fs::remove_file(self.dir.path().join("vmm.sock")).ok();
        let mut line = self.line.clone();
        line.push("--restore".into());
        line.push(snapshot.into());
        (self.child, self.stdin, self.console) = start(&line);
        self.seen = 0;
    }

    /// Has another VMM with the same flags take the machine over.
    ///
    /// # Panics
    /// When it doesn't.
    pub fn update(&mut self) {
        let mut line = self.line.clone();
        line.push("--take-over".into());
        line.push(self.dir.path().join("vmm.sock").into());
        let (mut next, stdin, console) = start(&line);
        let deadline = Instant::now() + Duration::from_secs(90);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            let ended = next.try_wait().expect("a child can be waited for");
            assert_eq!(ended, None, "the VMM that takes it over");
            assert!(Instant::now() < deadline, "it was never taken over");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "the VMM that had it: {status}");
        (self.child, self.stdin, self.console) = (next, stdin, console);
        self.seen = 0;
    }

    /// A machine from the image `micro` or `debian-12`.
    pub fn of(image: &str) -> Builder {
        Builder::new(image)
    }

    /// All that the console showed so far.
    pub fn console(&self) -> String {
        // A test that failed while it waited held the lock.
        let text = self.console.text.lock();
        let text = text.unwrap_or_else(std::sync::PoisonError::into_inner);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until the console shows `text` after what has been read.
    ///
    /// # Panics
    /// When it doesn't within `seconds`.
    pub fn wait_for_console(&mut self, text: &str, seconds: u64) -> String {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut now = self.console.text.lock().expect("no panic while held");
        loop {
            let fresh = &now[self.seen..];
            if let Some(at) = fresh.windows(text.len()).position(|w| w == text.as_bytes()) {
                let before = String::from_utf8_lossy(&fresh[..at]).into_owned();
                self.seen += at + text.len();
                return before;
            }
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            assert!(!ended, "hearth-vmm ended while \"{text}\" was waited for");
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "no \"{text}\" on the console within {seconds} s"
            );
            now = self
                .console
                .more
                .wait_timeout(now, left.min(Duration::from_secs(1)))
                .expect("no panic while held")
                .0;
        }
    }

    /// Waits for the shell of a boot, the first or a later one, and readies it.
    ///
    /// # Panics
    /// When there is none within three minutes.
    pub fn wait_for_shell(&mut self) {
        self.wait_for_console("# ", 180);
        // No echo, so that what comes back is what a command printed.
        self.type_line(
            "stty -echo 2>/dev/null; PS1= PS2=; export PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        );
        self.run("mount -t proc proc /proc 2>/dev/null; mount -t sysfs sys /sys 2>/dev/null; mount -t devtmpfs dev /dev 2>/dev/null; true");
    }

    /// Types a command at the console and returns what came of it.
    pub fn try_run(&mut self, command: &str) -> Output {
        // The marks are split, so that an echoed command is not taken for its end.
        let line = format!("{{ {command}\n}} 2>&1; echo \"@\"\"end $?\"\"@\"\n");
        self.stdin
            .write_all(line.as_bytes())
            .expect("the console takes input");
        let text = self.wait_for_console("@end ", 120);
        let status = self.wait_for_console("@", 10).trim().parse().unwrap_or(-1);
        let text = text.replace('\r', "");
        Output {
            status,
            stdout: text.trim().to_owned(),
            stderr: String::new(),
        }
    }

    /// The same, for a command that must work.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&mut self, command: &str) -> String {
        self.try_run(command)
            .ok()
            .unwrap_or_else(|e| panic!("`{command}` in the guest: {e}"))
    }

    /// Types a line, and waits for nothing.
    pub fn type_line(&mut self, line: &str) {
        self.stdin
            .write_all(format!("{line}\n").as_bytes())
            .expect("the console takes input");
    }

    /// Asks the control socket, as a person with curl would.
    ///
    /// # Errors
    /// The answer, when its status is no success.
    pub fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--fail-with-body",
            "--max-time",
            "30",
            "-X",
            method,
            "--unix-socket",
        ])
        .arg(self.dir.path().join("vmm.sock"))
        .arg(format!("http://vmm{path}"));
        if let Some(body) = body {
            curl.args([
                "-H",
                "Content-Type: application/json",
                "-d",
                &body.to_string(),
            ]);
        }
        let done = curl.output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        if !done.status.success() {
            return Err(format!(
                "{method} {path}: {text} {}",
                String::from_utf8_lossy(&done.stderr)
            ));
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Asks the control socket and hands it open files (SCM_RIGHTS).
    ///
    /// # Panics
    /// When it doesn't answer with success.
    pub fn api_with(&self, method: &str, path: &str, body: &Value, files: &[OwnedFd]) -> Value {
        let mut stream = UnixStream::connect(self.dir.path().join("vmm.sock")).expect("connects");
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: vmm\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let files: Vec<_> = files.iter().map(OwnedFd::as_raw_fd).collect();
        sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(request.as_bytes())],
            &[ControlMessage::ScmRights(&files)],
            MsgFlags::empty(),
            None,
        )
        .expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
        assert!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        serde_json::from_str(body).unwrap_or(Value::Null)
    }

    /// The same, for a call that must work.
    ///
    /// # Panics
    /// When it doesn't.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.try_api(method, path, body)
            .unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits for the process to end: its exit status and the exit file.
    ///
    /// # Panics
    /// When it doesn't within `seconds`.
    pub fn wait_exit(&mut self, seconds: u64) -> (i32, Option<Exit>) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                let exit = std::fs::read(self.dir.path().join("exit.json")).ok();
                return (
                    status.code().unwrap_or(-1),
                    exit.and_then(|e| serde_json::from_slice(&e).ok()),
                );
            }
            assert!(
                Instant::now() < deadline,
                "hearth-vmm still runs after {seconds} s; its console:\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the VMM as the kernel's out-of-memory killer would.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the console of the guest ---\n{}\n---", self.console());
        }
        self.kill();
    }
}

/// The kernel and initrd of a root disk, read out as the cloud does it.
fn boot_files(disk: &Path, into: &Path) -> (PathBuf, PathBuf) {
    let (kernel, initrd) = (into.join("kernel"), into.join("initrd"));
    // e2fsprogs' own tool, so that a test does not stand or fall with our reader.
    // The first partition starts at 1 MiB in our images.
    let debugfs = |command: &str| {
        let done = Command::new("debugfs")
            .args(["-R", command])
            .arg(format!("{}?offset=1048576", disk.display()))
            .output()
            .expect("debugfs (e2fsprogs) runs");
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        (text, String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let read = |from: &str, to: &Path| {
        // It follows no link.
        let (stat, _) = debugfs(&format!("stat {from}"));
        let link = stat
            .split_once("link dest: \"")
            .and_then(|(_, rest)| rest.split_once('"'));
        let from = link.map_or(from, |(target, _)| target);
        let (_, said) = debugfs(&format!("dump {from} {}", to.display()));
        assert!(to.metadata().is_ok_and(|m| m.len() > 0), "{from}: {said}");
    };
    read("/vmlinuz", &kernel);
    read("/initrd.img", &initrd);
    (kernel, initrd)
}
