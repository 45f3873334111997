//! The io_uring engine. The doorbell and the stop event are polled by the same
//! ring, so that one system call submits a batch and waits for whatever comes
//! first: a completion, a doorbell, the end.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use super::{Completion, DISCARD_MODE, Op, Setup, Wake, ZERO_MODE, execute};
use crate::virtio::queue::Segments;

/// Tokens are 16 bits; these are none.
const DOORBELL: u64 = 1 << 32;
const STOP: u64 = 1 << 33;

/// The disk, as registered with the ring.
const DISK: Fixed = Fixed(0);

/// `IORING_ENTER_GETEVENTS`: also run completions that are only due.
const GET_EVENTS: u32 = 1;

/// One queue's ring.
pub struct Uring {
    ring: IoUring,
    setup: Setup,
    /// What is in flight, by token: the kernel reads and writes its segments.
    ops: Vec<Option<Op>>,
    in_flight: usize,
    doorbell_armed: bool,
}

/// Whether this kernel has io_uring with all we use, and lets us.
pub(super) fn probe() -> io::Result<()> {
    let ring = build(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
    ];
    if needed.iter().all(|code| probe.is_supported(*code)) {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// A ring; completions are run when we ask for them, not by interrupting the
/// thread, where the kernel (6.1) can.
fn build(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries)
        .or_else(|_| IoUring::new(entries))
}

impl Uring {
    pub(super) fn new(setup: Setup) -> io::Result<Self> {
        // Room for a whole batch, the doorbell and the stop event.
        let ring = build((u32::from(setup.depth) + 2).next_power_of_two())?;
        // Saves a file table look-up on each entry; older kernels have it not.
        let _ = ring.submitter().register_ring_fd();
        ring.submitter()
            .register_files(&[setup.backend.as_raw_fd()])?;
        let mut uring = Self {
            ring,
            ops: (0..setup.depth).map(|_| None).collect(),
            in_flight: 0,
            doorbell_armed: false,
            setup,
        };
        let stop = opcode::PollAdd::new(Fd(uring.setup.stop.as_raw_fd()), POLL_IN)
            .build()
            .user_data(STOP);
        uring.push(&stop)?;
        Ok(uring)
    }

    pub(super) fn submit(&mut self, token: u16, op: Op) -> io::Result<()> {
        let entry = entry(&op).user_data(token.into());
        match self.ops.get_mut(usize::from(token)) {
            Some(slot) if slot.is_none() => *slot = Some(op),
            _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
        self.in_flight += 1;
        if let Err(error) = self.push(&entry) {
            self.ops[usize::from(token)] = None;
            self.in_flight -= 1;
            return Err(error);
        }
        Ok(())
    }

    pub(super) fn wait(&mut self, block: bool, done: &mut Vec<Completion>) -> io::Result<Wake> {
        if !self.doorbell_armed {
            // Multishot: one entry tells of every ring, and the event is never read.
            let poll = opcode::PollAdd::new(Fd(self.setup.doorbell.as_raw_fd()), POLL_IN)
                .multi(true)
                .build()
                .user_data(DOORBELL);
            self.push(&poll)?;
            self.doorbell_armed = true;
        }
        let ready = !self.ring.completion().is_empty();
        self.enter(usize::from(block && !ready))?;
        Ok(self.reap(done))
    }

    /// Collects completions.
    fn reap(&mut self, done: &mut Vec<Completion>) -> Wake {
        let mut wake = Wake::default();
        for entry in self.ring.completion() {
            match entry.user_data() {
                DOORBELL => self.doorbell_armed = cqueue::more(entry.flags()),
                STOP => wake.stop = true,
                token => {
                    let slot = usize::try_from(token)
                        .ok()
                        .and_then(|token| self.ops.get_mut(token));
                    if let (Some(op), Ok(token)) = (slot.and_then(Option::take), token.try_into()) {
                        self.in_flight -= 1;
                        let result = fall_back(&self.setup, entry.result(), &op);
                        done.push(Completion { token, result, op });
                    }
                }
            }
        }
        wake
    }

    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        let queued = {
            let mut queue = self.ring.submission();
            queue.sync();
            queue.len()
        };
        let queued = u32::try_from(queued).unwrap_or(u32::MAX);
        let wanted = u32::try_from(wanted).unwrap_or(1);
        // SAFETY: no argument is passed; what the entries point to is in `ops`.
        let result = unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(queued, wanted, GET_EVENTS, None)
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // Too many completions wait for us: they are reaped, then we come again.
            Ok(_) | Err((Some(libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what a request's entry points to is in `ops` until it completes,
            // and the memory behind it in `setup`; polls point to nothing.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            // Full: a batch and the doorbell fit, so this is a resubmission.
            let before = self.ring.submission().len();
            self.enter(0)?;
            if self.ring.submission().len() >= before {
                return Err(io::Error::from(io::ErrorKind::ResourceBusy));
            }
        }
    }
}

impl Drop for Uring {
    /// Guest memory may go only after the kernel is done with it.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight > 0 {
            let waited = self.enter(1);
            self.reap(&mut done);
            done.clear();
            if waited.is_err() && self.in_flight > 0 {
                // The ring can't be waited on, and its requests may still write:
                // what they point to must then stay for ever.
                std::mem::forget(std::mem::take(&mut self.ops));
                std::mem::forget(std::sync::Arc::clone(&self.setup.memory));
                return;
            }
        }
    }
}

/// `POLLIN` as io_uring takes it.
const POLL_IN: u32 = 1;

/// A file system that can't zero a range in one step says so; then it is done here
/// in two.
fn fall_back(setup: &Setup, result: i32, op: &Op) -> i32 {
    match op {
        Op::Zero { .. } if result == -libc::EOPNOTSUPP => execute(setup.backend.as_raw_fd(), op),
        _ => result,
    }
}

fn entry(op: &Op) -> squeue::Entry {
    match op {
        Op::Read { offset, into } => match single(into) {
            Some((base, length)) => opcode::Read::new(DISK, base, length)
                .offset(*offset)
                .build(),
            None => {
                let list = into.as_slice();
                opcode::Readv::new(DISK, list.as_ptr(), length(list.len()))
                    .offset(*offset)
                    .build()
            }
        },
        Op::Write {
            offset,
            from,
            durable,
        } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            match single(from) {
                Some((base, length)) => opcode::Write::new(DISK, base, length)
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
                None => {
                    let list = from.as_slice();
                    opcode::Writev::new(DISK, list.as_ptr(), length(list.len()))
                        .offset(*offset)
                        .rw_flags(flags)
                        .build()
                }
            }
        }
        Op::Flush => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
        Op::Discard { offset, length } => opcode::Fallocate::new(DISK, *length)
            .offset(*offset)
            .mode(DISCARD_MODE)
            .build(),
        Op::Zero { offset, length } => opcode::Fallocate::new(DISK, *length)
            .offset(*offset)
            .mode(ZERO_MODE)
            .build(),
    }
}

/// The one range of a transfer that has only one, which the kernel takes without
/// copying a list.
fn single(segments: &Segments) -> Option<(*mut u8, u32)> {
    match segments.as_slice() {
        [one] => Some((one.iov_base.cast(), u32::try_from(one.iov_len).ok()?)),
        _ => None,
    }
}

/// At most `MAX_SEGMENTS`.
fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
