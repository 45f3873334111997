//! What threads try, and which of them the filters let through.

use std::io;

/// Who gets past the filter with an attempt: whatever the kernel says then, it is not
/// the filter's EPERM.
#[derive(Clone, Copy)]
pub(crate) enum Past {
    Nobody,
    Everybody,
    Main,
    /// The threads of vCPUs, and the main one, from which all inherit their filters.
    Vcpus,
    /// The threads of disks, and the main one.
    Disks,
    /// The threads of interfaces, and the main one.
    Nics,
    /// The threads of the socket device and of disks that other processes serve, and the
    /// main one.
    Sockets,
    /// The threads of disks that other processes serve, and the main one.
    UserDisks,
    /// The threads that write snapshots, and the main one.
    Snapshots,
    /// The same as [`Self::Sockets`], and the thread that hands the machine over.
    Senders,
    /// The threads that open disks, and the main one.
    Openers,
}

impl Past {
    /// Whether a thread is one of them: main, vcpu, or that of a device.
    pub(crate) fn includes(self, name: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everybody => true,
            Self::Main => name == "main",
            Self::Vcpus => ["main", "vcpu"].contains(&name),
            Self::Nics => ["main", "net"].contains(&name),
            Self::Disks => ["main", "blk"].contains(&name),
            Self::Sockets => ["main", "vsock", "vhost-user-blk"].contains(&name),
            Self::UserDisks => ["main", "vhost-user-blk"].contains(&name),
            Self::Snapshots => ["main", "snapshot"].contains(&name),
            Self::Openers => ["main", "disk-file"].contains(&name),
            Self::Senders => name == "hand-over" || Self::Sockets.includes(name),
        }
    }
}

/// Makes a system call, and closes what it opened.
pub(crate) fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: no attempt below passes a pointer but to a string that lives on, or to
    // the 120 bytes of `struct io_uring_params`; none has an effect on memory else.
    match unsafe { libc::syscall(number, a, b, c, d) } {
        ..0 => Err(io::Error::last_os_error()),
        fd => {
            if number == libc::SYS_io_uring_setup || number == libc::SYS_openat {
                // SAFETY: the call has just made it.
                unsafe { libc::close(i32::try_from(fd).unwrap_or(-1)) };
            }
            Ok(())
        }
    }
}

/// `asm-generic/fcntl.h`.
const F_SETSIG: libc::c_int = 10;
const BAD_FD: libc::c_long = -1;
/// `__X32_SYSCALL_BIT`.
pub(crate) const X32: libc::c_long = 0x4000_0000;

/// Every attempt: its name, who gets past the filter, and the call.
pub(crate) fn attempts(
    parameters: &mut [u64; 15],
) -> Vec<(&'static str, Past, libc::c_long, [i64; 4])> {
    let text = |text: &'static std::ffi::CStr| text.as_ptr() as i64;
    let (file, link) = (text(c"/etc/passwd"), text(c"/tmp/hearth-no-link"));
    let here = i64::from(libc::AT_FDCWD);
    let (inet, unix) = (i64::from(libc::AF_INET), i64::from(libc::AF_UNIX));
    let stream = i64::from(libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
    let own = i64::from(std::process::id());
    let other = own + 1;
    let dumpable = [i64::from(libc::PR_SET_DUMPABLE), 1, 0, 0];
    let child = i64::from(libc::SIGCHLD);
    let setup = parameters.as_mut_ptr() as i64;
    let ioctl = |request: u64| {
        let request = i64::try_from(request).expect("32 bits");
        (libc::SYS_ioctl, [BAD_FD, request, 0, 0])
    };
    // linux/kvm.h, linux/vhost.h.
    let ioctls = [
        ("attach to a tap", Past::Nobody, libc::TUNSETIFF),
        ("ask a tap", Past::Main, libc::TUNGETIFF),
        ("headers of a tap", Past::Main, libc::TUNSETVNETHDRSZ),
        ("terminal", Past::Main, libc::TCGETS),
        ("KVM_RUN", Past::Vcpus, 0xae80),
        ("KVM_GET_REGS", Past::Vcpus, 0x8090_ae81),
        ("KVM_IRQFD", Past::Vcpus, 0x4020_ae76),
        ("KVM_IOEVENTFD", Past::Vcpus, 0x4040_ae79),
        ("KVM_CREATE_VM", Past::Main, 0xae01),
        ("KVM_CREATE_VCPU", Past::Main, 0xae41),
        ("KVM_SET_USER_MEMORY_REGION", Past::Main, 0x4020_ae46),
        ("KVM_CREATE_IRQCHIP", Past::Main, 0xae60),
        ("KVM_GET_API_VERSION", Past::Nobody, 0xae00),
        ("KVM_NMI", Past::Nobody, 0xae9a),
        ("KVM_CREATE_PIT2", Past::Nobody, 0x4040_ae77),
        ("KVM_ENABLE_CAP", Past::Nobody, 0x4068_aea3),
        ("KVM_CREATE_DEVICE", Past::Nobody, 0xc00c_aee0),
        ("KVM_CREATE_GUEST_MEMFD", Past::Nobody, 0xc040_aed4),
        ("KVM_ASSIGN_PCI_DEVICE", Past::Nobody, 0x8040_ae69),
        ("KVM_MEMORY_ENCRYPT_OP", Past::Nobody, 0xc008_aeba),
        ("offload of a tap", Past::Nics, libc::TUNSETOFFLOAD),
        ("own a vhost", Past::Nics, 0xaf01),
        ("queues of a tap", Past::Nics, libc::TUNSETQUEUE),
        ("backend of a vhost", Past::Nics, 0x4008_af30),
        ("nonblocking socket", Past::Sockets, libc::FIONBIO),
        // FICLONE of linux/fs.h.
        ("clone of a file", Past::Snapshots, 0x4004_9409),
        ("persistent tap", Past::Nobody, libc::TUNSETPERSIST),
        ("terminal input", Past::Nobody, libc::TIOCSTI),
    ];
    // What nobody may do, whatever the arguments are.
    let never = [
        ("bpf", libc::SYS_bpf),
        ("become a user", libc::SYS_setuid),
        ("capabilities", libc::SYS_capset),
        ("change the mode", libc::SYS_fchmod),
        ("change the owner", libc::SYS_fchown),
        ("chroot", libc::SYS_chroot),
        ("kernel module", libc::SYS_finit_module),
        ("key", libc::SYS_keyctl),
        ("kill", libc::SYS_kill),
        ("link", libc::SYS_linkat),
        ("lock memory", libc::SYS_mlock),
        ("make a device", libc::SYS_mknodat),
        ("mount", libc::SYS_mount),
        ("namespace of another", libc::SYS_setns),
        ("open by handle", libc::SYS_open_by_handle_at),
        ("performance counters", libc::SYS_perf_event_open),
        ("priority", libc::SYS_sched_setscheduler),
        ("process by descriptor", libc::SYS_pidfd_open),
        ("ptrace", libc::SYS_ptrace),
        ("raise a limit", libc::SYS_prlimit64),
        ("read another's memory", libc::SYS_process_vm_readv),
        ("take a descriptor", libc::SYS_pidfd_getfd),
        ("unshare", libc::SYS_unshare),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("x32 getpid", X32 | libc::SYS_getpid),
    ];
    let never = never.map(|(what, number)| (what, Past::Nobody, number, [0; 4]));
    let netlink = i64::from(libc::AF_NETLINK);
    let (packet, vsock) = (i64::from(libc::AF_PACKET), i64::from(libc::AF_VSOCK));
    let sockets = [
        ("inet socket", Past::Nobody, inet),
        ("netlink socket", Past::Nobody, netlink),
        ("packet socket", Past::Nobody, packet),
        ("vsock socket", Past::Nobody, vsock),
        ("unix socket", Past::Sockets, unix),
    ];
    let sockets = sockets.map(|(what, past, family)| {
        let arguments = [family, stream, 0, 0];
        (what, past, libc::SYS_socket, arguments)
    });
    let fcntls = [
        ("flags of a file", Past::Everybody, libc::F_GETFL),
        ("lock of a disk", Past::Openers, libc::F_OFD_SETLK),
        ("owner of a file", Past::Nobody, libc::F_SETOWN),
        ("signal of a file", Past::Nobody, F_SETSIG),
        ("lease of a file", Past::Nobody, libc::F_SETLEASE),
    ];
    let fcntls = fcntls.map(|(what, past, command)| {
        let arguments = [BAD_FD, command.into(), 0, 0];
        (what, past, libc::SYS_fcntl, arguments)
    });
    // REGISTER_FILES, REGISTER_RESTRICTIONS, REGISTER_ENABLE_RINGS.
    let rings = [
        ("register files", Past::Main, 2),
        ("register restrictions", Past::Main, 11),
        ("enable a ring", Past::Disks, 12),
    ];
    let rings = rings.map(|(what, past, operation)| {
        let arguments = [BAD_FD, operation, 0, 0];
        (what, past, libc::SYS_io_uring_register, arguments)
    });
    let code = i64::from(libc::PROT_READ | libc::PROT_EXEC);
    let pair = [unix, stream, 0, 0];
    let mut attempts = vec![
        (
            "pair of sockets",
            Past::UserDisks,
            libc::SYS_socketpair,
            pair,
        ),
        (
            "connect",
            Past::Sockets,
            libc::SYS_connect,
            [BAD_FD, 0, 0, 0],
        ),
        (
            "set a timer",
            Past::UserDisks,
            libc::SYS_timerfd_settime,
            [BAD_FD, 0, 0, 0],
        ),
        (
            "timer",
            Past::Main,
            libc::SYS_timerfd_create,
            [BAD_FD, 0, 0, 0],
        ),
        ("execve", Past::Nobody, libc::SYS_execve, [file, 0, 0, 0]),
        ("fork", Past::Nobody, libc::SYS_clone, [child, 0, 0, 0]),
        ("map code", Past::Nobody, libc::SYS_mmap, [0, 1, code, 0]),
        (
            "make code",
            Past::Nobody,
            libc::SYS_mprotect,
            [0, 0, code, 0],
        ),
        ("dumpable", Past::Nobody, libc::SYS_prctl, dumpable),
        (
            "link",
            Past::Nobody,
            libc::SYS_symlinkat,
            [file, here, link, 0],
        ),
        (
            "signal",
            Past::Nobody,
            libc::SYS_tgkill,
            [other, other, 0, 0],
        ),
        (
            "own signal",
            Past::Everybody,
            libc::SYS_tgkill,
            [own, own, 0, 0],
        ),
        (
            "rename",
            Past::Snapshots,
            libc::SYS_rename,
            [link, link, 0, 0],
        ),
        (
            "send with descriptors",
            Past::Senders,
            libc::SYS_sendmsg,
            [BAD_FD, 0, 0, 0],
        ),
        (
            "openat",
            Past::Openers,
            libc::SYS_openat,
            [here, file, 0, 0],
        ),
        (
            "ring",
            Past::Main,
            libc::SYS_io_uring_setup,
            [1, setup, 0, 0],
        ),
        (
            "enter a ring",
            Past::Disks,
            libc::SYS_io_uring_enter,
            [BAD_FD, 0, 0, 0],
        ),
    ];
    attempts.extend(never);
    attempts.extend(sockets);
    attempts.extend(fcntls);
    attempts.extend(rings);
    attempts.extend(ioctls.map(|(what, past, request)| {
        let (number, arguments) = ioctl(request);
        (what, past, number, arguments)
    }));
    attempts
}
