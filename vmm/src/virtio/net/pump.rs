//! What moves packets between a link and a pair of queues.
//!
//! All events are edge-triggered and never read, so that a wake-up costs one
//! system call, and each packet one.

#![allow(unsafe_code, reason = "readv(2) and writev(2) on guest memory")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::counted::NetCounters;
use super::{F_MRG_RXBUF, HEADER_SIZE, Limiters, NUM_BUFFERS, largest, offload};
use crate::epoll::Until;
use crate::memory::{MAX_SEGMENTS, Segments};
use crate::net::Link;
use crate::virtio::limit::{Claim, Cost};
use crate::virtio::queue::{Broken, Buffers, Ring};
use crate::virtio::quiet::{Quiet, Why};
use crate::virtio::thread::{Events, Service};
use crate::virtio::{Activation, ActiveQueue, Interrupt};

/// The most packets of one direction before the other has its turn.
const BATCH: usize = 256;

/// The most packets before the driver is notified: no test sees when it comes early.
const TELL: usize = 64;

/// Tokens, on a thread of its own.
const RECEIVE_BELL: u64 = 0;
const TRANSMIT_BELL: u64 = 1;
const LINK: u64 = 2;

/// A receive buffer that the driver has posted and we have taken.
struct Posted {
    head: u16,
    length: usize,
}

/// The receive queue.
struct Receiver {
    ring: Ring,
    index: u16,
    buffers: Buffers,
    posted: VecDeque<Posted>,
    /// The segments of all posted buffers, in order.
    room: Segments,
    /// A packet may span buffers.
    mergeable: bool,
    /// Room wanted before a packet is read: what doesn't fit is lost.
    needed: usize,
    claim: Claim,
}

/// The transmit queue.
struct Transmitter {
    ring: Ring,
    index: u16,
    buffers: Buffers,
    claim: Claim,
}

/// A link, and both queues while a driver has them.
pub(super) struct Pump {
    link: Arc<dyn Link>,
    mtu: u16,
    counters: Arc<NetCounters>,
    limiters: Limiters,
    serving: Option<Serving>,
    /// When there is something to do.
    receive: Until,
    transmit: Until,
}

struct Serving {
    interrupt: Arc<dyn Interrupt>,
    receiver: Receiver,
    transmitter: Transmitter,
}

impl Pump {
    pub(super) fn new(
        link: Arc<dyn Link>,
        mtu: u16,
        counters: &Arc<NetCounters>,
        limiters: &Limiters,
    ) -> Self {
        Self {
            link,
            mtu,
            counters: Arc::clone(counters),
            limiters: limiters.clone(),
            serving: None,
            receive: Until::Event,
            transmit: Until::Event,
        }
    }

    /// The descriptor of its link.
    pub(super) fn link(&self) -> RawFd {
        self.link.as_raw_fd()
    }

    /// Serves both queues of an activation.
    ///
    /// # Errors
    /// When one is missing, or its ring not in memory.
    pub(super) fn start(&mut self, activation: Activation) -> io::Result<()> {
        let [receive, transmit]: [ActiveQueue; 2] = activation
            .queues
            .try_into()
            .map_err(|_| io::Error::other("a pair has two queues"))?;
        let ring = |active: &ActiveQueue| {
            Ring::new(&active.queue, Arc::clone(&activation.memory)).map_err(io::Error::other)
        };
        let features = activation.features;
        let mut receiver = Receiver {
            ring: ring(&receive)?,
            index: receive.index,
            buffers: Buffers::default(),
            posted: VecDeque::new(),
            room: Segments::default(),
            mergeable: features & F_MRG_RXBUF != 0,
            needed: largest(offload(features), self.mtu),
            claim: Claim::new(&self.limiters.receive),
        };
        receiver.ring.disable_notification();
        self.serving = Some(Serving {
            interrupt: activation.interrupt,
            receiver,
            transmitter: Transmitter {
                ring: ring(&transmit)?,
                index: transmit.index,
                buffers: Buffers::default(),
                claim: Claim::new(&self.limiters.transmit),
            },
        });
        (self.receive, self.transmit) = (Until::Now, Until::Now);
        Ok(())
    }

    /// The driver rang for its receive queue, or else for the other.
    pub(super) fn on_bell(&mut self, receive: bool) {
        match receive {
            true => self.receive = Until::Now,
            false => self.transmit = Until::Now,
        }
    }

    /// The link has packets, or room for some.
    pub(super) fn on_link(&mut self) {
        // What must wait for its time waits however many come.
        if self.receive == Until::Event {
            self.receive = Until::Now;
        }
    }

    /// Moves packets. Returns until when there are no more that may pass.
    ///
    /// # Errors
    /// When a queue breaks the rules.
    pub(super) fn work(&mut self) -> io::Result<Until> {
        let Some(serving) = &mut self.serving else {
            return Ok(Until::Event);
        };
        let (fd, interrupt) = (self.link.as_raw_fd(), serving.interrupt.as_ref());
        if self.transmit.is_over() {
            let until = serving.transmitter.transmit(fd, interrupt, &self.counters);
            self.transmit = until.map_err(io::Error::other)?;
        }
        if self.receive.is_over() {
            let until = serving.receiver.receive(fd, interrupt, &self.counters);
            self.receive = until.map_err(io::Error::other)?;
        }
        Ok(self.receive.min(self.transmit))
    }

    /// Lets go of the queues. Buffers that wait for packets are put back.
    pub(super) fn stop(&mut self, _: Why, quiet: &Quiet) {
        if let Some(mut serving) = self.serving.take() {
            let receiver = &mut serving.receiver;
            for _ in &receiver.posted {
                receiver.ring.unpop();
            }
            quiet.report(receiver.ring.state(receiver.index));
            let transmitter = &serving.transmitter;
            quiet.report(transmitter.ring.state(transmitter.index));
        }
    }
}

/// A pump on a thread of its own.
pub(super) struct OwnPump(Pump);

impl OwnPump {
    /// # Errors
    /// When a doorbell or the link, which is enabled now, can't be watched.
    pub(super) fn new(pump: Pump, doorbells: &[Arc<EventFd>], events: &Events) -> io::Result<Self> {
        events.watch_doorbells(doorbells)?;
        events.watch(&pump.link(), LINK, EventSet::IN)?;
        Ok(Self(pump))
    }
}

impl Service for OwnPump {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        self.0.start(activation)
    }

    fn on_event(&mut self, token: u64, _: EventSet) {
        match token {
            RECEIVE_BELL | TRANSMIT_BELL => {
                self.0.counters.notifications.add(1);
                self.0.on_bell(token == RECEIVE_BELL);
            }
            _ => self.0.on_link(),
        }
    }

    fn work(&mut self) -> io::Result<Until> {
        self.0.work()
    }

    fn stop(&mut self, why: Why, quiet: &Quiet) {
        self.0.stop(why, quiet);
    }
}

impl Transmitter {
    /// Sends what is available. Returns until when there is no more that may pass.
    fn transmit(
        &mut self,
        link: RawFd,
        interrupt: &dyn Interrupt,
        counters: &NetCounters,
    ) -> Result<Until, Broken> {
        self.ring.disable_notification();
        let is_limited = self.claim.is_limited();
        let mut until = Until::Now;
        for done in 0..BATCH {
            if done % TELL == 0 && self.ring.wants_interrupt() {
                interrupt.queue(self.index);
            }
            let Some(head) = self.ring.pop(&mut self.buffers)? else {
                until = Until::more(self.ring.enable_notification());
                break;
            };
            let packet = &self.buffers.readable;
            if packet.length() < HEADER_SIZE || self.buffers.writable.length() > 0 {
                return Err(Broken::Request);
            }
            if is_limited
                && let cost = Cost::one(packet.length() - HEADER_SIZE)
                && let Err(time) = self.claim.take(cost, Instant::now())
            {
                self.ring.unpop();
                until = Until::At(time);
                break;
            }
            // What the link refuses (full, down, a header that makes no sense) is
            // lost, as on a wire.
            let sent = transfer(|| {
                // SAFETY: the segments are valid guest memory (see `Segments`).
                unsafe { libc::writev(link, packet.as_slice().as_ptr(), length(packet.as_slice())) }
            });
            match sent {
                Ok(_) => {
                    counters.transmitted_packets.add(1);
                    let bytes = packet.length() - HEADER_SIZE;
                    counters.transmitted_bytes.add_length(bytes);
                }
                Err(_) => counters.transmit_errors.add(1),
            }
            self.ring.push_used(head, 0);
        }
        if self.ring.wants_interrupt() {
            interrupt.queue(self.index);
        }
        Ok(until)
    }
}

impl Receiver {
    /// Receives what has come. Returns until when there is no more that may pass, or no
    /// room for it.
    fn receive(
        &mut self,
        link: RawFd,
        interrupt: &dyn Interrupt,
        counters: &NetCounters,
    ) -> Result<Until, Broken> {
        let is_limited = self.claim.is_limited();
        let mut until = Until::Now;
        for done in 0..BATCH {
            if done % TELL == 0 && self.ring.wants_interrupt() {
                interrupt.queue(self.index);
            }
            if !self.refill()? {
                // Starved: the driver's next buffer rings, unless it is there now.
                until = Until::more(self.ring.enable_notification());
                break;
            }
            if is_limited && let Err(time) = self.claim.ask(Instant::now()) {
                until = Until::At(time);
                break;
            }
            let list = self.target();
            let got = transfer(|| {
                // SAFETY: the segments are valid guest memory (see `Segments`).
                unsafe { libc::readv(link, list.as_ptr(), length(list)) }
            });
            match got {
                Ok(got) if got >= HEADER_SIZE => {
                    self.deliver(got)?;
                    counters.received_packets.add(1);
                    counters.received_bytes.add_length(got - HEADER_SIZE);
                    if is_limited {
                        self.claim.charge(Cost::one(got - HEADER_SIZE));
                    }
                }
                // No packet at all: the next is read into the same room.
                Ok(got) if got > 0 => {}
                // Nothing there, or the link is down: an edge signals the next. (Looked at
                // again at once, it would say the same.)
                Ok(_) | Err(_) => {
                    until = Until::Event;
                    break;
                }
            }
        }
        if self.ring.wants_interrupt() {
            interrupt.queue(self.index);
        }
        Ok(until)
    }

    /// Takes posted buffers until the largest packet fits. Returns whether it does.
    fn refill(&mut self) -> Result<bool, Broken> {
        loop {
            let enough = if self.mergeable {
                self.room.length() >= self.needed || self.room.as_slice().len() >= MAX_SEGMENTS
            } else {
                !self.posted.is_empty()
            };
            if enough {
                return Ok(true);
            }
            let Some(head) = self.ring.pop(&mut self.buffers)? else {
                return Ok(false);
            };
            let buffer = &mut self.buffers.writable;
            if buffer.length() < HEADER_SIZE || self.buffers.readable.length() > 0 {
                return Err(Broken::Request);
            }
            self.posted.push_back(Posted {
                head,
                length: buffer.length(),
            });
            self.room.append(buffer);
            // A driver may post a buffer again only once it was returned, so there
            // are never more than the queue has room for.
            if self.posted.len() > usize::from(self.ring.size()) {
                return Err(Broken::Ring);
            }
        }
    }

    /// Where the next packet goes: a single buffer unless it may span some.
    fn target(&self) -> &[libc::iovec] {
        let list = self.room.as_slice();
        &list[..list.len().min(MAX_SEGMENTS)]
    }

    /// Returns the buffers that a packet of `got` bytes, header included, filled.
    fn deliver(&mut self, got: usize) -> Result<(), Broken> {
        let mut rest = got;
        let mut used = 0;
        let mut buffers = 0u16;
        while rest > 0 {
            let Some(buffer) = self.posted.pop_front() else {
                break;
            };
            let part = rest.min(buffer.length);
            // A buffer is part of a packet, which is smaller than 2^32.
            let written = u32::try_from(part).map_err(|_| Broken::Request)?;
            self.ring.push_used(buffer.head, written);
            rest -= part;
            used += buffer.length;
            // There are no more than the queue has entries.
            buffers += 1;
        }
        // Without mergeable buffers it is 1 too (section 5.1.6.4.1).
        self.room.copy_in(NUM_BUFFERS, &buffers.to_le_bytes());
        self.room.trim_front(used);
        // All of a packet's buffers at once (section 2.7.8.2), and early: a driver
        // that polls goes on while we read the next.
        self.ring.publish();
        Ok(())
    }
}

/// A system call that moves bytes, again when interrupted.
fn transfer(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// At most `MAX_SEGMENTS`.
fn length(list: &[libc::iovec]) -> i32 {
    i32::try_from(list.len()).unwrap_or(i32::MAX)
}
