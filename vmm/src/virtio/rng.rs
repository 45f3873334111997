//! The entropy device: fills what the driver offers with random bytes.
//!
//! Virtio 1.2, section 5.4.

#![allow(unsafe_code, reason = "getrandom(2) into guest memory")]

use std::io;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::counters::{Counters, counters};
use super::queue::{Broken, Buffers, Ring};
use super::quiet::{Quiet, Why};
use super::thread::{Port, Service};
use super::{
    Activation, Declaration, F_EVENT_IDX, F_INDIRECT_DESC, Interrupt, Plug, Site, VirtioDevice,
};
use crate::epoll::Until;
use crate::jail::Profile;

/// The queue's size: drivers keep one request.
const QUEUE_SIZE: u16 = 64;

/// The most bytes for one request. The device may use less than it is offered
/// (section 5.4.6.1), and a guest must not keep the host busy with one descriptor.
const MAX_BYTES: usize = 64 * 1024;

/// The most requests served before the thread looks whether it must stop.
const BATCH: usize = 64;

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "rng",
    device_type: 4,
    pci_class: [0x00, 0xff, 0x00],
    profile: Profile::NONE,
    plug: Plug::Fixed,
};

counters! {
    /// What an entropy source counts.
    struct RngCounters {
        /// Times that the driver rang.
        notifications,
        /// Requests filled.
        requests,
        /// Random bytes given.
        bytes,
    }
}

/// An entropy source fed by `getrandom(2)`.
#[derive(Default)]
pub struct Rng {
    counters: Arc<RngCounters>,
    port: Option<Port>,
}

impl Rng {
    /// An idle device.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.counters) as Arc<dyn Counters>
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_write(&mut self, _: u64, _: &[u8]) {}

    fn plugged(&mut self, site: &Site<'_>) -> io::Result<()> {
        let counters = Arc::clone(&self.counters);
        let port = site.shared.add(|events| {
            events.watch_doorbells(site.doorbells)?;
            Ok(Source {
                counters,
                serving: None,
            })
        });
        self.port = Some(port?);
        Ok(())
    }

    fn port(&self) -> Option<&Port> {
        self.port.as_ref()
    }
}

/// The device on its thread.
struct Source {
    counters: Arc<RngCounters>,
    serving: Option<Serving>,
}

struct Serving {
    ring: Ring,
    index: u16,
    interrupt: Arc<dyn Interrupt>,
}

impl Service for Source {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let active = queues.first();
        let active = active.ok_or_else(|| io::Error::other("the entropy queue is not enabled"))?;
        self.serving = Some(Serving {
            ring: Ring::new(&active.queue, memory).map_err(io::Error::other)?,
            index: active.index,
            interrupt,
        });
        Ok(())
    }

    fn on_event(&mut self, _: u64, _: EventSet) {
        self.counters.notifications.add(1);
    }

    fn work(&mut self) -> io::Result<Until> {
        let Some(serving) = &mut self.serving else {
            return Ok(Until::Event);
        };
        let more = serving.serve(&self.counters);
        more.map(Until::more).map_err(io::Error::other)
    }

    fn stop(&mut self, _: Why, quiet: &Quiet) {
        if let Some(serving) = self.serving.take() {
            quiet.report(serving.ring.state(serving.index));
        }
    }
}

impl Serving {
    /// Serves up to [`BATCH`] requests. Returns whether there may be more.
    fn serve(&mut self, counters: &RngCounters) -> Result<bool, Broken> {
        let mut buffers = Buffers::default();
        for _ in 0..BATCH {
            let Some(head) = self.ring.pop(&mut buffers)? else {
                return Ok(self.ring.enable_notification());
            };
            let written = fill(&buffers)?;
            self.ring.push_used(head, written);
            counters.requests.add(1);
            counters.bytes.add(written.into());
            if self.ring.wants_interrupt() {
                self.interrupt.queue(self.index);
            }
        }
        Ok(true)
    }
}

/// Fills a request. A driver that offers nothing to write breaks the rules.
fn fill(buffers: &Buffers) -> Result<u32, Broken> {
    let wanted = buffers.writable.length().min(MAX_BYTES);
    if wanted == 0 || buffers.readable.length() > 0 {
        return Err(Broken::Request);
    }
    let mut bytes = vec![0; wanted];
    let mut done = 0;
    while done < wanted {
        let rest = &mut bytes[done..];
        // SAFETY: the pointer and length are those of `rest`.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            // By a signal, which no test can time.
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            // Can't be with a kernel that has the call; what is there is random.
            Err(_) => break,
        }
    }
    let written = buffers.writable.copy_in(0, &bytes[..done]);
    Ok(u32::try_from(written).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{FakeInterrupt, Guest, READ, WRITE, quiesce, reset};

    fn start(guest: &Guest) -> (Rng, Arc<FakeInterrupt>) {
        let interrupt = Arc::new(FakeInterrupt::default());
        let mut rng = Rng::new();
        guest.start(&mut rng, 0, &interrupt);
        (rng, interrupt)
    }

    #[test]
    fn fills_what_is_offered_up_to_its_bound() {
        let guest = Guest::new(1);
        let (mut rng, interrupt) = start(&guest);
        guest.offer(0, &[(0x10_0000, 4096, WRITE), (0x20_0000, 100_000, WRITE)]);
        interrupt.wait(|said| !said.queues.is_empty());
        assert_eq!(guest.used(0), vec![(0, 65536)]);
        let counted = rng.counters().list();
        assert_eq!(counted[1..], [("requests", 1), ("bytes", 65536)]);
        assert!(guest.read(0x10_0000, 4096).iter().any(|byte| *byte != 0));
        let mut config = [0xff; 4];
        rng.config_read(0, &mut config);
        assert_eq!(config, [0; 4], "there is none");
        let beyond = guest.read(0x20_0000 + 65536 - 4096, 1000);
        assert!(beyond.iter().all(|byte| *byte == 0));
        reset(&mut rng);
        assert_eq!(Arc::strong_count(&guest.memory), 1);
        reset(&mut rng);
    }

    #[test]
    fn a_readable_buffer_breaks_the_rules() {
        for chain in [
            &[(0x10_0000, 64, READ)][..],
            &[(0x10_0000, 0, WRITE)],
            &[(u64::MAX - 3, 64, WRITE)],
            &[(0x10_0000, 64, READ), (0x10_0000, 64, WRITE)],
        ] {
            let guest = Guest::new(1);
            let (_rng, interrupt) = start(&guest);
            guest.offer(0, chain);
            interrupt.wait(|said| said.needs_reset == 1);
            assert_eq!(guest.used(0), vec![]);
        }
    }

    /// Nobody goes on from behind the chain that broke it, until the driver has reset it.
    #[test]
    fn one_that_is_broken_stays_so_over_a_hold() {
        let guest = Guest::new(1);
        let (mut rng, interrupt) = start(&guest);
        guest.offer(0, &[(0x10_0000, 64, READ)]);
        interrupt.wait(|said| said.needs_reset == 1);
        assert_eq!(quiesce(&mut rng, Why::Hold), []);
        let nothing = Activation {
            queues: Vec::new(),
            resumed: true,
            ..guest.activation(0, &interrupt)
        };
        rng.activate(nothing);
        interrupt.wait(|said| said.needs_reset == 2);
        assert_eq!(quiesce(&mut rng, Why::Hold), []);
        reset(&mut rng);
        guest.start_over();
        rng.activate(guest.activation(0, &interrupt));
        guest.offer(0, &[(0x10_0000, 64, WRITE)]);
        interrupt.wait(|said| !said.queues.is_empty());
        assert_eq!(quiesce(&mut rng, Why::Hold).len(), 1);
    }
}
