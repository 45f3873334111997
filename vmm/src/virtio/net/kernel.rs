//! A pair of queues whose packets the kernel moves. What needs the kernel's module is
//! seen by the guests' tests.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{F_MRG_RXBUF, ReceiveTransmit};
use crate::net::{Link, Vhost};
use crate::vhost::Vring;
use crate::virtio::queue::Ring;
use crate::virtio::quiet::{QueueState, Quiet};
use crate::virtio::{Activation, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Interrupt};

/// The features that concern queues, and thus the kernel; the others are the tap's, or
/// the control queue's.
pub const KERNEL_FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_MRG_RXBUF;

/// A pair of queues in the kernel's hands. Dropping it takes them back.
pub(super) struct KernelPair {
    vhost: Arc<Vhost>,
    link: Arc<dyn Link>,
    /// Their indices, and where the kernel writes how far it is.
    rings: [(u16, Ring); 2],
}

impl KernelPair {
    /// Hands over queues that nothing else serves. `broken` is signalled when the
    /// driver breaks their rules.
    ///
    /// Returns none where the driver asks for what only a pump does: no mergeable
    /// buffers (without them, older kernels leave `num_buffers` unset), or no
    /// interrupts.
    ///
    /// # Errors
    /// When a ring is not in memory, or the kernel refuses.
    pub(super) fn new(
        vhost: &Arc<Vhost>,
        link: &Arc<dyn Link>,
        activation: &Activation,
        queues: ReceiveTransmit<'_>,
        broken: &EventFd,
    ) -> io::Result<Option<Self>> {
        let events = queues.map(|active| activation.interrupt.event(active.index));
        let ([Some(received), Some(sent)], true) = (&events, activation.has(F_MRG_RXBUF)) else {
            return Ok(None);
        };
        // The same look at the rings that every other device has.
        let ring = |active: &crate::virtio::ActiveQueue| {
            let ring = Ring::new(&active.queue, Arc::clone(&activation.memory));
            ring.map(|ring| (active.index, ring))
                .map_err(io::Error::other)
        };
        let [receive, transmit] = queues;
        let rings = [ring(receive)?, ring(transmit)?];
        let vrings = [(receive, received), (transmit, sent)].map(|(active, call)| Vring {
            queue: &active.queue,
            kick: &active.doorbell,
            call,
            error: broken,
        });
        vhost.set_up(activation.features & KERNEL_FEATURES, vrings)?;
        let vhost = Arc::clone(vhost);
        let link = Arc::clone(link);
        Ok(Some(Self { vhost, link, rings }))
    }

    /// Packets move from here on. The link must be enabled.
    pub(super) fn start(&self) -> io::Result<()> {
        self.vhost.start(self.link.as_raw_fd())
    }

    /// Has the kernel interrupt the driver by the events that are its queues' now, or not
    /// at all.
    pub(super) fn set_calls(&self, interrupt: &dyn Interrupt) -> io::Result<()> {
        let mut all = (0..).zip(&self.rings);
        all.try_for_each(|(place, (index, _))| {
            let event = interrupt.event(*index);
            self.vhost.set_call(place, event.as_ref())
        })
    }

    /// Nothing moves any more when this returns.
    pub(super) fn stop(&self) {
        self.vhost.stop();
    }

    /// Takes the queues back, and reports where the kernel has left them.
    pub(super) fn end(self, quiet: &Quiet) {
        self.stop();
        for (place, (index, ring)) in self.rings.iter().enumerate() {
            // One that was never given to the kernel stands where it was.
            let own = ring.state(*index);
            let next_available = self.vhost.next_available(place);
            quiet.report(QueueState {
                next_available: next_available.unwrap_or(own.next_available),
                // All that is taken is returned, once the kernel is stopped.
                next_used: ring.used_index(),
                ..own
            });
        }
    }
}

impl Drop for KernelPair {
    fn drop(&mut self) {
        self.stop();
    }
}
