//! A block device whose queues another process serves: qemu-storage-daemon, say, over what
//! it can reach. The driver sees what that back end offers.
//!
//! ```text
//!   guest ─ doorbell (ioeventfd) ─► back end ─ irqfd ─► guest       requests
//!   transport ─ start, stop ─► Remote, a thread ─ vhost-user ─► back end
//! ```
//!
//! The thread speaks with the back end and waits for it, so that nobody else does
//! ([`remote`]). Virtio 1.2, section 5.2.

mod remote;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::remote::Remote;
use super::blk::MAX_QUEUES;
use super::counters::{Counters, counters};
use super::thread::{self, DeviceThread, Port};
use super::{
    Declaration, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Plug, Site, VirtioDevice, read_config,
};
use crate::jail::{Allow, Argument, Profile};
use crate::memory::{Follower, Memory};
use crate::snapshot::Refused;
use crate::vhost::user::{CONFIG_SIZE, Cancel, NO_LOG, Session, connect};

/// Feature bit: several queues. Section 5.2.3.
const F_MQ: u64 = 1 << 12;
/// The features of disks that are the driver's and the back end's affair: the sizes of
/// requests, geometry, read-only, blocks, flush, topology, several queues, discard,
/// write-zeroes. Section 5.2.3.
const OF_DISKS: u64 =
    1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | F_MQ | 1 << 13 | 1 << 14;
/// Of what a back end has, what a driver may take.
const KNOWN: u64 = OF_DISKS | F_EVENT_IDX | F_INDIRECT_DESC;

/// `capacity` and `num_queues` of the configuration. Section 5.2.4.
const CAPACITY: std::ops::Range<usize> = 0..8;
const NUM_QUEUES: std::ops::Range<usize> = 34..36;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;

/// How long a back end has to say what it is, when nobody waits for it but a thread of its
/// own, or a machine that is about to start.
const FIRST: Duration = Duration::from_secs(10);

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "vhost-user-blk",
    device_type: 2,
    pci_class: [0x01, 0x80, 0x00],
    profile: Profile {
        thread: &[
            Allow::any(libc::SYS_connect),
            Allow::any(libc::SYS_sendmsg),
            Allow::any(libc::SYS_sendto),
            Allow::any(libc::SYS_recvmsg),
            Allow::any(libc::SYS_shutdown),
            Allow::any(libc::SYS_timerfd_settime),
            // To programs on this host, and nowhere else.
            Allow::when(libc::SYS_socket, &[Argument::is(0, libc::AF_UNIX as u64)]),
            Allow::when(
                libc::SYS_socketpair,
                &[Argument::is(0, libc::AF_UNIX as u64)],
            ),
            Allow::when(libc::SYS_ioctl, &[Argument::is(1, libc::FIONBIO)]),
        ],
        plug: &[Allow::any(libc::SYS_timerfd_create)],
    },
    plug: Plug::Hot,
};

counters! {
    /// What is counted of it: its requests never come by here.
    pub(super) struct UserCounters {
        /// Times that a back end was connected.
        connections,
        /// Times that one was lost.
        disconnections,
        /// Times that its configuration changed.
        config_changes,
        /// Times that one went with requests of which nobody knows what was done.
        given_up,
    }
}

/// Where a back end is.
#[derive(Debug)]
pub struct Target {
    /// Where it listens: also to find it again when it was gone.
    pub path: PathBuf,
    /// The connection that there is already.
    pub socket: Option<UnixStream>,
}

impl Target {
    /// Connects, if that wasn't done, and asks it what it is.
    ///
    /// # Errors
    /// When there is none, it doesn't answer for ten seconds, or is none of ours.
    pub fn open(self) -> io::Result<BackEnd> {
        let socket = match self.socket {
            Some(socket) => socket,
            None => connect(&self.path)?,
        };
        let cancel = Cancel::new()?;
        let session = Session::open(socket, F_VERSION_1, cancel.clone(), FIRST)?;
        Ok(BackEnd {
            session,
            cancel,
            path: self.path,
        })
    }

    /// The same on a thread of its own, confined to what such a device's may do, which
    /// then calls `done`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn open_later(
        self,
        done: impl FnOnce(io::Result<BackEnd>) + Send + 'static,
    ) -> io::Result<()> {
        let name = DECLARATION.name.to_owned();
        let body = |confined: io::Result<()>| done(confined.and_then(|()| self.open()));
        // It ends by itself.
        thread::spawn(name, &DECLARATION.profile, body).map(drop)
    }
}

/// A back end that has said what it is.
pub struct BackEnd {
    session: Session,
    cancel: Cancel,
    path: PathBuf,
}

/// How a back end fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Whether there is one.
    pub connected: bool,
    /// Why there is none, or why nobody goes on with the driver's requests.
    pub error: Option<String>,
}

/// What the device, its thread and its handles share.
struct Shared {
    counters: Arc<UserCounters>,
    memory: Memory,
    config: Mutex<[u8; CONFIG_SIZE]>,
    state: Mutex<State>,
    can_log: AtomicBool,
    /// Whether a back end has guest memory and serves queues in it.
    serves: AtomicBool,
    /// Rung to have the configuration looked at.
    refresh: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn config(&self) -> [u8; CONFIG_SIZE] {
        *lock(&self.config)
    }
}

/// In sectors of 512 bytes.
fn capacity(config: &[u8; CONFIG_SIZE]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&config[CAPACITY]);
    u64::from_le_bytes(bytes)
}

impl Follower for Shared {
    fn memory_changed(&self) -> io::Result<()> {
        let refused = |why| Err(io::Error::new(io::ErrorKind::Unsupported, why));
        if self.memory.log().is_some() && !self.can_log.load(Ordering::SeqCst) {
            return refused(NO_LOG);
        }
        // It is told all this when it begins to serve.
        match self.serves.load(Ordering::SeqCst) {
            false => Ok(()),
            true => refused(
                "a disk's back end has guest memory as it was when the driver started it: \
                 pause the machine first",
            ),
        }
    }
}

/// A block device that another process serves.
pub struct UserBlock {
    shared: Arc<Shared>,
    features: u64,
    queues: u16,
    cancel: Cancel,
    /// Until it is plugged.
    back_end: Option<BackEnd>,
    port: Option<Port>,
    thread: Option<DeviceThread>,
}

/// Reaches it while the machine runs.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        capacity(&self.0.config()).saturating_mul(512)
    }

    /// Has the size looked at again. The driver is notified if it changed.
    pub fn refresh(&self) {
        // Fails only when the counter is full, and then it is rung already.
        let _ = self.0.refresh.write(1);
    }

    /// How the back end fares.
    #[must_use]
    pub fn state(&self) -> State {
        lock(&self.0.state).clone()
    }
}

impl UserBlock {
    /// A device with so many queues, or as many as there are vCPUs.
    ///
    /// # Errors
    /// When guest memory isn't shared, or the back end has not so many queues.
    pub fn new(
        back_end: BackEnd,
        memory: Memory,
        queues: Option<u16>,
        vcpus: u16,
    ) -> io::Result<Self> {
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if !memory.options().shared {
            return wrong(UNSHARED.to_owned());
        }
        let offer = back_end.session.offer();
        let has = match offer.features & F_MQ {
            0 => 1,
            _ => offer.queues.min(MAX_QUEUES),
        };
        let queues = match queues {
            Some(wanted) if wanted > has => {
                return wrong(format!("the back end has {has} queues, not {wanted}"));
            }
            Some(wanted) => wanted.max(1),
            None => vcpus.clamp(1, has),
        };
        let mut features = offer.features & KNOWN;
        if queues == 1 {
            features &= !F_MQ;
        }
        let shared = Arc::new(Shared {
            counters: Arc::default(),
            config: Mutex::new(offer.config),
            state: Mutex::new(State {
                connected: true,
                error: None,
            }),
            can_log: AtomicBool::new(back_end.session.can_log()),
            serves: AtomicBool::new(false),
            refresh: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            memory,
        });
        shared.counters.connections.add(1);
        let follower = Arc::clone(&shared) as Arc<dyn Follower>;
        shared.memory.follow(Arc::downgrade(&follower));
        Ok(Self {
            shared,
            features,
            queues,
            cancel: back_end.cancel.clone(),
            back_end: Some(back_end),
            port: None,
            thread: None,
        })
    }

    /// A way to reach it later.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Whether the driver can't write. Section 5.2.3.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.features & 1 << 5 != 0
    }

    /// `struct virtio_blk_config`. Section 5.2.4.
    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = self.shared.config();
        config[NUM_QUEUES].copy_from_slice(&self.queues.to_le_bytes());
        config
    }
}

/// Why there can't be one.
pub const UNSHARED: &str = "a back end in another process maps guest memory: --memory MIB,shared \
                            lets it";

/// [`UserBlock`], saved: what its driver has read of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserBlockV1 {
    /// The configuration, in hexadecimal.
    config: String,
}

impl VirtioDevice for UserBlock {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.shared.counters) as Arc<dyn Counters>
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn config_write(&mut self, _: u64, _: &[u8]) {
        // All fields are read-only without VIRTIO_BLK_F_CONFIG_WCE.
    }

    fn plugged(&mut self, _: &Site<'_>) -> io::Result<()> {
        let back_end = self.back_end.take();
        let back_end = back_end.ok_or_else(|| io::Error::other("it is plugged already"))?;
        let thread = DeviceThread::spawn(DECLARATION.name.to_owned(), &DECLARATION.profile)?;
        let (shared, queues) = (Arc::clone(&self.shared), self.queues);
        let features = self.features;
        self.port =
            Some(thread.add(|events| Remote::new(back_end, shared, features, queues, events))?);
        self.thread = Some(thread);
        Ok(())
    }

    fn port(&self) -> Option<&Port> {
        self.port.as_ref()
    }

    fn save(&self) -> Value {
        let config = hex::encode(self.config());
        json!(UserBlockV1 { config })
    }

    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        let saved = UserBlockV1::deserialize(state)?;
        let mut there = [0; CONFIG_SIZE];
        if hex::decode_to_slice(&saved.config, &mut there).is_err() {
            return Err(Refused::because("its configuration is none"));
        }
        let here = self.config();
        let [has, had] = [&here, &there].map(|config| u128::from(capacity(config)) * 512);
        if has != had {
            let wrong = format!("it has {has} bytes here and {had} there");
            return Err(Refused::because(wrong));
        }
        match here == there {
            true => Ok(()),
            false => Err(Refused::because("its back end offers another disk")),
        }
    }
}

impl Drop for UserBlock {
    fn drop(&mut self) {
        // Its thread is waited for, and waits for nobody any more.
        self.cancel.call();
    }
}
