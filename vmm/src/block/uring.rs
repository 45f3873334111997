//! The io_uring engine, with a short cut.
//!
//! ```text
//!  submit ─┬ alone: preadv2/pwritev2(RWF_NOWAIT) ─ done: the page cache had it
//!          │                └ would wait ─┐
//!          └ one of several ──────────────┴► ring, one system call for a batch
//!  wait   ─┬ nothing in flight: epoll on doorbell and stop event
//!          └ else: the ring itself, which then polls both events too, so that one
//!            system call submits and waits for whatever comes first
//! ```
//!
//! The short cut saves a transfer that comes alone what the ring costs beyond a
//! plain system call. A disk that keeps missing the page cache is tried less and less often.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use vmm_sys_util::epoll::{EpollEvent, EventSet};

use super::{Completion, DISCARD_MODE, Op, Setup, Wake, ZERO_MODE, execute, try_now};
use crate::virtio::queue::Segments;
use crate::virtio::worker::{self, Epoll};

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
    /// The first request since the last wait, until it is known whether it is alone.
    alone: Option<(u16, Op)>,
    short_cut: ShortCut,
    epoll: Epoll,
    /// Waits without a look at the stop event.
    unwatched: u32,
    /// Whether the ring polls the two events: from the first wait on it on.
    stop_armed: bool,
    doorbell_armed: bool,
}

/// The most transfers that go to the ring untried after one that would wait.
const MAX_PENALTY: u32 = 64;

/// The most waits in a row without a system call: a guest that always has one more
/// request must not keep us from the stop event.
const MAX_UNWATCHED: u32 = 16;

/// When to try the short cut.
#[derive(Default)]
struct ShortCut {
    /// Transfers that still go to the ring untried.
    skip: u32,
    /// How many that were at the last miss.
    penalty: u32,
}

impl ShortCut {
    /// Carries a transfer out if nothing has to be waited for.
    fn take(&mut self, setup: &Setup, op: &Op) -> Option<i32> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let result = try_now(setup.backend.as_raw_fd(), op)?;
        if result < 0 {
            self.penalty = (self.penalty * 2 + 1).min(MAX_PENALTY);
            self.skip = self.penalty;
            return None;
        }
        self.penalty = 0;
        Some(result)
    }
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
        // Saves a file table look-up on each entry; older kernels lack it.
        let _ = ring.submitter().register_ring_fd();
        ring.submitter()
            .register_files(&[setup.backend.as_raw_fd()])?;
        let epoll = Epoll::new()?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.watch(setup.stop.as_ref(), worker::STOP, EventSet::IN)?;
        epoll.watch(setup.doorbell.as_ref(), worker::DOORBELL, edge)?;
        Ok(Self {
            ring,
            ops: (0..setup.depth).map(|_| None).collect(),
            in_flight: 0,
            alone: None,
            short_cut: ShortCut::default(),
            epoll,
            unwatched: 0,
            stop_armed: false,
            doorbell_armed: false,
            setup,
        })
    }

    pub(super) fn submit(&mut self, token: u16, op: Op) -> io::Result<()> {
        if self.in_flight == 0 && self.alone.is_none() {
            self.alone = Some((token, op));
            return Ok(());
        }
        if let Some((first, op)) = self.alone.take() {
            self.start(first, op)?;
        }
        self.start(token, op)
    }

    /// Queues a request in the ring.
    fn start(&mut self, token: u16, op: Op) -> io::Result<()> {
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
        if let Some((token, op)) = self.alone.take() {
            if let Some(result) = self.short_cut.take(&self.setup, &op) {
                done.push(Completion { token, result, op });
                return self.glance();
            }
            self.start(token, op)?;
        }
        if self.in_flight == 0 {
            return self.wait_for_events(block);
        }
        if !self.stop_armed {
            // Mostly all is done in the very call that submits it.
            self.enter(0)?;
            self.reap(done);
            if !block || !done.is_empty() {
                return self.glance();
            }
        }
        self.arm()?;
        let ready = !self.ring.completion().is_empty();
        self.enter(usize::from(block && !ready))?;
        Ok(self.reap(done))
    }

    /// Has the ring poll both events, from when it is first waited on.
    fn arm(&mut self) -> io::Result<()> {
        if !self.stop_armed {
            let poll = opcode::PollAdd::new(Fd(self.setup.stop.as_raw_fd()), POLL_IN)
                .build()
                .user_data(STOP);
            self.push(&poll)?;
            self.stop_armed = true;
        }
        if !self.doorbell_armed {
            // Multishot: one entry reports every ring, and the event is never read.
            let poll = opcode::PollAdd::new(Fd(self.setup.doorbell.as_raw_fd()), POLL_IN)
                .multi(true)
                .build()
                .user_data(DOORBELL);
            self.push(&poll)?;
            self.doorbell_armed = true;
        }
        Ok(())
    }

    /// Looks at the stop event now and then: the caller comes again before it would
    /// block.
    fn glance(&mut self) -> io::Result<Wake> {
        if self.unwatched < MAX_UNWATCHED {
            self.unwatched += 1;
            return Ok(Wake::default());
        }
        self.wait_for_events(false)
    }

    /// Waits with nothing in flight, which needs no ring.
    fn wait_for_events(&mut self, block: bool) -> io::Result<Wake> {
        self.unwatched = 0;
        let mut events = [EpollEvent::default(); 2];
        let count = self.epoll.wait(&mut events, !block)?;
        let has = |token| events[..count].iter().any(|event| event.data() == token);
        Ok(Wake {
            stop: has(worker::STOP),
            rung: has(worker::DOORBELL),
        })
    }

    /// Collects completions.
    fn reap(&mut self, done: &mut Vec<Completion>) -> Wake {
        let mut wake = Wake::default();
        for entry in self.ring.completion() {
            match entry.user_data() {
                DOORBELL => {
                    self.doorbell_armed = cqueue::more(entry.flags());
                    wake.rung = true;
                }
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
