//! Which process a VMM is, for sure: a process id alone may have been given to
//! another since, so its start time and the host's boot id go with it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// The identity of a process, across restarts of `hearth` and of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The process id.
    pub(super) pid: u32,
    /// Its start time in clock ticks since the host's boot: field 22 of
    /// `/proc/<pid>/stat`, proc_pid_stat(5).
    pub(super) start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(super) host_boot: String,
}

impl Identity {
    /// That of the process which has this id now; none when there is none.
    pub(super) fn of(pid: u32) -> io::Result<Option<Self>> {
        let Some(start_time) = start_time(pid)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            pid,
            start_time,
            host_boot: host_boot()?,
        }))
    }

    /// Whether this process still lives.
    pub(super) fn is_alive(&self) -> io::Result<bool> {
        Ok(Self::of(self.pid)?.as_ref() == Some(self))
    }

    /// A descriptor that becomes readable when the process ends; none when it
    /// has ended.
    pub(super) fn open(&self) -> io::Result<Option<OwnedFd>> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let fd = match pid.map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK)) {
            None | Some(Err(rustix::io::Errno::SRCH)) => return Ok(None),
            Some(outcome) => outcome?,
        };
        // Asked again, now that the id can't be given to another.
        Ok(self.is_alive()?.then_some(fd))
    }
}

/// Which boot of the host this is: `/proc/sys/kernel/random/boot_id`, random(4).
pub(super) fn host_boot() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// The start time of a process that lives: a zombie doesn't, unless it is one whose main
/// thread alone has ended. A thread that waits for a disk is still at that disk, and
/// at all else that the process has open, until the disk answers, whoever killed it.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_stat(&stat)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        // The process ended between open and read.
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether this is a thread of the kernel's own.
pub(super) fn is_of_the_kernel(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| has_kernels_flag(&stat))
}

/// Field 9, by `PF_KTHREAD` of `include/linux/sched.h`.
fn has_kernels_flag(stat: &str) -> bool {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| {
        // Behind the name, the first is field 3.
        rest.split_whitespace().nth(6)?.parse::<u64>().ok()
    });
    flags.is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// Field 22. The name, field 2, may hold anything, so count behind its last
/// parenthesis; field 3 is the state, field 20 the number of threads.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if state == "X" || (state == "Z" && threads <= 1) {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_name_meant_to_confuse() {
        let tail = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20";
        let stat = format!("42 (a) Z 1 (x) S {tail}");
        assert_eq!(parse_stat(&stat), Some(987_654));
        let zombie = |threads| format!("42 (vmm) Z {}", tail.replacen(" 17 ", threads, 1));
        assert_eq!(parse_stat(&zombie(" 1 ")), None);
        assert_eq!(parse_stat(&zombie(" 2 ")), Some(987_654));
        assert_eq!(parse_stat(&format!("42 (vmm) X {tail}")), None);
        assert_eq!(parse_stat("42"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn threads_of_the_kernel_are_told_from_processes() {
        let of = |flags| format!("9 (vhost) 1 (x) S 2 0 0 0 -1 {flags} 0 0 0");
        assert!(has_kernels_flag(&of("2129984")));
        assert!(!has_kernels_flag(&of("4194560")));
        assert!(!has_kernels_flag("9 (vhost"));
        assert!(!is_of_the_kernel(std::process::id()));
        assert!(!is_of_the_kernel(u32::MAX));
    }

    /// As of a VMM that was killed while a disk holds one of its threads.
    #[test]
    fn a_process_lives_as_long_as_any_of_its_threads() {
        let script = "import ctypes, sys, threading\n\
                      threading.Thread(target=sys.stdin.read).start()\n\
                      ctypes.CDLL(None).syscall(60, 0)";
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !stat().contains(") Z ") {
            assert!(std::time::Instant::now() < deadline, "{}", stat());
            std::thread::yield_now();
        }
        let identity = Identity::of(pid).unwrap().unwrap();
        assert!(identity.is_alive().unwrap());
        assert!(identity.open().unwrap().is_some());
        drop(child.stdin.take());
        while identity.is_alive().unwrap() {
            assert!(std::time::Instant::now() < deadline, "{}", stat());
            std::thread::yield_now();
        }
        assert!(identity.open().unwrap().is_none());
        child.wait().unwrap();
    }

    #[test]
    fn this_process_lives_and_another_start_does_not() {
        let me = Identity::of(std::process::id()).unwrap().unwrap();
        assert!(me.is_alive().unwrap());
        assert!(me.open().unwrap().is_some());
        let before = Identity {
            start_time: me.start_time - 1,
            ..me.clone()
        };
        assert!(!before.is_alive().unwrap() && before.open().unwrap().is_none());
        let other_boot = Identity {
            host_boot: "x".into(),
            ..me
        };
        assert!(!other_boot.is_alive().unwrap());
        assert_eq!(Identity::of(u32::MAX).unwrap(), None);
    }
}
