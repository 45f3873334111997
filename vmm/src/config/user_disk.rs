//! `--disk socket=…`.

use std::path::PathBuf;

use super::check_device_id;
use super::options::Options;

/// A disk asked for that another process serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDisk {
    /// Its name on the control socket.
    pub id: String,
    /// The Unix socket where its back end listens.
    pub socket: PathBuf,
    /// Queues: 1 to 16. None: one for each vCPU, as far as the back end has so many.
    pub queues: Option<u16>,
}

/// Keys that a disk with a path has, and why this one can't have them.
const NOT_OURS: [(&str, &str); 7] = [
    ("serial", "the back end says what the serial is"),
    (
        "readonly",
        "the back end says whether the disk can be written",
    ),
    ("engine", "the back end carries out the requests"),
    ("ops", NO_LIMITS),
    ("ops-burst", NO_LIMITS),
    ("bytes", NO_LIMITS),
    ("bytes-burst", NO_LIMITS),
];

/// Why such a disk can't have limits.
pub const NO_LIMITS: &str = "with a socket another process carries out the requests: limit it \
                             there (qemu-storage-daemon's throttle, say)";

/// Reads what is left of the flag's text.
pub(super) fn parse(
    mut options: Options<'_>,
    id: String,
    socket: &str,
    queues: Option<u16>,
) -> Result<UserDisk, String> {
    for (key, why) in NOT_OURS {
        if options.has(key) {
            return Err(format!("--disk: {key}: {why}"));
        }
    }
    if options.value("path")?.is_some() {
        return Err("--disk: path and socket exclude each other".to_owned());
    }
    options.finish()?;
    UserDisk::new(id, socket.into())
        .map(|disk| UserDisk { queues, ..disk })
        .map_err(|mistake| format!("--disk: {mistake}"))
}

impl UserDisk {
    /// A disk, each value checked.
    ///
    /// # Errors
    /// One line that says what was wrong.
    pub fn new(id: String, socket: PathBuf) -> Result<Self, String> {
        check_device_id(&id)?;
        Ok(Self {
            id,
            socket,
            queues: None,
        })
    }
}
