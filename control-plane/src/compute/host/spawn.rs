//! Starts processes: the boot-file reader and the VMM.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::clone::{self, Program};
use crate::compute::argv::Owner;

/// How long a file may take to be read from a disk. A big initrd on a slow disk
/// under emulation takes some seconds.
const READ_DEADLINE: Duration = Duration::from_secs(120);
/// How long a VMM may take until its vCPUs run.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How many threads may wait at once for the files that a program is started with.
const STARTING: usize = 16;
/// What is kept of what a child says.
const MAX_WORDS: u64 = 4096;

/// A file to be read from a disk.
pub(super) struct Wanted<'a> {
    /// Its path there.
    pub(super) path: &'a str,
    /// The most bytes of it.
    pub(super) limit: u64,
    /// Where the copy is made, anew.
    pub(super) to: &'a Path,
}

/// Reads a file, or two, out of a root disk, in one sandboxed process.
/// `Ok(Err(line))` says what is wrong with the disk.
pub(super) async fn read_boot_files(
    program: &Path,
    disk: &Path,
    partition: u32,
    first: &Wanted<'_>,
    second: Option<&Wanted<'_>>,
    owner: Owner,
) -> io::Result<Result<(), String>> {
    let path = first.path;
    let mut command = Command::new(program);
    command
        .arg("read-boot-files")
        .args(["--partition".to_owned(), partition.to_string()])
        .args(["--limit".to_owned(), first.limit.to_string()])
        .args(["--uid".to_owned(), owner.uid.to_string()])
        .args(["--gid".to_owned(), owner.gid.to_string()])
        .arg(format!("--path={path}"));
    if let Some(second) = second {
        command
            .arg(format!("--second-path={}", second.path))
            .args(["--second-limit".to_owned(), second.limit.to_string()])
            .arg("--second-to")
            .arg(second.to);
    }
    let (disk, to) = (disk.to_owned(), first.to.to_owned());
    let second = second.map(|second| second.to.to_owned());
    let start = move || {
        let create = |to: &Path| {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(to)
        };
        let disk = File::open(disk)?;
        let out = create(&to)?;
        if let Some(second) = second {
            create(&second)?;
        }
        command
            .env_clear()
            .current_dir("/")
            .stdin(disk)
            .stdout(out)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    };
    let read = async {
        let mut child = starting(start).await?;
        let mut words = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            stderr.take(MAX_WORDS).read_to_end(&mut words).await?;
        }
        io::Result::Ok((child.wait().await?, words))
    };
    // What is late is dropped, and killed by that.
    let Ok(done) = tokio::time::timeout(READ_DEADLINE, read).await else {
        return Ok(Err(format!(
            "{path}: not read after {} seconds",
            READ_DEADLINE.as_secs()
        )));
    };
    let (status, words) = done?;
    if status.success() {
        return Ok(Ok(()));
    }
    let words = String::from_utf8_lossy(&words);
    let line = match words.lines().map(str::trim).find(|l| !l.is_empty()) {
        Some(line) => line.to_owned(),
        None => format!("{path}: its reader ended with {status}"),
    };
    Ok(Err(line))
}

/// Runs what opens files on an instance's disk, on a thread that may wait for that.
/// One that a dead disk holds is lost: there are never more than `STARTING` of them.
async fn starting<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    static THREADS: Semaphore = Semaphore::const_new(STARTING);
    let permit = THREADS.acquire().await.map_err(io::Error::other)?;
    let run = move || {
        let _permit = permit;
        f()
    };
    tokio::task::spawn_blocking(run)
        .await
        .map_err(io::Error::other)?
}

/// Runs the VMM's launcher, inside the control group whose folder is `group`, until
/// it has become a daemon or failed. Everything that it ever becomes is in the group.
pub(super) async fn start_vmm(
    program: &Path,
    argv: &[OsString],
    group: File,
    taps: &[OwnedFd],
    log: &Path,
) -> io::Result<ExitStatus> {
    start_vmm_within(START_DEADLINE, program, argv, group, taps, log).await
}

/// The same, for so long at most.
pub(super) async fn start_vmm_within(
    deadline: Duration,
    program: &Path,
    argv: &[OsString],
    group: File,
    taps: &[OwnedFd],
    log: &Path,
) -> io::Result<ExitStatus> {
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log)?;
    let program = Program {
        path: program,
        arguments: argv,
        log: &log,
        inherited: taps,
    };
    let ended = async { clone::spawn(&program, group.as_fd()).await?.wait().await };
    match tokio::time::timeout(deadline, ended).await {
        Ok(status) => status,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("not up after {} seconds", deadline.as_secs()),
        )),
    }
}
