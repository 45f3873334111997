//! `--disk`.

use std::path::PathBuf;

use super::options::Options;
use super::{Device, check_device_id, limits, parse_queues, user_disk};
use crate::block::EngineKind;
use crate::virtio::blk::MAX_QUEUES;
use crate::virtio::limit::Limits;

/// Virtio's limit for a disk's serial: `VIRTIO_BLK_ID_BYTES`.
const MAX_SERIAL: usize = 20;

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
    /// Queues, each on a thread of its own: 1 to 16. None: one for each vCPU.
    pub queues: Option<u16>,
    /// How much all queues together may do.
    pub limits: Limits,
}

/// Reads the flag's text; `index` is the disk's place.
pub(super) fn parse(text: &str, index: usize) -> Result<Device, String> {
    let mut options = Options::new("--disk", text)?;
    let id = options.value("id")?;
    let id = id.map_or_else(|| format!("disk{index}"), str::to_owned);
    let queues = queues(&mut options)?;
    if let Some(socket) = options.value("socket")? {
        return user_disk::parse(options, id, socket, queues).map(Device::UserDisk);
    }
    let path = options
        .value("path")?
        .ok_or("--disk: path=FILE or socket=FILE is missing")?;
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
    let limits = limits::take(&mut options)?;
    options.finish()?;
    Disk::new(id, path.into(), serial.map(str::to_owned), read_only)
        .map(|disk| Disk {
            engine,
            queues,
            limits,
            ..disk
        })
        .map(Device::Disk)
        .map_err(|mistake| format!("--disk: {mistake}"))
}

/// How many queues, if that is said.
fn queues(options: &mut Options<'_>) -> Result<Option<u16>, String> {
    match parse_queues(options)? {
        Some(queues) if !(1..=MAX_QUEUES).contains(&queues) => Err(format!(
            "--disk: queues {queues}: 1 to {MAX_QUEUES} are allowed"
        )),
        queues => Ok(queues),
    }
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
            queues: None,
            limits: Limits::NONE,
        })
    }
}
