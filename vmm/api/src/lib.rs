//! The types that `hearth-vmm`'s control socket speaks: HTTP/1.1 and JSON over a
//! Unix socket, so that `curl --unix-socket` is a client.
//!
//! | method and path          | request      | answer          |
//! |--------------------------|--------------|-----------------|
//! | `GET /v1/machine`        |              | [`Machine`]     |
//! | `PATCH /v1/machine`      | [`MachineChange`] | [`Machine`]: the guest was asked |
//! | `PUT /v1/power-button`   |              | 204             |
//! | `PUT /v1/nmi`            |              | 204: every vCPU got one |
//! | `PUT /v1/reset`          |              | 204; 202: it was begun; 409 |
//! | `PUT /v1/reboot`         | [`Reboot`]   | 204: the guest was asked; 409 |
//! | `PUT /v1/stop`           |              | 204, then the process ends |
//! | `PUT /v1/pause`          |              | 204; 202: it was begun; 409 |
//! | `PUT /v1/resume`         |              | 204; 409        |
//! | `PUT /v1/snapshot`       | [`NewSnapshot`] | [`Snapshot`]; 409 |
//! | `DELETE /v1/snapshot`    |              | 202: it is given up; 204: none is being written |
//! | `PUT /v1/hand-over`      | a socket     | 202: it was begun; 409 |
//! | `GET /v1/metrics`        |              | [`Metrics`]     |
//! | `GET /v1/prometheus`     |              | the same as Prometheus' text |
//! | `GET /v1/balloon`        |              | [`BalloonState`] |
//! | `PUT /v1/balloon`        | [`Balloon`]  | 202: the guest was asked |
//! | `POST /v1/disks`         | [`NewDisk`]  | [`Disk`], once its file is open; 202: its back end hasn't answered yet; 409 |
//! | `DELETE /v1/disks/{id}`  |              | 202: the guest was asked |
//! | `PATCH /v1/disks/{id}`   | [`Change`], or nothing | [`Disk`]: its size was looked at again; 404; 409, 500: nothing has changed |
//! | `POST /v1/nics`          | [`NewNic`]   | [`Nic`]         |
//! | `DELETE /v1/nics/{id}`   |              | 202: the guest was asked |
//! | `PATCH /v1/nics/{id}`    | [`Change`]   | [`Nic`]; 409: the kernel moves its packets |
//!
//! More vCPUs are plugged at once, and the guest is notified. To unplug some it is asked:
//! [`Machine`] has more than `vcpus_requested` until it has let go of them, and the request
//! can be repeated. It needs `--vcpus N,max=N`. Memory is the guest's to plug and unplug,
//! as far as `memory_requested_bytes`; it needs `--memory MIB,max=MIB`.
//!
//! `reboot` presses the power button, and the guest's power-off that follows
//! becomes a reset. `power-button` and any reset take that back.
//!
//! A pause or reset is done when no device touches guest memory any more. Where a disk
//! takes long to answer, [`Machine`] is `pausing` or `resetting` meanwhile, and
//! `waits_for` names the disk; all other requests are answered as ever.
//! What is paused stays so until it is resumed: a reset that its guest asked for comes then.
//!
//! A snapshot is of a paused machine. Its answer comes when all of it is on the disk, as
//! long as that takes; until then the machine is `saving`, and other requests are answered
//! as ever, but `resume`, `reset` and a second snapshot with 409. A machine that is stopped
//! meanwhile leaves none; the client may leave, and `saving` ends all the same. `DELETE`
//! has it fail soon: the machine is `paused` again then, and who asked for the snapshot
//! learns that there is none, unless all of it was written by then. Where its files weren't
//! open yet, another is refused until what opens them has let go of them. It goes into a
//! folder that is there and has none, with `--restore` as its way back; or into two open files that come in the same message, for memory and
//! for `machine.json`, whose folder is then not in reach of the jail.
//!
//! `hand-over` is what `hearth-vmm --take-over` asks for, with one end of a stream socket in
//! the same message, on which everything that follows is said. The machine is paused for
//! it, and `handing-over` until the other process has it: this one then ends without a
//! trace. It is refused while a debugger is there.
//!
//! With a new disk or interface may come open files in the same message
//! (SCM_RIGHTS, unix(7)): the disk, or a tap opened with `IFF_TAP`, `IFF_NO_PI` and
//! `IFF_VNET_HDR`; for several queues, one for each, with `IFF_MULTI_QUEUE` too; and
//! behind the taps, as many of `/dev/vhost-net`, or none. The path or tap in the body is
//! then only its name. In the jail this is the way: there, only files in the folders of
//! the process's own files (and those given with `--allow`) can be opened by path, no tap
//! by name, and no `/dev/vhost-net`.
//!
//! A disk's file is opened, and its size looked at, beside all else: where its file system
//! takes its time, only who asked waits for the answer. Until it is open, the disk is among
//! [`Machine::connecting`], and `DELETE` takes it away; who asked for it is answered with 409
//! then, as is who asks when 16 others on the same storage, or 64 in all, are opened or looked at.
//! Its name and its file are free once `DELETE` is answered, whatever its file system does.
//! Limits in a `PATCH` hold from when it is answered.
//!
//! `DELETE` requests an unplug: [`Machine`] shows the disk or interface with
//! `unplug_requested` until the guest has ejected it, and no longer after that. The
//! request can be repeated for a guest that does not answer.
//!
//! A disk whose [`NewDisk::socket`] is given is served by a vhost-user back end in another
//! process; the open file that may come with it is a socket that is connected to that. Until
//! it has said what it is, the disk is among [`Machine::connecting`], and there with the
//! reason if that fails; `DELETE` takes it away.
//!
//! An error is a 4xx or 5xx with an [`ApiError`].

mod exit;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use exit::{Exit, ExitRecord, ExitStatus};

/// The most pairs of queues of an interface: more vCPUs share them.
pub const MAX_PAIRS: usize = 16;

/// What the machine is and how it fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The id given on the command line.
    pub id: String,
    /// The process id, as whoever started it knows it.
    pub pid: u32,
    /// The program's version; empty: one that didn't say.
    #[serde(default)]
    pub version: String,
    /// Where its life stands.
    pub state: MachineState,
    /// How many vCPUs are plugged.
    pub vcpus: u8,
    /// How many were asked for last: the guest has not let go of those beyond.
    #[serde(default)]
    pub vcpus_requested: u8,
    /// How many there may be.
    #[serde(default)]
    pub vcpus_max: u8,
    /// Guest memory in bytes: that of the start, and what is plugged.
    pub memory_bytes: u64,
    /// How much the guest was asked to have.
    #[serde(default)]
    pub memory_requested_bytes: u64,
    /// How much there may be.
    #[serde(default)]
    pub memory_max_bytes: u64,
    /// How often the guest was reset since the process began.
    pub resets: u64,
    /// Disks that will be plugged once their back ends have answered, or their files are open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connecting: Vec<Connecting>,
    /// The devices that a pause or a reset waits for: their requests are not done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
    /// The disks, in slot order.
    pub disks: Vec<Disk>,
    /// The network interfaces, in slot order.
    pub nics: Vec<Nic>,
    /// The sandbox layers that stand between a guest that broke out and this host.
    #[serde(default)]
    pub jail: Vec<SandboxLayer>,
    /// When it came up.
    #[serde(default)]
    pub start: Start,
}

/// When a machine came up, in nanoseconds since 1970 by the host's clock: what it cost
/// to bring the guest to its first instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// When the program began.
    pub began_ns: u64,
    /// When the first vCPU was about to enter the guest for the first time; none
    /// before.
    pub entered_ns: Option<u64>,
}

/// One layer of the sandbox, in the order in which they are put up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxLayer {
    /// A cgroup v2 whose memory is limited.
    Cgroup,
    /// Mount, network, IPC, UTS and cgroup namespaces of its own; a daemon's PIDs too.
    Namespaces,
    /// A root with only the folders of its own files.
    Chroot,
    /// A user other than root.
    User,
    /// No capabilities, and none to be had.
    Capabilities,
    /// Landlock on the same folders.
    Landlock,
    /// Seccomp: a list of allowed system calls for each thread.
    Seccomp,
    /// Rings of io_uring that take the requests of a disk only.
    IoUring,
}

impl SandboxLayer {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Cgroup,
        Self::Namespaces,
        Self::Chroot,
        Self::User,
        Self::Capabilities,
        Self::Landlock,
        Self::Seccomp,
        Self::IoUring,
    ];

    /// Its name in JSON and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Namespaces => "namespaces",
            Self::Chroot => "chroot",
            Self::User => "user",
            Self::Capabilities => "capabilities",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::IoUring => "io-uring",
        }
    }
}

impl std::fmt::Display for SandboxLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for SandboxLayer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let layer = Self::ALL.into_iter().find(|layer| layer.name() == text);
        layer.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no sandbox layer: {names} are")
        })
    }
}

/// Where a machine's life stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// The vCPUs run.
    Running,
    /// The vCPUs are held, and devices finish what they have.
    Pausing,
    /// The vCPUs are held, and no device touches guest memory.
    Paused,
    /// As `paused`, and a snapshot is being written.
    Saving,
    /// As `paused`, and another process is about to take it.
    HandingOver,
    /// No vCPU is there, and devices finish what they have; then the machine runs anew.
    Resetting,
}

/// Asks the guest to go down and come up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reboot {
    /// [`Machine::resets`] as the caller knows it. A machine that was reset since
    /// is not asked, so that who asks again never reboots it twice.
    pub resets: u64,
}

/// What changes of a machine. What is missing stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineChange {
    /// How many vCPUs there shall be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// How many bytes of memory the guest shall have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// A disk whose back end has not said yet what it is, or whose file is not open yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connecting {
    /// The name that it will have.
    pub id: String,
    /// Why it won't be plugged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How the process that serves a disk fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackEnd {
    /// Whether there is one. Where there is none, one is looked for at the disk's path for
    /// as long as the machine lives, and requests wait.
    pub connected: bool,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its name on the control socket, unique in the machine.
    pub id: String,
    /// The PCI device number.
    pub slot: u8,
    /// The file or block device behind it, or the socket of its back end.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// What `/dev/disk/by-id` shows: at most 20 bytes. Where another process serves the
    /// disk, it says that to the guest alone, and this is empty.
    pub serial: String,
    /// The process that serves it, if that is another one (vhost-user).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_end: Option<BackEnd>,
    /// How much it may do.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Whether its unplug was requested and the guest has not ejected it yet. The
    /// request can be repeated.
    #[serde(default)]
    pub unplug_requested: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its name on the control socket, unique in the machine.
    pub id: String,
    /// The PCI device number.
    pub slot: u8,
    /// The tap's name.
    pub tap: String,
    /// Its MAC address in colon form.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Pairs of queues.
    #[serde(default = "one")]
    pub queues: u16,
    /// Whether the kernel has its packets to move (vhost-net). For a driver that takes no
    /// mergeable buffers or no interrupts, the process moves them nevertheless.
    #[serde(default)]
    pub vhost: bool,
    /// How much may pass in each direction.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Whether its unplug was requested and the guest has not ejected it yet. The
    /// request can be repeated.
    #[serde(default)]
    pub unplug_requested: bool,
}

fn one() -> u16 {
    1
}

/// How much a disk may do, over all of its queues, or an interface in each direction.
/// What is missing is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests or packets a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<u64>,
    /// How many may come at once after a rest; where it is missing, as many as in a
    /// second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_burst: Option<u64>,
    /// Bytes of data a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How many may come at once after a rest; where it is missing, as many as in a
    /// second. A request that is larger passes after a rest too, and is paid off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<u64>,
}

impl Limits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What changes of a disk or an interface, while the guest uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// All of its limits from now on.
    pub limits: Limits,
}

/// A disk to add while the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDisk {
    /// Its name on the control socket, unique in the machine.
    pub id: String,
    /// The file or block device behind it, which the process must be able to open; or
    /// `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The Unix socket of a vhost-user back end, which then says all that follows: none of
    /// it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// At most 20 ASCII characters; the id where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// How much it may do.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
}

/// A network interface to add while the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewNic {
    /// Its name on the control socket, unique in the machine.
    pub id: String,
    /// The tap's name, which the process must be able to open.
    pub tap: String,
    /// Its MAC address in colon form; one made from the names where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes; 1500 where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Pairs of queues, 1 to [`MAX_PAIRS`]; one where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Whether the kernel shall move its packets (vhost-net); where it is missing, it
    /// does if it can and there are no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost: Option<bool>,
    /// How much may pass in each direction.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
}

/// Where a snapshot goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    /// The folder, which the process must be able to write to.
    pub path: PathBuf,
    /// The folder of this machine's last snapshot, if that was to be followed: only the
    /// pages that were written since are written, over a clone of its memory. On a file
    /// system without clones (reflinks), all of it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// Whether this one is to be followed: writes to guest memory are marked from here on,
    /// which costs the guest a little, until a snapshot that isn't.
    #[serde(default)]
    pub follow: bool,
}

/// A snapshot that is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Bytes of guest memory that were written: its pages of zeroes were not.
    pub written_bytes: u64,
}

/// What the balloon shall hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// Bytes of guest memory that the host wants back.
    pub target_bytes: u64,
}

/// How the balloon stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Bytes of guest memory that the host wants back.
    pub target_bytes: u64,
    /// Bytes that the guest says it has given.
    pub actual_bytes: u64,
}

/// Counters since the process began, or since the device was added: numbers that only
/// grow, also through resets of the guest.
///
/// | of | names |
/// |---|---|
/// | every device | `notifications` (times that the driver's doorbell woke the device), `interrupts`, `failures` (times that the driver broke the rules, or the host failed, and the device gave up until its reset) |
/// | a disk | `reads`, `read_bytes`, `writes`, `written_bytes`, `flushes`, `discards` (also write-zeroes), `errors` |
/// | a network interface | `received_packets`, `received_bytes`, `transmitted_packets`, `transmitted_bytes`, `transmit_errors`, as the guest sees it; while the kernel moves the packets (vhost), none of these and no `notifications`: it counts at the tap (`ip -s link`), and its interrupts nowhere |
/// | a disk that another process serves | `connections`, `disconnections` of its back end, `config_changes`, `given_up` (times that a back end went with requests under way and no note of them); its requests are the back end's to count |
/// | `rng` | `requests`, `bytes` |
/// | `balloon` | `requests`, `inflated_bytes`, `reported_bytes` |
/// | `mem` | `requests`, `refused`, `plugged_bytes`, `unplugged_bytes` |
/// | `console` | `received_bytes` (typed), `transmitted_bytes`, as the guest sees it |
/// | `vsock` | `connections`, `refused`, `received_packets`, `received_bytes`, `transmitted_packets`, `transmitted_bytes`, as the guest sees it |
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Exits from the guest to the VMM, all vCPUs.
    pub vcpu_exits: u64,
    /// What they were for.
    #[serde(default)]
    pub exits: Vec<ExitCount>,
    /// How long they kept their vCPUs.
    #[serde(default)]
    pub exit_latency: Vec<ExitLatency>,
    /// For each device, by its id: name and count.
    pub devices: std::collections::BTreeMap<String, std::collections::BTreeMap<String, u64>>,
}

/// Why a vCPU left the guest: Documentation/virt/kvm/api.rst, KVM_EXIT_….
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// `in`, or rounds of `ins`.
    PortRead,
    /// `out`, or rounds of `outs`.
    PortWrite,
    /// A load from what is no memory.
    MemoryRead,
    /// A store to what is no memory.
    MemoryWrite,
    /// `hlt`, where KVM doesn't handle it.
    Halt,
    /// A signal: a pause, say. Or the guest could not be entered yet.
    Interrupted,
    /// What ends a machine.
    Other,
}

impl ExitReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MemoryRead,
        Self::MemoryWrite,
        Self::Halt,
        Self::Interrupted,
        Self::Other,
    ];

    /// Its name in JSON and in Prometheus' text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port-read",
            Self::PortWrite => "port-write",
            Self::MemoryRead => "memory-read",
            Self::MemoryWrite => "memory-write",
            Self::Halt => "halt",
            Self::Interrupted => "interrupted",
            Self::Other => "other",
        }
    }
}

/// Exits for one reason and one device, since the process began. A slot that was filled
/// anew goes on counting under its new device's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCount {
    /// Why.
    pub reason: ExitReason,
    /// The id of the device, `serial`, `pci-config`, `acpi`, `keyboard`, `firmware`, or
    /// `none`.
    pub device: String,
    /// How many.
    pub exits: u64,
    /// Nanoseconds from all of them to the entries that followed.
    pub ns: u64,
}

/// How long exits for one reason kept their vCPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitLatency {
    /// Why.
    pub reason: ExitReason,
    /// Nanoseconds that an exit took less than, at least half of them, and how many
    /// did. Buckets without any are left out.
    pub buckets: Vec<(u64, u64)>,
}

/// The body of an error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What was wrong, and what would be right.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_one_name_everywhere() {
        for (place, reason) in ExitReason::ALL.into_iter().enumerate() {
            let json = serde_json::to_string(&reason).expect("JSON");
            assert_eq!(json, format!("\"{}\"", reason.name()));
            assert_eq!(reason as usize, place);
        }
    }

    #[test]
    fn layers_have_one_name_everywhere() {
        for layer in SandboxLayer::ALL {
            let json = serde_json::to_string(&layer).expect("JSON");
            assert_eq!(json, format!("\"{layer}\""));
            assert_eq!(layer.name().parse(), Ok(layer));
        }
        let line = "moat".parse::<SandboxLayer>().expect_err("refused");
        assert!(line.contains("landlock"), "{line}");
    }
}
