//! Which system calls each thread may make. Everything else fails with EPERM, for
//! good: other programs, other processes, other namespaces, the kernel itself.
//!
//! ```text
//!   main ⊇ vCPU ⊇ each device thread ⊇ what every thread does
//! ```
//!
//! A thread inherits the filters of the one that makes it and can only add to
//! them. Device threads are made by vCPU threads, when the guest starts a driver;
//! so a vCPU thread may do what devices do, and no device thread what another
//! device does. The main thread alone opens files and answers the control socket.
//!
//! io_uring's own workers are not held by filters; they are by the mount namespace
//! and by Landlock.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The process's first thread.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// Serves a disk's queue.
    Disk,
    /// Serves a network interface.
    Network,
    /// Serves the socket device.
    Sockets,
    /// Serves a device that needs no more than its queue: entropy, balloon.
    Plain,
}

impl Role {
    /// The role of a device thread by its name.
    #[must_use]
    pub fn of_thread(name: &str) -> Self {
        match name {
            "vsock" => Self::Sockets,
            name if name.starts_with("net") => Self::Network,
            name if name.starts_with("blk") => Self::Disk,
            _ => Self::Plain,
        }
    }

    fn has(self, other: Self) -> bool {
        self == other || matches!(self, Self::Main | Self::Vcpu)
    }
}

/// Memory, threads, time, events: what the language's runtime needs everywhere.
const EVERY: [libc::c_long; 40] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrandom,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_clone3,
    libc::SYS_seccomp,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_membarrier,
];

const DISK: [libc::c_long; 13] = [
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_readv,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fallocate,
];

const NETWORK: [libc::c_long; 1] = [libc::SYS_readv];

const SOCKETS: [libc::c_long; 9] = [
    libc::SYS_readv,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
];

/// A vCPU thread writes the serial port's log.
const VCPU: [libc::c_long; 3] = [libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_ftruncate];

const MAIN: [libc::c_long; 14] = [
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_openat,
    libc::SYS_statx,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_access,
    libc::SYS_faccessat,
];

/// The ioctls of KVM are those of type 0xae (Documentation/virt/kvm/api.rst).
const IOCTL_TYPE: u64 = 0xff00;
const IOCTL_KVM: u64 = 0xae00;
/// Those of the kernel's virtio back ends are of type 0xaf (`linux/vhost.h`).
const IOCTL_VHOST: u64 = 0xaf00;
/// What taps, sockets and the terminal are asked.
const IOCTLS: [u64; 9] = [
    libc::TUNSETOFFLOAD,
    libc::TUNSETQUEUE,
    libc::TUNSETVNETHDRSZ,
    libc::TUNGETIFF,
    libc::TUNSETIFF,
    libc::FIONBIO,
    libc::FIONREAD,
    libc::TCGETS,
    libc::TCSETS,
];

/// `VHOST_NET_SET_BACKEND`: `_IOW(0xaf, 0x30, struct vhost_vring_file)`.
const VHOST_NET_SET_BACKEND: u64 = 0x4008_af30;

/// `PR_SET_VMA`: the C library names its arenas.
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_NAME: u64 = libc::PR_SET_NAME as u64;
const PR_SET_NO_NEW_PRIVS: u64 = libc::PR_SET_NO_NEW_PRIVS as u64;
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const AF_UNIX: u64 = libc::AF_UNIX as u64;

type Error = seccompiler::Error;
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rule(argument: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    // Numbers of 32 bits: the kernel ignores the upper half of these arguments.
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

fn rules(role: Role, process: u32) -> Result<Rules, Error> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules = Rules::new();
    let mut allow = |calls: &[i64]| rules.extend(calls.iter().map(|call| (*call, vec![])));
    allow(&EVERY);
    for (device, calls) in [
        (Role::Disk, &DISK[..]),
        (Role::Network, &NETWORK),
        (Role::Sockets, &SOCKETS),
        (Role::Vcpu, &VCPU),
    ] {
        if role.has(device) {
            allow(calls);
        }
    }
    if role == Role::Main {
        allow(&MAIN);
    }
    // Memory is never made executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, MaskedEq(PROT_EXEC), 0)?]);
    }
    rules.insert(
        libc::SYS_clone,
        vec![rule(0, MaskedEq(CLONE_THREAD), CLONE_THREAD)?],
    );
    rules.insert(libc::SYS_tgkill, vec![rule(0, Eq, process.into())?]);
    let controls = [PR_SET_NAME, PR_SET_VMA, PR_SET_NO_NEW_PRIVS];
    rules.insert(
        libc::SYS_prctl,
        controls
            .into_iter()
            .map(|control| rule(0, Eq, control))
            .collect::<Result<_, _>>()?,
    );
    if role.has(Role::Sockets) {
        rules.insert(libc::SYS_socket, vec![rule(0, Eq, AF_UNIX)?]);
        rules.insert(libc::SYS_ioctl, vec![rule(1, Eq, libc::FIONBIO)?]);
    }
    if role.has(Role::Network) {
        // How many pairs of queues take part.
        let both = [libc::TUNSETQUEUE, VHOST_NET_SET_BACKEND];
        rules.insert(
            libc::SYS_ioctl,
            both.into_iter()
                .map(|number| rule(1, Eq, number))
                .collect::<Result<_, _>>()?,
        );
    }
    if role.has(Role::Vcpu) {
        // KVM_RUN is by far the most frequent of all: first.
        let types = [IOCTL_KVM, IOCTL_VHOST].map(|number| rule(1, MaskedEq(IOCTL_TYPE), number));
        let others = IOCTLS.into_iter().map(|number| rule(1, Eq, number));
        let all = types.into_iter().chain(others);
        rules.insert(libc::SYS_ioctl, all.collect::<Result<_, _>>()?);
    }
    Ok(rules)
}

fn compile(
    rules: Rules,
    default: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, Error> {
    let filter = SeccompFilter::new(rules, default, listed, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

fn allow_only(role: Role) -> Result<BpfProgram, Error> {
    compile(
        rules(role, std::process::id())?,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
    )
}

/// Set once the process is confined, so that its threads confine themselves too.
static CONFINED: OnceLock<()> = OnceLock::new();

/// Confines the whole process. Needs `no_new_privs`.
///
/// # Errors
/// When the kernel refuses; the caller must not go on.
pub(super) fn confine_process() -> Result<(), Error> {
    // clone3 has its flags in memory, where a filter can't see whether they make a
    // thread or a process. Without it, the C library uses clone.
    let no_clone3 = compile(
        BTreeMap::from([(libc::SYS_clone3, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
    )?;
    seccompiler::apply_filter_all_threads(&no_clone3)?;
    seccompiler::apply_filter_all_threads(&allow_only(Role::Main)?)?;
    let _ = CONFINED.set(());
    Ok(())
}

/// Confines the calling thread further, to what its role needs; in a process that
/// is not confined, does nothing.
pub fn confine_thread(role: Role) {
    if CONFINED.get().is_some() {
        let confined = allow_only(role).and_then(|filter| seccompiler::apply_filter(&filter));
        // It stays as confined as the process.
        debug_assert!(confined.is_ok(), "{role:?}: {confined:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_compiles_and_none_starts_programs() {
        for role in [
            Role::Main,
            Role::Vcpu,
            Role::Disk,
            Role::Network,
            Role::Sockets,
            Role::Plain,
        ] {
            let rules = rules(role, 1).expect("rules");
            for call in [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_mount] {
                assert!(!rules.contains_key(&call), "{role:?}");
            }
            assert_eq!(rules.contains_key(&libc::SYS_openat), role == Role::Main);
            allow_only(role).expect("compiles");
        }
    }

    #[test]
    fn device_threads_are_known_by_name() {
        assert_eq!(Role::of_thread("blk-q3"), Role::Disk);
        assert_eq!(Role::of_thread("net"), Role::Network);
        assert_eq!(Role::of_thread("net-control"), Role::Network);
        assert_eq!(Role::of_thread("vsock"), Role::Sockets);
        assert_eq!(Role::of_thread("rng"), Role::Plain);
    }
}
