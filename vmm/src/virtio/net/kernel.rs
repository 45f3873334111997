//! A pair of queues whose packets the kernel moves, and the eye on whether its driver
//! keeps the rules. What needs the kernel's module is seen by the guests' tests.

use std::io;
use std::sync::Arc;

use vmm_sys_util::epoll::{EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{DECLARATION, F_MRG_RXBUF, ReceiveTransmit};
use crate::epoll::{DOORBELL, Epoll, STOP};
use crate::net::{Link, Vhost, Vring};
use crate::virtio::queue::Ring;
use crate::virtio::worker::Worker;
use crate::virtio::{Activation, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Interrupt};

/// The features that concern queues, and thus the kernel; the others are the tap's, or
/// the control queue's.
pub const KERNEL_FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_MRG_RXBUF;

/// A pair of queues in the kernel's hands. Dropping it takes them back.
pub(super) struct KernelPair {
    vhost: Arc<Vhost>,
    link: Arc<dyn Link>,
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
        for active in queues {
            // The same look at the rings that every other device has.
            Ring::new(&active.queue, Arc::clone(&activation.memory)).map_err(io::Error::other)?;
        }
        let [receive, transmit] = queues;
        let vrings = [(receive, received), (transmit, sent)].map(|(active, call)| Vring {
            queue: &active.queue,
            kick: &active.doorbell,
            call,
            error: broken,
        });
        vhost.set_up(activation.features & KERNEL_FEATURES, vrings)?;
        let vhost = Arc::clone(vhost);
        let link = Arc::clone(link);
        Ok(Some(Self { vhost, link }))
    }

    /// Packets move from here on. The link must be enabled.
    pub(super) fn start(&self) -> io::Result<()> {
        self.vhost.start(self.link.as_raw_fd())
    }

    /// Replaces what interrupts the driver of one of the queues: 0 is the one that
    /// receives.
    pub(super) fn set_call(&self, queue: u16, call: Option<&EventFd>) -> io::Result<()> {
        self.vhost.set_call(queue.into(), call)
    }

    /// Nothing moves any more when this returns.
    pub(super) fn stop(&self) {
        self.vhost.stop();
    }
}

impl Drop for KernelPair {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Notifies the driver once the kernel says that a queue is broken.
pub(super) fn watch(broken: EventFd, interrupt: Arc<dyn Interrupt>) -> io::Result<Worker> {
    Worker::start(&DECLARATION, "-broken", interrupt, move |stop| {
        let epoll = Epoll::new()?;
        epoll.watch(stop.as_ref(), STOP, EventSet::IN)?;
        epoll.watch(&broken, DOORBELL, EventSet::IN)?;
        let mut events = [EpollEvent::default(); 2];
        let count = epoll.wait(&mut events, false)?;
        match events[..count].iter().any(|event| event.data() == STOP) {
            true => Ok(()),
            false => Err(io::Error::other("the driver broke a queue's rules")),
        }
    })
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    use super::*;
    use crate::virtio::testing::FakeInterrupt;

    #[test]
    fn a_broken_queue_is_told_and_an_end_is_not() {
        for is_broken in [true, false] {
            let broken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
            let said = Arc::new(FakeInterrupt::default());
            let interrupt = Arc::clone(&said) as Arc<dyn Interrupt>;
            let worker = watch(broken.try_clone().unwrap(), interrupt).unwrap();
            if is_broken {
                broken.write(1).unwrap();
                said.wait(|said| said.needs_reset > 0);
            }
            drop(worker);
            let times = said.wait(|_| true).needs_reset;
            assert_eq!(times, usize::from(is_broken));
        }
    }
}
