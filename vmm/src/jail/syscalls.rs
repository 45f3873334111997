//! Which system calls each thread may make. Everything else fails with EPERM, for
//! good: other programs, other processes, other namespaces, the kernel itself.
//!
//! ```text
//!   main ⊇ vCPU, each device's thread ⊇ what every thread does
//! ```
//!
//! A thread inherits the filters of the one that makes it and can only add to
//! them. All are made by the main thread: a vCPU's may do nothing that devices do, and no
//! device's what another device does. The main thread alone answers the control socket, and
//! opens files; but for those of a snapshot, which its thread opens before it confines
//! itself, and those of disks that are plugged, since a file system may take its time.
//! What KVM or a device costs any of them is in its [`Profile`], beside its code, and not
//! here.
//!
//! A ring of io_uring carries out requests past every filter. So only the main
//! thread may make one, at plug time, and each is restricted to the requests of a
//! disk before another thread gets it (`block::uring`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

use super::profile::{Allow, Argument, Profiles, ThreadRole};
use crate::arch::SECCOMP_TARGET;

/// Memory, threads, time, events: what the language's runtime needs everywhere.
const COMMON: [libc::c_long; 39] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_lseek,
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

/// What every thread may do with some arguments only.
const COMMON_IF: [Allow; 5] = [
    // Memory is never made executable.
    Allow::when(libc::SYS_mmap, &[Argument::masked(2, PROT_EXEC, 0)]),
    Allow::when(libc::SYS_mprotect, &[Argument::masked(2, PROT_EXEC, 0)]),
    Allow::when(
        libc::SYS_clone,
        &[Argument::masked(0, CLONE_THREAD, CLONE_THREAD)],
    ),
    Allow::when(
        libc::SYS_prctl,
        &[
            Argument::is(0, libc::PR_SET_NAME as u64),
            // The C library names its arenas.
            Argument::is(0, PR_SET_VMA),
            Argument::is(0, libc::PR_SET_NO_NEW_PRIVS as u64),
        ],
    ),
    // Not F_SETOWN and its like, by which the kernel signals others, nor leases, by
    // which it holds them up.
    Allow::when(
        libc::SYS_fcntl,
        &[
            Argument::is(1, libc::F_DUPFD_CLOEXEC as u64),
            Argument::is(1, libc::F_GETFD as u64),
            Argument::is(1, libc::F_SETFD as u64),
            Argument::is(1, libc::F_GETFL as u64),
            Argument::is(1, libc::F_SETFL as u64),
        ],
    ),
];

const PROT_EXEC: u64 = libc::PROT_EXEC as u64;
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const PR_SET_VMA: u64 = 0x5356_4d41;

/// What a vCPU thread does besides what KVM and devices cost: it writes the serial
/// port's log.
const VCPU: [Allow; 3] = [
    Allow::any(libc::SYS_pread64),
    Allow::any(libc::SYS_pwrite64),
    Allow::any(libc::SYS_ftruncate),
];

/// What the main thread does besides: it opens what is plugged, but for the
/// files of disks, and answers.
const MAIN: [Allow; 17] = [
    Allow::any(libc::SYS_accept4),
    // Who it is that connects.
    Allow::when(
        libc::SYS_getsockopt,
        &[Argument::is(2, libc::SO_PEERCRED as u64)],
    ),
    Allow::any(libc::SYS_recvmsg),
    Allow::any(libc::SYS_recvfrom),
    Allow::any(libc::SYS_sendto),
    Allow::any(libc::SYS_sendmsg),
    Allow::any(libc::SYS_shutdown),
    Allow::any(libc::SYS_openat),
    Allow::any(libc::SYS_statx),
    Allow::any(libc::SYS_rename),
    Allow::any(libc::SYS_unlink),
    Allow::any(libc::SYS_dup2),
    Allow::any(libc::SYS_dup3),
    Allow::any(libc::SYS_access),
    Allow::any(libc::SYS_faccessat),
    // A disk's lock.
    Allow::when(
        libc::SYS_fcntl,
        &[Argument::is(1, libc::F_OFD_SETLK as u64)],
    ),
    // What sockets and the terminal are asked.
    Allow::when(
        libc::SYS_ioctl,
        &[
            Argument::is(1, libc::FIONBIO),
            Argument::is(1, libc::FIONREAD),
            Argument::is(1, libc::TCGETS),
            Argument::is(1, libc::TCSETS),
        ],
    ),
];

type Error = seccompiler::Error;
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rule(argument: Argument) -> Result<SeccompRule, Error> {
    let Argument { index, mask, value } = argument;
    let condition = SeccompCondition::new(
        index,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(mask),
        value,
    )?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// Adds what is allowed; a call without conditions is allowed for good.
fn allow(rules: &mut Rules, allowed: &Allow) -> Result<(), Error> {
    let known = rules.get(&allowed.call);
    if allowed.only.is_empty() || known.is_some_and(Vec::is_empty) {
        rules.insert(allowed.call, Vec::new());
        return Ok(());
    }
    let more = allowed.only.iter().map(|argument| rule(*argument));
    let more: Vec<_> = more.collect::<Result<_, _>>()?;
    rules.entry(allowed.call).or_default().extend(more);
    Ok(())
}

fn rules(role: ThreadRole, profiles: &Profiles, process: u32) -> Result<Rules, Error> {
    let mut rules: Rules = COMMON.into_iter().map(|call| (call, Vec::new())).collect();
    for allowed in &COMMON_IF {
        allow(&mut rules, allowed)?;
    }
    rules.insert(
        libc::SYS_tgkill,
        vec![rule(Argument::is(0, process.into()))?],
    );
    let devices = &profiles.devices;
    let mut lists: Vec<&[Allow]> = Vec::new();
    match role {
        ThreadRole::Device(profile) => lists.push(profile.thread),
        // KVM's first, since KVM_RUN is by far the most frequent of all ioctls.
        ThreadRole::Vcpu => lists.extend([profiles.vcpu, &VCPU]),
        ThreadRole::Main => {
            lists.extend([profiles.vcpu, &VCPU, &MAIN, profiles.main]);
            lists.extend(
                devices
                    .iter()
                    .flat_map(|device| [device.thread, device.plug]),
            );
        }
    }
    for allowed in lists.into_iter().flatten() {
        allow(&mut rules, allowed)?;
    }
    Ok(rules)
}

fn compile(
    rules: Rules,
    default: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, Error> {
    let filter = SeccompFilter::new(rules, default, listed, SECCOMP_TARGET)?;
    Ok(filter.try_into()?)
}

fn allow_only(role: ThreadRole, profiles: &Profiles) -> Result<BpfProgram, Error> {
    compile(
        rules(role, profiles, std::process::id())?,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
    )
}

/// Refuses the calls of the x32 ABI, whose numbers have bit 30 and the same
/// architecture (arch/x86/entry/syscalls): a list of what is forbidden would let them
/// pass.
pub(super) fn no_x32() -> BpfProgram {
    /// `__X32_SYSCALL_BIT`.
    const X32: u32 = 0x4000_0000;
    // Classic BPF (linux/filter.h): the number is the first word of seccomp_data.
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let eperm = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    vec![
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, eperm),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// What threads confine themselves by, once the process is confined.
struct Confined {
    profiles: Profiles,
    /// Compiled once for each role.
    programs: Mutex<Vec<(ThreadRole, Arc<BpfProgram>)>>,
}

impl Confined {
    fn program(&self, role: ThreadRole) -> Result<Arc<BpfProgram>, Error> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, program)) = programs.iter().find(|(known, _)| *known == role) {
            return Ok(Arc::clone(program));
        }
        let program = Arc::new(allow_only(role, &self.profiles)?);
        programs.push((role, Arc::clone(&program)));
        Ok(program)
    }
}

static CONFINED: OnceLock<Confined> = OnceLock::new();

/// Confines the whole process to these profiles. Needs `no_new_privs`.
///
/// # Errors
/// When the kernel refuses; the caller must not go on.
pub(super) fn confine_process(profiles: Profiles) -> Result<(), Error> {
    // clone3 has its flags in memory, where a filter can't see whether they make a
    // thread or a process. Without it, the C library uses clone.
    let no_clone3 = compile(
        BTreeMap::from([(libc::SYS_clone3, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
    )?;
    seccompiler::apply_filter_all_threads(&no_clone3)?;
    seccompiler::apply_filter_all_threads(&allow_only(ThreadRole::Main, &profiles)?)?;
    let confined = Confined {
        profiles,
        programs: Mutex::default(),
    };
    let _ = CONFINED.set(confined);
    Ok(())
}

/// Confines the calling thread further, to what its role needs; in a process that
/// is not confined, does nothing.
///
/// # Errors
/// When the kernel refuses the filter: the thread must not go on.
pub fn confine_thread(role: ThreadRole) -> Result<(), Error> {
    match CONFINED.get() {
        Some(confined) => seccompiler::apply_filter(confined.program(role)?.as_ref()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::profile::Profile;
    use super::*;

    const RUN: &[Allow] = &[Allow::when(libc::SYS_ioctl, &[Argument::is(1, 1)])];
    const MAKE: &[Allow] = &[Allow::when(libc::SYS_ioctl, &[Argument::is(1, 2)])];

    fn with(devices: &[&'static Profile]) -> Profiles {
        Profiles {
            vcpu: RUN,
            main: MAKE,
            devices: devices.to_vec(),
        }
    }

    static DEVICE: Profile = Profile {
        thread: &[
            Allow::any(libc::SYS_readv),
            Allow::when(libc::SYS_ioctl, &[Argument::is(1, 7)]),
        ],
        plug: &[
            Allow::any(libc::SYS_io_uring_setup),
            Allow::when(libc::SYS_ioctl, &[Argument::is(1, 9)]),
        ],
    };

    #[test]
    fn every_filter_compiles_and_none_starts_programs() {
        for role in [
            ThreadRole::Main,
            ThreadRole::Vcpu,
            ThreadRole::Device(&DEVICE),
        ] {
            let rules = rules(role, &with(&[&DEVICE]), 1).expect("rules");
            for call in [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_mount] {
                assert!(!rules.contains_key(&call), "{role:?}");
            }
            let is_main = matches!(role, ThreadRole::Main);
            for call in [libc::SYS_openat, libc::SYS_io_uring_setup] {
                assert_eq!(rules.contains_key(&call), is_main, "{role:?}");
            }
            allow_only(role, &with(&[&DEVICE])).expect("compiles");
        }
    }

    #[test]
    fn no_device_gets_the_filter_of_another() {
        static OTHER: Profile = Profile {
            thread: &[Allow::any(libc::SYS_connect)],
            ..Profile::NONE
        };
        let confined = Confined {
            profiles: with(&[&DEVICE, &OTHER]),
            programs: Mutex::default(),
        };
        let of = |role| confined.program(role).expect("compiles");
        let roles = [
            ThreadRole::Device(&DEVICE),
            ThreadRole::Device(&OTHER),
            ThreadRole::Vcpu,
            ThreadRole::Main,
        ];
        let programs = roles.map(of);
        for (place, (role, program)) in roles.into_iter().zip(&programs).enumerate() {
            assert!(Arc::ptr_eq(program, &of(role)), "{role:?} compiles once");
            for other in &programs[..place] {
                assert_ne!(program.len(), other.len(), "{role:?}");
            }
        }
    }

    #[test]
    fn profiles_add_up() {
        let of = |role| rules(role, &with(&[&DEVICE]), 1).expect("rules");
        let device = of(ThreadRole::Device(&DEVICE));
        assert_eq!(device[&libc::SYS_ioctl].len(), 1);
        assert!(device[&libc::SYS_readv].is_empty());
        // Its own.
        let vcpu = of(ThreadRole::Vcpu);
        assert_eq!(vcpu[&libc::SYS_ioctl].len(), 1);
        assert!(!vcpu.contains_key(&libc::SYS_readv));
        // That, four that it has always, one of its own, the device's, and what plugging
        // it takes.
        let main = of(ThreadRole::Main);
        assert_eq!(main[&libc::SYS_ioctl].len(), 8);
        assert!(main.contains_key(&libc::SYS_readv));

        // What is allowed for good stays so, whatever comes after it.
        const IN_TURN: [Allow; 3] = [
            Allow::when(1, &[Argument::is(0, 1)]),
            Allow::any(1),
            Allow::when(1, &[Argument::is(0, 2)]),
        ];
        let mut rules = Rules::new();
        for allowed in &IN_TURN {
            allow(&mut rules, allowed).expect("added");
        }
        assert!(rules[&1].is_empty());
    }
}
