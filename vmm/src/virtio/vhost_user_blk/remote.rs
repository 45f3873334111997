//! The device at work: a thread that tells a back end what to serve, and finds another one
//! when it is gone.
//!
//! ```text
//!             closed by it
//!   ┌─────────────────────────────────────────┐
//!   Up ── doesn't answer, or nonsense ──► Deserted ── closed by it ──► Down
//!   ▲                                  (it may still write)             │
//!   └──────────────── connected, and it is the same disk ◄──────────────┘
//! ```
//!
//! A back end has let go of guest memory when it has stopped each queue, or is gone. One
//! that hangs has not: a device that is reset or held then waits, and says so.
//!
//! What was in flight as a back end went is done by the next one, if it has noted that where
//! we keep it (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD). Without, nobody knows what of it was
//! done, as requests are finished in any order: the device needs a reset then.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::QueueT;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::{BackEnd, CAPACITY, F_VERSION_1, Shared, State, capacity, lock};
use crate::epoll::Until;
use crate::memory::Memory;
use crate::pci::msix::ring;
use crate::vhost::Vring;
use crate::vhost::user::{CONFIG_SIZE, Cancel, Inflight, Served, Session, connect};
use crate::virtio::queue::Ring;
use crate::virtio::quiet::{QueueState, Quiet, Why};
use crate::virtio::thread::{Events, Service};
use crate::virtio::{Activation, ActiveQueue, Interrupt};

/// Tokens.
const SOCKET: u64 = 0;
const CHANNEL: u64 = 1;
const TIMER: u64 = 2;
const REFRESH: u64 = 3;
const BROKEN: u64 = 4;

/// How soon a back end that is gone is looked for, and how seldom at last.
const SOON: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(3);
/// How long one that is looked for has to say what it is.
const AGAIN: Duration = Duration::from_secs(2);

/// How often a back end that is to stop is looked at, at first and at last.
const TICK: Duration = Duration::from_millis(1);
const LAST_TICK: Duration = Duration::from_millis(20);
/// How long requests have that nobody waits for any more.
const FORGOTTEN: Duration = Duration::from_secs(1);

enum Link {
    /// It answers.
    Up(Session),
    /// It was told to end, and hasn't.
    Deserted(Session),
    /// There is none.
    Down,
}

/// What the driver wants served.
struct Job {
    memory: Memory,
    features: u64,
    queues: Vec<Queue>,
    interrupt: Arc<dyn Interrupt>,
    /// A back end serves it, or has begun to.
    is_started: bool,
    /// One was gone with requests that it had begun, as it has noted.
    owes: bool,
    /// The driver broke the rules.
    is_broken: bool,
}

struct Queue {
    active: ActiveQueue,
    ring: Ring,
    /// The next chain to take, of one that nobody serves.
    base: u16,
}

impl Job {
    /// Whether all that the driver queued is done.
    fn is_drained(&self) -> bool {
        self.queues
            .iter()
            .all(|queue| queue.ring.outstanding() == 0)
    }

    /// Whether the driver says that more is queued than there is room for, or that more was
    /// done than was queued: it can write both, and its back end need not look.
    fn is_nonsense(&self) -> bool {
        let mut queues = self.queues.iter();
        queues.any(|queue| queue.ring.outstanding() > queue.active.queue.size())
    }

    /// Has queues looked at, where the last one that did may not have got so far.
    fn nudge(&self) {
        for queue in &self.queues {
            ring(&queue.active.doorbell);
        }
    }
}

/// The device is to be quiet.
struct Leaving {
    why: Why,
    quiet: Quiet,
    since: Instant,
    tick: Duration,
}

/// The device on its thread.
pub(super) struct Remote {
    shared: Arc<Shared>,
    path: PathBuf,
    cancel: Cancel,
    /// What the driver was told that there is.
    features: u64,
    queues: u16,
    link: Link,
    job: Option<Job>,
    leaving: Option<Leaving>,
    inflight: Option<Inflight>,
    /// The configuration changed while the machine was held: its driver isn't told yet.
    is_news: bool,
    /// How long until a back end is looked for again.
    delay: Duration,
    timer: TimerFd,
    /// What a queue without a vector is interrupted by.
    nobody: EventFd,
    /// By which a back end says that the driver breaks the rules.
    broken: EventFd,
    events: Events,
}

impl Remote {
    /// # Errors
    /// When no event can be had.
    pub(super) fn new(
        back_end: BackEnd,
        shared: Arc<Shared>,
        features: u64,
        queues: u16,
        events: Events,
    ) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let remote = Self {
            path: back_end.path,
            cancel: back_end.cancel,
            features,
            queues,
            link: Link::Down,
            job: None,
            leaving: None,
            inflight: None,
            is_news: false,
            delay: SOON,
            timer,
            nobody: event()?,
            broken: event()?,
            shared,
            events,
        };
        // None of these is read: each change is an event.
        let watch = |fd: &EventFd, token| remote.events.watch(fd, token, EventSet::IN);
        watch(&remote.shared.refresh, REFRESH)?;
        watch(&remote.broken, BROKEN)?;
        remote.events.watch(&remote.timer, TIMER, EventSet::IN)?;
        remote.watch(&back_end.session)?;
        Ok(Self {
            link: Link::Up(back_end.session),
            ..remote
        })
    }

    fn watch(&self, session: &Session) -> io::Result<()> {
        let gone = EventSet::IN | EventSet::HANG_UP;
        self.events.watch(session.socket(), SOCKET, gone)?;
        match session.channel() {
            Some(channel) => self.events.watch(channel, CHANNEL, EventSet::IN),
            None => Ok(()),
        }
    }

    fn arm(&mut self, delay: Duration) {
        // It can't fail with a time that is one.
        let _ = self.timer.reset(delay, None);
    }

    fn say(&self, connected: bool, error: Option<String>) {
        *lock(&self.shared.state) = State { connected, error };
    }

    /// Has the back end serve what the driver wants, if there are both.
    fn serve(&mut self) {
        let (Link::Up(session), Some(job)) = (&mut self.link, &mut self.job) else {
            return;
        };
        if job.is_started || job.is_broken {
            return;
        }
        job.is_started = true;
        self.shared.serves.store(true, Ordering::SeqCst);
        let calls = job.queues.iter();
        let calls: Vec<_> = calls
            .map(|queue| job.interrupt.event(queue.active.index))
            .collect();
        let queues = job.queues.iter().zip(&calls);
        let queues: Vec<_> = queues
            .map(|(queue, call)| Served {
                index: queue.active.index,
                vring: Vring {
                    queue: &queue.active.queue,
                    kick: &queue.active.doorbell,
                    call: call.as_ref().unwrap_or(&self.nobody),
                    error: &self.broken,
                },
                base: queue.base,
            })
            .collect();
        let started = session.start(&job.memory, job.features, &queues, &mut self.inflight);
        match started {
            Ok(()) => {
                job.nudge();
                for call in calls.iter().flatten() {
                    // What the last one returned, it may not have said.
                    ring(call);
                }
            }
            Err(error) => self.lose(&error),
        }
    }

    /// There is nothing to be had of this back end any more.
    fn lose(&mut self, error: &io::Error) {
        let Link::Up(session) = std::mem::replace(&mut self.link, Link::Down) else {
            return;
        };
        self.shared.counters.disconnections.add(1);
        self.say(false, Some(error.to_string()));
        if !session.serves()
            && let Some(job) = &mut self.job
        {
            job.is_started = false;
        }
        if session.has_memory() && !session.is_closed() {
            session.hang_up();
            self.link = Link::Deserted(session);
        } else {
            self.gone();
        }
    }

    /// The back end is gone, and writes to no guest memory.
    fn gone(&mut self) {
        self.link = Link::Down;
        self.shared.serves.store(false, Ordering::SeqCst);
        if let Some(job) = &mut self.job
            && job.is_started
        {
            job.is_started = false;
            let was_at_work = !job.is_drained();
            for queue in &mut job.queues {
                queue.base = queue.ring.used_index();
            }
            job.owes = was_at_work;
            let is_forgotten = matches!(&self.leaving, Some(leaving) if leaving.why == Why::Reset);
            if was_at_work && self.inflight.is_none() && !is_forgotten {
                self.give_up();
            }
        }
        self.leave();
        self.delay = SOON;
        self.arm(SOON);
    }

    /// Nobody can go on with the driver's requests.
    fn give_up(&mut self) {
        if let Some(job) = self.job.take() {
            self.shared.counters.given_up.add(1);
            job.interrupt.needs_reset();
        }
    }

    /// Looks for a back end, and waits a moment for what it says.
    fn look(&mut self) {
        let found = connect(&self.path)
            .and_then(|socket| Session::open(socket, F_VERSION_1, self.cancel.clone(), AGAIN))
            .and_then(|session| self.is_same(&session).map(|()| session))
            .and_then(|session| self.watch(&session).map(|()| session));
        match found {
            Ok(session) => {
                self.shared.counters.connections.add(1);
                let log = session.can_log();
                self.shared.can_log.store(log, Ordering::SeqCst);
                let config = session.offer().config;
                self.link = Link::Up(session);
                self.delay = SOON;
                self.say(true, None);
                self.configure(&config);
                self.serve();
                self.leave();
            }
            Err(error) => {
                self.say(false, Some(error.to_string()));
                self.arm(self.delay);
                self.delay = (self.delay * 2).min(SELDOM);
            }
        }
    }

    /// Whether a back end has the disk that the driver knows.
    fn is_same(&self, session: &Session) -> io::Result<()> {
        let offer = session.offer();
        let (here, there) = (offer.config, self.shared.config());
        let is_same = offer.features & self.features == self.features
            && offer.queues >= self.queues
            && here[CAPACITY.end..] == there[CAPACITY.end..]
            && capacity(&here) >= capacity(&there);
        match is_same {
            true => Ok(()),
            false => Err(io::Error::other("the back end offers another disk")),
        }
    }

    /// The configuration is this.
    fn configure(&mut self, config: &[u8; CONFIG_SIZE]) {
        let old = std::mem::replace(&mut *lock(&self.shared.config), *config);
        if old != *config {
            self.shared.counters.config_changes.add(1);
            match &self.job {
                Some(job) => job.interrupt.config_changed(),
                None => self.is_news = true,
            }
        }
    }

    fn look_at_config(&mut self) {
        if let Link::Up(session) = &self.link {
            match session.config() {
                Ok(config) => self.configure(&config),
                Err(error) => self.lose(&error),
            }
        }
    }

    fn hear(&mut self) {
        let Link::Up(session) = &mut self.link else {
            return;
        };
        match session.read_channel() {
            Ok(heard) => {
                if heard.config_changed {
                    self.look_at_config();
                }
                if heard.more {
                    // It is no event any more.
                    self.arm(TICK);
                }
            }
            Err(error) => self.lose(&error),
        }
    }

    /// Becomes quiet, as far as that is possible now.
    fn leave(&mut self) {
        let Some(leaving) = &mut self.leaving else {
            return;
        };
        match (&self.link, &mut self.job) {
            // Until it is gone, it may write.
            (Link::Deserted(_), _) => return,
            // What was begun is returned before a hold.
            (Link::Down, Some(job)) if job.owes && leaving.why == Why::Hold => return,
            (Link::Up(session), Some(job)) if job.is_started => {
                if !job.is_broken && job.is_nonsense() {
                    job.is_broken = true;
                    if leaving.why == Why::Hold {
                        job.interrupt.needs_reset();
                    }
                }
                let is_over = leaving.why == Why::Reset && leaving.since.elapsed() > FORGOTTEN;
                if !job.is_drained() && !job.is_broken && !is_over {
                    // Before a back end stops a queue, it need not finish what it has
                    // taken of it.
                    let tick = leaving.tick;
                    leaving.tick = (2 * tick).min(LAST_TICK);
                    return self.arm(tick);
                }
                let mut queues = job.queues.iter();
                let stopped = queues.try_for_each(|queue| session.stop(queue.active.index));
                if let Err(error) = stopped {
                    // And comes back here once it is gone.
                    return self.lose(&error);
                }
            }
            _ => {}
        }
        let Some(leaving) = self.leaving.take() else {
            return;
        };
        self.shared.serves.store(false, Ordering::SeqCst);
        self.inflight = None;
        if let Some(job) = self.job.take()
            && leaving.why == Why::Hold
            && !job.is_broken
        {
            for queue in job.queues {
                leaving.quiet.report(queue.state(job.is_started));
            }
        }
    }
}

impl Queue {
    /// Where it stands: all that was taken was returned.
    fn state(&self, was_served: bool) -> QueueState {
        let base = match was_served {
            true => self.ring.used_index(),
            false => self.base,
        };
        QueueState {
            index: self.active.index,
            next_available: base,
            next_used: self.ring.used_index(),
        }
    }
}

impl Service for Remote {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        if activation.queues.is_empty() {
            return Err(io::Error::other("no queue is enabled"));
        }
        let queues = activation.queues.into_iter().map(|active| {
            let ring = Ring::new(&active.queue, Arc::clone(&activation.memory));
            Ok(Queue {
                ring: ring.map_err(io::Error::other)?,
                base: active.queue.next_avail(),
                active,
            })
        });
        self.leaving = None;
        self.inflight = None;
        // One that begins anew reads it as it is.
        if std::mem::take(&mut self.is_news) && activation.resumed {
            activation.interrupt.config_changed();
        }
        self.job = Some(Job {
            queues: queues.collect::<io::Result<_>>()?,
            memory: activation.memory,
            features: activation.features,
            interrupt: activation.interrupt,
            is_started: false,
            owes: false,
            is_broken: false,
        });
        self.serve();
        Ok(())
    }

    fn on_event(&mut self, token: u64, _: EventSet) {
        match token {
            SOCKET => match &self.link {
                Link::Up(session) if session.is_closed() => {
                    let closed = io::Error::other("the back end closed the connection");
                    self.lose(&closed);
                }
                Link::Deserted(session) if session.is_closed() => self.gone(),
                _ => {}
            },
            CHANNEL => self.hear(),
            TIMER => {
                if matches!(self.link, Link::Down) {
                    self.look();
                }
                self.leave();
                self.hear();
            }
            REFRESH => self.look_at_config(),
            BROKEN => {
                if let Some(job) = &mut self.job
                    && job.is_started
                    && !job.is_broken
                {
                    job.is_broken = true;
                    job.interrupt.needs_reset();
                }
            }
            _ => {}
        }
    }

    fn work(&mut self) -> io::Result<Until> {
        Ok(Until::Event)
    }

    fn vectors_changed(&mut self, interrupt: &dyn Interrupt) -> io::Result<()> {
        let (Link::Up(session), Some(job)) = (&self.link, &self.job) else {
            return Ok(());
        };
        if !job.is_started {
            return Ok(());
        }
        let mut queues = job.queues.iter();
        let set = queues.try_for_each(|queue| {
            let index = queue.active.index;
            let call = interrupt.event(index);
            session.set_call(index, call.as_ref().unwrap_or(&self.nobody))
        });
        if let Err(error) = set {
            self.lose(&error);
        }
        Ok(())
    }

    fn stop(&mut self, why: Why, quiet: &Quiet) {
        self.leaving = Some(Leaving {
            why,
            quiet: quiet.clone(),
            since: Instant::now(),
            tick: TICK,
        });
        if let Some(job) = &self.job
            && job.is_started
        {
            job.nudge();
        }
        self.leave();
    }
}
