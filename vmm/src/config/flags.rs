//! The flags, as clap reads and explains them.

use std::path::PathBuf;

use clap::Parser;
use hearth_vmm_api::SandboxLayer;

/// A small KVM virtual machine monitor: one process, one instance.
#[derive(Debug, Parser)]
#[command(name = "hearth-vmm", version)]
pub(super) struct Flags {
    /// The machine's name
    #[arg(long, default_value = "hearth")]
    pub(super) id: String,
    /// The kernel: a bzImage, or an ELF image with a PVH entry; without, a machine that is
    /// taken over keeps its own, and its initial RAM disk
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present_any = ["firmware", "take_over"]
    )]
    pub(super) kernel: Option<PathBuf>,
    /// Firmware instead of a kernel: OVMF for QEMU's boards, which starts what is on a
    /// disk; with a file for its variables, they are kept: FILE[,vars=FILE]
    #[arg(
        long,
        value_name = "FIRMWARE",
        conflicts_with_all = ["kernel", "initrd", "cmdline", "restore", "take_over", "template"]
    )]
    pub(super) firmware: Option<String>,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(super) initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "STRING",
        default_value = "console=ttyS0",
        allow_hyphen_values = true
    )]
    pub(super) cmdline: String,
    /// Go on from the snapshot in this folder; the other flags say where what it had is
    /// now, and the kernel is for its next reset
    #[arg(long, value_name = "FOLDER")]
    pub(super) restore: Option<PathBuf>,
    /// Take over the machine of the process whose control socket this is: the other flags
    /// say what its own did, and its guest notices nothing but a pause. Exits are traced
    /// from a machine's start only
    #[arg(
        long,
        value_name = "SOCKET",
        conflicts_with_all = ["restore", "exit_trace"]
    )]
    pub(super) take_over: Option<PathBuf>,
    /// Make a template: N slots stay free in front of the devices, for disks and
    /// interfaces that are plugged into machines that go on from its snapshots; --smbios
    /// says what it is called until then, which must be found nowhere else
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "restore",
        requires = "smbios"
    )]
    pub(super) template: Option<u8>,
    /// How many vCPUs: N[,max=N], where others may be plugged while the guest runs
    #[arg(long, value_name = "VCPUS", default_value = "1")]
    pub(super) vcpus: String,
    /// Guest memory: MIB[,shared][,pages=transparent|4k|2m|1g][,max=MIB], where more may be
    /// plugged while the guest runs
    #[arg(long, value_name = "MEMORY", default_value = "512")]
    pub(super) memory: String,
    /// A disk: path=FILE[,id=NAME][,serial=TEXT][,readonly]
    /// [,engine=auto|io_uring|threads][,queues=N][,ops=N][,ops-burst=N][,bytes=N]
    /// [,bytes-burst=N]; or one that a vhost-user back end serves, which needs shared
    /// memory: socket=FILE[,id=NAME][,queues=N] (repeatable)
    #[arg(long, value_name = "DISK")]
    pub(super) disk: Vec<String>,
    /// A network interface: tap=NAME or tap-fd=N[:N...][,id=NAME][,mac=MAC][,mtu=BYTES]
    /// [,queues=N][,vhost=on|off][,ops=N][,ops-burst=N][,bytes=N][,bytes-burst=N]
    /// (repeatable)
    #[arg(long, value_name = "NIC")]
    pub(super) nic: Vec<String>,
    /// Short for --nic tap=NAME (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(super) tap: Vec<String>,
    /// Serve the control socket here
    #[arg(long, value_name = "FILE")]
    pub(super) socket: Option<PathBuf>,
    /// Write the serial console here (at most 1 MiB, the newest)
    #[arg(long, value_name = "FILE")]
    pub(super) serial_log: Option<PathBuf>,
    /// Let others attach to the serial console here
    #[arg(long, value_name = "FILE")]
    pub(super) console_socket: Option<PathBuf>,
    /// Let gdb attach here
    #[arg(long, value_name = "FILE")]
    pub(super) gdb: Option<PathBuf>,
    /// Note each exit of a vCPU here: path=FILE[,exits=N], of each vCPU the first N
    /// (1048576; 32 bytes each)
    #[arg(long, value_name = "TRACE")]
    pub(super) exit_trace: Option<String>,
    /// As the last act, write here why the machine ended
    #[arg(long, value_name = "FILE")]
    pub(super) exit_file: Option<PathBuf>,
    /// What the machine says it is: product=TEXT,uuid=UUID,asset-tag=TEXT
    #[arg(long, value_name = "IDENTITY")]
    pub(super) smbios: Option<String>,
    /// Return once the guest runs, and leave the machine behind as a daemon
    #[arg(long)]
    pub(super) daemonize: bool,
    /// Write the process id here
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Run as this user once everything is open
    #[arg(long, value_name = "UID")]
    pub(super) uid: Option<u32>,
    /// Run as this group once everything is open
    #[arg(long, value_name = "GID")]
    pub(super) gid: Option<u32>,
    /// Plug a memory balloon, with free page reporting
    #[arg(long)]
    pub(super) balloon: bool,
    /// Plug a socket device: cid=N,path=FILE
    #[arg(long, value_name = "VSOCK")]
    pub(super) vsock: Option<String>,
    /// Plug a virtio console, hvc0, at the same console as the serial port
    #[arg(long)]
    pub(super) virtio_console: bool,
    /// Have so many free slots for disks and interfaces that are plugged in while the guest
    /// runs, instead of as many as there are: each makes its boot longer. What is
    /// unplugged frees its slot. A machine that goes on from a snapshot has as many as
    /// it had
    #[arg(long, value_name = "N", conflicts_with = "restore")]
    pub(super) hotplug_slots: Option<u8>,
    /// Keep this folder in reach of the jail, for disks added by path (repeatable)
    #[arg(long, value_name = "FOLDER")]
    pub(super) allow: Vec<PathBuf>,
    /// Give up everything that the machine does not need: namespaces, capabilities,
    /// files, system calls. Every layer must stand (require), or as many as can be had
    /// (best-effort)
    #[arg(
        long,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "require",
        value_parser = ["require", "best-effort"]
    )]
    pub(super) jail: Option<String>,
    /// Go on without these sandbox layers where they can't be had
    #[arg(long, value_name = "LAYER", value_delimiter = ',', requires = "jail")]
    pub(super) jail_optional: Vec<SandboxLayer>,
}

/// The first paragraph of clap's message, on one line.
pub(super) fn one_line(message: &str) -> String {
    let paragraph: Vec<&str> = message
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    let line = paragraph.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}
