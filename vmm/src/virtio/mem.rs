//! Memory that comes and goes: the host says how much the guest shall have, and the guest
//! plugs and unplugs blocks of it by requests.
//!
//! Virtio 1.2, section 5.15. The guest plugs no more than it was offered. With
//! VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE it touches plugged memory only, which
//! [`memory::Blocks`](crate::memory::Blocks) sees to; a driver that doesn't take that
//! feature (Linux before 5.16) may read what is not plugged, and finds zeroes.
//!
//! What is plugged is guest memory's to know, and outlives a reset of the device (section
//! 5.15.6.2), but not one of the machine.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vmm_sys_util::epoll::EventSet;

use super::counters::{Counters, counters};
use super::queue::{Broken, Buffers, Ring};
use super::quiet::{Quiet, Why};
use super::thread::{Port, Service};
use super::{
    Activation, Declaration, F_EVENT_IDX, F_INDIRECT_DESC, Interrupt, Plug, Site, VirtioDevice,
    read_config,
};
use crate::epoll::Until;
use crate::jail::Profile;
use crate::memory::{BlockState, Blocks, Memory, Region};
use crate::snapshot::Refused;

/// Feature bit. Section 5.15.3.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Entries of the queue. Drivers have one request at a time.
const QUEUE_SIZE: u16 = 64;

/// The most requests before the thread looks whether it must stop.
const BATCH: usize = 16;

/// Bytes of `struct virtio_mem_req` and `struct virtio_mem_resp`. Section 5.15.6.
const REQUEST_SIZE: usize = 24;
const RESPONSE_SIZE: usize = 10;

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "mem",
    device_type: 24,
    pci_class: [0x00, 0xff, 0x00],
    profile: Profile::NONE,
    plug: Plug::Fixed,
};

counters! {
    /// What a memory device counts.
    struct MemCounters {
        /// Times that the driver rang.
        notifications,
        /// Requests, granted or not.
        requests,
        /// Requests that were refused: more than was asked for, or no such blocks.
        refused,
        /// Bytes plugged.
        plugged_bytes,
        /// Bytes unplugged.
        unplugged_bytes,
    }
}

/// [`Mem`], saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemV1 {
    /// Bytes that the guest shall have.
    pub requested: u64,
    /// Bytes of a block.
    pub block: u64,
    /// The blocks that are plugged: runs, by their first and the one behind the last.
    pub plugged: Vec<(u64, u64)>,
}

/// What a driver asks for. Section 5.15.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Plug { address: u64, blocks: u16 },
    Unplug { address: u64, blocks: u16 },
    UnplugAll,
    State { address: u64, blocks: u16 },
}

impl Request {
    /// Reads one; none: there is no such kind.
    fn parse(bytes: [u8; REQUEST_SIZE]) -> Option<Self> {
        let [a, b, _, _, _, _, _, _, address @ .., c, d, _, _, _, _, _, _] = bytes;
        let (address, blocks) = (u64::from_le_bytes(address), u16::from_le_bytes([c, d]));
        match u16::from_le_bytes([a, b]) {
            0 => Some(Self::Plug { address, blocks }),
            1 => Some(Self::Unplug { address, blocks }),
            2 => Some(Self::UnplugAll),
            3 => Some(Self::State { address, blocks }),
            _ => None,
        }
    }
}

/// What it gets. Section 5.15.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Response {
    Ack,
    /// More than was offered.
    Nack,
    /// The host can't now.
    Busy,
    /// There is no such request, or no such blocks.
    Error,
    State(BlockState),
}

impl Response {
    fn bytes(self) -> [u8; RESPONSE_SIZE] {
        let (kind, state) = match self {
            Self::Ack | Self::State(BlockState::Plugged) => (0, 0),
            Self::State(BlockState::Unplugged) => (0, 1),
            Self::State(BlockState::Mixed) => (0, 2),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        let mut bytes = [0; RESPONSE_SIZE];
        (bytes[0], bytes[8]) = (kind, state);
        bytes
    }
}

/// What the device and its handles share.
struct Shared {
    counters: Arc<MemCounters>,
    memory: Memory,
    /// Bytes that the guest shall have.
    requested: AtomicU64,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Shared {
    /// The region, and its blocks.
    fn region(&self) -> Option<(&Region, &Blocks)> {
        let mut regions = self.memory.regions();
        regions.find_map(|region| Some((region, region.blocks()?)))
    }

    fn requested(&self) -> u64 {
        self.requested.load(Ordering::SeqCst)
    }

    fn interrupt(&self) -> MutexGuard<'_, Option<Arc<dyn Interrupt>>> {
        self.interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn respond(&self, request: Option<Request>) -> Response {
        let (Some(request), Some((region, blocks))) = (request, self.region()) else {
            return Response::Error;
        };
        let find = |address: u64, count: u16| {
            let offset = address.checked_sub(region.start())?;
            let first = offset / blocks.size();
            let range = first..first.checked_add(count.into())?;
            let state = blocks.state(range.clone())?;
            offset
                .is_multiple_of(blocks.size())
                .then_some((range, state))
        };
        let bytes = |range: &Range<u64>| (range.end - range.start) * blocks.size();
        match request {
            Request::Plug {
                address,
                blocks: count,
            } => match find(address, count) {
                Some((range, BlockState::Unplugged)) => {
                    let more = bytes(&range);
                    if blocks.plugged() * blocks.size() + more > self.requested() {
                        return Response::Nack;
                    }
                    let plugged = region.plug(range);
                    done(plugged, || self.counters.plugged_bytes.add(more))
                }
                _ => Response::Error,
            },
            Request::Unplug {
                address,
                blocks: count,
            } => match find(address, count) {
                Some((range, BlockState::Plugged)) => {
                    let less = bytes(&range);
                    let unplugged = region.unplug(range);
                    done(unplugged, || self.counters.unplugged_bytes.add(less))
                }
                _ => Response::Error,
            },
            Request::UnplugAll => {
                let all = blocks.plugged() * blocks.size();
                let unplugged = region.unplug_all();
                done(unplugged, || self.counters.unplugged_bytes.add(all))
            }
            Request::State {
                address,
                blocks: count,
            } => find(address, count).map_or(Response::Error, |(_, state)| Response::State(state)),
        }
    }
}

fn done(result: io::Result<()>, count: impl FnOnce()) -> Response {
    match result {
        Ok(()) => {
            count();
            Response::Ack
        }
        Err(_) => Response::Busy,
    }
}

/// The device.
pub struct Mem {
    shared: Arc<Shared>,
    port: Option<Port>,
}

/// Reaches the device while the machine runs.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Whether so many bytes are whole blocks, and there is room for them.
    #[must_use]
    pub fn fits(&self, bytes: u64) -> bool {
        self.0.region().is_some_and(|(region, blocks)| {
            bytes <= region.size() && bytes.is_multiple_of(blocks.size())
        })
    }

    /// Has the guest have so many bytes; nothing is changed if they don't
    /// [fit](Self::fits). The guest does it when it can: see [`Self::plugged`].
    pub fn request(&self, bytes: u64) {
        if !self.fits(bytes) {
            return;
        }
        // Also for one that is as it was: the guest tries again.
        self.0.requested.store(bytes, Ordering::SeqCst);
        let interrupt = self.0.interrupt().clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// Bytes that the guest shall have.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.0.requested()
    }

    /// Bytes that the guest has plugged.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        let region = self.0.region();
        region.map_or(0, |(_, blocks)| blocks.plugged() * blocks.size())
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block(&self) -> u64 {
        self.0.region().map_or(0, |(_, blocks)| blocks.size())
    }

    /// Bytes that there may be.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.0.region().map_or(0, |(region, _)| region.size())
    }
}

impl Mem {
    /// A device for this memory's blocks, of which the guest shall have none yet.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        Self {
            shared: Arc::new(Shared {
                counters: Arc::default(),
                memory,
                requested: AtomicU64::new(0),
                interrupt: Mutex::default(),
            }),
            port: None,
        }
    }

    /// A way to reach it later.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Mem {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.shared.counters) as Arc<dyn Counters>
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// `struct virtio_mem_config`, section 5.15.4. All of the region is usable.
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 56];
        if let Some((region, blocks)) = self.shared.region() {
            let fields = [
                (0, blocks.size()),
                (16, region.start()),
                (24, region.size()),
                (32, region.size()),
                (40, blocks.plugged() * blocks.size()),
                (48, self.shared.requested()),
            ];
            for (at, value) in fields {
                config[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        read_config(&config, offset, data);
    }

    fn config_write(&mut self, _: u64, _: &[u8]) {}

    fn plugged(&mut self, site: &Site<'_>) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let port = site.shared.add(|events| {
            events.watch_doorbells(site.doorbells)?;
            Ok(Pump {
                shared,
                serving: None,
            })
        });
        self.port = Some(port?);
        Ok(())
    }

    fn port(&self) -> Option<&Port> {
        self.port.as_ref()
    }

    fn activate(&mut self, activation: Activation) {
        *self.shared.interrupt() = Some(Arc::clone(&activation.interrupt));
        if let Some(port) = &self.port {
            port.start(activation);
        }
    }

    fn quiesce(&mut self, why: Why, quiet: Quiet) {
        if why == Why::Reset {
            *self.shared.interrupt() = None;
        }
        if let Some(port) = &self.port {
            port.stop(why, quiet);
        }
    }

    fn save(&self) -> Value {
        let region = self.shared.region();
        let plugged = region.iter().flat_map(|(_, blocks)| blocks.runs());
        json!(MemV1 {
            requested: self.shared.requested(),
            block: region.map_or(0, |(_, blocks)| blocks.size()),
            plugged: plugged.map(|run| (run.start, run.end)).collect(),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        let MemV1 {
            requested,
            block,
            plugged,
        } = MemV1::deserialize(state)?;
        let Some((region, blocks)) = self.shared.region() else {
            return Err(Refused::because("there is no memory to be plugged"));
        };
        let here = blocks.size();
        if block != here {
            let wrong = format!("its blocks are of {block} bytes, and here of {here}");
            return Err(Refused::because(wrong));
        }
        if requested > region.size() || !requested.is_multiple_of(here) {
            let wrong = format!("no guest was asked to have {requested} bytes");
            return Err(Refused::because(wrong));
        }
        let runs: Vec<_> = plugged.iter().map(|&(start, end)| start..end).collect();
        let kept = region.keep_blocks(&runs);
        kept.map_err(|error| Refused::by_host("its blocks", &error))?;
        self.shared.requested.store(requested, Ordering::SeqCst);
        Ok(())
    }
}

/// The device on its thread.
struct Pump {
    shared: Arc<Shared>,
    serving: Option<Serving>,
}

struct Serving {
    ring: Ring,
    index: u16,
    interrupt: Arc<dyn Interrupt>,
}

impl Service for Pump {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let active = queues.first();
        let active = active.ok_or_else(|| io::Error::other("the request queue is not enabled"))?;
        self.serving = Some(Serving {
            ring: Ring::new(&active.queue, memory).map_err(io::Error::other)?,
            index: active.index,
            interrupt,
        });
        Ok(())
    }

    fn on_event(&mut self, _: u64, _: EventSet) {
        self.shared.counters.notifications.add(1);
    }

    fn work(&mut self) -> io::Result<Until> {
        let Some(serving) = &mut self.serving else {
            return Ok(Until::Event);
        };
        let more = serving.serve(&self.shared);
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
    fn serve(&mut self, shared: &Shared) -> Result<bool, Broken> {
        let mut buffers = Buffers::default();
        for _ in 0..BATCH {
            let Some(head) = self.ring.pop(&mut buffers)? else {
                return Ok(self.ring.enable_notification());
            };
            let mut request = [0; REQUEST_SIZE];
            if buffers.readable.copy_out(0, &mut request) < REQUEST_SIZE
                || buffers.writable.length() < RESPONSE_SIZE
            {
                return Err(Broken::Request);
            }
            let response = shared.respond(Request::parse(request));
            shared.counters.requests.add(1);
            if matches!(response, Response::Nack | Response::Error) {
                shared.counters.refused.add(1);
            }
            let written = buffers.writable.copy_in(0, &response.bytes());
            self.ring
                .push_used(head, u32::try_from(written).unwrap_or(0));
            if self.ring.wants_interrupt() {
                self.interrupt.queue(self.index);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{Options, Pluggable, Ram};
    use crate::virtio::testing::{FakeInterrupt, Guest, READ, WRITE, quiesce, reset};

    const BLOCK: u64 = 2 << 20;
    const START: u64 = 4 << 30;
    const COUNT: u64 = 8;
    /// Where the driver has its request and the response.
    const REQUEST: u64 = 1 << 20;
    const RESPONSE: u64 = REQUEST + 64;

    fn memory() -> Memory {
        let place = Pluggable {
            start: START,
            size: COUNT * BLOCK,
            block: BLOCK,
        };
        let ram = Ram::with_blocks(&[(0, 16 << 20)], Some(place), Options::default());
        Arc::new(ram.expect("memory"))
    }

    struct Driver {
        guest: Guest,
        device: Mem,
        interrupt: Arc<FakeInterrupt>,
        asked: usize,
    }

    impl Driver {
        fn new() -> Self {
            let mut guest = Guest::new(1);
            guest.memory = memory();
            let mut device = Mem::new(Arc::clone(&guest.memory));
            let interrupt = Arc::default();
            guest.start(&mut device, F_UNPLUGGED_INACCESSIBLE, &interrupt);
            Self {
                guest,
                device,
                interrupt,
                asked: 0,
            }
        }

        /// Makes a request, and returns the response's kind and state.
        fn ask(&mut self, kind: u16, address: u64, blocks: u16) -> [u8; 2] {
            let mut request = vec![0; REQUEST_SIZE];
            request[..2].copy_from_slice(&kind.to_le_bytes());
            request[8..16].copy_from_slice(&address.to_le_bytes());
            request[16..18].copy_from_slice(&blocks.to_le_bytes());
            self.guest.write(REQUEST, &request);
            self.guest.write(RESPONSE, &[0xff; RESPONSE_SIZE]);
            let chain = [(REQUEST, 24, READ), (RESPONSE, 10, WRITE)];
            self.guest.offer(0, &chain);
            self.asked += 1;
            let asked = self.asked;
            self.interrupt.wait(|said| said.queues.len() == asked);
            let response = self.guest.read(RESPONSE, RESPONSE_SIZE);
            [response[0], response[8]]
        }

        fn config(&self, at: u64) -> u64 {
            let mut bytes = [0; 8];
            self.device.config_read(at, &mut bytes);
            u64::from_le_bytes(bytes)
        }
    }

    const ACK: [u8; 2] = [0, 0];
    const NACK: [u8; 2] = [1, 0];
    const ERROR: [u8; 2] = [3, 0];

    #[test]
    fn the_guest_plugs_what_it_is_offered_and_no_more() {
        let mut driver = Driver::new();
        let handle = driver.device.handle();
        let fields = [0, 16, 24, 32, 40, 48].map(|at| driver.config(at));
        let size = COUNT * BLOCK;
        assert_eq!(fields, [BLOCK, START, size, size, 0, 0]);
        assert_eq!(driver.ask(0, START, 1), NACK, "nothing was offered");
        handle.request(2 * BLOCK);
        for wrong in [size + BLOCK, 1] {
            assert!(!handle.fits(wrong));
            handle.request(wrong);
        }
        driver.interrupt.wait(|said| said.config == 1);
        assert_eq!(driver.ask(0, START, 3), NACK);
        assert_eq!(driver.ask(0, START + BLOCK, 2), ACK);
        assert_eq!(driver.ask(0, START, 1), NACK);
        assert_eq!(driver.ask(0, START + BLOCK, 1), ERROR, "it is there");
        assert_eq!(driver.config(40), 2 * BLOCK);
        // States: plugged, unplugged, mixed.
        assert_eq!(driver.ask(3, START + BLOCK, 2), [0, 0]);
        assert_eq!(driver.ask(3, START + 3 * BLOCK, 5), [0, 1]);
        assert_eq!(driver.ask(3, START, 2), [0, 2]);
        // It is memory, and empty.
        let memory = &driver.guest.memory;
        assert_eq!(driver.guest.read(START + BLOCK, 16), [0; 16]);
        driver.guest.write(START + BLOCK, &[7; 16]);
        assert!(
            vm_memory::Bytes::write_obj(memory.as_ref(), 7u8, vm_memory::GuestAddress(START))
                .is_err()
        );
        assert_eq!(driver.ask(1, START + BLOCK, 1), ACK);
        assert_eq!(driver.ask(1, START + BLOCK, 1), ERROR);
        assert_eq!(driver.ask(0, START + BLOCK, 1), ACK);
        assert_eq!(driver.guest.read(START + BLOCK, 16), [0; 16], "it is new");
        assert_eq!(driver.ask(2, 0, 0), ACK);
        assert_eq!((handle.plugged(), handle.requested()), (0, 2 * BLOCK));
        let counted = driver.device.counters().list();
        let counted: Vec<_> = counted.iter().skip(1).map(|(_, value)| *value).collect();
        assert_eq!(counted, [12, 5, 3 * BLOCK, 3 * BLOCK]);
    }

    #[test]
    fn what_is_plugged_outlives_a_reset_of_the_device() {
        let mut driver = Driver::new();
        driver.device.handle().request(BLOCK);
        assert_eq!(driver.ask(0, START, 1), ACK);
        reset(&mut driver.device);
        assert_eq!((driver.config(40), driver.config(48)), (BLOCK, BLOCK));
        driver.guest.memory.clear().expect("cleared");
        assert_eq!((driver.config(40), driver.config(48)), (0, BLOCK));
    }

    #[test]
    fn a_broken_request_breaks_the_queue() {
        for chain in [
            [(REQUEST, 23, READ), (RESPONSE, 10, WRITE)],
            [(REQUEST, 24, READ), (RESPONSE, 9, WRITE)],
        ] {
            let driver = Driver::new();
            driver.guest.offer(0, &chain);
            driver.interrupt.wait(|said| said.needs_reset == 1);
        }
    }

    #[test]
    fn a_saved_one_has_its_blocks() {
        let mut driver = Driver::new();
        driver.device.handle().request(4 * BLOCK);
        assert_eq!(driver.ask(0, START, 1), ACK);
        assert_eq!(driver.ask(0, START + 2 * BLOCK, 2), ACK);
        quiesce(&mut driver.device, Why::Hold);
        let state = driver.device.save();
        assert_eq!(state["plugged"], json!([[0, 1], [2, 4]]));
        let mut file = tempfile::tempfile().expect("a file");
        driver.guest.write(START + 3 * BLOCK, b"kept");
        let saved = driver.guest.memory.save(&mut file, &Default::default());
        saved.expect("saved");
        let place = Pluggable {
            start: START,
            size: COUNT * BLOCK,
            block: BLOCK,
        };
        let options = Options::default();
        let copy = Ram::restore_with_blocks(&[(0, 16 << 20)], Some(place), options, &file);
        let copy = Arc::new(copy.expect("restored"));
        let mut device = Mem::new(Arc::clone(&copy));
        device.restore(&state).expect("taken");
        assert_eq!(device.save(), state);
        assert_eq!(device.handle().plugged(), 3 * BLOCK);
        let mut kept = [0; 4];
        let at = vm_memory::GuestAddress(START + 3 * BLOCK);
        vm_memory::Bytes::read_slice(copy.as_ref(), &mut kept, at).expect("there");
        assert_eq!(&kept, b"kept");
        for (field, wrong) in [
            ("block", json!(4096)),
            ("requested", json!(1)),
            ("requested", json!(100 * BLOCK)),
            ("plugged", json!([[2, 4], [0, 1]])),
            ("plugged", json!([[7, 9]])),
            ("plugged", json!([[3, 3]])),
            ("sleeping", json!(1)),
        ] {
            let mut state = state.clone();
            state[field] = wrong;
            assert!(device.restore(&state).is_err(), "{state}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_request_gets_more_than_was_asked_for(
            requests in prop::collection::vec(
                (0u16..5, prop_oneof![0u64..10 * BLOCK, any::<u64>()], 0u16..10, 0u64..9),
                1..30,
            ),
        ) {
            let device = Mem::new(memory());
            let (handle, shared) = (device.handle(), &device.shared);
            for (kind, offset, blocks, requested) in requests {
                prop_assert_eq!(handle.fits(requested * BLOCK), requested <= COUNT);
                handle.request(requested * BLOCK);
                let offset = if offset % 3 == 0 { offset } else { offset / BLOCK * BLOCK };
                let mut bytes = [0; REQUEST_SIZE];
                bytes[..2].copy_from_slice(&kind.to_le_bytes());
                bytes[8..16].copy_from_slice(&START.wrapping_add(offset).to_le_bytes());
                bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
                let before = handle.plugged();
                let response = shared.respond(Request::parse(bytes));
                let after = handle.plugged();
                prop_assert!(after <= before || after <= handle.requested());
                prop_assert!(matches!(response, Response::Ack) || before == after);
            }
        }
    }
}
