//! The command line: parsed, then checked as a whole into one [`Description`].
//!
//! Every mistake is one line that says what was wrong, and exit status 2.

mod disk;
mod firmware;
mod flags;
mod identity;
mod limits;
mod memory;
mod nic;
mod options;
#[cfg(test)]
mod tests;
mod trace;
mod user_disk;
mod vcpus;
mod vsock;

use std::path::PathBuf;

use clap::Parser;

use self::flags::{Flags, one_line};
use self::options::Options;
use crate::jail::Policy;
use crate::memory::Pluggable;
use crate::smbios::{Identity, MAX_STRING};

use crate::virtio::vhost_user_blk::UNSHARED;
use crate::virtio::{DECLARATIONS, Plug, balloon, console, mem, rng, vsock as virtio_vsock};

pub use self::disk::Disk;
pub use self::firmware::Firmware;
pub use self::nic::{Nic, Tap};
pub use self::trace::ExitTrace;
pub use self::user_disk::{NO_LIMITS as NO_DISK_LIMITS, UserDisk};
pub use self::vsock::Vsock;

/// A machine and its surroundings, each value checked by itself and against the
/// others. No file has been touched yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The machine's name.
    pub id: String,
    /// The kernel image: always there, but for a machine with firmware, and for one that is
    /// taken over with its kernel.
    pub kernel: Option<PathBuf>,
    /// Firmware in its place.
    pub firmware: Option<Firmware>,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The folder of the snapshot that it goes on from.
    pub restore: Option<PathBuf>,
    /// Of a template: how many slots stay free in front of its devices.
    pub template: Option<u8>,
    /// The control socket of the process whose machine it goes on with.
    pub take_over: Option<PathBuf>,
    /// How many vCPUs.
    pub vcpus: u8,
    /// How many there may be, where they come and go.
    pub most_vcpus: Option<u8>,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// What guest memory is made of.
    pub memory: crate::memory::Options,
    /// Where memory may be plugged.
    pub pluggable: Option<Pluggable>,
    /// The devices, in slot order: disks, so that the first is in the first slot, network
    /// interfaces, then those of which there is one at most.
    pub devices: Vec<Device>,
    /// The last slot of the PCI bus for devices, 1 to 31; with firmware, to 30.
    pub last_slot: u8,
    /// The control socket.
    pub socket: Option<PathBuf>,
    /// The serial console's log.
    pub serial_log: Option<PathBuf>,
    /// Where others attach to the serial console.
    pub console_socket: Option<PathBuf>,
    /// Where gdb attaches.
    pub gdb: Option<PathBuf>,
    /// Where exits are noted.
    pub exit_trace: Option<ExitTrace>,
    /// Where the reason of the end goes.
    pub exit_file: Option<PathBuf>,
    /// What the machine says it is.
    pub identity: Identity,
    /// Whether to become a daemon.
    pub daemonize: bool,
    /// Where the process id goes.
    pub pid_file: Option<PathBuf>,
    /// The user to become.
    pub uid: Option<u32>,
    /// The group to become.
    pub gid: Option<u32>,
    /// Folders that the jail leaves in reach, besides those of its own files.
    pub allow: Vec<PathBuf>,
    /// The jail, if there is one.
    pub jail: Option<Policy>,
}

impl Description {
    /// The disks, in slot order.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.devices.iter().filter_map(|device| match device {
            Device::Disk(disk) => Some(disk),
            _ => None,
        })
    }

    /// The network interfaces, in slot order.
    pub fn nics(&self) -> impl Iterator<Item = &Nic> {
        self.devices.iter().filter_map(|device| match device {
            Device::Nic(nic) => Some(nic),
            _ => None,
        })
    }
}

/// A device asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A disk.
    Disk(Disk),
    /// A disk that another process serves.
    UserDisk(UserDisk),
    /// A network interface.
    Nic(Nic),
    /// The entropy source, which every machine has.
    Rng,
    /// A balloon.
    Balloon,
    /// A socket device.
    Vsock(Vsock),
    /// A console, beside the serial port.
    Console,
    /// Memory that comes and goes.
    Memory,
}

impl Device {
    /// Its name on the control socket: given, or that of its kind.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Disk(disk) => &disk.id,
            Self::UserDisk(disk) => &disk.id,
            Self::Nic(nic) => &nic.id,
            Self::Rng => rng::DECLARATION.name,
            Self::Balloon => balloon::DECLARATION.name,
            Self::Vsock(_) => virtio_vsock::DECLARATION.name,
            Self::Console => console::DECLARATION.name,
            Self::Memory => mem::DECLARATION.name,
        }
    }

    /// The Unix socket that it makes or connects to, also again, and the flag that says
    /// where.
    pub fn socket(&mut self) -> Option<(&'static str, &mut PathBuf)> {
        match self {
            Self::Vsock(vsock) => Some(("--vsock", &mut vsock.path)),
            Self::UserDisk(disk) => Some(("--disk", &mut disk.socket)),
            Self::Disk(_)
            | Self::Nic(_)
            | Self::Rng
            | Self::Balloon
            | Self::Console
            | Self::Memory => None,
        }
    }
}

/// Why there is nothing to run.
#[derive(Debug)]
pub enum Refusal {
    /// Help or the version was asked for: this is the text.
    Information(String),
    /// What was wrong, in one line.
    Mistake(String),
}

impl From<String> for Refusal {
    fn from(mistake: String) -> Self {
        Self::Mistake(mistake)
    }
}

/// Slots of the bus for devices: 32, less that of the bridge. Firmware's board has another
/// bridge, in the last one.
const MAX_DEVICES: usize = 31;

/// Reads a command line, the program's name first.
///
/// # Errors
/// See [`Refusal`].
pub fn parse<I, T>(arguments: I) -> Result<Description, Refusal>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let flags = Flags::try_parse_from(arguments).map_err(|error| {
        if error.use_stderr() {
            Refusal::Mistake(one_line(&error.to_string()))
        } else {
            Refusal::Information(error.to_string())
        }
    })?;
    Ok(check(flags)?)
}

fn check(flags: Flags) -> Result<Description, String> {
    if flags.id.is_empty() || flags.id.len() > MAX_STRING || !flags.id.bytes().all(is_name_byte) {
        return Err(format!(
            "--id {:?}: 1 to {MAX_STRING} letters, digits, '-', '_' or '.' are allowed",
            flags.id
        ));
    }
    let (vcpus, most_vcpus) = vcpus::parse(&flags.vcpus)?;
    let (memory_bytes, memory, pluggable) = memory::parse(&flags.memory)?;
    // What its board has above 4 GiB is another matter, and its ACPI tables are not tried.
    if flags.firmware.is_some() && (most_vcpus.is_some() || pluggable.is_some()) {
        return Err("--vcpus and --memory: max goes with a kernel, not with --firmware".to_owned());
    }
    if flags.cmdline.contains('\0') {
        return Err("--cmdline: a zero byte is not allowed".to_owned());
    }
    let mut disks = Vec::new();
    for text in &flags.disk {
        disks.push(disk::parse(text, disks.len())?);
    }
    let mut nics = Vec::new();
    let short = flags.tap.iter().map(|name| format!("tap={name}"));
    for text in flags.nic.iter().cloned().chain(short) {
        nics.push(nic::parse(&text, nics.len(), &flags.id)?);
    }
    if let Some(twice) = nics.iter().enumerate().find_map(|(index, nic)| {
        nics[..index]
            .iter()
            .any(|other| other.tap.is_shared_with(&nic.tap))
            .then_some(nic)
    }) {
        return Err(format!(
            "--nic: {} has the same tap as another one",
            twice.id
        ));
    }
    if let Some(text) = flags.disk.iter().zip(&disks).find_map(|(text, disk)| {
        let is_user = matches!(disk, Device::UserDisk(_));
        (is_user && !memory.shared).then_some(text)
    }) {
        return Err(format!("--disk {text}: {UNSHARED}"));
    }
    let mut devices: Vec<Device> = disks;
    devices.extend(nics.into_iter().map(Device::Nic));
    devices.push(Device::Rng);
    if flags.balloon {
        devices.push(Device::Balloon);
    }
    if let Some(text) = &flags.vsock {
        devices.push(Device::Vsock(vsock::parse(text)?));
    }
    if flags.virtio_console {
        devices.push(Device::Console);
    }
    if pluggable.is_some() {
        devices.push(Device::Memory);
    }
    let free = usize::from(flags.template.unwrap_or(0));
    let most = MAX_DEVICES - usize::from(flags.firmware.is_some());
    if free + devices.len() > most {
        let devices = devices.len();
        return Err(match devices > most {
            true => format!(
                "--disk and --nic: the machine has {most} slots for devices, one of them taken"
            ),
            false => format!("--template {free}: of {most} slots, devices take {devices}"),
        });
    }
    let last_slot = last_slot(most, free + devices.len(), flags.hotplug_slots)?;
    let ids: Vec<&str> = devices.iter().map(Device::id).collect();
    if let Some(twice) = ids
        .iter()
        .enumerate()
        .find_map(|(index, id)| ids[..index].contains(id).then_some(id))
    {
        return Err(format!("device id {twice:?} is given twice"));
    }
    if flags.daemonize && flags.socket.is_none() {
        return Err("--daemonize needs --socket, or nothing could end the daemon cleanly".into());
    }
    if flags.console_socket.is_some() && flags.console_socket == flags.socket {
        return Err("--console-socket: the control socket is there".to_owned());
    }
    if flags.gdb.is_some() && [&flags.socket, &flags.console_socket].contains(&&flags.gdb) {
        return Err("--gdb: another socket is there".to_owned());
    }
    let identity = identity::parse(flags.smbios.as_deref(), &flags.id)?;
    if flags.template.is_some() {
        identity::check_placeholder(&identity)?;
    }
    Ok(Description {
        identity,
        id: flags.id,
        kernel: flags.kernel,
        firmware: flags.firmware.as_deref().map(firmware::parse).transpose()?,
        initrd: flags.initrd,
        cmdline: flags.cmdline,
        restore: flags.restore,
        take_over: flags.take_over,
        template: flags.template,
        vcpus,
        most_vcpus,
        memory_bytes,
        memory,
        pluggable,
        devices,
        last_slot,
        socket: flags.socket,
        serial_log: flags.serial_log,
        console_socket: flags.console_socket,
        gdb: flags.gdb,
        exit_trace: flags.exit_trace.as_deref().map(trace::parse).transpose()?,
        exit_file: flags.exit_file,
        daemonize: flags.daemonize,
        pid_file: flags.pid_file,
        uid: flags.uid,
        gid: flags.gid,
        allow: flags.allow,
        jail: flags.jail.map(|how| match how.as_str() {
            "best-effort" => Policy::best_effort(),
            _ => Policy {
                optional: flags.jail_optional,
            },
        }),
    })
}

/// The last of so many slots for devices that the machine has, of which some are taken from
/// the start, or stay free in front of a template's.
fn last_slot(most: usize, taken: usize, free: Option<u8>) -> Result<u8, String> {
    let room = most - taken;
    let free = free.map_or(room, usize::from);
    if free > room {
        return Err(format!(
            "--hotplug-slots {free}: beside {taken} that are taken there are {room} slots"
        ));
    }
    u8::try_from(taken + free).map_err(|error| error.to_string())
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// How many queues a device shall have, if that is said.
fn parse_queues(options: &mut Options<'_>) -> Result<Option<u16>, String> {
    let Some(text) = options.value("queues")? else {
        return Ok(None);
    };
    let queues = text.parse();
    queues
        .map(Some)
        .map_err(|_| format!("{}: queues {text:?} is no number", options.flag()))
}

fn check_device_id(id: &str) -> Result<(), String> {
    // Those of which there is one at most have their kind's name.
    let mut fixed = DECLARATIONS.iter().filter(|kind| kind.plug == Plug::Fixed);
    if fixed.any(|kind| kind.name == id) {
        return Err(format!("id {id:?} is the name of another device"));
    }
    if id.is_empty() || id.len() > MAX_STRING || !id.bytes().all(is_name_byte) {
        return Err(format!(
            "id {id:?}: 1 to {MAX_STRING} letters, digits, '-', '_' or '.' are allowed"
        ));
    }
    Ok(())
}
