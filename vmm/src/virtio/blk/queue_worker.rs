//! One queue of a block device: its thread's loop.
//!
//! ```text
//!          ┌─► take chains ─► parse ─► engine.submit ─┐
//!  doorbell┤                                           ├─► engine.wait
//!          └── return chains ◄─ status ◄─ completions ◄┘     (1 system call)
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmm_sys_util::eventfd::EventFd;

use super::request::{Action, Rules, Status, parse};
use super::{DEPTH, Shared};
use crate::block::{Completion, Engine, EngineKind, Op, Setup};
use crate::virtio::queue::{Broken, Buffers, HostByte, Ring};
use crate::virtio::{ActiveQueue, Interrupt, Memory};

/// What a queue worker is made from.
pub(super) struct QueueWorker {
    pub(super) shared: Arc<Shared>,
    pub(super) memory: Memory,
    pub(super) features: u64,
    pub(super) engine: EngineKind,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) active: ActiveQueue,
}

/// A request that the engine has.
struct InFlight {
    head: u16,
    status: HostByte,
    /// Bytes asked for, and bytes moved by transfers that fell short.
    wanted: usize,
    moved: usize,
    /// The buffers that the operation didn't take, for reuse.
    rest: Buffers,
}

/// A queue worker at work.
struct Running {
    shared: Arc<Shared>,
    features: u64,
    interrupt: Arc<dyn Interrupt>,
    index: u16,
    ring: Ring,
    engine: Engine,
    /// By token.
    requests: Vec<Option<InFlight>>,
    free: Vec<u16>,
    /// Buffers whose allocations wait to be used again.
    spare: Vec<Buffers>,
}

impl QueueWorker {
    /// Serves the queue until `stop` is written. A queue that breaks the rules, or
    /// a host that fails to wait, is reported to the driver, and then there is only
    /// the end to wait for: the thread leaves when all in flight is done.
    pub(super) fn run(self, stop: Arc<EventFd>) {
        let interrupt = Arc::clone(&self.interrupt);
        let result = self.start(stop).and_then(|mut running| running.serve());
        if result.is_err() {
            interrupt.needs_reset();
        }
    }

    fn start(self, stop: Arc<EventFd>) -> io::Result<Running> {
        let ring = Ring::new(&self.active.queue, Arc::clone(&self.memory));
        let ring = ring.map_err(io::Error::other)?;
        let depth = ring.size().min(DEPTH);
        let engine = Engine::new(
            self.engine,
            Setup {
                backend: Arc::clone(&self.shared.backend),
                memory: self.memory,
                depth,
                doorbell: self.active.doorbell,
                stop,
            },
        )?;
        Ok(Running {
            shared: self.shared,
            features: self.features,
            interrupt: self.interrupt,
            index: self.active.index,
            ring,
            engine,
            requests: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            spare: Vec::new(),
        })
    }
}

impl Running {
    fn serve(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        loop {
            self.ring.quiet();
            let more = self.take()?;
            self.signal_used();
            let wake = self.engine.wait(!more, &mut done)?;
            if wake.stop {
                return Ok(());
            }
            if wake.rung {
                self.shared.counters.notifications.add(1);
            }
            for completion in done.drain(..) {
                self.finish(completion)?;
            }
            self.signal_used();
        }
    }

    /// Takes what is available, a queueful at most. Returns whether there is more
    /// that can be taken at once.
    fn take(&mut self) -> io::Result<bool> {
        for _ in 0..self.ring.size() {
            // With all tokens out, a completion wakes us before the next can start.
            if self.free.is_empty() {
                return Ok(false);
            }
            let mut buffers = self.spare.pop().unwrap_or_default();
            let popped = self.ring.pop(&mut buffers).map_err(io::Error::other)?;
            match popped {
                Some(head) => self.begin(head, buffers)?,
                None => {
                    self.spare.push(buffers);
                    return Ok(self.ring.listen());
                }
            }
        }
        Ok(true)
    }

    fn begin(&mut self, head: u16, mut buffers: Buffers) -> io::Result<()> {
        let status = buffers.writable.split_last();
        let status = status.ok_or(Broken::Request).map_err(io::Error::other)?;
        let rules = Rules {
            sectors: self.shared.sectors.load(Ordering::Relaxed),
            features: self.features,
            read_only: self.shared.backend.read_only(),
            id: &self.shared.id,
        };
        match parse(&mut buffers, rules).map_err(io::Error::other)? {
            Action::Done(said, written) => {
                self.spare.push(buffers);
                self.give_back(head, &status, said, written);
                Ok(())
            }
            Action::Start(op) => {
                let Some(token) = self.free.pop() else {
                    return Err(io::Error::other("more requests than tokens"));
                };
                self.requests[usize::from(token)] = Some(InFlight {
                    head,
                    status,
                    wanted: length(&op),
                    moved: 0,
                    rest: buffers,
                });
                self.engine.submit(token, op)
            }
        }
    }

    /// A completion: the rest of a transfer that fell short, or the end.
    fn finish(&mut self, completion: Completion) -> io::Result<()> {
        let Completion { token, result, op } = completion;
        let slot = self.requests.get_mut(usize::from(token));
        let Some(request) = slot.and_then(Option::as_mut) else {
            return Ok(());
        };
        let mut status = Status::Ok;
        match usize::try_from(result) {
            Err(_) => status = Status::of_errno(result),
            Ok(count) => {
                request.moved += count;
                if request.moved < request.wanted {
                    if count > 0 {
                        return self.engine.submit(token, advance(op, count));
                    }
                    // The file has become shorter than the disk.
                    status = Status::IoError;
                }
            }
        }
        let Some(InFlight {
            head,
            status: at,
            moved,
            rest,
            ..
        }) = self.requests[usize::from(token)].take()
        else {
            return Ok(());
        };
        let written = match op {
            Op::Read { .. } => u32::try_from(moved).unwrap_or(u32::MAX - 1),
            _ => 0,
        };
        if status == Status::Ok {
            self.count(&op, moved);
        }
        self.free.push(token);
        self.spare.push(reuse(op, rest));
        self.give_back(head, &at, status, written);
        Ok(())
    }

    fn count(&self, op: &Op, moved: usize) {
        let counters = &self.shared.counters;
        match op {
            Op::Read { .. } => {
                counters.reads.add(1);
                counters.read_bytes.add_length(moved);
            }
            Op::Write { .. } => {
                counters.writes.add(1);
                counters.written_bytes.add_length(moved);
            }
            Op::Flush => counters.flushes.add(1),
            Op::Discard { .. } | Op::Zero { .. } => counters.discards.add(1),
        }
    }

    fn give_back(&mut self, head: u16, at: &HostByte, status: Status, written: u32) {
        if status != Status::Ok {
            self.shared.counters.errors.add(1);
        }
        at.write(status as u8);
        // The status byte counts too.
        self.ring.push_used(head, written.saturating_add(1));
    }

    /// Shows the driver all that was returned, with one interrupt if it wants one.
    fn signal_used(&mut self) {
        if self.ring.wants_interrupt() {
            self.interrupt.queue(self.index);
        }
    }
}

impl Status {
    /// What a driver learns of a failed system call.
    fn of_errno(result: i32) -> Self {
        if result == -libc::EOPNOTSUPP {
            Self::Unsupported
        } else {
            Self::IoError
        }
    }
}

/// Bytes that a transfer moves.
fn length(op: &Op) -> usize {
    match op {
        Op::Read { into, .. } => into.length(),
        Op::Write { from, .. } => from.length(),
        Op::Flush | Op::Discard { .. } | Op::Zero { .. } => 0,
    }
}

/// The rest of a transfer that moved `count` bytes.
fn advance(mut op: Op, count: usize) -> Op {
    match &mut op {
        Op::Read {
            offset,
            into: segments,
        }
        | Op::Write {
            offset,
            from: segments,
            ..
        } => {
            *offset += count as u64;
            segments.trim_front(count);
        }
        Op::Flush | Op::Discard { .. } | Op::Zero { .. } => {}
    }
    op
}

/// Puts an operation's segments back into the buffers they came from.
fn reuse(op: Op, mut rest: Buffers) -> Buffers {
    match op {
        Op::Read { into, .. } => rest.writable = into,
        Op::Write { from, .. } => rest.readable = from,
        Op::Flush | Op::Discard { .. } | Op::Zero { .. } => {}
    }
    rest
}
