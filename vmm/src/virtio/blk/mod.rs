//! The block device: several queues, each with its thread and its engine.
//!
//! Virtio 1.2, section 5.2.

mod queue_worker;
mod request;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use self::queue_worker::{Job, QueueWorker};
use self::request::ID_SIZE;
use self::state::BlockV1;
use super::counters::{Counters, counters};
use super::limit::{Limiter, Limits};
use super::quiet::{Quiet, Why};
use super::thread::Port;
use super::{
    Activation, Declaration, F_EVENT_IDX, Interrupt, Plug, Site, VirtioDevice, read_config,
};
use crate::block::{Backend, EngineKind};
use crate::jail::{Allow, Argument, Profile};
use crate::snapshot::Refused;

/// Feature bits. Section 5.2.3.
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
pub(super) const F_DISCARD: u64 = 1 << 13;
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// Sectors are 512 bytes, whatever `blk_size` says (section 5.2.4).
pub(super) const SECTOR_SHIFT: u32 = 9;
pub(super) const SECTOR_SIZE: u64 = 1 << SECTOR_SHIFT;

/// Entries of each queue: room for four requests of the largest kind, or for 340 of
/// one segment. Indirect descriptors are not offered, as with a queue of this size
/// they would only cost the driver an allocation for each request.
const QUEUE_SIZE: u16 = 1024;

/// The most requests of a queue that are carried out at once.
const DEPTH: u16 = 256;

/// Data segments of one request: with header and status 256, or 1 MiB in pages.
const SEG_MAX: u32 = 254;

/// The most queues: more than that many vCPUs share them.
pub const MAX_QUEUES: u16 = 16;

/// The most sectors of one discard or write-zeroes: 1 GiB, so that none keeps the
/// disk busy for long.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// `physical_block_exp`: the host's file systems have blocks of 4 KiB, 2^3 times
/// the logical block.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// How a block device is made.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What the guest sees as the disk's serial: at most 20 bytes of ASCII.
    pub serial: String,
    /// Number of queues, usually that of vCPUs; between 1 and 16 are made.
    pub queues: u16,
    /// Who does the work.
    pub engine: EngineKind,
    /// How much all queues together may do.
    pub limits: Limits,
}

/// Operations of io_uring_register(2), whose highest bit says that the ring is named by
/// its index.
const REGISTER_OPCODE: u64 = 0x7fff_ffff;
const REGISTER_ENABLE_RINGS: u64 = 12;
const REGISTER_RING_FDS: u64 = 20;

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "blk",
    device_type: 2,
    pci_class: [0x01, 0x80, 0x00],
    profile: Profile {
        thread: &[
            Allow::any(libc::SYS_readv),
            Allow::any(libc::SYS_preadv),
            Allow::any(libc::SYS_pwritev),
            Allow::any(libc::SYS_preadv2),
            Allow::any(libc::SYS_pwritev2),
            Allow::any(libc::SYS_pread64),
            Allow::any(libc::SYS_pwrite64),
            Allow::any(libc::SYS_fdatasync),
            Allow::any(libc::SYS_fsync),
            Allow::any(libc::SYS_fallocate),
            Allow::any(libc::SYS_io_uring_enter),
            // A ring that the main thread made and restricted becomes this thread's.
            Allow::when(
                libc::SYS_io_uring_register,
                &[
                    Argument::masked(1, REGISTER_OPCODE, REGISTER_ENABLE_RINGS),
                    Argument::masked(1, REGISTER_OPCODE, REGISTER_RING_FDS),
                ],
            ),
        ],
        // The rings of its queues, which its threads can't make.
        plug: &[
            Allow::any(libc::SYS_io_uring_setup),
            Allow::any(libc::SYS_io_uring_register),
        ],
    },
    plug: Plug::Hot,
};

counters! {
    /// What a block device counts.
    pub(super) struct BlockCounters {
        /// Times that the driver rang.
        notifications,
        /// Reads done.
        reads,
        /// Bytes read.
        read_bytes,
        /// Writes done.
        writes,
        /// Bytes written.
        written_bytes,
        /// Flushes done.
        flushes,
        /// Discards and write-zeroes done.
        discards,
        /// Requests that failed or were refused.
        errors,
    }
}

/// What the device, its threads and its handles share.
struct Shared {
    counters: Arc<BlockCounters>,
    backend: Arc<Backend>,
    id: [u8; ID_SIZE],
    sectors: AtomicU64,
    limiter: Arc<Limiter>,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Shared {
    fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self
            .interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

/// A block device.
pub struct Block {
    shared: Arc<Shared>,
    queues: u16,
    engine: EngineKind,
    /// One for each queue, from when it is plugged.
    workers: Vec<QueueWorker>,
}

/// Reaches a block device while the machine runs.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.backend.as_fd()
    }
}

impl Handle {
    /// The file behind it, open once more.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn file(&self) -> io::Result<OwnedFd> {
        self.0.backend.as_fd().try_clone_to_owned()
    }

    /// The file's size in bytes, now: a network's file system may take its time.
    ///
    /// # Errors
    /// When the size can't be read.
    pub fn size(&self) -> io::Result<u64> {
        self.0.backend.size()
    }

    /// Has the disk have this size in bytes, and notifies the guest if it had another.
    pub fn resized(&self, size: u64) {
        let sectors = size >> SECTOR_SHIFT;
        if self.0.sectors.swap(sectors, Ordering::SeqCst) != sectors {
            let interrupt = self
                .0
                .interrupt
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Some(interrupt) = interrupt {
                interrupt.config_changed();
            }
        }
    }

    /// Changes how much the disk may do, from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.0.limiter.change(limits, Instant::now());
    }
}

impl Block {
    /// A device over a disk.
    ///
    /// # Errors
    /// When the serial is longer than 20 bytes or not ASCII, or the disk has no size.
    pub fn new(backend: Backend, options: &Options) -> io::Result<Self> {
        let size = backend.size()?;
        Self::with_size(backend, size, options)
    }

    /// The same, over one whose size in bytes is known.
    ///
    /// # Errors
    /// When the serial is longer than 20 bytes or not ASCII.
    pub fn with_size(backend: Backend, size: u64, options: &Options) -> io::Result<Self> {
        let mut id = [0; ID_SIZE];
        let serial = options.serial.as_bytes();
        if serial.len() > ID_SIZE || !serial.is_ascii() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a disk's serial is at most 20 ASCII characters",
            ));
        }
        id[..serial.len()].copy_from_slice(serial);
        let sectors = size >> SECTOR_SHIFT;
        Ok(Self {
            shared: Arc::new(Shared {
                counters: Arc::default(),
                backend: Arc::new(backend),
                id,
                sectors: AtomicU64::new(sectors),
                limiter: Arc::new(Limiter::new(options.limits, Instant::now())),
                interrupt: Mutex::new(None),
            }),
            queues: options.queues.clamp(1, MAX_QUEUES),
            engine: options.engine,
            workers: Vec::new(),
        })
    }

    /// A way to reach it later.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// `struct virtio_blk_config`. Section 5.2.4.
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors = self.shared.sectors.load(Ordering::SeqCst);
        put(0, &sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &512u32.to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXPONENT, 0]);
        put(34, &self.queues.to_le_bytes());
        let one = 1u32.to_le_bytes();
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &one);
        // Discards of whole host blocks give something back.
        put(44, &(1u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        put(48, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(52, &one);
        // write_zeroes_may_unmap
        put(56, &[1]);
        config
    }
}

impl VirtioDevice for Block {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn features(&self) -> u64 {
        let common = F_EVENT_IDX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ;
        if self.shared.backend.read_only() {
            common | F_RO
        } else {
            common | F_DISCARD | F_WRITE_ZEROES
        }
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

    fn plugged(&mut self, site: &Site<'_>) -> io::Result<()> {
        let all = (0..).zip(site.doorbells);
        let worker =
            |(index, doorbell)| QueueWorker::new(&self.shared, self.engine, index, doorbell);
        self.workers = all.map(worker).collect::<io::Result<_>>()?;
        self.shared.limiter.wake_with(site.doorbells);
        Ok(())
    }

    fn port(&self) -> Option<&Port> {
        None
    }

    fn activate(&mut self, activation: Activation) {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
            ..
        } = activation;
        if queues.is_empty() {
            return interrupt.needs_reset();
        }
        self.shared.set_interrupt(Some(Arc::clone(&interrupt)));
        for active in queues {
            match self.workers.get(usize::from(active.index)) {
                Some(worker) => worker.start(Job {
                    memory: Arc::clone(&memory),
                    features,
                    interrupt: Arc::clone(&interrupt),
                    active,
                }),
                None => interrupt.needs_reset(),
            }
        }
    }

    fn quiesce(&mut self, why: Why, quiet: Quiet) {
        if why == Why::Reset {
            self.shared.set_interrupt(None);
        }
        for worker in &self.workers {
            worker.stop(why, quiet.clone());
        }
    }

    fn save(&self) -> Value {
        json!(self.state())
    }

    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        self.check(&BlockV1::deserialize(state)?)
    }
}
