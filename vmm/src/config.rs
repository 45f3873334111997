//! The command line: parsed, then checked as a whole into one [`Description`].
//!
//! Every mistake is one line that says what was wrong, and exit status 2.

use std::path::PathBuf;

use clap::Parser;

use crate::arch::x86_64::layout::{MAX_MEMORY_MIB, MAX_VCPUS, MIB, MIN_MEMORY_MIB};
use crate::block::EngineKind;
use crate::smbios::{Identity, MAX_STRING, Uuid};

/// A small KVM virtual machine monitor: one process, one instance.
#[derive(Debug, Parser)]
#[command(name = "hearth-vmm", version)]
struct Flags {
    /// The machine's name
    #[arg(long, default_value = "hearth")]
    id: String,
    /// The kernel: a bzImage, or an ELF image with a PVH entry
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "STRING",
        default_value = "console=ttyS0",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// How many vCPUs
    #[arg(long, value_name = "N", default_value = "1")]
    vcpus: u8,
    /// Guest memory in MiB
    #[arg(long, value_name = "MIB", default_value = "512")]
    memory: u64,
    /// A disk: path=FILE[,id=NAME][,serial=TEXT][,readonly]
    /// [,engine=auto|io_uring|threads] (repeatable)
    #[arg(long, value_name = "DISK")]
    disk: Vec<String>,
    /// A network interface: tap=NAME or tap-fd=N[,id=NAME][,mac=MAC][,mtu=BYTES] (repeatable)
    #[arg(long, value_name = "NIC")]
    nic: Vec<String>,
    /// Short for --nic tap=NAME (repeatable)
    #[arg(long, value_name = "NAME")]
    tap: Vec<String>,
    /// Serve the control socket here
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Write the serial console here (at most 1 MiB, the newest)
    #[arg(long, value_name = "FILE")]
    serial_log: Option<PathBuf>,
    /// As the last act, write here why the machine ended
    #[arg(long, value_name = "FILE")]
    exit_file: Option<PathBuf>,
    /// What the machine says it is: product=TEXT,uuid=UUID,asset-tag=TEXT
    #[arg(long, value_name = "IDENTITY")]
    smbios: Option<String>,
    /// Return once the guest runs, and leave the machine behind as a daemon
    #[arg(long)]
    daemonize: bool,
    /// Write the process id here
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Run as this user once everything is open
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Run as this group once everything is open
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// Plug a memory balloon, with free page reporting
    #[arg(long)]
    balloon: bool,
    /// Plug a socket device: cid=N,path=FILE
    #[arg(long, value_name = "VSOCK")]
    vsock: Option<String>,
    /// Keep this folder in reach of the jail, for disks added by path (repeatable)
    #[arg(long, value_name = "FOLDER")]
    allow: Vec<PathBuf>,
    /// Give up everything that the machine does not need: namespaces, capabilities,
    /// files, system calls
    #[arg(long)]
    jail: bool,
}

/// A machine and its surroundings, each value checked by itself and against the
/// others. No file has been touched yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The machine's name.
    pub id: String,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// How many vCPUs.
    pub vcpus: u8,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Disks, in slot order.
    pub disks: Vec<Disk>,
    /// Network interfaces, in slot order.
    pub nics: Vec<Nic>,
    /// The control socket.
    pub socket: Option<PathBuf>,
    /// The serial console's log.
    pub serial_log: Option<PathBuf>,
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
    /// Whether there is a balloon.
    pub balloon: bool,
    /// The socket device.
    pub vsock: Option<Vsock>,
    /// Folders that the jail leaves in reach, besides those of its own files.
    pub allow: Vec<PathBuf>,
    /// Whether there is a jail.
    pub jail: bool,
}

/// A disk asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name on the control socket.
    pub id: String,
    /// The file or block device behind it.
    pub path: PathBuf,
    /// Its serial, at most 20 bytes.
    pub serial: String,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Who carries out its requests.
    pub engine: EngineKind,
}

/// A network interface asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its name on the control socket.
    pub id: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u16,
    /// The tap behind it.
    pub tap: Tap,
}

/// A socket device asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vsock {
    /// The guest's address.
    pub cid: u32,
    /// The Unix socket on the host.
    pub path: PathBuf,
}

/// Which tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tap {
    /// One to open by its name.
    Name(String),
    /// One that this process inherited open.
    Fd(i32),
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

/// Virtio's limit for a disk's serial: `VIRTIO_BLK_ID_BYTES`.
const MAX_SERIAL: usize = 20;
/// `IFNAMSIZ` without the final zero.
const MAX_TAP_NAME: usize = 15;
/// The smallest MTU that IPv4 allows (RFC 791), and the largest there is.
const MTU: std::ops::RangeInclusive<u16> = 68..=65535;
const DEFAULT_MTU: u16 = 1500;
/// Slots of the bus that are free for disks and network interfaces: 31, less the
/// entropy source.
const MAX_DEVICES: usize = 30;

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

/// The first paragraph of clap's message, on one line.
fn one_line(message: &str) -> String {
    let paragraph: Vec<&str> = message
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    let line = paragraph.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

fn check(flags: Flags) -> Result<Description, String> {
    if flags.id.is_empty() || flags.id.len() > MAX_STRING || !flags.id.bytes().all(is_name_byte) {
        return Err(format!(
            "--id {:?}: 1 to {MAX_STRING} letters, digits, '-', '_' or '.' are allowed",
            flags.id
        ));
    }
    if !(1..=MAX_VCPUS).contains(&flags.vcpus) {
        return Err(format!(
            "--vcpus {}: 1 to {MAX_VCPUS} are allowed",
            flags.vcpus
        ));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&flags.memory) {
        return Err(format!(
            "--memory {}: {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB are allowed",
            flags.memory
        ));
    }
    if flags.cmdline.contains('\0') {
        return Err("--cmdline: a zero byte is not allowed".to_owned());
    }
    let mut disks = Vec::new();
    for text in &flags.disk {
        disks.push(disk(text, disks.len())?);
    }
    let mut nics = Vec::new();
    let short = flags.tap.iter().map(|name| format!("tap={name}"));
    for text in flags.nic.iter().cloned().chain(short) {
        nics.push(nic(&text, nics.len(), &flags.id)?);
    }
    let extras = usize::from(flags.balloon) + usize::from(flags.vsock.is_some());
    if disks.len() + nics.len() + extras > MAX_DEVICES {
        return Err(format!(
            "--disk and --nic: at most {MAX_DEVICES} devices are allowed"
        ));
    }
    let ids: Vec<&String> = disks
        .iter()
        .map(|disk| &disk.id)
        .chain(nics.iter().map(|nic| &nic.id))
        .collect();
    if let Some(twice) = ids
        .iter()
        .enumerate()
        .find_map(|(index, id)| ids[..index].contains(id).then_some(id))
    {
        return Err(format!("device id {twice:?} is given twice"));
    }
    if let Some(twice) = nics.iter().enumerate().find_map(|(index, nic)| {
        nics[..index]
            .iter()
            .any(|n| n.tap == nic.tap)
            .then_some(nic)
    }) {
        return Err(format!(
            "--nic: {} has the same tap as another one",
            twice.id
        ));
    }
    if flags.daemonize && flags.socket.is_none() {
        return Err("--daemonize needs --socket, or nothing could end the daemon cleanly".into());
    }
    Ok(Description {
        identity: identity(flags.smbios.as_deref(), &flags.id)?,
        id: flags.id,
        kernel: flags.kernel,
        initrd: flags.initrd,
        cmdline: flags.cmdline,
        vcpus: flags.vcpus,
        memory_bytes: flags.memory * MIB,
        disks,
        nics,
        socket: flags.socket,
        serial_log: flags.serial_log,
        exit_file: flags.exit_file,
        daemonize: flags.daemonize,
        pid_file: flags.pid_file,
        uid: flags.uid,
        gid: flags.gid,
        balloon: flags.balloon,
        vsock: flags.vsock.as_deref().map(vsock).transpose()?,
        allow: flags.allow,
        jail: flags.jail,
    })
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Splits `key=value,key=value,flag`.
struct Options<'a> {
    flag: &'a str,
    pairs: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Options<'a> {
    fn new(flag: &'a str, text: &'a str) -> Result<Self, String> {
        let mut pairs: Vec<(&str, Option<&str>)> = Vec::new();
        for part in text.split(',') {
            let pair = match part.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (part, None),
            };
            if pairs.iter().any(|(key, _)| *key == pair.0) {
                return Err(format!("{flag}: {:?} is given twice", pair.0));
            }
            pairs.push(pair);
        }
        Ok(Self { flag, pairs })
    }

    fn value(&mut self, key: &str) -> Result<Option<&'a str>, String> {
        match self.pairs.iter().position(|(name, _)| *name == key) {
            None => Ok(None),
            Some(index) => match self.pairs.remove(index).1 {
                Some(value) if !value.is_empty() => Ok(Some(value)),
                _ => Err(format!("{}: {key} needs a value", self.flag)),
            },
        }
    }

    fn switch(&mut self, key: &str) -> Result<bool, String> {
        match self.pairs.iter().position(|(name, _)| *name == key) {
            None => Ok(false),
            Some(index) => match self.pairs.remove(index).1 {
                None => Ok(true),
                Some(_) => Err(format!("{}: {key} takes no value", self.flag)),
            },
        }
    }

    /// Refuses what nobody asked for.
    fn finish(self) -> Result<(), String> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("{}: {key:?} is not known", self.flag)),
        }
    }
}

fn check_device_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > MAX_STRING || !id.bytes().all(is_name_byte) {
        return Err(format!(
            "id {id:?}: 1 to {MAX_STRING} letters, digits, '-', '_' or '.' are allowed"
        ));
    }
    Ok(())
}

fn disk(text: &str, index: usize) -> Result<Disk, String> {
    let mut options = Options::new("--disk", text)?;
    let path = options
        .value("path")?
        .ok_or("--disk: path=FILE is missing")?;
    let id = options.value("id")?;
    let serial = options.value("serial")?;
    let read_only = options.switch("readonly")?;
    let engine = match options.value("engine")? {
        None | Some("auto") => EngineKind::Auto,
        Some("io_uring") => EngineKind::IoUring,
        Some("threads") => EngineKind::Threads,
        Some(other) => {
            return Err(format!(
                "--disk: engine {other:?}: auto, io_uring or threads are allowed"
            ));
        }
    };
    options.finish()?;
    let id = id.map_or_else(|| format!("disk{index}"), str::to_owned);
    Disk::new(id, path.into(), serial.map(str::to_owned), read_only)
        .map(|disk| Disk { engine, ..disk })
        .map_err(|mistake| format!("--disk: {mistake}"))
}

impl Disk {
    /// A disk, each value checked.
    ///
    /// # Errors
    /// One line that says what was wrong.
    pub fn new(
        id: String,
        path: PathBuf,
        serial: Option<String>,
        read_only: bool,
    ) -> Result<Self, String> {
        check_device_id(&id)?;
        if let Some(serial) = &serial
            && (serial.len() > MAX_SERIAL || !serial.is_ascii())
        {
            return Err(format!(
                "serial {serial:?}: at most {MAX_SERIAL} ASCII characters are allowed"
            ));
        }
        // An id has ASCII characters only.
        let serial = serial.unwrap_or_else(|| id.chars().take(MAX_SERIAL).collect());
        Ok(Self {
            id,
            path,
            serial,
            read_only,
            engine: EngineKind::Auto,
        })
    }
}

fn vsock(text: &str) -> Result<Vsock, String> {
    let mut options = Options::new("--vsock", text)?;
    let cid = options.value("cid")?.ok_or("--vsock: cid=N is missing")?;
    let path = options
        .value("path")?
        .ok_or("--vsock: path=FILE is missing")?;
    options.finish()?;
    let cid = cid
        .parse()
        .ok()
        .filter(|cid| (3..u32::MAX).contains(cid))
        .ok_or(format!(
            "--vsock: cid {cid:?}: 3 to {} are allowed",
            u32::MAX - 1
        ))?;
    Ok(Vsock {
        cid,
        path: path.into(),
    })
}

fn nic(text: &str, index: usize, machine: &str) -> Result<Nic, String> {
    let mut options = Options::new("--nic", text)?;
    let id = options.value("id")?;
    let mac = options.value("mac")?;
    let mtu = match options.value("mtu")? {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| format!("--nic: mtu {text:?} is no number of bytes"))?,
        ),
    };
    let tap = match (options.value("tap")?, options.value("tap-fd")?) {
        (Some(name), None) => Tap::Name(name.to_owned()),
        (None, Some(fd)) => Tap::Fd(
            fd.parse()
                .ok()
                .filter(|fd| *fd > 2)
                .ok_or(format!("--nic: tap-fd {fd:?} is no inherited descriptor"))?,
        ),
        (Some(_), Some(_)) => return Err("--nic: tap and tap-fd exclude each other".to_owned()),
        (None, None) => return Err("--nic: tap=NAME or tap-fd=N is missing".to_owned()),
    };
    options.finish()?;
    let id = id.map_or_else(|| format!("eth{index}"), str::to_owned);
    Nic::new(machine, id, tap, mac, mtu).map_err(|mistake| format!("--nic: {mistake}"))
}

impl Nic {
    /// A network interface of `machine`, each value checked.
    ///
    /// # Errors
    /// One line that says what was wrong.
    pub fn new(
        machine: &str,
        id: String,
        tap: Tap,
        mac: Option<&str>,
        mtu: Option<u16>,
    ) -> Result<Self, String> {
        check_device_id(&id)?;
        if let Tap::Name(name) = &tap
            && (name.is_empty()
                || name.len() > MAX_TAP_NAME
                || !name
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'/'))
        {
            return Err(format!("tap {name:?} is no interface name"));
        }
        let mtu = mtu.unwrap_or(DEFAULT_MTU);
        if !MTU.contains(&mtu) {
            return Err(format!(
                "mtu {mtu}: {} to {} are allowed",
                MTU.start(),
                MTU.end()
            ));
        }
        let mac = match mac {
            Some(text) => parse_mac(text)?,
            None => derived_mac(machine, &id),
        };
        Ok(Self { id, mac, mtu, tap })
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("mac {text:?} is no unicast MAC address like 02:00:00:00:00:01");
    let mut mac = [0; 6];
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() != mac.len() {
        return Err(wrong());
    }
    for (byte, part) in mac.iter_mut().zip(parts) {
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(wrong());
    }
    Ok(mac)
}

/// FNV-1a, to make the same names into the same numbers on every start.
fn hash(parts: &[&str]) -> u64 {
    let mut value = 0xcbf2_9ce4_8422_2325u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        value = (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    value
}

/// A locally administered address out of the names.
fn derived_mac(machine: &str, nic: &str) -> [u8; 6] {
    let [a, b, c, d, e, ..] = hash(&[machine, nic]).to_be_bytes();
    [0x02, a, b, c, d, e]
}

fn identity(text: Option<&str>, id: &str) -> Result<Identity, String> {
    let flag = "--smbios";
    let mut options = match text {
        Some(text) => Options::new(flag, text)?,
        None => Options {
            flag,
            pairs: Vec::new(),
        },
    };
    let product = options.value("product")?.unwrap_or("hearth").to_owned();
    let asset_tag = options.value("asset-tag")?.unwrap_or(id).to_owned();
    let uuid = match options.value("uuid")? {
        Some(text) => Uuid::parse(text).ok_or(format!("--smbios: uuid {text:?} is no UUID"))?,
        None => derived_uuid(id),
    };
    options.finish()?;
    for (name, value) in [("product", &product), ("asset-tag", &asset_tag)] {
        if value.len() > MAX_STRING || !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(format!(
                "--smbios: {name} may have {MAX_STRING} printable ASCII characters"
            ));
        }
    }
    // Only a machine that was told to be an EC2 instance says so: a guest that
    // believes it waits for the metadata service.
    let manufacturer = if uuid.to_string().starts_with("ec2") {
        "Amazon EC2"
    } else {
        "Hearth"
    };
    Ok(Identity {
        manufacturer: manufacturer.to_owned(),
        product,
        uuid,
        asset_tag,
    })
}

/// A UUID out of the machine's name, as version 8 (RFC 9562, section 5.8); the
/// first byte keeps it from looking like EC2's.
fn derived_uuid(id: &str) -> Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hash(&[id]).to_be_bytes());
    bytes[8..].copy_from_slice(&hash(&[id, "uuid"]).to_be_bytes());
    bytes[0] = b'H';
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Description, String> {
        let all = ["hearth-vmm", "--kernel", "/k"].iter().chain(arguments);
        parse(all).map_err(|refusal| match refusal {
            Refusal::Mistake(line) | Refusal::Information(line) => line,
        })
    }

    fn mistake(arguments: &[&str]) -> String {
        let line = run(arguments).expect_err("refused");
        assert!(!line.contains('\n'), "{line}");
        line
    }

    #[test]
    fn the_whole_command_line() {
        let description = run(&[
            "--id",
            "i-0123456789abcdef0",
            "--vcpus",
            "2",
            "--memory",
            "1024",
            "--disk",
            "path=/x/root.raw,id=root,serial=vol0123456789abcdef0",
            "--disk",
            "path=/x/data.raw,readonly",
            "--nic",
            "id=eth0,mac=02:00:00:00:00:07,mtu=9001,tap-fd=5",
            "--tap",
            "tap1",
            "--socket",
            "/run/vmm.sock",
            "--smbios",
            "product=t3.micro,uuid=EC2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8,asset-tag=i-1",
            "--daemonize",
        ])
        .expect("is right");
        assert_eq!(description.memory_bytes, 1 << 30);
        assert_eq!(description.disks[1].id, "disk1");
        assert!(description.disks[1].read_only);
        assert_eq!(description.nics[0].tap, Tap::Fd(5));
        assert_eq!(description.nics[0].mtu, 9001);
        assert_eq!(description.nics[1].tap, Tap::Name("tap1".into()));
        assert_eq!(description.nics[1].mac[0], 2);
        assert_eq!(description.identity.manufacturer, "Amazon EC2");
    }

    #[test]
    fn a_machine_by_itself_is_not_ec2() {
        let description = run(&[]).expect("is right");
        assert_eq!(description.identity.manufacturer, "Hearth");
        assert!(!description.identity.uuid.to_string().starts_with("ec2"));
    }

    #[test]
    fn every_mistake_is_one_line_with_its_name() {
        for (arguments, names) in [
            (&["--frobnicate"][..], "--frobnicate"),
            (&["--vcpus", "0"], "--vcpus 0"),
            (&["--vcpus", "33"], "--vcpus 33"),
            (&["--vcpus", "many"], "--vcpus"),
            (&["--memory", "63"], "--memory 63"),
            (&["--memory", "18446744073709551615"], "--memory"),
            (&["--disk", "id=root"], "path=FILE"),
            (
                &["--disk", "path=/x,serial=123456789012345678901"],
                "serial",
            ),
            (&["--disk", "path=/x,cache=none"], "cache"),
            (&["--disk", "path=/x,path=/y"], "twice"),
            (&["--disk", "path=/x,id=a", "--nic", "tap=t,id=a"], "\"a\""),
            (&["--nic", "id=eth0"], "tap=NAME"),
            (&["--nic", "tap=a,tap-fd=4"], "exclude"),
            (&["--nic", "tap-fd=1"], "tap-fd"),
            (&["--nic", "tap-fd=5", "--nic", "tap-fd=5"], "same tap"),
            (&["--nic", "tap=t,mac=01:00:00:00:00:00"], "mac"),
            (&["--nic", "tap=t,mtu=67"], "mtu"),
            (&["--smbios", "uuid=ec2"], "uuid"),
            (&["--smbios", "vendor=me"], "vendor"),
            (&["--daemonize"], "--socket"),
            (&["--id", "a/b"], "--id"),
        ] {
            let line = mistake(arguments);
            assert!(line.contains(names), "{arguments:?}: {line}");
        }
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let Err(Refusal::Mistake(line)) = parse(["hearth-vmm"]) else {
            panic!("refused");
        };
        assert!(line.contains("--kernel") && !line.contains('\n'), "{line}");
    }
}
