//! The device at work: which pairs of queues take part, who serves them, and the control
//! queue by which the driver says how many it uses.
//!
//! ```text
//!   start, stop ─► Control ─┬─ pumps of its own thread (pair 0; all, where the kernel
//!                           │  has them to move and this driver doesn't take that)
//!                           ├─ ports of pumps on threads of their own (pairs 1 …)
//!                           └─ pairs in the kernel
//! ```
//!
//! Virtio 1.2, section 5.1.6.5. Of the control queue's commands only those are offered
//! that the number of queue pairs needs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counted::Counted;
use super::kernel::KernelPair;
use super::pairs::{Pairs, Server, Watch};
use super::pump::Pump;
use super::{CONTROL_BATCH, F_CTRL_VQ, F_MQ, Limiters, RECEIVE, ReceiveTransmit, find, offload};
use crate::epoll::Until;
use crate::net::{Link, Vhost};
use crate::virtio::queue::{Broken, Buffers, Ring};
use crate::virtio::quiet::{Quiet, Why};
use crate::virtio::thread::{Events, Port, Service};
use crate::virtio::{Activation, Interrupt};

/// `VIRTIO_NET_CTRL_MQ`.
const CLASS_MULTIQUEUE: u8 = 4;
/// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
const PAIRS_SET: u8 = 0;
/// Bytes of that command: class, command, `virtqueue_pairs`.
const PAIRS_SET_SIZE: usize = 4;

/// `ack`. Section 5.1.6.5.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// Token of the event by which the kernel says that a queue is broken. The doorbells'
/// are before it, the links of its own pumps behind it.
const BROKEN: u64 = 1 << 16;
const FIRST_LINK: u64 = BROKEN + 1;

/// The control queue of a driver without VIRTIO_NET_F_MQ. Section 5.1.2.
const CONTROL_OF_ONE: u64 = 2;

/// What the device is made of.
pub(super) struct Parts {
    /// All links, enabled as they are when opened.
    pub(super) links: Vec<Arc<dyn Link>>,
    /// The kernel's half of each pair, or nothing.
    pub(super) kernel: Vec<Arc<Vhost>>,
    /// The pumps of the last pairs, on threads of their own.
    pub(super) ports: Vec<Port>,
    pub(super) mtu: u16,
    pub(super) limiters: Limiters,
    pub(super) counted: Arc<Counted>,
    /// How many pairs the driver uses. It is also what a device that goes on has to begin
    /// with, in this process or where another was.
    pub(super) in_use: Arc<AtomicUsize>,
}

/// The device on its first thread.
pub(super) struct Control {
    pairs: Pairs,
    kernel: Vec<Arc<Vhost>>,
    /// Those of the first pairs.
    pumps: Vec<Pump>,
    ports: Vec<Port>,
    counted: Arc<Counted>,
    in_use: Arc<AtomicUsize>,
    events: Events,
    broken: EventFd,
    is_broken: bool,
    /// From start to stop.
    serving: Option<Serving>,
}

struct Serving {
    /// Pairs whose queues the driver has set up.
    live: usize,
    control: Option<ControlQueue>,
}

struct ControlQueue {
    ring: Ring,
    index: u16,
    interrupt: Arc<dyn Interrupt>,
}

impl Control {
    /// # Errors
    /// When a doorbell can't be watched, or no event can be had.
    pub(super) fn new(
        parts: Parts,
        doorbells: &[Arc<EventFd>],
        events: Events,
    ) -> io::Result<Self> {
        let broken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        events.watch(&broken, BROKEN, EventSet::IN)?;
        let remote = parts.ports.len();
        let own = parts.links.len() - remote;
        for (token, bell) in (0..).zip(doorbells) {
            // Those of the other pumps ring on their threads; but the third queue is the
            // control queue of a driver that takes one pair only.
            let is_pumps = token >= 2 * own as u64 && token < 2 * parts.links.len() as u64;
            if !is_pumps || token == CONTROL_OF_ONE {
                events.watch(bell.as_ref(), token, EventSet::IN)?;
            }
        }
        let pump = |link: &Arc<dyn Link>| {
            let (link, counters) = (Arc::clone(link), &parts.counted.counters);
            Pump::new(link, parts.mtu, counters, &parts.limiters)
        };
        Ok(Self {
            pumps: parts.links.iter().take(own).map(pump).collect(),
            pairs: Pairs::new(parts.links),
            kernel: parts.kernel,
            ports: parts.ports,
            counted: parts.counted,
            in_use: parts.in_use,
            events,
            broken,
            is_broken: false,
            serving: None,
        })
    }

    /// Has the driver's packets go through the first `wanted` pairs.
    fn enable(&mut self, wanted: usize) -> io::Result<()> {
        let enabled = self.pairs.enable(wanted);
        self.in_use.store(self.pairs.enabled(), Ordering::SeqCst);
        enabled
    }

    /// The pairs that the driver has set up.
    fn live<'a>(&self, activation: &'a Activation) -> io::Result<Vec<ReceiveTransmit<'a>>> {
        let find = |index| find(&activation.queues, index);
        // A driver may leave out pairs that it doesn't use, but the first.
        let live: Vec<_> = (0..self.offered(activation))
            .map(|pair| RECEIVE + 2 * pair)
            .map_while(|receive| Some([find(receive)?, find(receive + 1)?]))
            .collect();
        if live.is_empty() {
            return Err(io::Error::other("a network queue is not enabled"));
        }
        Ok(live)
    }

    /// How many pairs this driver may set up.
    fn offered(&self, activation: &Activation) -> u16 {
        match activation.has(F_MQ) {
            // At most `MAX_PAIRS`.
            true => u16::try_from(self.pairs.links().len()).unwrap_or(1),
            false => 1,
        }
    }

    /// All pairs as the kernel shall serve them, or none where it can't.
    fn kernel_pairs(
        &self,
        activation: &Activation,
        live: &[ReceiveTransmit<'_>],
    ) -> io::Result<Vec<KernelPair>> {
        let halves = self.kernel.iter().zip(self.pairs.links());
        let pairs: Vec<_> = live
            .iter()
            .zip(halves)
            .map(|(queues, (vhost, link))| {
                KernelPair::new(vhost, link, activation, *queues, &self.broken)
            })
            .collect::<io::Result<_>>()?;
        let all: Option<Vec<_>> = pairs.into_iter().collect();
        Ok(all.unwrap_or_default())
    }

    /// Has the pumps serve the first `live` pairs, as none are in the kernel. Returns
    /// what [`Pairs`] has to know of each.
    fn start_pumps(&mut self, activation: Activation, live: usize) -> io::Result<Vec<Server>> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
            resumed,
        } = activation;
        let mut queues = queues.into_iter().peekable();
        let mut servers = Vec::new();
        for pair in 0..live {
            let last = RECEIVE + 2 * u16::try_from(pair).unwrap_or(0) + 1;
            let of_pair = Activation {
                memory: Arc::clone(&memory),
                features,
                // They come in order.
                queues: std::iter::from_fn(|| queues.next_if(|queue| queue.index <= last))
                    .collect(),
                interrupt: Arc::clone(&interrupt),
                resumed,
            };
            servers.push(match self.pumps.get_mut(pair) {
                Some(pump) => {
                    pump.start(of_pair)?;
                    Server::Pump(Watch {
                        link: pump.link(),
                        events: self.events.clone(),
                        token: FIRST_LINK + pair as u64,
                    })
                }
                None => {
                    let port = self.ports.get(pair - self.pumps.len());
                    port.inspect(|port| port.start(of_pair));
                    Server::Thread
                }
            });
        }
        Ok(servers)
    }

    /// The control queue, if the driver has it.
    fn control_queue(&self, activation: &Activation) -> io::Result<Option<ControlQueue>> {
        if !activation.has(F_CTRL_VQ) {
            return Ok(None);
        }
        let index = 2 * self.offered(activation);
        let Some(active) = find(&activation.queues, index) else {
            return Ok(None);
        };
        let ring = Ring::new(&active.queue, Arc::clone(&activation.memory));
        Ok(Some(ControlQueue {
            ring: ring.map_err(io::Error::other)?,
            index,
            interrupt: Arc::clone(&activation.interrupt),
        }))
    }

    /// Serves some commands. One that the driver has no budget for is answered late, and
    /// those behind it wait.
    fn serve(&mut self, queue: &mut ControlQueue, live: usize) -> Result<Until, Broken> {
        let mut buffers = Buffers::default();
        for _ in 0..CONTROL_BATCH {
            let Some(head) = queue.ring.pop(&mut buffers)? else {
                return Ok(Until::more(queue.ring.enable_notification()));
            };
            if buffers.writable.length() == 0 {
                return Err(Broken::Request);
            }
            let mut ack = ERROR;
            if let Some(wanted) = pairs_wanted(&buffers, live) {
                let now = Instant::now();
                if let Err(delay) = self.pairs.pay(wanted, now) {
                    queue.ring.unpop();
                    return Ok(Until::At(now + delay));
                }
                if self.enable(wanted).is_ok() {
                    ack = OK;
                }
            }
            buffers.writable.copy_in(0, &[ack]);
            queue.ring.push_used(head, 1);
            if queue.ring.wants_interrupt() {
                queue.interrupt.queue(queue.index);
            }
        }
        Ok(Until::Now)
    }
}

/// How many pairs the driver wants, if that is what it asks for, and possible.
fn pairs_wanted(buffers: &Buffers, live: usize) -> Option<usize> {
    let mut command = [0; PAIRS_SET_SIZE];
    let whole = buffers.readable.length() == PAIRS_SET_SIZE
        && buffers.readable.copy_out(0, &mut command) == PAIRS_SET_SIZE;
    let [class, what, low, high] = command;
    let pairs = usize::from(u16::from_le_bytes([low, high]));
    let known = whole && (class, what) == (CLASS_MULTIQUEUE, PAIRS_SET);
    let possible = (1..=live).contains(&pairs);
    (known && possible).then_some(pairs)
}

impl Service for Control {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        if !activation.resumed {
            // Section 5.1.6.5.5: a driver begins with one pair. One that goes on has what
            // it had.
            self.enable(1)?;
        }
        let offload = offload(activation.features);
        self.pairs.set_offload(offload, Instant::now())?;
        let live = self.live(&activation)?;
        let in_kernel = self.kernel_pairs(&activation, &live)?;
        let live = live.len();
        if activation.resumed {
            // A copy's links are as they were opened.
            self.enable(self.in_use.load(Ordering::SeqCst).min(live))?;
        }
        self.is_broken = false;
        self.serving = Some(Serving {
            live,
            control: self.control_queue(&activation)?,
        });
        self.counted.moved(!in_kernel.is_empty());
        let servers = if in_kernel.is_empty() {
            self.start_pumps(activation, live)?
        } else {
            in_kernel.into_iter().map(Server::Kernel).collect()
        };
        self.pairs.hand_over(servers)
    }

    fn on_event(&mut self, token: u64, _: EventSet) {
        let own = 2 * self.pumps.len() as u64;
        let pump = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        match token {
            BROKEN => {
                let _ = self.broken.read();
                self.is_broken = true;
            }
            FIRST_LINK.. => {
                if let Some(pump) = self.pumps.get_mut(pump(token - FIRST_LINK)) {
                    pump.on_link();
                }
            }
            bell => {
                self.counted.counters.notifications.add(1);
                if bell < own
                    && let Some(pump) = self.pumps.get_mut(pump(bell / 2))
                {
                    pump.on_bell(bell % 2 == 0);
                }
            }
        }
    }

    fn work(&mut self) -> io::Result<Until> {
        let Some(mut serving) = self.serving.take() else {
            return Ok(Until::Event);
        };
        if self.is_broken {
            self.serving = Some(serving);
            return Err(io::Error::other("the driver broke a queue's rules"));
        }
        let until = match &mut serving.control {
            Some(queue) => self.serve(queue, serving.live).map_err(io::Error::other),
            None => Ok(Until::Event),
        };
        self.serving = Some(serving);
        let mut until = until?;
        for pump in &mut self.pumps {
            until = until.min(pump.work()?);
        }
        Ok(until)
    }

    fn vectors_changed(&mut self, interrupt: &dyn Interrupt) -> io::Result<()> {
        self.pairs.vectors_changed(interrupt)
    }

    fn stop(&mut self, why: Why, quiet: &Quiet) {
        // Packets first, then who counts them.
        self.pairs.take_back(quiet);
        for pump in &mut self.pumps {
            pump.stop(why, quiet);
        }
        for port in &self.ports {
            port.stop(why, quiet.clone());
        }
        if let Some(queue) = self.serving.take().and_then(|serving| serving.control) {
            quiet.report(queue.ring.state(queue.index));
        }
    }
}
