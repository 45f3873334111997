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
//!
//! What a ring carries out passes no seccomp filter. So the main thread makes each ring,
//! disabled, and restricts it, for as long as it lives, to the requests below on the
//! three files that it is given; the queue's thread can only enable it (io_uring_register(2),
//! IORING_REGISTER_RESTRICTIONS).

#![allow(unsafe_code, reason = "entries of a ring point to guest memory")]

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use vmm_sys_util::epoll::{EpollEvent, EventSet};

use super::{Backend, Completion, DISCARD_MODE, Op, Wake, Wakes, ZERO_MODE, execute, try_now};
use crate::epoll::{self, Epoll, Until};
use crate::memory::{Memory, Segments};

/// Tokens are 16 bits; these are none.
const DOORBELL: u64 = 1 << 32;
const STOP: u64 = 1 << 33;
/// How often the engine was drained stands above the token of the stop event: a poll
/// that was armed before reports a stop that is past.
const DRAINS_SHIFT: u32 = 40;

/// The files as registered with the ring: no request names another one.
const DISK: Fixed = Fixed(0);
const STOP_EVENT: Fixed = Fixed(1);
const DOORBELL_EVENT: Fixed = Fixed(2);

/// The requests that a ring takes. All but the last are on the disk.
const OPCODES: [u8; 7] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
];

/// `IOSQE_FIXED_FILE`: the request names a registered file.
const FIXED_FILE: u8 = 1;

/// Entries of the submission queue: a full one is submitted at once, so it needs not
/// hold all that can be in flight.
const ENTRIES: u32 = 128;
/// Entries of the completion queue: all that can be in flight, and both polls.
const COMPLETIONS: u32 = 512;

/// `IORING_ENTER_GETEVENTS`: also run completions that are only due.
const GET_EVENTS: u32 = 1;
/// `IORING_ENTER_EXT_ARG`: the argument says how long to wait (Linux 5.11).
const EXT_ARG: u32 = 8;

/// A ring that takes no requests yet, and never others than ours.
pub(super) struct Prepared {
    ring: IoUring,
    epoll: Epoll,
}

/// One queue's ring.
pub struct Uring {
    ring: IoUring,
    backend: Arc<Backend>,
    _wakes: Wakes,
    /// Kept until all requests are done.
    memory: Option<Memory>,
    /// The most requests at once: tokens are below it.
    depth: u16,
    /// What is in flight, by token: the kernel reads and writes its segments. As long as
    /// there were ever requests at once, for an idle queue shall cost nothing.
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
    /// How often it was drained.
    drains: u64,
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
    fn take(&mut self, backend: &Backend, op: &Op) -> Option<i32> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let result = try_now(backend.as_raw_fd(), op)?;
        if result < 0 {
            self.penalty = (self.penalty * 2 + 1).min(MAX_PENALTY);
            self.skip = self.penalty;
            return None;
        }
        self.penalty = 0;
        Some(result)
    }
}

impl Prepared {
    pub(super) fn new(backend: &Backend, wakes: &Wakes) -> io::Result<Self> {
        let ring = build()?;
        check(&ring)?;
        let submitter = ring.submitter();
        submitter.register_files(&[
            backend.as_raw_fd(),
            wakes.stop.as_raw_fd(),
            wakes.doorbell.as_raw_fd(),
        ])?;
        // No operation of io_uring_register(2) is named, so none is allowed once the
        // ring is enabled.
        let mut restrictions: Vec<_> = OPCODES.into_iter().map(Restriction::sqe_op).collect();
        restrictions.push(Restriction::sqe_flags_required(FIXED_FILE));
        submitter.register_restrictions(&mut restrictions)?;
        // Made now, while a process that has run out of descriptors can say so.
        let epoll = Epoll::new()?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.watch(wakes.stop.as_ref(), epoll::STOP, EventSet::IN)?;
        epoll.watch(wakes.doorbell.as_ref(), epoll::DOORBELL, edge)?;
        Ok(Self { ring, epoll })
    }

    /// Enables the ring, which from here on is the calling thread's.
    pub(super) fn start(
        self,
        backend: Arc<Backend>,
        wakes: Wakes,
        depth: u16,
    ) -> io::Result<Uring> {
        let Self { ring, epoll } = self;
        // Saves a file table look-up on each entry; older kernels lack it. The ring's
        // restrictions don't hold before it is enabled.
        let _ = ring.submitter().register_ring_fd();
        ring.submitter().register_enable_rings()?;
        Ok(Uring {
            ring,
            backend,
            _wakes: wakes,
            memory: None,
            depth,
            ops: Vec::new(),
            in_flight: 0,
            alone: None,
            short_cut: ShortCut::default(),
            epoll,
            unwatched: 0,
            stop_armed: false,
            doorbell_armed: false,
            drains: 0,
        })
    }
}

/// Whether this kernel's io_uring has all we use: asked once.
fn check(ring: &IoUring) -> io::Result<()> {
    static COMPLETE: OnceLock<bool> = OnceLock::new();
    let is_complete = match COMPLETE.get() {
        Some(is_complete) => *is_complete,
        None => {
            let mut probe = Probe::new();
            ring.submitter().register_probe(&mut probe)?;
            // Polls that stay armed came with this feature (Linux 5.13).
            let stay_armed = ring.params().is_feature_resource_tagging();
            let has_all = OPCODES.iter().all(|code| probe.is_supported(*code));
            *COMPLETE.get_or_init(|| stay_armed && has_all)
        }
    };
    match is_complete {
        true => Ok(()),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// A disabled ring; completions are run when we ask for them, not by interrupting the
/// thread, where the kernel (6.1) can.
fn build() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_r_disabled().setup_cqsize(COMPLETIONS);
    let plain = builder.clone();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(ENTRIES)
        .or_else(|_| plain.build(ENTRIES))
}

impl Uring {
    /// Requests point into this memory from here on.
    pub(super) fn begin(&mut self, memory: Memory) {
        self.memory = Some(memory);
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
        let needed = usize::from(token) + 1;
        if token < self.depth && self.ops.len() < needed {
            self.ops.resize_with(needed, || None);
        }
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

    pub(super) fn wait(&mut self, until: Until, done: &mut Vec<Completion>) -> io::Result<Wake> {
        if let Some((token, op)) = self.alone.take() {
            if let Some(result) = self.short_cut.take(&self.backend, &op) {
                done.push(Completion { token, result, op });
                return self.glance();
            }
            self.start(token, op)?;
        }
        if self.in_flight == 0 {
            return self.wait_for_events(until);
        }
        if !self.stop_armed {
            // Mostly all is done in the very call that submits it.
            self.enter(0, Until::Event)?;
            // The poll of the doorbell outlives a reset of the driver.
            let Wake { rung, .. } = self.reap(done);
            if until == Until::Now || rung || !done.is_empty() {
                let wake = self.glance()?;
                let rung = rung || wake.rung;
                return Ok(Wake { rung, ..wake });
            }
        }
        self.arm()?;
        let block = until != Until::Now && self.ring.completion().is_empty();
        self.enter(usize::from(block), until)?;
        Ok(self.reap(done))
    }

    /// Has the ring poll both events, from when it is first waited on.
    fn arm(&mut self) -> io::Result<()> {
        if !self.stop_armed {
            let poll = opcode::PollAdd::new(STOP_EVENT, POLL_IN)
                .build()
                .user_data(STOP | self.drains << DRAINS_SHIFT);
            self.push(&poll)?;
            self.stop_armed = true;
        }
        if !self.doorbell_armed {
            // Multishot: one entry reports every ring, and the event is never read.
            let poll = opcode::PollAdd::new(DOORBELL_EVENT, POLL_IN)
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
        self.wait_for_events(Until::Now)
    }

    /// Waits with nothing in flight, which needs no ring.
    fn wait_for_events(&mut self, until: Until) -> io::Result<Wake> {
        self.unwatched = 0;
        let mut events = [EpollEvent::default(); 2];
        let count = self.epoll.wait(&mut events, until)?;
        let has = |token| events[..count].iter().any(|event| event.data() == token);
        Ok(Wake {
            stop: has(epoll::STOP),
            rung: has(epoll::DOORBELL),
        })
    }

    /// Collects completions.
    fn reap(&mut self, done: &mut Vec<Completion>) -> Wake {
        let mut wake = Wake::default();
        let stop = STOP | self.drains << DRAINS_SHIFT;
        for entry in self.ring.completion() {
            match entry.user_data() {
                DOORBELL => {
                    self.doorbell_armed = cqueue::more(entry.flags());
                    wake.rung = true;
                }
                token if token & STOP != 0 => wake.stop |= token == stop,
                token => {
                    let slot = usize::try_from(token)
                        .ok()
                        .and_then(|token| self.ops.get_mut(token));
                    if let (Some(op), Ok(token)) = (slot.and_then(Option::take), token.try_into()) {
                        self.in_flight -= 1;
                        let result = fall_back(&self.backend, entry.result(), &op);
                        done.push(Completion { token, result, op });
                    }
                }
            }
        }
        wake
    }

    /// Waits until the kernel is done with guest memory. The stop event may be rung
    /// again after this.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        self.alone = None;
        let mut done = Vec::new();
        while self.in_flight > 0 {
            let waited = self.enter(1, Until::Event);
            self.reap(&mut done);
            done.clear();
            if let (Err(error), true) = (waited, self.in_flight > 0) {
                // The ring can't be waited on, and its requests may still write:
                // what they point to must then stay for ever.
                std::mem::forget(std::mem::take(&mut self.ops));
                std::mem::forget(self.memory.take());
                return Err(error);
            }
        }
        // Its poll, where it was armed, has fired or will.
        self.drains += 1;
        self.stop_armed = false;
        self.unwatched = 0;
        self.memory = None;
        Ok(())
    }

    /// Submits, and waits for so many completions.
    fn enter(&mut self, wanted: usize, until: Until) -> io::Result<()> {
        let queued = {
            let mut queue = self.ring.submission();
            queue.sync();
            queue.len()
        };
        let queued = u32::try_from(queued).unwrap_or(u32::MAX);
        let wanted = u32::try_from(wanted).unwrap_or(1);
        let submitter = self.ring.submitter();
        let result = match until {
            Until::At(_) if wanted > 0 => {
                let left = Timespec::from(until.left().unwrap_or_default());
                let limit = SubmitArgs::new().timespec(&left);
                // SAFETY: the argument and the time in it are live; what the entries point
                // to is in `ops`.
                unsafe { submitter.enter(queued, wanted, GET_EVENTS | EXT_ARG, Some(&limit)) }
            }
            // SAFETY: no argument is passed; what the entries point to is in `ops`.
            _ => unsafe { submitter.enter::<libc::sigset_t>(queued, wanted, GET_EVENTS, None) },
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // Too many completions wait for us: they are reaped, then we come again. The
            // time is over: so too.
            Ok(_) | Err((Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what a request's entry points to is in `ops` until it completes,
            // and the memory behind it in `memory`; polls point to nothing.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            // Full: a batch and the doorbell fit, so this is a resubmission.
            let before = self.ring.submission().len();
            self.enter(0, Until::Event)?;
            if self.ring.submission().len() >= before {
                return Err(io::Error::from(io::ErrorKind::ResourceBusy));
            }
        }
    }
}

impl Drop for Uring {
    /// Guest memory may go only after the kernel is done with it.
    fn drop(&mut self) {
        // On failure, the memory stays.
        let _ = self.drain();
    }
}

/// `POLLIN` as io_uring takes it.
const POLL_IN: u32 = 1;

/// A file system that can't zero a range in one step says so; then it is done here
/// in two. (Any other failure would only be had a second time.)
fn fall_back(backend: &Backend, result: i32, op: &Op) -> i32 {
    match op {
        Op::Zero { .. } if result == -libc::EOPNOTSUPP => execute(backend.as_raw_fd(), op),
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
/// copying a list: faster, and else the same.
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
