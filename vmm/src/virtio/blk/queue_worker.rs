//! One queue of a block device: its thread's loop.
//!
//! ```text
//!          ┌─► take chains ─► parse ─► engine.submit ─┐
//!  doorbell┤                                           ├─► engine.wait
//!          └── return chains ◄─ status ◄─ completions ◄┘     (1 system call)
//! ```

//!
//! The thread is made at the queue's first start and stays until the device goes: its
//! ring was made for it when the device was plugged, and is its own.
//!
//! ```text
//!   prepared ── start ──► serving ── stop requested, or a broken queue ──► idle
//!                            ▲                                              │
//!                            └────────────────── start ─────────────────────┘
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::request::{Action, Rules, Status, parse};
use super::{DECLARATION, DEPTH, Shared};
use crate::block::{Completion, Engine, EngineKind, Op, Prepared, Wakes};
use crate::memory::{HostByte, Memory};
use crate::virtio::queue::{Broken, Buffers, Ring};
use crate::virtio::worker::{PanicGuard, spawn};
use crate::virtio::{ActiveQueue, Interrupt};

/// A queue to serve, until the next reset.
pub(super) struct Job {
    pub(super) memory: Memory,
    pub(super) features: u64,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) active: ActiveQueue,
}

/// A queue's thread, or what it will be made from. Dropping it stops and joins.
pub(super) struct QueueWorker {
    shared: Arc<Shared>,
    wakes: Wakes,
    /// Until there is a thread.
    prepared: Option<Prepared>,
    thread: Option<Thread>,
    /// Whether a job was sent whose end was not seen.
    is_serving: bool,
}

struct Thread {
    jobs: Sender<Job>,
    /// One message for each job that has ended.
    ended: Receiver<()>,
    handle: JoinHandle<()>,
}

impl QueueWorker {
    /// Prepares to serve the queue that rings `doorbell`.
    pub(super) fn new(
        shared: &Arc<Shared>,
        engine: EngineKind,
        doorbell: &Arc<EventFd>,
    ) -> io::Result<Self> {
        let wakes = Wakes {
            doorbell: Arc::clone(doorbell),
            stop: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
        };
        Ok(Self {
            shared: Arc::clone(shared),
            prepared: Some(engine.prepare(&shared.backend, wakes.clone())?),
            wakes,
            thread: None,
            is_serving: false,
        })
    }

    /// Whether it serves the queue that rings `doorbell`.
    pub(super) fn is_rung_by(&self, doorbell: &Arc<EventFd>) -> bool {
        Arc::ptr_eq(&self.wakes.doorbell, doorbell)
    }

    /// Serves a queue until a stop is requested. A queue that breaks the rules, or a
    /// host that fails, is reported to the driver.
    ///
    /// # Errors
    /// When no thread can be had, or the one there was is gone.
    pub(super) fn start(&mut self, job: Job) -> io::Result<()> {
        self.wait_idle();
        // Nothing is written: the nonblocking read says so.
        let _ = self.wakes.stop.read();
        if let Some(prepared) = self.prepared.take() {
            let (jobs, to_do) = channel();
            let (end, ended) = channel();
            let shared = Arc::clone(&self.shared);
            let suffix = format!("-q{}", job.active.index);
            let handle = spawn(&DECLARATION, &suffix, move |confined| {
                let engine =
                    confined.and_then(|()| prepared.start(Arc::clone(&shared.backend), DEPTH));
                serve_jobs(&shared, engine, &to_do, &end);
            })?;
            self.thread = Some(Thread {
                jobs,
                ended,
                handle,
            });
        }
        let gone = || io::Error::other("the queue's thread is gone");
        let thread = self.thread.as_ref().ok_or_else(gone)?;
        thread.jobs.send(job).map_err(|_| gone())?;
        self.is_serving = true;
        Ok(())
    }

    /// Requests the end of the job, without waiting for it.
    pub(super) fn request_stop(&self) {
        // Fails only when the counter is full, and then it is written already.
        let _ = self.wakes.stop.write(1);
    }

    /// Waits until the job has ended, after its stop was requested.
    pub(super) fn wait_idle(&mut self) {
        if let (true, Some(thread)) = (self.is_serving, &self.thread) {
            // It fails when the thread has unwound, which ends a job too.
            let _ = thread.ended.recv();
        }
        self.is_serving = false;
    }
}

impl Drop for QueueWorker {
    fn drop(&mut self) {
        self.request_stop();
        self.wait_idle();
        if let Some(Thread {
            jobs,
            ended,
            handle,
        }) = self.thread.take()
        {
            drop((jobs, ended));
            // A panic of the thread was reported to the driver.
            let _ = handle.join();
        }
    }
}

fn serve_jobs(
    shared: &Arc<Shared>,
    mut engine: io::Result<Engine>,
    jobs: &Receiver<Job>,
    end: &Sender<()>,
) {
    while let Ok(job) = jobs.recv() {
        let guard = PanicGuard(Arc::clone(&job.interrupt));
        let served = match &mut engine {
            Ok(engine) => {
                let served = serve(shared, engine, job);
                engine.drain().and(served)
            }
            Err(error) => Err(io::Error::from(error.kind())),
        };
        if served.is_err() {
            guard.0.needs_reset();
        }
        if end.send(()).is_err() {
            return;
        }
    }
}

fn serve(shared: &Arc<Shared>, engine: &mut Engine, job: Job) -> io::Result<()> {
    let ring = Ring::new(&job.active.queue, Arc::clone(&job.memory));
    let ring = ring.map_err(io::Error::other)?;
    engine.begin(job.memory);
    let depth = ring.size().min(DEPTH);
    Serving {
        shared,
        features: job.features,
        interrupt: job.interrupt,
        index: job.active.index,
        ring,
        engine,
        requests: (0..depth).map(|_| None).collect(),
        free: (0..depth).rev().collect(),
        spare: Vec::new(),
    }
    .serve()
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
    /// By token.
    requests: Vec<Option<InFlight>>,
    free: Vec<u16>,
    /// Buffers whose allocations wait to be used again.
    spare: Vec<Buffers>,
}

impl Serving<'_> {
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
