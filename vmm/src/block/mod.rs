//! Host side of block devices: a raw file or block device, and the engines that
//! carry out reads and writes on it straight from and to guest memory.
//!
//! ```text
//!  virtio::blk ─ Op ─► Engine ─ io_uring (one system call to submit and to wait)
//!        ▲                    └ threads  (preadv/pwritev, where there is no io_uring)
//!        └── Completion ◄┘
//! ```
//!
//! An engine is prepared by the main thread when its disk is plugged, and started by
//! the thread of its queue, which may not make a ring.

#![allow(
    unsafe_code,
    reason = "preadv2(2) and its like on guest memory, a file closed elsewhere"
)]

mod pool;
#[cfg(test)]
mod tests;
mod uring;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::Builder;

use rustix::fs::{OFlags, fcntl_getfl};
use vmm_sys_util::eventfd::EventFd;

pub use crate::epoll::Until;
use crate::memory::{Memory, Segments};

/// Bytes of the stack of a thread that closes a file.
const STACK_SIZE: usize = 64 << 10;

/// A disk on the host. Nobody waits for its file to be closed, where a block device or a
/// network's file system writes back what the page cache has: a thread does, and the
/// process's end waits for that one no longer than for any other.
#[derive(Debug)]
pub struct Backend {
    /// Taken when it is dropped.
    file: ManuallyDrop<File>,
    read_only: bool,
}

impl Backend {
    /// Opens a raw file or a block device.
    ///
    /// # Errors
    /// When it can't be opened so, or is neither.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(!read_only).open(path)?;
        Self::from_file(file, read_only)
    }

    /// Uses an open file.
    ///
    /// # Errors
    /// When it is neither a file nor a block device, or not open for what is done to it.
    pub fn from_file(file: File, read_only: bool) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a disk must be a file or a block device",
            ));
        }
        let flags = fcntl_getfl(&file)?;
        let has_all = match flags & OFlags::ACCMODE {
            OFlags::RDWR => true,
            OFlags::RDONLY => read_only,
            _ => false,
        };
        // What is opened to append has all writes at its end, wherever they are for.
        if !has_all || flags.intersects(OFlags::APPEND | OFlags::PATH) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a disk must be open to read and, unless it is read-only, to write, not to append",
            ));
        }
        Ok(Self {
            file: ManuallyDrop::new(file),
            read_only,
        })
    }

    /// Another handle on the same disk.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: ManuallyDrop::new(self.file.try_clone()?),
            read_only: self.read_only,
        })
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes, now.
    ///
    /// # Errors
    /// When the file can't be asked.
    pub fn size(&self) -> io::Result<u64> {
        // Unlike metadata, this knows block devices too. Nothing uses the offset.
        (&*self.file).seek(SeekFrom::End(0))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: nobody uses it after this.
        let file = unsafe { ManuallyDrop::take(&mut self.file) };
        // Where no thread can be had, it is closed here.
        let _ = Builder::new()
            .name("blk-close".into())
            .stack_size(STACK_SIZE)
            .spawn(move || drop(file));
    }
}

impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Backend {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Which engine carries out requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring where the kernel has it and lets us, else threads.
    #[default]
    Auto,
    /// io_uring.
    IoUring,
    /// A few threads.
    Threads,
}

impl EngineKind {
    /// Makes what the engine of one queue needs and its thread can't make.
    ///
    /// # Errors
    /// When io_uring is asked for and is not to be had, or the process has run out of
    /// descriptors.
    pub fn prepare(self, backend: &Backend, wakes: Wakes) -> io::Result<Prepared> {
        let threads = || pool::Prepared::new(&wakes).map(Half::Threads);
        let half = match self {
            Self::Threads => threads()?,
            Self::Auto => match uring::Prepared::new(backend, &wakes) {
                Ok(ring) => Half::IoUring(Box::new(ring)),
                // Threads would hide it for a moment, and cost more.
                Err(error) if is_exhausted(&error) => return Err(error),
                Err(_) => threads()?,
            },
            Self::IoUring => Half::IoUring(Box::new(uring::Prepared::new(backend, &wakes)?)),
        };
        Ok(Prepared { half, wakes })
    }
}

/// One request to the host. Offsets and lengths are in bytes and lie within the
/// disk.
pub enum Op {
    /// Reads into guest memory.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where in memory.
        into: Segments,
    },
    /// Writes from guest memory.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where in memory.
        from: Segments,
        /// Only complete once it is on stable storage.
        durable: bool,
    },
    /// Puts all completed writes on stable storage.
    Flush,
    /// Makes the range read as zeroes and gives its blocks back.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Makes the range read as zeroes and keeps its blocks.
    Zero {
        /// Where on the disk.
        offset: u64,
        /// How much.
        length: u64,
    },
}

/// A request carried out: bytes moved, or an errno negated.
pub struct Completion {
    /// As given to [`Engine::submit`].
    pub token: u16,
    /// As the system call would have said.
    pub result: i32,
    /// Given back for its allocations, and to go on after a short transfer.
    pub op: Op,
}

/// Why [`Engine::wait`] came back, besides completions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wake {
    /// The stop event was written.
    pub stop: bool,
    /// The doorbell was rung. Only to be counted: it may go unseen for a while.
    pub rung: bool,
}

/// What wakes an engine that waits.
#[derive(Clone)]
pub struct Wakes {
    /// Wakes [`Engine::wait`].
    pub doorbell: Arc<EventFd>,
    /// Wakes it too, and is reported apart.
    pub stop: Arc<EventFd>,
}

/// An engine that is not started yet.
pub struct Prepared {
    half: Half,
    wakes: Wakes,
}

/// What the main thread makes of an engine: every descriptor.
enum Half {
    IoUring(Box<uring::Prepared>),
    Threads(pool::Prepared),
}

/// Whether a call failed for lack of descriptors, and not of io_uring.
fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [libc::EMFILE, libc::ENFILE];
    error
        .raw_os_error()
        .is_some_and(|errno| exhausted.contains(&errno))
}

impl Prepared {
    /// What wakes the engine.
    #[must_use]
    pub fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    /// Starts it. The calling thread alone can use it from here on.
    ///
    /// # Errors
    /// When the kernel has no resources for it.
    pub fn start(self, backend: Arc<Backend>, depth: u16) -> io::Result<Engine> {
        match self.half {
            Half::IoUring(ring) => ring
                .start(backend, self.wakes, depth)
                .map(|uring| Engine::IoUring(Box::new(uring))),
            Half::Threads(pool) => pool.start(backend, self.wakes).map(Engine::Threads),
        }
    }
}

/// Carries out requests for one queue. Used by one thread, which starts it.
pub enum Engine {
    /// io_uring.
    IoUring(Box<uring::Uring>),
    /// Threads.
    Threads(pool::Pool),
}

impl Engine {
    /// Requests point into this memory, which is kept until the engine is drained.
    pub fn begin(&mut self, memory: Memory) {
        match self {
            Self::IoUring(uring) => uring.begin(memory),
            Self::Threads(pool) => pool.begin(memory),
        }
    }

    /// Ends what was begun: waits for what is in flight and forgets the rest, so that
    /// guest memory is left alone. The engine can be used again.
    ///
    /// # Errors
    /// When the kernel refuses to wait; what is in flight then keeps its memory for ever.
    pub fn drain(&mut self) -> io::Result<()> {
        match self {
            Self::IoUring(uring) => uring.drain(),
            Self::Threads(pool) => {
                pool.drain();
                Ok(())
            }
        }
    }

    /// Queues a request; it may start only at the next [`Self::wait`]. `token` is
    /// below the depth and not in flight.
    ///
    /// # Errors
    /// When the token is not usable.
    pub fn submit(&mut self, token: u16, op: Op) -> io::Result<()> {
        match self {
            Self::IoUring(uring) => uring.submit(token, op),
            Self::Threads(pool) => pool.submit(token, op),
        }
    }

    /// Starts what was queued and collects what is done. It waits for a completion, the
    /// doorbell or the stop event.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(&mut self, until: Until, done: &mut Vec<Completion>) -> io::Result<Wake> {
        match self {
            Self::IoUring(uring) => uring.wait(until, done),
            Self::Threads(pool) => pool.wait(until, done),
        }
    }
}

/// Keeps the file's size whatever range is given.
const DISCARD_MODE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// Zeroes without giving blocks back.
const ZERO_MODE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Carries out a transfer in the calling thread if it needn't wait. Any error says
/// that it would (EAGAIN), that the file system can't tell (EOPNOTSUPP), or what
/// will be found again by whoever waits. None: the request is no such transfer.
pub(crate) fn try_now(fd: RawFd, op: &Op) -> Option<i32> {
    let flags = libc::RWF_NOWAIT;
    let result = match op {
        Op::Read { offset, into } => {
            let list = into.as_slice();
            // SAFETY: the segments are valid guest memory (see `Segments`).
            unsafe { libc::preadv2(fd, list.as_ptr(), count(list), signed(*offset), flags) }
        }
        Op::Write {
            offset,
            from,
            durable: false,
        } => {
            let list = from.as_slice();
            // SAFETY: as above; the kernel only reads them.
            unsafe { libc::pwritev2(fd, list.as_ptr(), count(list), signed(*offset), flags) }
        }
        _ => return None,
    };
    let error = || {
        -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    };
    Some(
        i32::try_from(result)
            .ok()
            .filter(|result| *result >= 0)
            .unwrap_or_else(error),
    )
}

/// Carries out a request in the calling thread.
pub(crate) fn execute(fd: RawFd, op: &Op) -> i32 {
    loop {
        let result = match op {
            Op::Read { offset, into } => {
                let list = into.as_slice();
                // SAFETY: the segments are valid guest memory (see `Segments`).
                unsafe { libc::preadv2(fd, list.as_ptr(), count(list), signed(*offset), 0) }
            }
            Op::Write {
                offset,
                from,
                durable,
            } => {
                let list = from.as_slice();
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above; the kernel only reads them.
                unsafe { libc::pwritev2(fd, list.as_ptr(), count(list), signed(*offset), flags) }
            }
            // SAFETY: no memory is involved.
            Op::Flush => unsafe { libc::fdatasync(fd) as isize },
            Op::Discard { offset, length } => fallocate(fd, DISCARD_MODE, *offset, *length),
            Op::Zero { offset, length } => zero(fd, *offset, *length),
        };
        let error = io::Error::last_os_error();
        // Files of local file systems are not interrupted, but fallocate(2) on tmpfs is:
        // by a signal at the right moment, which no test can send.
        match i32::try_from(result) {
            Ok(result) if result >= 0 => return result,
            _ if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return -error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// Zeroes a range with its blocks kept; a file system that can't do that in one
/// step punches a hole and fills it with unwritten blocks.
fn zero(fd: RawFd, offset: u64, length: u64) -> isize {
    let result = fallocate(fd, ZERO_MODE, offset, length);
    if result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
        let punched = fallocate(fd, DISCARD_MODE, offset, length);
        if punched < 0 {
            return punched;
        }
        return fallocate(fd, libc::FALLOC_FL_KEEP_SIZE, offset, length);
    }
    result
}

fn fallocate(fd: RawFd, mode: i32, offset: u64, length: u64) -> isize {
    // SAFETY: no memory is involved.
    unsafe { libc::fallocate(fd, mode, signed(offset), signed(length)) as isize }
}

/// Offsets are within a file, whose size is an `off_t`.
fn signed(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// At most `MAX_SEGMENTS`.
fn count(list: &[libc::iovec]) -> i32 {
    i32::try_from(list.len()).unwrap_or(i32::MAX)
}
