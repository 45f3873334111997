//! The memory balloon: takes pages from the guest and gives them to the host, on
//! demand (inflate) and whenever the guest has some to spare (free page reporting).
//!
//! Virtio 1.2, section 5.5. With VIRTIO_BALLOON_F_DEFLATE_ON_OOM the guest takes
//! pages back by itself before it kills a process; they come back zeroed on first
//! use, so deflating asks nothing of the host.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vm_memory::{GuestAddress, GuestMemoryBackend};
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
use crate::memory::Memory;
use crate::snapshot::Refused;

/// Feature bits. Section 5.5.3.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// Queues. Section 5.5.2; those of features not offered are left out, and the
/// later ones move up.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORTING: u16 = 2;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;

/// The balloon counts in pages of 4 KiB, whatever the guest's are. Section 5.5.6.
const PAGE_SHIFT: u32 = 12;

/// The most page numbers of one request; Linux sends 256.
const MAX_PAGES: usize = 64 * 1024;

/// Page numbers looked at together.
const CHUNK: usize = 256;

/// Where `actual` is in `struct virtio_balloon_config`. Section 5.5.4.
const ACTUAL: u64 = 4;

/// The most requests of one queue before the next has its turn.
const BATCH: usize = 64;

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "balloon",
    device_type: 5,
    pci_class: [0x00, 0xff, 0x00],
    profile: Profile::NONE,
    plug: Plug::Fixed,
};

counters! {
    /// What a balloon counts.
    struct BalloonCounters {
        /// Times that the driver rang.
        notifications,
        /// Requests of all queues.
        requests,
        /// Bytes given to the host on demand.
        inflated_bytes,
        /// Bytes given to the host because the guest had them to spare.
        reported_bytes,
    }
}

/// [`Balloon`], saved: in pages of 4 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonV1 {
    /// What the host wants.
    pub target: u32,
    /// What the guest says it gave.
    pub actual: u32,
}

/// What the device and its handles share.
#[derive(Default)]
struct Shared {
    counters: Arc<BalloonCounters>,
    /// Pages that the host wants.
    target: AtomicU32,
    /// Pages that the guest says it gave.
    actual: AtomicU32,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Shared {
    fn interrupt(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Interrupt>>> {
        self.interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A balloon.
#[derive(Default)]
pub struct Balloon {
    shared: Arc<Shared>,
    port: Option<Port>,
}

/// Reaches a balloon while the machine runs.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Asks the guest for this many bytes of its memory, in whole pages of 4 KiB; 0
    /// gives all back. The guest does it when it can: see [`Self::actual`].
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes >> PAGE_SHIFT).unwrap_or(u32::MAX);
        if self.0.target.swap(pages, Ordering::SeqCst) != pages {
            let interrupt = self.0.interrupt().clone();
            if let Some(interrupt) = interrupt {
                interrupt.config_changed();
            }
        }
    }

    /// Bytes asked for.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::SeqCst)) << PAGE_SHIFT
    }

    /// Bytes that the guest says it has given. It may lie; memory that it says it
    /// gave and still uses counts against it all the same.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::SeqCst)) << PAGE_SHIFT
    }
}

impl Balloon {
    /// An empty balloon.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A way to reach it later.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Balloon {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_REPORTING | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.shared.counters) as Arc<dyn Counters>
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        let target = self.shared.target.load(Ordering::SeqCst);
        let actual = self.shared.actual.load(Ordering::SeqCst);
        config[..4].copy_from_slice(&target.to_le_bytes());
        config[4..].copy_from_slice(&actual.to_le_bytes());
        read_config(&config, offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            let actual = u32::from_le_bytes(bytes);
            self.shared.actual.store(actual, Ordering::SeqCst);
        }
    }

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
            // A driver that starts again has given nothing yet.
            self.shared.actual.store(0, Ordering::SeqCst);
        }
        if let Some(port) = &self.port {
            port.stop(why, quiet);
        }
    }

    fn save(&self) -> Value {
        let pages = |count: &AtomicU32| count.load(Ordering::SeqCst);
        let state = BalloonV1 {
            target: pages(&self.shared.target),
            actual: pages(&self.shared.actual),
        };
        json!(state)
    }

    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        let BalloonV1 { target, actual } = BalloonV1::deserialize(state)?;
        self.shared.target.store(target, Ordering::SeqCst);
        self.shared.actual.store(actual, Ordering::SeqCst);
        Ok(())
    }
}

/// The device on its thread.
struct Pump {
    shared: Arc<Shared>,
    serving: Option<Serving>,
}

struct Serving {
    memory: Memory,
    queues: Vec<ServedQueue>,
    interrupt: Arc<dyn Interrupt>,
}

impl Service for Pump {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let memory = activation.memory;
        let queues = activation.queues.into_iter().map(|active| {
            let ring = Ring::new(&active.queue, Arc::clone(&memory)).map_err(io::Error::other)?;
            Ok(ServedQueue {
                index: active.index,
                ring,
            })
        });
        self.serving = Some(Serving {
            queues: queues.collect::<io::Result<_>>()?,
            memory,
            interrupt: activation.interrupt,
        });
        Ok(())
    }

    fn on_event(&mut self, _: u64, _: EventSet) {
        self.shared.counters.notifications.add(1);
    }

    /// All queues have their turn at each ring: two have next to nothing, ever.
    fn work(&mut self) -> io::Result<Until> {
        let Some(serving) = &mut self.serving else {
            return Ok(Until::Event);
        };
        let mut more = false;
        for queue in &mut serving.queues {
            let (memory, interrupt) = (&serving.memory, serving.interrupt.as_ref());
            let served = queue.serve(memory, interrupt, &self.shared.counters);
            more |= served.map_err(io::Error::other)?;
        }
        Ok(Until::more(more))
    }

    fn stop(&mut self, _: Why, quiet: &Quiet) {
        for queue in self.serving.take().into_iter().flat_map(|it| it.queues) {
            quiet.report(queue.ring.state(queue.index));
        }
    }
}

/// A queue of the running device.
struct ServedQueue {
    index: u16,
    ring: Ring,
}

impl ServedQueue {
    /// Serves up to [`BATCH`] requests. Returns whether there may be more.
    fn serve(
        &mut self,
        memory: &Memory,
        interrupt: &dyn Interrupt,
        counters: &BalloonCounters,
    ) -> Result<bool, Broken> {
        let mut buffers = Buffers::default();
        for _ in 0..BATCH {
            let Some(head) = self.ring.pop(&mut buffers)? else {
                return Ok(self.ring.enable_notification());
            };
            match self.index {
                INFLATE => counters
                    .inflated_bytes
                    .add_length(inflate(&mut buffers, memory)?),
                REPORTING => counters
                    .reported_bytes
                    .add_length(report(&buffers, memory)?),
                // DEFLATE: pages come back by being used.
                DEFLATE.. => {}
            }
            counters.requests.add(1);
            self.ring.push_used(head, 0);
            if self.ring.wants_interrupt() {
                interrupt.queue(self.index);
            }
        }
        Ok(true)
    }
}

/// Gives pages back to the host: a list of 32-bit page numbers. Pages that the
/// guest has not are its own mistake (section 5.5.6.1) and break the queue. Returns the
/// bytes given.
fn inflate(buffers: &mut Buffers, memory: &Memory) -> Result<usize, Broken> {
    let list = &mut buffers.readable;
    if !list.length().is_multiple_of(4) || list.length() / 4 > MAX_PAGES {
        return Err(Broken::Request);
    }
    let mut run = Run::default();
    let mut bytes_given = 0;
    while list.length() > 0 {
        let mut bytes = [0; CHUNK * 4];
        let count = list.copy_out(0, &mut bytes);
        list.trim_front(count);
        for number in bytes[..count].chunks_exact(4) {
            let number = number
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            bytes_given += run.add(number, memory)?;
        }
    }
    Ok(bytes_given + run.release(memory)?)
}

/// Pages next to each other are given back together.
#[derive(Default)]
struct Run {
    first: u64,
    count: u64,
    /// Guests often list pages from the top down.
    down: bool,
}

impl Run {
    /// Adds a page. Returns the bytes that were given for that.
    fn add(&mut self, page: u64, memory: &Memory) -> Result<usize, Broken> {
        if self.count > 0 && !self.down && page == self.first + self.count {
            self.count += 1;
        } else if self.count > 0 && (self.down || self.count == 1) && page + 1 == self.first {
            self.down = true;
            self.first = page;
            self.count += 1;
        } else {
            let bytes = self.release(memory)?;
            *self = Self {
                first: page,
                count: 1,
                down: false,
            };
            return Ok(bytes);
        }
        Ok(0)
    }

    fn release(&self, memory: &Memory) -> Result<usize, Broken> {
        let length = usize::try_from(self.count << PAGE_SHIFT).map_err(|_| Broken::Address)?;
        if length == 0 {
            return Ok(0);
        }
        let start = GuestAddress(self.first << PAGE_SHIFT);
        for slice in GuestMemoryBackend::get_slices(memory.as_ref(), start, length) {
            let slice = slice.map_err(|_| Broken::Address)?;
            memory.release(slice.ptr_guard_mut().as_ptr(), slice.len());
        }
        Ok(length)
    }
}

/// Gives reported ranges back to the host: the buffers themselves are the memory
/// (section 5.5.6.7). Returns the bytes given.
fn report(buffers: &Buffers, memory: &Memory) -> Result<usize, Broken> {
    if buffers.readable.length() > 0 {
        return Err(Broken::Request);
    }
    let segments = buffers.writable.as_slice().iter();
    let given = segments.map(|segment| memory.release(segment.iov_base.cast(), segment.iov_len));
    Ok(given.sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{FakeInterrupt, Guest, READ, WRITE, reset};
    use proptest::prelude::*;

    const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
    const LIST: u64 = 0x20_0000;
    const PAGES: u64 = 0x40_0000;

    fn start(guest: &Guest) -> (Balloon, Arc<FakeInterrupt>) {
        let interrupt = Arc::new(FakeInterrupt::default());
        let mut balloon = Balloon::new();
        guest.start(&mut balloon, F_REPORTING, &interrupt);
        (balloon, interrupt)
    }

    fn list(guest: &Guest, pages: &[u32]) -> u32 {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        guest.write(LIST, &bytes);
        u32::try_from(bytes.len()).unwrap()
    }

    #[test]
    fn inflated_pages_are_given_back() {
        let guest = Guest::new(3);
        guest.write(PAGES, &[0x77; 8 * PAGE_SIZE]);
        let (mut balloon, interrupt) = start(&guest);
        let length = list(&guest, &[0x400, 0x401, 0x405, 0x404, 0x407]);
        guest.offer(INFLATE, &[(LIST, length, READ)]);
        interrupt.wait(|said| said.queues == [INFLATE]);
        for page in 0..8 {
            let gone = [0, 1, 4, 5, 7].contains(&page);
            let expected = if gone { 0 } else { 0x77 };
            let content = guest.read(PAGES + page * 4096, PAGE_SIZE);
            assert!(content.iter().all(|byte| *byte == expected), "{page}");
        }
        guest.offer(DEFLATE, &[(LIST, length, READ)]);
        interrupt.wait(|said| said.queues == [INFLATE, DEFLATE]);
        reset(&mut balloon);
        let counted = balloon.counters().list();
        assert_eq!(
            counted[1..3],
            [("requests", 2), ("inflated_bytes", 5 << 12)]
        );
    }

    /// What each page of a list made go: a system call for a run, either way.
    fn given(pages: &[u64]) -> Vec<usize> {
        let guest = Guest::new(1);
        let mut run = Run::default();
        let mut given: Vec<usize> = pages
            .iter()
            .map(|page| run.add(*page, &guest.memory).unwrap() >> PAGE_SHIFT)
            .collect();
        given.push(run.release(&guest.memory).unwrap() >> PAGE_SHIFT);
        given
    }

    #[test]
    fn pages_next_to_each_other_go_together() {
        assert_eq!(given(&[]), [0]);
        assert_eq!(given(&[8, 9, 10]), [0, 0, 0, 3]);
        assert_eq!(given(&[10, 9, 8]), [0, 0, 0, 3]);
        // A turn, a repetition and a gap end a run.
        assert_eq!(given(&[8, 9, 7]), [0, 0, 2, 1]);
        assert_eq!(given(&[9, 8, 10]), [0, 0, 2, 1]);
        assert_eq!(given(&[8, 8, 10]), [0, 1, 1, 1]);
        assert_eq!(given(&[0, 1, 3, 2]), [0, 0, 2, 0, 2]);
    }

    #[test]
    fn the_longest_list_is_taken() {
        let guest = Guest::new(3);
        let length = list(&guest, &[0x400; MAX_PAGES]);
        let (mut balloon, interrupt) = start(&guest);
        guest.offer(INFLATE, &[(LIST, length, READ)]);
        interrupt.wait(|said| said.queues == [INFLATE]);
        reset(&mut balloon);
        let counted = balloon.counters().list();
        assert_eq!(counted[2], ("inflated_bytes", (MAX_PAGES as u64) << 12));
    }

    #[test]
    fn reported_ranges_are_given_back() {
        let guest = Guest::new(3);
        guest.write(PAGES, &[0x77; 8 * PAGE_SIZE]);
        let (_balloon, interrupt) = start(&guest);
        let ranges = [(PAGES, 8192, WRITE), (PAGES + 3 * 4096 + 100, 8192, WRITE)];
        guest.offer(REPORTING, &ranges);
        interrupt.wait(|said| said.queues == [REPORTING]);
        assert_eq!(guest.read(PAGES, 8192), [0; 8192]);
        assert_eq!(guest.read(PAGES + 8192, 8192), [0x77; 8192]);
        assert_eq!(guest.read(PAGES + 4 * 4096, 4096), [0; 4096]);
        assert_eq!(guest.read(PAGES + 5 * 4096, 4096), [0x77; 4096]);
    }

    #[test]
    fn lists_that_break_the_rules_stop_the_queue() {
        for (queue, chain) in [
            (INFLATE, (LIST, 3, READ)),
            (INFLATE, (0x10_0000, 4 * 65537, READ)),
            (INFLATE, (LIST, 4, READ)),
            (REPORTING, (LIST, 4, READ)),
        ] {
            let guest = Guest::new(3);
            list(&guest, &[u32::MAX]);
            let (_balloon, interrupt) = start(&guest);
            guest.offer(queue, &[chain]);
            interrupt.wait(|said| said.needs_reset == 1);
        }
    }

    #[test]
    fn the_target_is_told_and_the_answer_kept() {
        let guest = Guest::new(3);
        let (mut balloon, interrupt) = start(&guest);
        let handle = balloon.handle();
        handle.set_target(64 << 20);
        handle.set_target(64 << 20);
        interrupt.wait(|said| said.config == 1);
        let mut config = [0; 8];
        balloon.config_read(0, &mut config);
        assert_eq!(config, [0, 0x40, 0, 0, 0, 0, 0, 0]);
        balloon.config_write(4, &0x100u32.to_le_bytes());
        balloon.config_write(0, &0u32.to_le_bytes());
        balloon.config_write(4, &[1]);
        assert_eq!((handle.target(), handle.actual()), (64 << 20, 1 << 20));
        reset(&mut balloon);
        assert_eq!(handle.actual(), 0);
    }

    #[test]
    fn a_copy_wants_and_has_as_much_as_the_first() {
        let mut first = Balloon::new();
        first.handle().set_target(3 << PAGE_SHIFT);
        first.config_write(ACTUAL, &2u32.to_le_bytes());
        let mut copy = Balloon::new();
        copy.restore(&first.save()).unwrap();
        assert_eq!(copy.handle().target(), 3 << PAGE_SHIFT);
        assert_eq!(copy.handle().actual(), 2 << PAGE_SHIFT);
        assert_eq!(copy.save(), first.save());
        for wrong in [
            json!(null),
            json!({"target": 1}),
            json!({"target": -1, "actual": 0}),
        ] {
            assert!(copy.restore(&wrong).is_err(), "{wrong}");
        }
        assert_eq!(copy.save(), first.save());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn only_listed_pages_go(pages in prop::collection::vec(0x400u32..0x410, 0..40)) {
            let guest = Guest::new(1);
            guest.write(PAGES, &[0x77; 16 * PAGE_SIZE]);
            let length = list(&guest, &pages);
            let mut buffers = Buffers::default();
            guest.offer(0, &[(LIST, length, READ)]);
            let mut ring = Ring::new(&guest.queue(0), Arc::clone(&guest.memory)).unwrap();
            ring.pop(&mut buffers).unwrap();
            inflate(&mut buffers, &guest.memory).unwrap();
            for page in 0x400u32..0x410 {
                let byte = guest.read(u64::from(page) * 4096 + 5, 1)[0];
                prop_assert_eq!(byte == 0, pages.contains(&page));
            }
        }
    }
}
