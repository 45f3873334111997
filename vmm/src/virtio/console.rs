//! The console device: hvc0, at the same console as COM1.
//!
//! Virtio 1.2, section 5.3: one port, so neither control queues nor
//! VIRTIO_CONSOLE_F_MULTIPORT.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
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
use crate::serial::{ConsolePort, INPUT_ROOM};
use crate::snapshot::Refused;

/// Queues. Section 5.3.2.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;

/// The token of the port's bell; those before it are doorbells'.
const BELL: u64 = 2;

/// The most bytes of one chain of output. Linux puts a page into one; nobody gains by
/// more than what is remembered of a console.
const MAX_BYTES: usize = 64 * 1024;

/// The most chains of one queue before the next has its turn.
const BATCH: usize = 64;

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "console",
    device_type: 3,
    pci_class: [0x07, 0x80, 0x00],
    profile: Profile::NONE,
    plug: Plug::Fixed,
};

counters! {
    /// What a console counts, as the guest sees it.
    struct ConsoleCounters {
        /// Times that the driver rang.
        notifications,
        /// Bytes typed that the guest was given.
        received_bytes,
        /// Bytes of output.
        transmitted_bytes,
    }
}

/// [`Console`], saved. Output is the log's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleV1 {
    /// Input that waits, the oldest byte first.
    pub input: Vec<u8>,
}

/// A console.
pub struct Console {
    counters: Arc<ConsoleCounters>,
    console: Arc<ConsolePort>,
    port: Option<Port>,
}

impl Console {
    /// An idle device at this port of the console.
    #[must_use]
    pub fn new(console: Arc<ConsolePort>) -> Self {
        Self {
            counters: Arc::default(),
            console,
            port: None,
        }
    }
}

impl VirtioDevice for Console {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn features(&self) -> u64 {
        // Not VIRTIO_CONSOLE_F_EMERG_WRITE: nothing may be written under the
        // transport's lock, and COM1 is there for that.
        F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.counters) as Arc<dyn Counters>
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn config_read(&self, _: u64, data: &mut [u8]) {
        // All fields are those of features that aren't offered. Section 5.3.4.
        data.fill(0);
    }

    fn config_write(&mut self, _: u64, _: &[u8]) {}

    fn plugged(&mut self, site: &Site<'_>) -> io::Result<()> {
        let (counters, console) = (Arc::clone(&self.counters), Arc::clone(&self.console));
        let port = site.shared.add(|events| {
            events.watch_doorbells(site.doorbells)?;
            events.watch(console.bell(), BELL, EventSet::IN)?;
            Ok(Server {
                counters,
                console,
                serving: None,
            })
        });
        self.port = Some(port?);
        Ok(())
    }

    fn port(&self) -> Option<&Port> {
        self.port.as_ref()
    }

    fn save(&self) -> Value {
        json!(ConsoleV1 {
            input: self.console.input(),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        let ConsoleV1 { input } = ConsoleV1::deserialize(state)?;
        match self.console.set_input(&input) {
            true => Ok(()),
            false => Err(Refused::because(format!(
                "{} bytes of input wait, and there is room for {INPUT_ROOM}",
                input.len()
            ))),
        }
    }
}

/// The device on its thread.
struct Server {
    counters: Arc<ConsoleCounters>,
    console: Arc<ConsolePort>,
    serving: Option<Serving>,
}

struct Serving {
    receive: Ring,
    transmit: Ring,
    interrupt: Arc<dyn Interrupt>,
}

impl Service for Server {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let ring = |index| {
            let mut queues = activation.queues.iter();
            let active = queues.find(|active| active.index == index);
            let active = active.ok_or_else(|| io::Error::other("a queue is not enabled"))?;
            Ring::new(&active.queue, Arc::clone(&activation.memory)).map_err(io::Error::other)
        };
        self.serving = Some(Serving {
            receive: ring(RECEIVE)?,
            transmit: ring(TRANSMIT)?,
            interrupt: activation.interrupt,
        });
        self.console.open();
        Ok(())
    }

    fn on_event(&mut self, token: u64, _: EventSet) {
        if token != BELL {
            self.counters.notifications.add(1);
        }
    }

    fn work(&mut self) -> io::Result<Until> {
        let Some(serving) = &mut self.serving else {
            return Ok(Until::Event);
        };
        let more = serving
            .transmit(&self.console, &self.counters)
            .and_then(|more| Ok(serving.receive(&self.console, &self.counters)? || more));
        if more.is_err() {
            // Nobody reads here before a reset.
            self.console.close();
        }
        more.map(Until::more).map_err(io::Error::other)
    }

    fn stop(&mut self, why: Why, quiet: &Quiet) {
        if why == Why::Reset {
            self.console.close();
        }
        if let Some(serving) = self.serving.take() {
            quiet.report(serving.receive.state(RECEIVE));
            quiet.report(serving.transmit.state(TRANSMIT));
        }
    }
}

impl Serving {
    /// Takes output for as long as there is room for it. Returns whether there may be
    /// more.
    fn transmit(
        &mut self,
        console: &ConsolePort,
        counters: &ConsoleCounters,
    ) -> Result<bool, Broken> {
        let mut buffers = Buffers::default();
        for _ in 0..BATCH {
            if !console.has_room() {
                // The bell rings when there is.
                return Ok(false);
            }
            let Some(head) = self.transmit.pop(&mut buffers)? else {
                return Ok(self.transmit.enable_notification());
            };
            let length = buffers.readable.length();
            if length > MAX_BYTES || buffers.writable.length() > 0 {
                return Err(Broken::Request);
            }
            let mut bytes = vec![0; length];
            buffers.readable.copy_out(0, &mut bytes);
            console.write(&bytes);
            counters.transmitted_bytes.add_length(length);
            self.transmit.push_used(head, 0);
            if self.transmit.wants_interrupt() {
                self.interrupt.queue(TRANSMIT);
            }
        }
        Ok(true)
    }

    /// Hands on input that waits. Returns whether there may be more to do.
    fn receive(
        &mut self,
        console: &ConsolePort,
        counters: &ConsoleCounters,
    ) -> Result<bool, Broken> {
        let mut buffers = Buffers::default();
        for _ in 0..BATCH {
            if !console.has_input() {
                return Ok(false);
            }
            let Some(head) = self.receive.pop(&mut buffers)? else {
                return Ok(self.receive.enable_notification());
            };
            if buffers.writable.length() == 0 || buffers.readable.length() > 0 {
                return Err(Broken::Request);
            }
            let bytes = console.read_input(buffers.writable.length());
            let written = buffers.writable.copy_in(0, &bytes);
            counters.received_bytes.add_length(written);
            // At most `INPUT_ROOM`.
            self.receive
                .push_used(head, u32::try_from(written).unwrap_or(0));
            if self.receive.wants_interrupt() {
                self.interrupt.queue(RECEIVE);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serial::{Output, Serial};
    use crate::virtio::testing::{FakeInterrupt, Guest, READ, WRITE, quiesce, reset};

    const BUFFER: u64 = 0x10_0000;

    struct Bench {
        guest: Guest,
        serial: Serial,
        console: Console,
        interrupt: Arc<FakeInterrupt>,
    }

    impl Bench {
        fn plugged() -> Self {
            let guest = Guest::new(2);
            let file = tempfile::tempfile().unwrap();
            let serial = Serial::new(Output::log(file).unwrap()).unwrap();
            let mut console = Console::new(serial.console_port().unwrap());
            guest.plug(&mut console);
            Self {
                guest,
                serial,
                console,
                interrupt: Arc::default(),
            }
        }

        fn activate(&mut self) {
            let activation = self.guest.activation(0, &self.interrupt);
            self.console.activate(activation);
            // It works off what is there once it has started.
            self.guest.offer(TRANSMIT, &[(BUFFER, 1, READ)]);
            self.interrupt.wait(|said| said.queues.contains(&TRANSMIT));
        }

        fn started() -> Self {
            let mut bench = Self::plugged();
            bench.activate();
            bench.serial.progress();
            bench
        }
    }

    #[test]
    fn input_fills_what_was_offered_and_waits_for_more() {
        let mut bench = Bench::started();
        bench.guest.offer(RECEIVE, &[(BUFFER, 3, WRITE)]);
        bench.serial.input(b"abcde");
        bench.interrupt.wait(|said| said.queues.contains(&RECEIVE));
        assert_eq!(bench.guest.read(BUFFER, 4), b"abc\0");
        let held = quiesce(&mut bench.console, Why::Hold);
        assert_eq!(bench.console.save(), json!({ "input": b"de" }));
        let activation = bench.guest.resumption(0, &bench.interrupt, &held);
        bench.console.activate(activation);
        bench.guest.offer(RECEIVE, &[(BUFFER, 64, WRITE)]);
        let twice = |queues: &[u16]| queues.iter().filter(|queue| **queue == RECEIVE).count() == 2;
        bench.interrupt.wait(|said| twice(&said.queues));
        assert_eq!(bench.guest.used(RECEIVE), [(0, 3), (1, 2)]);
        assert_eq!(bench.guest.read(BUFFER, 3), b"dec");
        let counted = bench.console.counters().list();
        let bytes = [("received_bytes", 5), ("transmitted_bytes", 1)];
        assert_eq!(counted[1..], bytes);
    }

    #[test]
    fn a_full_console_holds_back_the_guest_until_it_is_read() {
        let bench = Bench::started();
        for _ in 0..3 {
            bench.guest.offer(TRANSMIT, &[(BUFFER, 64 << 10, READ)]);
        }
        let count = |queues: &[u16]| queues.iter().filter(|queue| **queue == TRANSMIT).count();
        for chains in 2..5 {
            let said = bench.interrupt.wait(|said| count(&said.queues) >= chains);
            assert_eq!(count(&said.queues), chains, "one at a time");
            bench.serial.progress();
        }
    }

    #[test]
    fn a_reset_gives_com1_the_keyboard_back() {
        let mut bench = Bench::started();
        let uart = Bench::plugged().serial.input_capacity();
        bench.serial.input(b"lost");
        assert_ne!(bench.serial.input_capacity(), uart);
        reset(&mut bench.console);
        assert_eq!(bench.serial.input_capacity(), uart);
        assert_eq!(Arc::strong_count(&bench.guest.memory), 1);
        assert_eq!(bench.console.save(), json!({ "input": [] }));
    }

    #[test]
    fn a_broken_queue_gives_com1_the_keyboard_back() {
        for (queue, chain) in [
            (TRANSMIT, (BUFFER, 1, WRITE)),
            (TRANSMIT, (BUFFER, (64 << 10) + 1, READ)),
            (RECEIVE, (BUFFER, 1, READ)),
            (RECEIVE, (BUFFER, 0, WRITE)),
        ] {
            let bench = Bench::started();
            bench.serial.input(b"a");
            bench.guest.offer(queue, &[chain]);
            bench.interrupt.wait(|said| said.needs_reset == 1);
            assert_ne!(bench.serial.input_capacity(), INPUT_ROOM);
        }
    }

    #[test]
    fn a_copy_is_given_the_input_that_waited() {
        let mut copy = Bench::plugged();
        copy.console.restore(&json!({ "input": b"abc" })).unwrap();
        assert_eq!(copy.console.save(), json!({ "input": b"abc" }));
        copy.guest.offer(RECEIVE, &[(BUFFER, 64, WRITE)]);
        copy.activate();
        assert_eq!(copy.guest.read(BUFFER, 3), b"abc");
        let long = json!({ "input": vec![0; INPUT_ROOM + 1] });
        for wrong in [long, Value::Null, json!({ "input": [], "more": 1 })] {
            assert!(copy.console.restore(&wrong).is_err());
        }
    }
}
