//! The bare VMM: the very command line that the control plane launched an instance
//! with, run by hand, with nobody else at work.

use crate::socket::call;
use anyhow::{Context, Result, bail};
use hearth_vmm_api::Machine;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

const GROUPS: &str = "/sys/fs/cgroup";
/// `TUNSETIFF` of linux/if_tun.h, and the flags that the control plane's taps have:
/// `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TAP_FLAGS: libc::c_short = 0x0002 | 0x1000 | 0x4000;
/// How long after its launcher the guest may enter.
const PATIENCE: u32 = 100;

fn tap() -> Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("/dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: TAP_FLAGS,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"bare") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the descriptor is open, and the request a whole ifreq with a
    // NUL-terminated name.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
        return Err(std::io::Error::last_os_error()).context("making a tap");
    }
    Ok(file.into())
}

/// The command line of a running VMM.
pub(crate) fn command_line(pid: u32) -> Result<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    Ok(line.split_terminator('\0').map(str::to_owned).collect())
}

/// The instance's part of a flag's value is replaced: its files by such in `folder`,
/// its disk by an empty one, its tap by `fd`.
fn replaced(flag: &str, value: &str, folder: &Path, fd: i32) -> String {
    let file = |name: &str| folder.join("vmm").join(name).display().to_string();
    let part = |key: &str, new: String| {
        let parts = value.split(',').map(|part| match part.split_once('=') {
            Some((name, _)) if name == key => format!("{key}={new}"),
            _ => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join(",")
    };
    match flag {
        "--socket" => file("vmm.sock"),
        "--serial-log" => file("console.log"),
        "--exit-file" => file("exit.json"),
        "--pid-file" => file("vmm.pid"),
        "--disk" => part("path", folder.join("root.raw").display().to_string()),
        "--nic" => part("tap-fd", fd.to_string()),
        _ => value.to_owned(),
    }
}

fn machine(socket: &Path) -> Result<Machine> {
    let body = call(socket, "GET", "/v1/machine", "")?;
    Ok(serde_json::from_str(&body)?)
}

/// Runs it once in `folder`, like the instance `like` of the control group `group`;
/// how long it took from its exec to the guest's first instruction.
pub(crate) fn run(line: &[String], group: &Path, folder: &Path) -> Result<Duration> {
    let flag = |name: &str| {
        let at = line.iter().position(|word| word == name);
        at.and_then(|at| line.get(at + 1)).map(String::as_str)
    };
    let uid: u32 = flag("--uid").context("no --uid")?.parse()?;
    let vmm = folder.join("vmm");
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(&vmm)?;
    chown(&vmm, Some(uid), Some(uid))?;
    // What is on the disk is no matter before the guest's first instruction.
    File::create(folder.join("root.raw"))?.set_len(1 << 30)?;
    let own = Path::new(GROUPS).join("bare");
    fs::create_dir_all(&own)?;
    for limit in ["cpu.max", "memory.max", "pids.max"] {
        fs::write(own.join(limit), fs::read_to_string(group.join(limit))?)?;
    }
    let door = OpenOptions::new()
        .write(true)
        .open(own.join("cgroup.procs"))?;
    let tap = tap()?;
    let mut words = Vec::new();
    for pair in line.windows(2) {
        words.push(replaced(&pair[0], &pair[1], folder, tap.as_raw_fd()));
    }
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = Command::new(&line[0]);
    command
        .args(&words)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(folder.join("log"))?);
    let fd = tap.as_raw_fd();
    let enter = move || {
        (&door).write_all(b"0")?;
        // SAFETY: takes plain numbers; the parent holds the tap open.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_err(std::io::Error::other)?;
        (&writer).write_all(&now.as_nanos().to_le_bytes())
    };
    // SAFETY: the closure makes system calls only: it neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
    let status = command.status()?;
    if !status.success() {
        bail!("{status}: {}", fs::read_to_string(folder.join("log"))?);
    }
    let mut began = [0; 16];
    reader.read_exact(&mut began)?;
    let began = u128::from_le_bytes(began);
    let mut tries = 0;
    let entered = loop {
        if let Some(entered) = machine(&vmm.join("vmm.sock"))?.start.entered_ns {
            break u128::from(entered);
        }
        tries += 1;
        if tries > PATIENCE {
            bail!("its guest is never entered");
        }
        thread::sleep(Duration::from_millis(10));
    };
    fs::write(own.join("cgroup.kill"), "1")?;
    while fs::remove_dir(&own).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(Duration::from_nanos(u64::try_from(entered - began)?))
}
