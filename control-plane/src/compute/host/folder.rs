//! An instance's folder, `<data>/instances/<id>/`:
//!
//! | file            | writer | what                                            |
//! |-----------------|--------|-------------------------------------------------|
//! | `lock`          |        | flocked while a launch is under way             |
//! | `launch.json`   | hearth | what is launched, and its user: the first written |
//! | `kernel`, `initrd` | boot-file reader | gone once the VMM has them open    |
//! | `identity.json` | hearth | which process it became: the last written       |
//! | `memory…/`      | VMM    | its memory, hibernated: [`super::hibernation`]  |
//! | `update.json`   | hearth | what came of the last update of its VMM          |
//! | `trace.json`    | hearth | how long the steps of the launch took           |
//! | `vmm.log`       | VMM    | what it says on standard error                  |
//! | `vmm/`          | VMM    | the only place it may write once it runs:       |
//! | `vmm/vmm.sock`  |        | its control socket                              |
//! | `vmm/vmm.pid`   |        | its process id                                  |
//! | `vmm/console.log` |      | the serial console, at most 1 MiB               |
//! | `vmm/exit.json` |        | why it ended                                    |
//!
//! What lies in `vmm/` is read with care: a VMM that was taken over could have
//! put anything there, links too.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use hearth_vmm_api::Exit;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::process::Identity;
use super::update::Outcome;
use crate::compute::argv::Owner;
use crate::compute::{LaunchSpec, Observed, trace};

/// What GetConsoleOutput returns at most: 64 KiB.
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetConsoleOutput.html>
const CONSOLE_TAIL: u64 = 64 << 10;
/// No record is near this long.
const MAX_RECORD: u64 = 256 << 10;
/// What the VMM may have said, in bytes.
const MAX_LOG: u64 = 256 << 10;
/// sun_path of unix(7), with its final zero.
const MAX_SOCKET_PATH: usize = 108;

/// What was launched: the first record of a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Launch {
    /// The machine.
    pub(super) spec: LaunchSpec,
    /// The number of the user, and of the group, that its VMM runs as.
    pub(super) uid: u32,
    /// The host's boot that it was launched in; an older `hearth` wrote none.
    #[serde(default)]
    pub(super) host_boot: Option<String>,
}

impl Launch {
    pub(super) fn owner(&self) -> Owner {
        Owner {
            uid: self.uid,
            gid: self.uid,
        }
    }
}

/// An instance's folder; it may not exist.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
    pub(super) fn kernel(&self) -> PathBuf {
        self.path.join("kernel")
    }
    pub(super) fn initrd(&self) -> PathBuf {
        self.path.join("initrd")
    }
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }
    fn vmm(&self) -> PathBuf {
        self.path.join("vmm")
    }
    pub(super) fn socket(&self) -> PathBuf {
        self.vmm().join("vmm.sock")
    }
    pub(super) fn pid_file(&self) -> PathBuf {
        self.vmm().join("vmm.pid")
    }
    pub(super) fn exit_file(&self) -> PathBuf {
        self.vmm().join("exit.json")
    }
    pub(super) fn console(&self) -> PathBuf {
        self.vmm().join("console.log")
    }

    /// Whether the control socket can be made here at all.
    pub(super) fn check_length(&self) -> io::Result<()> {
        let socket = self.socket();
        if socket.as_os_str().len() < MAX_SOCKET_PATH {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{} is too long for a Unix socket ({} bytes at most): choose a shorter data folder",
                socket.display(),
                MAX_SOCKET_PATH - 1
            ),
        ))
    }

    /// Makes the folder and holds its lock. A process that was forked by a
    /// `hearth` which is gone holds it too, until it is in its control group.
    pub(super) fn lock(&self) -> io::Result<File> {
        // The VMM, another user, passes through to its part.
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.path)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join("lock"))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
            |e| io::Error::new(io::Error::from(e).kind(), "another launch is under way"),
        )?;
        Ok(file)
    }

    /// Clears what the last launch left and writes the first record of a new one.
    pub(super) fn begin(&self, launch: &Launch) -> io::Result<()> {
        for file in [
            "identity.json",
            "launch.json",
            "trace.json",
            "update.json",
            "kernel",
            "initrd",
            "vmm.log",
        ] {
            absent_is_fine(fs::remove_file(self.path.join(file)))?;
        }
        absent_is_fine(fs::remove_dir_all(self.vmm()))?;
        self.put("launch.json", launch)?;
        // After a power cut this file tells that the host went down, and not the
        // VMM alone.
        File::open(self.path.join("launch.json"))?.sync_all()?;
        DirBuilder::new().mode(0o700).create(self.vmm())?;
        chown(self.vmm(), Some(launch.uid), Some(launch.uid))
    }

    pub(super) fn launch(&self) -> io::Result<Option<Launch>> {
        record(&self.path.join("launch.json"))
    }

    pub(super) fn identity(&self) -> io::Result<Option<Identity>> {
        record(&self.path.join("identity.json"))
    }

    /// Writes the last record of a launch.
    pub(super) fn set_identity(&self, identity: &Identity) -> io::Result<()> {
        self.put("identity.json", identity)
    }

    /// Why the VMM ended, if it said so. Whatever else it may have put there
    /// says nothing, and must not keep other instances from being looked at.
    pub(super) fn exit(&self) -> Option<Exit> {
        record(&self.exit_file()).unwrap_or_else(|e| {
            tracing::warn!(error = %e, "an exit file that can't be read is ignored");
            None
        })
    }

    /// The process id that the VMM says it has.
    pub(super) fn claimed_pid(&self) -> Option<u32> {
        let bytes = read_tail(&self.pid_file(), 32).ok()??;
        String::from_utf8(bytes).ok()?.trim().parse().ok()
    }

    pub(super) fn console_tail(&self) -> io::Result<Vec<u8>> {
        Ok(read_tail(&self.console(), CONSOLE_TAIL)?.unwrap_or_default())
    }

    /// Keeps what the VMM says within bounds: the newest part of it. It appends, so
    /// it goes on behind what is kept; a line that it says right now may be lost.
    pub(super) fn trim_log(&self) -> io::Result<()> {
        let mut log = match OpenOptions::new().read(true).append(true).open(self.log()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            log => log?,
        };
        let length = log.metadata()?.len();
        if length <= MAX_LOG {
            return Ok(());
        }
        let mut newest = Vec::new();
        log.seek(SeekFrom::Start(length - MAX_LOG / 2))?;
        (&log).take(MAX_LOG / 2).read_to_end(&mut newest)?;
        log.set_len(0)?;
        log.write_all(&newest)
    }

    /// The last line that the VMM said.
    pub(super) fn last_words(&self) -> Option<String> {
        let bytes = read_tail(&self.log(), 4096).ok()??;
        let text = String::from_utf8_lossy(&bytes);
        text.lines().rev().find_map(words)
    }

    /// How much it has said.
    pub(super) fn log_length(&self) -> io::Result<u64> {
        match fs::metadata(self.log()) {
            Ok(log) => Ok(log.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// The first line since it had said so much: what went wrong first.
    pub(super) fn first_words_since(&self, length: u64) -> Option<String> {
        let since = self.log_length().ok()?.checked_sub(length)?;
        let bytes = read_tail(&self.log(), since.min(MAX_LOG)).ok()??;
        let text = String::from_utf8_lossy(&bytes);
        text.lines().find_map(words)
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(&self.path))
    }

    /// What is known of how long the last launch took.
    pub(super) fn trace(&self) -> io::Result<Option<trace::Record>> {
        record(&self.path.join("trace.json"))
    }

    pub(super) fn set_trace(&self, record: &trace::Record) -> io::Result<()> {
        self.put("trace.json", record)
    }

    /// What came of the last update of its VMM since its launch.
    pub(super) fn update(&self) -> io::Result<Option<Outcome>> {
        record(&self.path.join("update.json"))
    }

    pub(super) fn set_update(&self, outcome: &Outcome) -> io::Result<()> {
        self.put("update.json", outcome)
    }

    pub(super) fn forget_update(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.path.join("update.json")))
    }

    /// Writes a record, whole or not at all. It needn't outlast a power cut: no VMM
    /// does, so nothing waits for the disk here.
    fn put(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let temp = self.path.join(format!(".{name}"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temp)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        fs::rename(&temp, self.path.join(name))
    }
}

/// A line that says something, without the name of who says it.
fn words(line: &str) -> Option<String> {
    let line = line.trim();
    let line = line.strip_prefix("hearth-vmm: ").unwrap_or(line);
    (!line.is_empty()).then(|| line.to_owned())
}

pub(super) fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The last bytes of a plain file; none when it is not there. Follows no link
/// and waits for no pipe.
fn read_tail(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other(format!("{} is no file", path.display())));
    }
    file.seek(SeekFrom::Start(meta.len().saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// A record; none when it is not there or says nothing that makes sense: an
/// older `hearth` may have written it, or a VMM gone wild.
fn record<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(bytes) = read_tail(path, MAX_RECORD)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "an unreadable record is ignored");
            Ok(None)
        }
    }
}

/// What is known of a VMM's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) alive: bool,
}

/// What the records and the processes together say; `lost`: whether the host was
/// started again since the launch. Pure.
pub(super) fn judge(
    launch: Option<&Launch>,
    process: Option<Process>,
    exit: Option<Exit>,
    lost: bool,
) -> Observed {
    let Some(boot) = launch.map(|l| l.spec.boot) else {
        return Observed::Incomplete;
    };
    match (process, exit) {
        (Some(Process { pid, alive: true }), _) => Observed::Running { pid, boot },
        // A host that goes down ends its VMMs in order, if there is time.
        (_, None | Some(Exit::Stopped)) if lost => Observed::HostLost { boot },
        // The exit file is of this launch even if hearth never came to note
        // the process: the folder was cleared when it began.
        (_, Some(exit)) => Observed::Exited { boot, exit },
        (Some(Process { alive: false, .. }), None) => Observed::Exited {
            boot,
            exit: Exit::Crashed {
                detail: "its process was killed".to_owned(),
            },
        },
        (None, None) => Observed::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BootMethod, InstanceId};

    #[test]
    fn what_the_vmm_says_is_bounded_and_the_newest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        folder.trim_log().unwrap();
        let mut log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(folder.log())
            .unwrap();
        log.write_all(&vec![b'x'; usize::try_from(MAX_LOG).unwrap()])
            .unwrap();
        folder.trim_log().unwrap();
        assert_eq!(log.metadata().unwrap().len(), MAX_LOG);
        log.write_all(b"\nlast\n").unwrap();
        folder.trim_log().unwrap();
        assert_eq!(log.metadata().unwrap().len(), MAX_LOG / 2);
        log.write_all(b"and more\n").unwrap();
        let text = fs::read(folder.log()).unwrap();
        assert!(text.ends_with(b"x\nlast\nand more\n"));
    }

    fn launch(boot: u64) -> Launch {
        Launch {
            uid: std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()),
            host_boot: None,
            spec: LaunchSpec {
                instance: InstanceId::from_random(1),
                boot,
                instance_type: "t2.nano".into(),
                vcpus: 1,
                memory_mib: 512,
                boot_method: BootMethod::Linux {
                    partition: 1,
                    kernel: "/vmlinuz".into(),
                    initrd: None,
                    cmdline: String::new(),
                },
                disks: vec![],
                nics: vec![],
                clone_of: None,
                resume: None,
                trace: Default::default(),
            },
        }
    }

    #[test]
    fn verdicts() {
        let l = launch(3);
        let off = Exit::GuestPowerOff;
        let killed = Exit::Crashed {
            detail: "its process was killed".to_owned(),
        };
        let exited = |exit| Observed::Exited { boot: 3, exit };
        let running = Observed::Running { pid: 9, boot: 3 };
        let lost = Observed::HostLost { boot: 3 };
        let alive = Some(Process {
            pid: 9,
            alive: true,
        });
        let dead = Some(Process {
            pid: 9,
            alive: false,
        });
        let stopped = Exit::Stopped;
        for (launch, process, exit, host, expected) in [
            (None, None, None, false, Observed::Incomplete),
            (None, alive, None, false, Observed::Incomplete),
            (Some(&l), None, None, false, Observed::Incomplete),
            (Some(&l), alive, None, false, running.clone()),
            // Its last act is done, it is about to end: not yet gone.
            (Some(&l), alive, Some(&off), false, running),
            (Some(&l), dead, Some(&off), false, exited(off.clone())),
            (Some(&l), dead, None, false, exited(killed)),
            // Ended before hearth could note which process it was.
            (Some(&l), None, Some(&off), false, exited(off.clone())),
            // The host went down: without a word, or ending what ran.
            (Some(&l), dead, None, true, lost.clone()),
            (Some(&l), None, None, true, lost.clone()),
            (Some(&l), dead, Some(&stopped), true, lost),
            (Some(&l), dead, Some(&off), true, exited(off.clone())),
            (
                Some(&l),
                dead,
                Some(&stopped),
                false,
                exited(stopped.clone()),
            ),
            (None, None, None, true, Observed::Incomplete),
        ] {
            assert_eq!(judge(launch, process, exit.cloned(), host), expected);
        }
    }

    #[test]
    fn a_new_launch_clears_the_old_ones_traces() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("i"));
        let lock = folder.lock().unwrap();
        assert!(folder.lock().is_err(), "locked twice");
        drop(lock);
        folder.begin(&launch(1)).unwrap();
        let me = Identity::of(std::process::id()).unwrap().unwrap();
        folder.set_identity(&me).unwrap();
        fs::write(folder.exit_file(), r#"{"reason":"guest-power-off"}"#).unwrap();
        fs::write(folder.pid_file(), "42\n").unwrap();
        assert_eq!(folder.identity().unwrap(), Some(me));
        assert_eq!(folder.exit(), Some(Exit::GuestPowerOff));
        assert_eq!(folder.claimed_pid(), Some(42));

        folder.begin(&launch(2)).unwrap();
        assert_eq!(folder.launch().unwrap(), Some(launch(2)));
        assert_eq!(folder.identity().unwrap(), None);
        assert_eq!(folder.exit(), None);
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert_eq!(folder.launch().unwrap(), None);
    }

    #[test]
    fn the_console_is_its_tail_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("i"));
        fs::create_dir_all(folder.vmm()).unwrap();
        assert_eq!(folder.console_tail().unwrap(), b"");
        let mut log = vec![b'a'; 100_000];
        log.extend(b"end");
        fs::write(folder.console(), &log).unwrap();
        assert_eq!(
            folder.console_tail().unwrap(),
            log[log.len() - (64 << 10)..]
        );

        fs::remove_file(folder.console()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.console()).unwrap();
        assert!(folder.console_tail().is_err());
        // A pipe must not make the reader wait.
        fs::remove_file(folder.console()).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.console(),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert!(folder.console_tail().is_err());
        fs::write(folder.exit_file(), "not JSON").unwrap();
        assert_eq!(folder.exit(), None);
    }

    #[test]
    fn a_folder_too_deep_for_a_socket_is_refused_by_name() {
        let long = Path::new("/").join("x".repeat(120));
        let line = Folder::new(long).check_length().unwrap_err().to_string();
        assert!(line.contains("shorter data folder"), "{line}");
    }
}
