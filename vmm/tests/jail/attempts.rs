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
    /// The thread of the socket device, and the main one.
    Sockets,
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
            Self::Sockets => ["main", "vsock"].contains(&name),
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
    let dumpable = [i64::from(libc::PR_SET_DUMPABLE), 1, 0, 0];
    let child = i64::from(libc::SIGCHLD);
    // REGISTER_FILES, REGISTER_RESTRICTIONS, REGISTER_ENABLE_RINGS.
    let register = libc::SYS_io_uring_register;
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
        ("persistent tap", Past::Nobody, libc::TUNSETPERSIST),
        ("terminal input", Past::Nobody, libc::TIOCSTI),
    ];
    let mut attempts = vec![
        ("execve", Past::Nobody, libc::SYS_execve, [file, 0, 0, 0]),
        ("fork", Past::Nobody, libc::SYS_clone, [child, 0, 0, 0]),
        ("ptrace", Past::Nobody, libc::SYS_ptrace, [0; 4]),
        ("unshare", Past::Nobody, libc::SYS_unshare, [0; 4]),
        ("mount", Past::Nobody, libc::SYS_mount, [0; 4]),
        ("bpf", Past::Nobody, libc::SYS_bpf, [0; 4]),
        ("kill", Past::Nobody, libc::SYS_kill, [0; 4]),
        (
            "tgkill of another",
            Past::Nobody,
            libc::SYS_tgkill,
            [own + 1, own + 1, 0, 0],
        ),
        (
            "tgkill of its own",
            Past::Everybody,
            libc::SYS_tgkill,
            [own, own, 0, 0],
        ),
        ("raise a limit", Past::Nobody, libc::SYS_prlimit64, [0; 4]),
        ("be dumpable", Past::Nobody, libc::SYS_prctl, dumpable),
        ("lock memory", Past::Nobody, libc::SYS_mlock, [0; 4]),
        (
            "symlinkat",
            Past::Nobody,
            libc::SYS_symlinkat,
            [file, here, link, 0],
        ),
        (
            "inet socket",
            Past::Nobody,
            libc::SYS_socket,
            [inet, stream, 0, 0],
        ),
        (
            "unix socket",
            Past::Sockets,
            libc::SYS_socket,
            [unix, stream, 0, 0],
        ),
        ("x32 getpid", Past::Nobody, X32 | libc::SYS_getpid, [0; 4]),
        ("openat", Past::Main, libc::SYS_openat, [here, file, 0, 0]),
        (
            "new ring",
            Past::Main,
            libc::SYS_io_uring_setup,
            [1, setup, 0, 0],
        ),
        ("register files", Past::Main, register, [BAD_FD, 2, 0, 0]),
        (
            "register restrictions",
            Past::Main,
            register,
            [BAD_FD, 11, 0, 0],
        ),
        ("enable a ring", Past::Disks, register, [BAD_FD, 12, 0, 0]),
        (
            "enter a ring",
            Past::Disks,
            libc::SYS_io_uring_enter,
            [BAD_FD, 0, 0, 0],
        ),
    ];
    attempts.extend(ioctls.map(|(what, past, request)| {
        let (number, arguments) = ioctl(request);
        (what, past, number, arguments)
    }));
    attempts
}
