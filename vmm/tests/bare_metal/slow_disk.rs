//! A disk that takes as long as a test wants: a FUSE file system that is one file, served
//! by the test (Linux, include/uapi/linux/fuse.h). It is mounted nowhere, so nothing is
//! left of it when its descriptors are closed, however the test ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// Bytes of the disk.
const SIZE: u64 = 1 << 20;
/// Bytes of the largest write.
const MAX_WRITE: u32 = 1 << 16;
/// How soon the server notices what a test wants.
const TICK: Duration = Duration::from_millis(2);

const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
/// What nobody answers: FORGET, INTERRUPT, DESTROY, BATCH_FORGET.
const UNANSWERED: [u32; 4] = [2, 36, 38, 42];

/// How the disk fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// As a disk does.
    Everything,
    /// Reads, writes, flushes and closes are taken and not done: whoever waits for them can't be
    /// killed.
    NoTransfers,
    /// As a disk does, until its attributes were asked for once.
    OneLook,
    /// Its attributes aren't told, be it to who looks for its size.
    NoLooks,
    /// Nothing is even looked at: whoever waits can be killed.
    Nothing,
}

/// For how long the kernel needn't ask for a file's attributes again, in seconds.
const REMEMBERED: u32 = 3600;

struct State {
    answers: Mutex<Answers>,
    /// Transfers that are not done, as far as that is known.
    hanging: AtomicUsize,
    ends: AtomicBool,
}

/// The disk. Dropping it fails what hangs.
pub(super) struct SlowDisk {
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
    mount: OwnedFd,
}

impl SlowDisk {
    /// A disk that answers. Nothing where one can't be had, said aloud.
    pub(super) fn new() -> Option<Self> {
        // FOPEN_NOFLUSH: that it is closed is no request.
        Self::opened_with(1 << 5, REMEMBERED)
    }

    /// A disk for which closing is a transfer too, as it is where the host writes back
    /// then.
    pub(super) fn with_flush() -> Option<Self> {
        Self::opened_with(0, REMEMBERED)
    }

    /// A disk whose size is a request each time, as it is on a network's file system.
    pub(super) fn unremembered() -> Option<Self> {
        Self::opened_with(1 << 5, 0)
    }

    fn opened_with(flags: u32, remembered: u32) -> Option<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/fuse");
        let (Ok(device), true) = (device, rustix::process::geteuid().is_root()) else {
            eprintln!("SKIPPED: there is no /dev/fuse, or no right to use it");
            return None;
        };
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
        let set = |name: &str, value: &str| {
            fsconfig_set_string(&context, name, value).expect("an option of FUSE");
        };
        set("fd", &device.as_raw_fd().to_string());
        set("rootmode", "100000");
        set("user_id", "0");
        set("group_id", "0");
        fsconfig_create(&context).expect("FUSE");
        let mount = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .expect("fsmount");
        let state = Arc::new(State {
            answers: Mutex::new(Answers::Everything),
            hanging: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
        });
        let server = Server {
            device,
            state: Arc::clone(&state),
            held: Vec::new(),
            flags,
            remembered,
        };
        Some(Self {
            state,
            server: Some(std::thread::spawn(|| server.run())),
            mount,
        })
    }

    /// Where other processes find it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.mount.as_raw_fd())
    }

    /// What is answered from now on; what hangs too, once everything is.
    pub(super) fn answers(&self, answers: Answers) {
        *self.state.answers.lock().expect("no panic") = answers;
    }

    /// Whether a request waits for an answer.
    pub(super) fn hangs(&self) -> bool {
        self.state.hanging.load(Ordering::SeqCst) > 0
    }

    /// Whether one look was answered, as it was to be.
    pub(super) fn answered_one_look(&self) -> bool {
        *self.state.answers.lock().expect("no panic") == Answers::NoLooks
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        // With the server goes its descriptor, and with that the connection.
        let _ = self.server.take().map(JoinHandle::join);
    }
}

struct Request {
    opcode: u32,
    unique: u64,
    /// Bytes of a transfer, or the size to set.
    size: u32,
}

struct Server {
    device: File,
    state: Arc<State>,
    held: Vec<Request>,
    /// Of an open file: FOPEN_NOFLUSH or none.
    flags: u32,
    /// For how long attributes are, in seconds.
    remembered: u32,
}

impl Server {
    fn run(mut self) {
        let mut buffer = vec![0; MAX_WRITE as usize + 8192];
        let state = Arc::clone(&self.state);
        while !state.ends.load(Ordering::SeqCst) {
            let is_ready = self.is_ready();
            // Held, so that what a test asks for holds for each request that follows.
            let mut answers = state.answers.lock().expect("no panic");
            if *answers == Answers::Everything {
                for request in std::mem::take(&mut self.held) {
                    self.answer(&request);
                }
            }
            let waits = is_ready && *answers == Answers::Nothing;
            let hanging = self.held.len() + usize::from(waits);
            state.hanging.store(hanging, Ordering::SeqCst);
            if waits {
                drop(answers);
                std::thread::sleep(TICK);
            } else if is_ready && let Ok(length) = self.device.read(&mut buffer) {
                let request = Request::parse(&buffer[..length]);
                let is_look = request.opcode == GETATTR;
                let is_held = match *answers {
                    Answers::NoTransfers => request.is_transfer(),
                    Answers::NoLooks => is_look,
                    _ => false,
                };
                match is_held {
                    true => self.held.push(request),
                    false => self.answer(&request),
                }
                if *answers == Answers::OneLook && is_look {
                    *answers = Answers::NoLooks;
                }
            }
        }
    }

    fn is_ready(&self) -> bool {
        let tick = Timespec::try_from(TICK).ok();
        let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
        matches!(poll(&mut fds, tick.as_ref()), Ok(1))
    }

    fn answer(&mut self, request: &Request) {
        if UNANSWERED.contains(&request.opcode) {
            return;
        }
        let (error, body) = match request.opcode {
            INIT => (0, init()),
            GETATTR => {
                let size = u32::try_from(SIZE).expect("a small disk");
                (0, attributes(size, self.remembered))
            }
            // All that is ever set is its size, which is then said to be so.
            SETATTR => (0, attributes(request.size, self.remembered)),
            // A handle, and FOPEN_DIRECT_IO: each transfer is a request.
            OPEN => (0, [0, 0, 1 | self.flags, 0].map(u32::to_le_bytes).concat()),
            READ => (0, vec![0; request.size as usize]),
            WRITE => (0, [request.size, 0].map(u32::to_le_bytes).concat()),
            RELEASE | FLUSH | FSYNC => (0, Vec::new()),
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).expect("a short answer");
        let mut answer = length.to_le_bytes().to_vec();
        answer.extend(error.to_le_bytes());
        answer.extend(request.unique.to_le_bytes());
        answer.extend(body);
        // Whoever asked may be gone.
        let _ = self.device.write(&answer);
    }
}

impl Request {
    /// `struct fuse_in_header`, and the size of `struct fuse_read_in` and its like (of
    /// `fuse_setattr_in`, the lower half).
    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4).unwrap_or(&[0; 4]);
            u32::from_le_bytes(bytes.try_into().expect("four bytes"))
        };
        Self {
            opcode: word(4),
            unique: u64::from(word(8)) | u64::from(word(12)) << 32,
            size: word(40 + 16),
        }
    }

    fn is_transfer(&self) -> bool {
        matches!(self.opcode, READ | WRITE | FSYNC | FLUSH)
    }
}

/// `struct fuse_init_out` of version 7.31.
fn init() -> Vec<u8> {
    let mut words = [0u32; 16];
    words[..2].copy_from_slice(&[7, 31]);
    words[5] = MAX_WRITE;
    words.map(u32::to_le_bytes).concat()
}

/// `struct fuse_attr_out`: a file of this size, for so long.
fn attributes(size: u32, remembered: u32) -> Vec<u8> {
    let mut words = [0u32; 26];
    words[0] = remembered;
    words[4] = 1; // ino
    words[6] = size;
    words[19] = 0o100_600; // mode
    words[20] = 1; // nlink
    words[24] = 4096; // blksize
    words.map(u32::to_le_bytes).concat()
}
