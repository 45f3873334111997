//! Resource limits that hold for good: no call that raises one passes the filters.
//!
//! | limit | |
//! |---|---|
//! | `RLIMIT_CORE` | 0, and the process is not dumpable: what the guest had in memory, and what passed through its disks, is in no file and in no other process's reach, also one of the same user |
//! | `RLIMIT_MEMLOCK` | 0: nothing is locked, rings of io_uring are not counted since Linux 5.12, and older kernels' we don't use |
//! | `RLIMIT_NOFILE` | all that it may have, for the sake of queues (`run`) |
//! | `RLIMIT_NPROC` | as it was: it counts all that a user runs, which others of that user would feel. Processes are the filters' to refuse, and how many threads there are is the control group's `pids.max` |
//! | `RLIMIT_FSIZE` | as it was: it is compared with the offset that is written at, so it could be no less than the largest disk that is ever plugged. The serial log has a bound of its own |

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Those that are 0 in the jail.
const NONE: [Resource; 2] = [Resource::Core, Resource::Memlock];

/// Sets the limits. After the process has become another user, which makes it dumpable
/// or not as the host's `fs.suid_dumpable` says.
///
/// # Errors
/// When the kernel refuses, which it has no reason to; the caller must not go on.
pub(super) fn set() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    for resource in NONE {
        setrlimit(resource, none)?;
    }
    // A core that goes to a program is bounded by no limit (core(5)).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
