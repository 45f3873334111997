//! One queue of a block device: its thread's loop.
//!
//! ```text
//!          ┌─► take chains ─► parse ─► engine.submit ─┐
//!  doorbell┤                                           ├─► engine.wait
//!          └── return chains ◄─ status ◄─ completions ◄┘     (1 system call)
//! ```
//!
//! A chain that the disk's limits don't let pass is put back, and taken again at its time:
//! the wait is the engine's, so that completions and a stop come through as ever.
//!
//! The thread is made when the disk is plugged, and its ring for it: both stay until the
//! device goes. It is no `virtio::thread`, as it waits on its ring and not on epoll.
//!
//! ```text
//!   idle ── start ──► serving ── stop ──► draining ── all is back ──► idle
//!                        └── a broken queue ──────────► idle, until a stop
//! ```
//!
//! A disk that never answers leaves it draining, with the [`Quiet`] in its hand.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::request::{Action, HEADER, Rules, Status, parse};
use super::{DECLARATION, DEPTH, Shared};
use crate::block::{Completion, Engine, EngineKind, Op, Wakes};
use crate::epoll::Until;
use crate::memory::{HostByte, Memory};
use crate::virtio::limit::{Claim, Cost};
use crate::virtio::queue::{Broken, Buffers, Ring};
use crate::virtio::quiet::{Quiet, Why};
use crate::virtio::thread::spawn;
use crate::virtio::{ActiveQueue, Interrupt};

/// A queue to serve.
pub(super) struct Job {
    pub(super) memory: Memory,
    pub(super) features: u64,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) active: ActiveQueue,
}

enum Order {
    Start(Box<Job>),
    Stop(Why, Quiet),
}

/// The way to a queue's thread. Dropping it ends and joins the thread, when the disk
/// has done what it is at.
pub(super) struct QueueWorker {
    /// None: the thread shall end.
    orders: Option<Sender<Order>>,
    /// Written before an order to a thread that may be serving.
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl QueueWorker {
    /// Makes the thread of queue `index`, which rings `doorbell`.
    pub(super) fn new(
        shared: &Arc<Shared>,
        kind: EngineKind,
        index: u16,
        doorbell: &Arc<EventFd>,
    ) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let wakes = Wakes {
            doorbell: Arc::clone(doorbell),
            stop: Arc::clone(&stop),
        };
        let prepared = kind.prepare(&shared.backend, wakes)?;
        let (sender, orders) = channel();
        let (shared, bell) = (Arc::clone(shared), Arc::clone(&stop));
        let name = format!("{}-q{index}", DECLARATION.name);
        let thread = spawn(name, &DECLARATION.profile, move |confined| {
            let engine = confined.and_then(|()| prepared.start(Arc::clone(&shared.backend), DEPTH));
            serve_all(&shared, engine, &orders, &bell);
        })?;
        Ok(Self {
            orders: Some(sender),
            stop,
            thread: Some(thread),
        })
    }

    /// Has it serve a queue until it is stopped. A queue that breaks the rules, or a
    /// host that fails, is reported to the driver. It must not be serving.
    pub(super) fn start(&self, job: Job) {
        let interrupt = Arc::clone(&job.interrupt);
        if self.send(Order::Start(Box::new(job))).is_err() {
            interrupt.needs_reset();
        }
    }

    /// Has it let go of guest memory. One whose thread is gone has done so.
    pub(super) fn stop(&self, why: Why, quiet: Quiet) {
        // Fails only when the counter is full, and then it is written already.
        let _ = self.stop.write(1);
        let _ = self.send(Order::Stop(why, quiet));
    }

    fn send(&self, order: Order) -> Result<(), ()> {
        let orders = self.orders.as_ref().ok_or(())?;
        orders.send(order).map_err(|_| ())
    }
}

impl Drop for QueueWorker {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported to the driver.
            let _ = thread.join();
        }
    }
}

/// Sets DEVICE_NEEDS_RESET when its thread unwinds: a driver must learn that nobody
/// serves its queue any more.
struct PanicGuard(Arc<dyn Interrupt>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.needs_reset();
        }
    }
}

/// The thread: an order at a time, until there is nobody to give one.
fn serve_all(
    shared: &Shared,
    mut engine: io::Result<Engine>,
    orders: &Receiver<Order>,
    bell: &EventFd,
) {
    while let Ok(order) = orders.recv() {
        match order {
            Order::Start(job) => {
                let guard = PanicGuard(Arc::clone(&job.interrupt));
                let served = match &mut engine {
                    Ok(engine) => serve(shared, engine, *job, orders, bell),
                    Err(error) => Err(io::Error::from(error.kind())),
                };
                if served.is_err() {
                    guard.0.needs_reset();
                }
            }
            // Nothing is served: the queue was broken, or never enabled.
            Order::Stop(_, quiet) => {
                // Nonblocking. It was written before the order was sent; and it is read
                // before the word that all is quiet, since from then on it may be written
                // for the next stop.
                let _ = bell.read();
                drop(quiet);
            }
        }
    }
}

/// Serves a queue until a stop, after which guest memory is left alone.
fn serve(
    shared: &Shared,
    engine: &mut Engine,
    job: Job,
    orders: &Receiver<Order>,
    bell: &EventFd,
) -> io::Result<()> {
    let ring = Ring::new(&job.active.queue, Arc::clone(&job.memory));
    let ring = ring.map_err(io::Error::other)?;
    engine.begin(job.memory);
    let mut serving = Serving {
        shared,
        features: job.features,
        interrupt: job.interrupt,
        index: job.active.index,
        depth: ring.size().min(DEPTH),
        ring,
        engine,
        claim: Claim::new(&shared.limiter),
        requests: Vec::new(),
        free: Vec::new(),
        spare: Vec::new(),
    };
    let stopped = serving.serve(orders, bell);
    let held = match &stopped {
        Ok(Some((Why::Hold, _))) => serving.finish_all(),
        _ => Ok(()),
    };
    let state = serving.ring.state(serving.index);
    drop(serving);
    engine.drain()?;
    held?;
    if let Some((_, quiet)) = stopped? {
        quiet.report(state);
    }
    Ok(())
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

/// A job at work.
struct Serving<'a> {
    shared: &'a Shared,
    features: u64,
    interrupt: Arc<dyn Interrupt>,
    index: u16,
    ring: Ring,
    engine: &'a mut Engine,
    /// The most requests at once.
    depth: u16,
    /// To a part of what the disk may do.
    claim: Claim,
    /// By token, as many as there ever were at once: an idle queue has none.
    requests: Vec<Option<InFlight>>,
    /// Tokens that are not in use.
    free: Vec<u16>,
    /// Buffers whose allocations wait to be used again.
    spare: Vec<Buffers>,
}

impl Serving<'_> {
    /// Returns why it was stopped; none: nobody is there any more.
    fn serve(
        &mut self,
        orders: &Receiver<Order>,
        bell: &EventFd,
    ) -> io::Result<Option<(Why, Quiet)>> {
        let mut done = Vec::new();
        loop {
            self.ring.disable_notification();
            let until = self.take()?;
            self.signal_used();
            let wake = self.engine.wait(until, &mut done)?;
            if wake.rung {
                self.shared.counters.notifications.add(1);
            }
            for completion in done.drain(..) {
                self.finish(completion)?;
            }
            self.signal_used();
            if wake.stop {
                let _ = bell.read();
                // It was written a moment before the order is there.
                match orders.recv() {
                    Ok(Order::Stop(why, quiet)) => return Ok(Some((why, quiet))),
                    // Only a queue that is served no more is started.
                    Ok(Order::Start(_)) => return Err(io::Error::other("started twice")),
                    Err(RecvError) => return Ok(None),
                }
            }
        }
    }

    /// Finishes and returns all that is in flight, and takes nothing more.
    fn finish_all(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        while self.free.len() < self.requests.len() {
            self.engine.wait(Until::Event, &mut done)?;
            for completion in done.drain(..) {
                self.finish(completion)?;
            }
        }
        self.signal_used();
        Ok(())
    }

    /// A token for one more request; none: with all out, a completion comes first.
    fn token(&mut self) -> Option<u16> {
        self.free.pop().or_else(|| {
            let next = u16::try_from(self.requests.len()).ok()?;
            (next < self.depth).then(|| self.requests.push(None))?;
            Some(next)
        })
    }

    /// Takes what is available, a queueful at most. Returns until when there is no more
    /// that can be taken.
    fn take(&mut self) -> io::Result<Until> {
        // Looked at once: a disk without limits has nothing else of them.
        let is_limited = self.claim.is_limited();
        for _ in 0..self.ring.size() {
            // With all tokens out, a completion wakes us before the next can start.
            let Some(token) = self.token() else {
                return Ok(Until::Event);
            };
            // Not in use until a request starts.
            self.free.push(token);
            let mut buffers = self.spare.pop().unwrap_or_default();
            let popped = self.ring.pop(&mut buffers).map_err(io::Error::other)?;
            let Some(head) = popped else {
                self.spare.push(buffers);
                return Ok(Until::more(self.ring.enable_notification()));
            };
            if is_limited && let Err(time) = self.claim.take(cost(&buffers), Instant::now()) {
                self.ring.unpop();
                self.spare.push(buffers);
                return Ok(Until::At(time));
            }
            self.begin(head, buffers)?;
        }
        Ok(Until::Now)
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

/// Bytes of a request's status.
const STATUS: usize = 1;

/// What a request takes of what the disk may do: its data, without header and status.
fn cost(buffers: &Buffers) -> Cost {
    let whole = buffers.readable.length() + buffers.writable.length();
    Cost::one(whole.saturating_sub(HEADER + STATUS))
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
