//! Gives up every right but reading what is open and writing what is open.
//!
//! Layer by layer, so that a bug in the parser meets the next: another user, no
//! new privileges, limits on memory, time and output, no path in the file
//! system (landlock, where the kernel has it), and a handful of system calls
//! (seccomp; any other ends the process).

use std::collections::BTreeMap;
use std::io;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetError};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Address space: the program itself, the parser's caches, and the journal's
/// block map of a big file system.
const MAX_ADDRESS_SPACE: u64 = 1 << 30;
/// Room for a complaint, should standard error be a file.
const WORDS: u64 = 64 << 10;
/// Seconds of CPU time. On a fast machine it is a tenth of a second, under
/// emulation some seconds.
pub const MAX_CPU_SECONDS: u64 = 60;

/// Why a layer could not be put on.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A plain system call failed.
    #[error("{what}: {error}")]
    Call {
        /// Which one.
        what: &'static str,
        /// How.
        error: io::Error,
    },
    /// landlock is there but refused.
    #[error("landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// seccomp refused.
    #[error("seccomp: {0}")]
    Seccomp(String),
}

fn call<E: Into<io::Error>>(
    what: &'static str,
    outcome: Result<(), E>,
) -> Result<(), SandboxError> {
    outcome.map_err(|e| SandboxError::Call {
        what,
        error: e.into(),
    })
}

/// Puts the sandbox on, for good. At most `output` bytes can be written to a
/// file afterwards.
///
/// # Errors
/// When a layer can't be put on: then nothing must be read.
pub fn enter(uid: u32, gid: u32, output: u64) -> Result<(), SandboxError> {
    for (what, resource, limit) in [
        ("RLIMIT_CORE", Resource::RLIMIT_CORE, 0),
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE, output.max(WORDS)),
        ("RLIMIT_AS", Resource::RLIMIT_AS, MAX_ADDRESS_SPACE),
        ("RLIMIT_CPU", Resource::RLIMIT_CPU, MAX_CPU_SECONDS),
    ] {
        call(what, setrlimit(resource, limit, limit))?;
    }
    if Uid::effective().is_root() {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        call("setgroups", setgroups(&[]))?;
        call("setresgid", setresgid(gid, gid, gid))?;
        call("setresuid", setresuid(uid, uid, uid))?;
    }
    call("PR_SET_NO_NEW_PRIVS", nix::sys::prctl::set_no_new_privs())?;
    call("PR_SET_DUMPABLE", nix::sys::prctl::set_dumpable(false))?;
    // Without a rule, every handled access is denied. Kernels before 5.13 have
    // no landlock; seccomp alone then keeps paths away.
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V3))?
        .create()?
        .restrict_self()?;
    // The last: from here on an open fd is all there is.
    call("RLIMIT_NOFILE", setrlimit(Resource::RLIMIT_NOFILE, 0, 0))?;
    let filter = filter().map_err(|e| SandboxError::Seccomp(e.to_string()))?;
    seccompiler::apply_filter_all_threads(&filter).map_err(|e| SandboxError::Seccomp(e.to_string()))
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_lseek,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
        // abort(), so that a panic shows as what it is.
        libc::SYS_rt_sigaction,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_tgkill,
    ]
    .into_iter()
    .map(|call| (call, Vec::new()))
    .collect();
    // Memory, but never to execute.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
        let plain =
            SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(exec), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![plain])?]);
    }
    // A debug build asks whether a descriptor is open before it closes it.
    let ask = u64::from(libc::F_GETFD.unsigned_abs());
    let ask = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, ask)?;
    rules.insert(libc::SYS_fcntl, vec![SeccompRule::new(vec![ask])?]);
    SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}
