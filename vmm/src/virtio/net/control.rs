//! The control queue: how many queue pairs the driver uses.
//!
//! Virtio 1.2, section 5.1.6.5. Of its commands only those are offered that the
//! number of queue pairs needs.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::CONTROL_BATCH;
use super::kernel::KernelPair;
use crate::net::Link;
use crate::virtio::Interrupt;
use crate::virtio::queue::{Broken, Buffers, Ring};

/// `VIRTIO_NET_CTRL_MQ`.
const CLASS_MULTIQUEUE: u8 = 4;
/// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
const PAIRS_SET: u8 = 0;
/// Bytes of that command: class, command, `virtqueue_pairs`.
const PAIRS_SET_SIZE: usize = 4;

/// `ack`. Section 5.1.6.5.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// The links of all pairs, of which the first few are in use: a packet must not go
/// to one whose queue nobody serves.
pub(super) struct Pairs {
    links: Vec<Arc<dyn Link>>,
    state: Mutex<State>,
}

struct State {
    /// How many links are enabled.
    enabled: usize,
    /// The pairs that the kernel serves: all of the driver's, or none. They run while
    /// their link is enabled, as the kernel gives up a tap's queue that isn't.
    in_kernel: Vec<KernelPair>,
}

impl Pairs {
    /// Links that are all enabled, as they are when opened.
    pub(super) fn new(links: Vec<Arc<dyn Link>>) -> Self {
        let state = Mutex::new(State {
            enabled: links.len(),
            in_kernel: Vec::new(),
        });
        Self { links, state }
    }

    pub(super) fn links(&self) -> &[Arc<dyn Link>] {
        &self.links
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enables the first `wanted` links and no others.
    pub(super) fn enable(&self, wanted: usize) -> io::Result<()> {
        let mut state = self.lock();
        while state.enabled < wanted {
            let Some(link) = self.links.get(state.enabled) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            link.set_enabled(true)?;
            if let Some(pair) = state.in_kernel.get(state.enabled)
                && let Err(error) = pair.start()
            {
                // A packet must not go where nobody serves.
                pair.stop();
                let _ = link.set_enabled(false);
                return Err(error);
            }
            state.enabled += 1;
        }
        while state.enabled > wanted {
            let last = state.enabled - 1;
            let Some(link) = self.links.get(last) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            if let Some(pair) = state.in_kernel.get(last) {
                pair.stop();
            }
            link.set_enabled(false)?;
            state.enabled = last;
        }
        Ok(())
    }

    /// Leaves the packets to the kernel from here on.
    pub(super) fn hand_over(&self, pairs: Vec<KernelPair>) -> io::Result<()> {
        let mut state = self.lock();
        for pair in pairs.iter().take(state.enabled) {
            // On failure, those begun are stopped as they are dropped.
            pair.start()?;
        }
        state.in_kernel = pairs;
        Ok(())
    }

    /// Has the kernel interrupt the driver of a queue by another event, or not at all. A
    /// pump asks each time.
    pub(super) fn set_call(&self, queue: u16, call: Option<&EventFd>) -> io::Result<()> {
        let state = self.lock();
        let pair = state.in_kernel.get(usize::from(queue / 2));
        pair.map_or(Ok(()), |pair| pair.set_call(queue % 2, call))
    }

    /// Takes the queues back from the kernel.
    pub(super) fn take_back(&self) {
        self.lock().in_kernel.clear();
    }
}

/// The control queue.
pub(super) struct Control {
    pub(super) ring: Ring,
    pub(super) index: u16,
    pub(super) pairs: Arc<Pairs>,
    /// Pairs whose queues the driver has set up.
    pub(super) live: usize,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

impl Control {
    /// Serves some commands. Returns whether there may be more.
    pub(super) fn serve(&mut self) -> Result<bool, Broken> {
        let mut buffers = Buffers::default();
        for _ in 0..CONTROL_BATCH {
            let Some(head) = self.ring.pop(&mut buffers)? else {
                return Ok(self.ring.listen());
            };
            if buffers.writable.length() == 0 {
                return Err(Broken::Request);
            }
            let ack = self.execute(&buffers);
            buffers.writable.copy_in(0, &[ack]);
            self.ring.push_used(head, 1);
            if self.ring.wants_interrupt() {
                self.interrupt.queue(self.index);
            }
        }
        Ok(true)
    }

    fn execute(&self, buffers: &Buffers) -> u8 {
        let mut command = [0; PAIRS_SET_SIZE];
        let whole = buffers.readable.length() == PAIRS_SET_SIZE
            && buffers.readable.copy_out(0, &mut command) == PAIRS_SET_SIZE;
        let [class, what, low, high] = command;
        let pairs = usize::from(u16::from_le_bytes([low, high]));
        let known = whole && (class, what) == (CLASS_MULTIQUEUE, PAIRS_SET);
        let possible = (1..=self.live).contains(&pairs);
        if known && possible && self.pairs.enable(pairs).is_ok() {
            OK
        } else {
            ERROR
        }
    }
}
