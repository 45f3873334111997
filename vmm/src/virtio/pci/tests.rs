//! A driver against the registers, as a guest reaches them.

mod copy;
mod life;
mod registers;
mod state;

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_queue::QueueT;

use super::*;
use crate::irq::Doorbell;
use crate::jail::Profile;
use crate::pci::config::register;
use crate::virtio::counters::counters;
use crate::virtio::quiet::{QueueState, Quiet, Why};
use crate::virtio::testing::{FakeInterrupts, Guest};
use crate::virtio::thread::Port;
use crate::virtio::{
    Activation, Declaration, F_EVENT_IDX, F_VERSION_1, Interrupt, Plug, SHARED, blk,
};

counters! {
    struct ProbeCounters {
        pokes,
    }
}

/// A device that records what is done to it, and keeps what it is given.
#[derive(Clone)]
struct Probe {
    declaration: &'static Declaration,
    log: Arc<Mutex<Vec<String>>>,
    given: Arc<Mutex<Option<Activation>>>,
    /// What it takes its time with; none: it is quiet at once.
    slow: Arc<Mutex<Option<Vec<Quiet>>>>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            declaration: &blk::DECLARATION,
            log: Arc::default(),
            given: Arc::default(),
            slow: Arc::default(),
        }
    }
}

impl Probe {
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl VirtioDevice for Probe {
    fn declaration(&self) -> &'static Declaration {
        self.declaration
    }
    fn features(&self) -> u64 {
        F_EVENT_IDX | 0x3
    }
    fn counters(&self) -> Arc<dyn Counters> {
        Arc::<ProbeCounters>::default()
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 64]
    }
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_config(&[1, 2, 3, 4], offset, data);
    }
    fn config_write(&mut self, offset: u64, data: &[u8]) {
        self.log
            .lock()
            .unwrap()
            .push(format!("config {offset} {data:?}"));
    }
    fn plugged(&mut self, site: &Site<'_>) -> io::Result<()> {
        assert_eq!(site.doorbells.len(), 2);
        Ok(())
    }
    fn port(&self) -> Option<&Port> {
        None
    }
    fn activate(&mut self, activation: Activation) {
        let what = if activation.resumed {
            "resume"
        } else {
            "activate"
        };
        self.log.lock().unwrap().push(what.into());
        *self.given.lock().unwrap() = Some(activation);
    }
    fn vectors_changed(&mut self) {
        self.log.lock().unwrap().push("vectors".into());
    }
    fn quiesce(&mut self, why: Why, quiet: Quiet) {
        self.log
            .lock()
            .unwrap()
            .push(format!("{why:?}").to_lowercase());
        *self.given.lock().unwrap() = None;
        let mut slow = self.slow.lock().unwrap();
        if let Some(slow) = slow.as_mut() {
            slow.push(quiet);
        }
    }
}

fn backplane(guest: &Guest, interrupts: &FakeInterrupts) -> Backplane {
    Backplane {
        memory: Arc::clone(&guest.memory),
        interrupts: Arc::new(interrupts.clone()),
        shared: Arc::new(DeviceThread::spawn("devices".into(), &SHARED).unwrap()),
        bell: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()),
    }
}

struct Bench {
    guest: Guest,
    probe: Probe,
    interrupts: FakeInterrupts,
    function: VirtioPciDevice,
    bell: Arc<EventFd>,
}

impl Bench {
    fn new() -> Self {
        let guest = Guest::new(2);
        let probe = Probe::default();
        let interrupts = FakeInterrupts::default();
        let backplane = backplane(&guest, &interrupts);
        let function = VirtioPciDevice::new(Box::new(probe.clone()), &backplane).unwrap();
        Self {
            guest,
            probe,
            interrupts,
            function,
            bell: backplane.bell,
        }
    }

    fn get(&mut self, at: u64, width: usize) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(0, at, &mut data[..width]);
        u32::from_le_bytes(data)
    }

    fn put(&mut self, at: u64, width: usize, value: u32) {
        self.function
            .bar_write(0, at, &value.to_le_bytes()[..width]);
    }

    fn status(&mut self) -> u32 {
        self.get(0x14, 1)
    }

    fn negotiate(&mut self, low: u32, high: u32) {
        self.put(0x14, 1, 1);
        self.put(0x14, 1, 3);
        for (select, value) in [(0, low), (1, high)] {
            self.put(0x08, 4, select);
            self.put(0x0c, 4, value);
        }
        self.put(0x14, 1, 0xb);
    }

    fn set_up(&mut self, queue: u16, size: u32) {
        self.put(0x16, 2, queue.into());
        self.put(0x18, 2, size);
        for (at, address) in [
            (0x20, Guest::table(queue)),
            (0x28, Guest::available(queue)),
            (0x30, Guest::used_ring(queue)),
        ] {
            self.put(at, 4, u32::try_from(address.0).unwrap());
            self.put(at + 4, 4, 0);
        }
        self.put(0x1c, 2, 1);
    }

    /// MSI-X on, all vectors open, vector 0 for configuration, 1 and 2 for queues.
    fn interrupts(&mut self) {
        for vector in 0..3 {
            let at = 0x4000 + 16 * vector;
            self.put(at, 4, 0xfee0_0000);
            self.put(at + 8, 4, 0x40);
            self.put(at + 12, 4, 0);
        }
        let msix = self.capability(0x11, None);
        self.function.config_write(msix + 2, &[0, 0x80]);
        self.put(0x10, 2, 0);
        for queue in 0..2 {
            self.put(0x16, 2, queue);
            self.put(0x1a, 2, queue + 1);
        }
    }

    fn capability(&self, id: u8, kind: Option<u8>) -> u8 {
        let byte = |at| {
            let mut byte = [0];
            self.function.config.read(at, &mut byte);
            byte[0]
        };
        let mut at = byte(register::CAPABILITIES);
        while byte(at) != id || kind.is_some_and(|kind| byte(at + 3) != kind) {
            at = byte(at + 1);
            assert_ne!(at, 0, "no such capability");
        }
        at
    }
}

#[test]
fn a_device_that_nobody_declared_is_refused() {
    static FORGOTTEN: Declaration = Declaration {
        name: "forgotten",
        device_type: 99,
        pci_class: [0x00, 0xff, 0x00],
        profile: Profile::NONE,
        plug: Plug::Fixed,
    };
    let probe = Probe {
        declaration: &FORGOTTEN,
        ..Probe::default()
    };
    let backplane = backplane(&Guest::new(2), &FakeInterrupts::default());
    let refused = VirtioPciDevice::new(Box::new(probe.clone()), &backplane);
    let error = refused.err().expect("no device");
    assert_eq!(error.to_string(), "the device forgotten is not declared");
    assert!(probe.log().is_empty());
}

#[test]
fn capabilities_say_where_things_are() {
    let bench = Bench::new();
    for (kind, start, length) in [(1, 0, 0x38), (3, 0x1000, 1), (4, 0x2000, 4)] {
        let at = bench.capability(0x09, Some(kind));
        assert_eq!(bench.function.config.read_u32(at + 8), start);
        assert!(bench.function.config.read_u32(at + 12) >= length);
    }
    let msix = bench.capability(0x11, None);
    assert_eq!(bench.function.config.read_u16(msix + 2), 2);
}

#[test]
fn the_port_is_the_first_doorbell_and_memory_the_second() {
    let bench = Bench::new();
    let config = &bench.function.config;
    let port = bench.capability(0x09, Some(2));
    let next = config.read_u16(port) >> 8;
    let memory = u8::try_from(next).unwrap();
    for (at, bar, start, multiplier) in [(port, 2, 0, 0), (memory, 0, 0x3000, 4)] {
        assert_eq!(config.read_u16(at + 2), 0x0214, "its length and kind");
        assert_eq!(config.read_u32(at + 4), bar);
        assert_eq!(config.read_u32(at + 8), start);
        assert_eq!(config.read_u32(at + 16), multiplier);
        // Section 4.1.4.4.1, with the queue notification offset of the last queue.
        assert!(config.read_u32(at + 12) >= multiplier + 2);
    }
}

#[test]
fn a_driver_brings_the_device_up() {
    let mut bench = Bench::new();
    assert_eq!(bench.get(0x04, 4), (1 << 29) | 3);
    bench.put(0x00, 4, 1);
    assert_eq!(bench.get(0x04, 4), 1);
    bench.put(0x00, 4, 2);
    assert_eq!(bench.get(0x04, 4), 0);
    assert_eq!(bench.get(0x12, 2), 2);
    assert_eq!(bench.get(0x15, 1), 0, "generation");
    assert_eq!(bench.get(0x10, 2), 0xffff, "no vector yet");
    bench.negotiate(1 << 29 | 1, 1);
    assert_eq!(bench.status(), 0xb);
    bench.interrupts();
    bench.set_up(0, 16);
    bench.set_up(1, 32);
    assert_eq!(bench.get(0x1e, 2), 1, "its doorbell");
    bench.put(0x14, 1, 0xf);
    assert_eq!(bench.status(), 0xf);
    assert_eq!(bench.probe.log(), ["activate"]);
    let given = bench.probe.given.lock().unwrap().take().unwrap();
    assert_eq!(given.features, F_VERSION_1 | F_EVENT_IDX | 1);
    let indices: Vec<_> = given.queues.iter().map(|queue| queue.index).collect();
    assert_eq!(indices, [0, 1]);
    assert!(given.queues.iter().all(|one| one.queue.event_idx_enabled()));
    given.interrupt.queue(1);
    assert_eq!(bench.interrupts.signals(2), 1);
    given.interrupt.config_changed();
    assert_eq!(bench.interrupts.signals(0), 1);
    assert_eq!(bench.get(0x15, 1), 1, "generation");
    assert_eq!(bench.get(0x1001, 1), 0, "nothing is behind it");
    assert_eq!(bench.get(0x1000, 1), 2, "ISR");
    assert_eq!(bench.get(0x1000, 1), 0, "reading clears");
    given.interrupt.needs_reset();
    assert_eq!(bench.status(), 0x4f);
    assert_eq!(bench.interrupts.signals(0), 2);
    let counted = [("pokes", 0), ("interrupts", 3), ("failures", 1)];
    assert_eq!(bench.function.counters().list(), counted);
    // Doorbells that come as exits ring, whatever their width.
    bench.put(0x3004, 2, 1);
    bench.function.bar_write(2, 0, &[1]);
    bench.function.bar_write(2, 0, &[1, 0]);
    bench.function.bar_write(2, 0, &[1, 0, 0xff, 0xff]);
    // There is no queue 257, none at another port, and none behind an empty write.
    bench.function.bar_write(2, 0, &[1, 1]);
    bench.function.bar_write(2, 2, &[1, 0]);
    bench.function.bar_write(2, 0, &[]);
    assert_eq!(given.queues[1].doorbell.read().unwrap(), 4);
    let mut data = [0xaa; 2];
    bench.function.bar_read(2, 0, &mut data);
    assert_eq!(data, [0; 2]);
    bench.put(0x14, 1, 0);
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.get(0x1a, 2), 0xffff);
    assert_eq!(bench.probe.log(), ["reset"]);
}

#[test]
fn features_that_were_not_offered_are_not_ok() {
    for (low, high) in [(4, 1), (1, 0), (1, 3)] {
        let mut bench = Bench::new();
        bench.negotiate(low, high);
        assert_eq!(bench.status(), 3);
        bench.put(0x14, 1, 0x7);
        assert_eq!(bench.status(), 3, "DRIVER_OK without FEATURES_OK");
        assert!(bench.probe.log().is_empty());
    }
}

#[test]
fn agreed_features_stay() {
    let mut bench = Bench::new();
    bench.negotiate(1, 1);
    bench.put(0x08, 4, 0);
    bench.put(0x0c, 4, 2);
    assert_eq!(bench.get(0x0c, 4), 1);
    bench.put(0x14, 1, 1);
    assert_eq!(bench.status(), 0xb, "bits are not cleared");
    bench.put(0x14, 1, 0x40);
    assert_eq!(bench.status(), 0xb, "NEEDS_RESET is the device's");
}

#[test]
fn a_queue_that_is_not_possible_needs_a_reset() {
    let high = 16 << 20;
    for (at, value) in [
        (0x18, 0),
        (0x18, 3),
        (0x18, 128),
        (0x20, 8),
        (0x28, 1),
        (0x28, 0),
        (0x30, 2),
        (0x20, high),
        (0x28, high - 2),
        (0x30, high - 4),
    ] {
        let mut bench = Bench::new();
        bench.negotiate(1, 1);
        bench.interrupts();
        bench.put(0x16, 2, 0);
        for (register, address) in [(0x20, 0x4000), (0x28, 0x5000), (0x30, 0x6000)] {
            bench.put(register, 4, address);
        }
        bench.put(at, if at == 0x18 { 2 } else { 4 }, value);
        bench.put(0x1c, 2, 1);
        bench.put(0x14, 1, 0xf);
        assert_eq!(bench.status(), 0x4f, "{at:x} {value:x}");
        assert_eq!(bench.interrupts.signals(0), 1);
        assert!(bench.probe.log().is_empty());
    }
}

#[test]
fn queues_are_fixed_once_enabled() {
    let mut bench = Bench::new();
    bench.set_up(1, 32);
    bench.put(0x18, 2, 64);
    bench.put(0x20, 4, 0);
    assert_eq!(bench.get(0x18, 2), 32);
    assert_eq!(bench.get(0x20, 4), 0x8000);
    bench.put(0x16, 2, 2);
    assert_eq!(bench.get(0x18, 2), 0, "there is no queue 2");
    bench.put(0x1c, 2, 1);
    bench.put(0x1a, 2, 0);
    assert_eq!(bench.get(0x1a, 2), 0xffff);
    bench.put(0x16, 2, 0);
    bench.put(0x1a, 2, 3);
    assert_eq!(bench.get(0x1a, 2), 0xffff, "there is no vector 3");
}

#[test]
fn a_vector_that_comes_late_is_handed_on() {
    let mut bench = Bench::new();
    bench.negotiate(1, 1);
    bench.interrupts();
    bench.set_up(0, 16);
    bench.set_up(1, 16);
    bench.put(0x14, 1, 0xf);
    assert_eq!(bench.probe.log(), ["activate"], "those before are no news");
    // Its own once more; another; one that doesn't exist; a queue that doesn't.
    for vector in [2, 1, 9] {
        bench.put(0x1a, 2, vector);
    }
    bench.put(0x16, 2, 2);
    bench.put(0x1a, 2, 1);
    assert_eq!(bench.probe.log(), ["vectors", "vectors"]);
    assert!(bench.function.shared.event(1).is_none(), "it has none");
    bench.put(0x16, 2, 1);
    bench.put(0x1a, 2, 1);
    let event = bench.function.shared.event(1).expect("one again");
    event.write(1).unwrap();
    assert_eq!(
        bench.interrupts.event(1).read().unwrap(),
        1,
        "the new one's"
    );
    assert!(bench.interrupts.event(2).read().is_err());
    assert_eq!(bench.status(), 0xf);
}

#[test]
fn doorbells_follow_the_bar() {
    let mut bench = Bench::new();
    bench.function.bar_moved(0, Some(0x1000));
    assert!(bench.interrupts.doorbells().is_empty(), "not the port's");
    let ports = |port| [Doorbell::Port(port, 0), Doorbell::Port(port, 1)];
    bench.function.bar_moved(2, Some(0x1000));
    assert_eq!(bench.interrupts.doorbells(), ports(0x1000));
    bench.function.bar_moved(2, Some(0x1ffc));
    assert_eq!(bench.interrupts.doorbells(), ports(0x1ffc));
    bench.function.bar_moved(2, None);
    assert!(bench.interrupts.doorbells().is_empty());
    bench.function.bar_moved(2, Some(1 << 16));
    assert!(bench.interrupts.doorbells().is_empty(), "no port");
    bench.function.bar_moved(2, Some(0x1000));
    let Bench {
        interrupts,
        function,
        ..
    } = bench;
    drop(function);
    assert!(interrupts.doorbells().is_empty());
}

#[test]
fn a_doorbell_in_memory_is_bound_once_it_is_used() {
    let mut bench = Bench::new();
    let ring = |bench: &mut Bench, queue: u64| {
        let doorbell = 0x3000 + 4 * queue;
        bench.function.bar_write(0, doorbell, &[0, 0]);
        bench.interrupts.doorbells()
    };
    assert!(ring(&mut bench, 1).is_empty(), "it is nowhere");
    bench.function.bar_moved(0, Some(0xc000_0000));
    assert!(bench.interrupts.doorbells().is_empty(), "not used yet");
    let second = Doorbell::Memory(0xc000_3004);
    for _ in 0..2 {
        assert_eq!(ring(&mut bench, 1), [second]);
    }
    let first = Doorbell::Memory(0xc000_3000);
    assert_eq!(ring(&mut bench, 0), [second, first]);
    assert_eq!(ring(&mut bench, 2).len(), 2, "there is no queue 2");
    // The port is another matter.
    bench.function.bar_moved(2, Some(0x1000));
    bench.function.bar_moved(2, None);
    assert_eq!(bench.interrupts.doorbells(), [second, first]);
    bench.function.bar_moved(0, Some(0xd000_0000));
    assert!(bench.interrupts.doorbells().is_empty(), "it is elsewhere");
    let second = Doorbell::Memory(0xd000_3004);
    assert_eq!(ring(&mut bench, 1), [second]);
    bench.function.bar_moved(0, None);
    assert!(ring(&mut bench, 1).is_empty());
    bench.function.bar_moved(0, Some(0xc000_0000));
    ring(&mut bench, 0);
    let Bench {
        interrupts,
        function,
        ..
    } = bench;
    drop(function);
    assert!(interrupts.doorbells().is_empty());
}

#[test]
fn configuration_space_reaches_the_bar() {
    let mut bench = Bench::new();
    let access = bench.capability(0x09, Some(5));
    let write = |bench: &mut Bench, at: u8, value: u32| {
        bench.function.config_write(at, &value.to_le_bytes());
    };
    // Device configuration, 4 bytes.
    write(&mut bench, access + 8, 0x2000);
    write(&mut bench, access + 12, 4);
    let mut data = [0; 4];
    bench.function.config_read(access + 16, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
    write(&mut bench, access + 16, 0x0403_0201);
    assert_eq!(bench.probe.log(), ["config 0 [1, 2, 3, 4]"]);
    // The other BAR, whose reads say nothing.
    bench.function.config_write(access + 4, &[2]);
    write(&mut bench, access + 8, 0);
    bench.function.config_read(access + 16, &mut data);
    assert_eq!(data, [0; 4]);
    // No BAR, and another width, are nothing.
    write(&mut bench, access + 8, 0x2000);
    bench.function.config_write(access + 4, &[1]);
    write(&mut bench, access + 16, 7);
    bench.function.config_write(access + 4, &[0]);
    write(&mut bench, access + 12, 2);
    write(&mut bench, access + 16, 7);
    assert!(bench.probe.log().is_empty());
}

#[test]
fn a_bus_reset_clears_everything() {
    let mut bench = Bench::new();
    bench.negotiate(1, 1);
    bench.interrupts();
    bench.function.quiesce(Quiesce::PowerOn);
    assert!(bench.function.is_quiet());
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.interrupts.route(0).map(|route| route.1), Some(true));
    let msix = bench.capability(0x11, None);
    assert_eq!(bench.function.config.read_u16(msix + 2), 2);
    assert!(bench.guest.used(0).is_empty());
}

proptest! {
    #[test]
    fn no_access_breaks_the_function(
        accesses in prop::collection::vec(
            (any::<bool>(), 0u64..0x8100, prop::collection::vec(any::<u8>(), 1..9)), 0..200)
    ) {
        let mut bench = Bench::new();
        for (common, at, bytes) in accesses {
            let at = if common { at % 0x40 } else { at };
            let bar = if common || at % 7 > 0 { 0 } else { 2 };
            bench.function.bar_write(bar, at, &bytes);
            let mut data = vec![0xaa; bytes.len()];
            bench.function.bar_read(bar, at, &mut data);
            let [offset, ..] = at.to_le_bytes();
            let width = [1, 2, 4][bytes.len() % 3].min(bytes.len());
            bench.function.config_write(offset, &bytes[..width]);
            bench.function.config_read(offset, &mut data[..width]);
        }
        bench.put(0x14, 1, 0);
        prop_assert_eq!(bench.status(), 0);
        bench.negotiate(1, 1);
        prop_assert_eq!(bench.status(), 0xb);
    }
}
