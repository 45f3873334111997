//! The threads of devices: one event loop, of which each serves one or several
//! [`Service`]s.
//!
//! ```text
//!   plug (main thread) ─ spawn, add ─► thread ◄─ doorbells, links, sockets (epoll)
//!   transport (vCPU)   ─ start, stop ─► mailbox ─┘ a bell among them
//! ```
//!
//! A thread is born when its device is plugged, by the main thread, which is confined
//! already, and confines itself further before it does anything. Activation, quiescence
//! and the end are messages: nobody who sends one waits for it. The queues of disks have
//! a loop of their own, as they wait on a ring (`blk::queue_worker`).
//!
//! A service that fails, or panics, has broken its own device only: the driver learns of
//! it by DEVICE_NEEDS_RESET, and the thread serves the others.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::quiet::{Quiet, Why};
use super::{Activation, Interrupt};
use crate::epoll::{Epoll, Until};
use crate::jail::{Profile, ThreadRole, confine_thread};

/// Bytes of a device thread's stack: nothing of the guest's size lies on it.
const STACK_SIZE: usize = 256 << 10;

/// The mailbox's token. Those of services have their place above [`PLACE_SHIFT`].
const MAILBOX: u64 = u64::MAX;
const PLACE_SHIFT: u32 = 32;

/// What a thread does for a device. All is called on the thread, and must not wait for
/// anything but the host's memory and processors.
pub trait Service: Send {
    /// The driver is ready, or the machine goes on ([`Activation::resumed`]). The first
    /// [`Self::work`] follows at once: what was rung before is not signalled again.
    ///
    /// # Errors
    /// When a queue is missing or the host has no resources: the driver then learns
    /// that the device needs a reset.
    fn start(&mut self, activation: Activation) -> io::Result<()>;

    /// What is watched as `token` has become ready. Also called while the service is
    /// not started.
    fn on_event(&mut self, token: u64, events: EventSet);

    /// Does some of what is due, after a start and after each event. Returns when it is
    /// called again though nothing happens.
    ///
    /// # Errors
    /// When the driver broke the rules or the host failed: it is not called again
    /// before the next start.
    fn work(&mut self) -> io::Result<Until>;

    /// The driver gave a queue another vector: whoever holds an event of the driver's
    /// interrupt has an old one.
    ///
    /// # Errors
    /// As for [`Self::work`].
    fn vectors_changed(&mut self, interrupt: &dyn Interrupt) -> io::Result<()> {
        let _ = interrupt;
        Ok(())
    }

    /// Lets go of guest memory, and reports where its queues stand. Whatever takes time
    /// keeps a clone of `quiet`. Idempotent.
    fn stop(&mut self, why: Why, quiet: &Quiet);
}

/// What a service waits for: edge-triggered, so that nothing is spent on clearing it.
#[derive(Clone)]
pub struct Events {
    epoll: Arc<Epoll>,
    place: u64,
}

impl Events {
    /// Watches a descriptor, to which `token` will name it: 32 bits.
    ///
    /// # Errors
    /// When it can't be watched.
    pub fn watch(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> io::Result<()> {
        let edge = events | EventSet::EDGE_TRIGGERED;
        self.epoll
            .watch(fd, self.place << PLACE_SHIFT | token, edge)
    }

    /// The same for all doorbells of a device, whose tokens count from 0.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_doorbells(&self, doorbells: &[Arc<EventFd>]) -> io::Result<()> {
        let mut all = (0..).zip(doorbells);
        all.try_for_each(|(token, bell)| self.watch(bell.as_ref(), token, EventSet::IN))
    }

    /// Watches it no longer. (Closing the last handle of a descriptor does that too.)
    pub fn unwatch(&self, fd: &impl AsRawFd) {
        // It fails for what is not watched.
        let _ = self.epoll.unwatch(fd);
    }
}

enum Order {
    Add(usize, Box<dyn Service>),
    Start(usize, Activation),
    Stop(usize, Why, Quiet),
    Vectors(usize, Arc<AtomicBool>),
    End,
}

/// The way to a service: cheap, from any thread, and never waited for.
#[derive(Clone)]
pub struct Port {
    orders: Sender<Order>,
    bell: Arc<EventFd>,
    place: usize,
    /// Whether the service will look at the vectors anyway: a driver can't fill the
    /// mailbox by changing them.
    vectors: Arc<AtomicBool>,
}

impl Port {
    fn send(&self, order: Order) -> Result<(), Order> {
        self.orders.send(order).map_err(|unsent| unsent.0)?;
        // Fails only when the counter is full, and then it is rung already.
        let _ = self.bell.write(1);
        Ok(())
    }

    /// Has it serve queues.
    pub fn start(&self, activation: Activation) {
        if let Err(Order::Start(_, activation)) = self.send(Order::Start(self.place, activation)) {
            // The thread is gone.
            activation.interrupt.needs_reset();
        }
    }

    /// Has it look at the queues' vectors.
    pub fn vectors_changed(&self) {
        if !self.vectors.swap(true, Ordering::SeqCst) {
            let _ = self.send(Order::Vectors(self.place, Arc::clone(&self.vectors)));
        }
    }

    /// Has it let go of guest memory. One whose thread is gone has done so.
    pub fn stop(&self, why: Why, quiet: Quiet) {
        let _ = self.send(Order::Stop(self.place, why, quiet));
    }
}

/// A thread of devices. Dropping it ends and joins it.
pub struct DeviceThread {
    port: Port,
    epoll: Arc<Epoll>,
    places: AtomicUsize,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl DeviceThread {
    /// Starts one, to be confined to `profile`. `ps -L` shows 15 bytes of its name.
    ///
    /// # Errors
    /// When no thread or descriptor can be had.
    pub fn spawn(name: String, profile: &'static Profile) -> io::Result<Self> {
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let epoll = Arc::new(Epoll::new()?);
        epoll.watch(bell.as_ref(), MAILBOX, EventSet::IN)?;
        let (orders, inbox) = channel();
        let port = Port {
            orders,
            bell: Arc::clone(&bell),
            place: 0,
            vectors: Arc::default(),
        };
        let set = Arc::clone(&epoll);
        let handle = spawn(name, profile, move |confined| {
            Loop {
                inbox,
                bell,
                epoll: set,
                seats: Vec::new(),
                confined,
            }
            .run();
        })?;
        Ok(Self {
            port,
            epoll,
            places: AtomicUsize::new(0),
            handle: Mutex::new(Some(handle)),
        })
    }

    /// Gives it a service, which `make` makes with what it waits for.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn add<S: Service + 'static>(
        &self,
        make: impl FnOnce(Events) -> io::Result<S>,
    ) -> io::Result<Port> {
        let place = self.places.fetch_add(1, Ordering::Relaxed);
        let service = make(Events {
            epoll: Arc::clone(&self.epoll),
            place: place as u64,
        })?;
        let port = Port {
            place,
            vectors: Arc::default(),
            ..self.port.clone()
        };
        let gone = |_| io::Error::other("the device's thread is gone");
        port.send(Order::Add(place, Box::new(service)))
            .map_err(gone)?;
        Ok(port)
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        let _ = self.port.send(Order::End);
        let handle = self.handle.get_mut();
        if let Some(handle) = handle.unwrap_or_else(PoisonError::into_inner).take() {
            // Its services' panics were caught and reported.
            let _ = handle.join();
        }
    }
}

/// Starts a device's thread, which learns whether it is confined: it must not serve the
/// guest if it isn't.
pub(super) fn spawn(
    name: String,
    profile: &'static Profile,
    body: impl FnOnce(io::Result<()>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let role = ThreadRole::Device(profile);
    Builder::new()
        .name(name)
        .stack_size(STACK_SIZE)
        .spawn(move || body(confine_thread(role).map_err(io::Error::other)))
}

/// A service on its thread.
struct Seat {
    service: Box<dyn Service>,
    /// Of the driver, from start to stop; none once the device is broken.
    interrupt: Option<Arc<dyn Interrupt>>,
    /// It has failed since it was started.
    is_broken: bool,
    /// When there is work.
    due: Until,
}

impl Seat {
    /// Runs a part of the service, and has the driver learn of its failure.
    fn attempt<T>(&mut self, part: impl FnOnce(&mut dyn Service) -> io::Result<T>) -> Option<T> {
        let service = self.service.as_mut();
        // A service that has panicked is only stopped and started again.
        match catch_unwind(AssertUnwindSafe(|| part(service))) {
            Ok(Ok(done)) => Some(done),
            Ok(Err(_)) | Err(_) => {
                self.due = Until::Event;
                self.is_broken = true;
                if let Some(interrupt) = self.interrupt.take() {
                    interrupt.needs_reset();
                }
                None
            }
        }
    }

    fn work(&mut self) {
        if self.due.is_over()
            && let Some(until) = self.attempt(|service| service.work())
        {
            self.due = until;
        }
    }
}

struct Loop {
    inbox: Receiver<Order>,
    bell: Arc<EventFd>,
    epoll: Arc<Epoll>,
    /// By place; a device that is gone leaves its place empty.
    seats: Vec<Option<Seat>>,
    /// Whether the thread may serve guests.
    confined: io::Result<()>,
}

impl Loop {
    fn run(mut self) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let mut until = Until::Event;
            for seat in self.seats.iter_mut().flatten() {
                seat.work();
                until = until.min(seat.due);
            }
            // It can't fail with an epoll set and a buffer that are there.
            let count = self.epoll.wait(&mut events, until).unwrap_or(0);
            for event in &events[..count] {
                let token = event.data();
                if token == MAILBOX {
                    if !self.read_mail() {
                        return;
                    }
                    continue;
                }
                let (place, token) = (token >> PLACE_SHIFT, token & u64::from(u32::MAX));
                let seat = usize::try_from(place).ok();
                if let Some(Some(seat)) = seat.and_then(|place| self.seats.get_mut(place)) {
                    let set = event.event_set();
                    if seat.interrupt.is_some() {
                        seat.due = Until::Now;
                    }
                    seat.attempt(|service| {
                        service.on_event(token, set);
                        Ok(())
                    });
                }
            }
        }
    }

    /// Carries out all orders there are. False: the thread shall end.
    fn read_mail(&mut self) -> bool {
        // Before the orders: one that comes later rings again.
        let _ = self.bell.read();
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Add(place, service)) => {
                    if self.seats.len() <= place {
                        self.seats.resize_with(place + 1, || None);
                    }
                    self.seats[place] = Some(Seat {
                        service,
                        interrupt: None,
                        is_broken: false,
                        due: Until::Event,
                    });
                }
                Ok(Order::Start(place, activation)) => self.start(place, activation),
                Ok(Order::Stop(place, why, quiet)) => {
                    if let Some(Some(seat)) = self.seats.get_mut(place) {
                        seat.interrupt = None;
                        seat.due = Until::Event;
                        // What is left alone until the driver's reset is so over a hold.
                        if seat.is_broken {
                            quiet.is_of_broken();
                        }
                        seat.attempt(|service| {
                            service.stop(why, &quiet);
                            Ok(())
                        });
                    }
                }
                Ok(Order::Vectors(place, due)) => {
                    // Before the look: what changes during it is looked at again.
                    due.store(false, Ordering::SeqCst);
                    if let Some(Some(seat)) = self.seats.get_mut(place)
                        && let Some(interrupt) = seat.interrupt.clone()
                    {
                        seat.attempt(|service| service.vectors_changed(interrupt.as_ref()));
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Order::End) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn start(&mut self, place: usize, activation: Activation) {
        let interrupt = Arc::clone(&activation.interrupt);
        let seat = self.seats.get_mut(place).and_then(Option::as_mut);
        let (Some(seat), Ok(())) = (seat, &self.confined) else {
            return interrupt.needs_reset();
        };
        seat.interrupt = Some(interrupt);
        seat.is_broken = false;
        let started = seat.attempt(|service| service.start(activation));
        seat.due = Until::more(started.is_some());
        seat.work();
    }
}

#[cfg(test)]
mod tests;
