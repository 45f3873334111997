//! What the devices' own tests share: interrupts that only count, and a guest
//! that plays the driver.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::quiet::{QueueState, Quiet, Why};
use super::thread::DeviceThread;
use super::{Activation, ActiveQueue, Interrupt, SHARED, Site, VirtioDevice};
use crate::irq::{Doorbell, Interrupts, MsiMessage, MsiVector};
use crate::memory::{Memory, Options, Ram};

/// One vector of [`FakeInterrupts`].
pub(crate) struct FakeVector {
    event: EventFd,
    route: Mutex<Option<(MsiMessage, bool)>>,
    signals: AtomicUsize,
}

impl MsiVector for FakeVector {
    fn route(&self, message: MsiMessage, masked: bool) -> io::Result<()> {
        *self.route.lock().unwrap() = Some((message, masked));
        Ok(())
    }
    fn signal(&self) -> io::Result<()> {
        self.signals.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn eventfd(&self) -> &EventFd {
        &self.event
    }
}

/// Remembers vectors and doorbells.
#[derive(Default, Clone)]
pub(crate) struct FakeInterrupts {
    vectors: Arc<Mutex<Vec<Arc<FakeVector>>>>,
    doorbells: Arc<Mutex<Vec<(Doorbell, RawFd)>>>,
}

impl FakeInterrupts {
    pub(crate) fn route(&self, vector: usize) -> Option<(MsiMessage, bool)> {
        *self.vectors.lock().unwrap()[vector].route.lock().unwrap()
    }
    pub(crate) fn signals(&self, vector: usize) -> usize {
        self.vectors.lock().unwrap()[vector]
            .signals
            .load(Ordering::SeqCst)
    }
    pub(crate) fn event(&self, vector: usize) -> EventFd {
        let vectors = self.vectors.lock().unwrap();
        vectors[vector].event.try_clone().unwrap()
    }
    /// The doorbells that are bound.
    pub(crate) fn doorbells(&self) -> Vec<Doorbell> {
        let bells = self.doorbells.lock().unwrap();
        bells.iter().map(|(bell, _)| *bell).collect()
    }
}

impl Interrupts for FakeInterrupts {
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        let vector = Arc::new(FakeVector {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            route: Mutex::new(None),
            signals: AtomicUsize::new(0),
        });
        self.vectors.lock().unwrap().push(Arc::clone(&vector));
        Ok(vector)
    }
    fn bind_doorbell(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        let bell = (doorbell, event.as_raw_fd());
        self.doorbells.lock().unwrap().push(bell);
        Ok(())
    }
    fn unbind_doorbell(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        let bell = (doorbell, event.as_raw_fd());
        let mut bells = self.doorbells.lock().unwrap();
        let at = bells.iter().position(|bound| *bound == bell);
        bells.remove(at.ok_or(io::ErrorKind::NotFound)?);
        Ok(())
    }
}

/// What a device said.
#[derive(Default, Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) queues: Vec<u16>,
    pub(crate) config: usize,
    pub(crate) needs_reset: usize,
}

/// An [`Interrupt`] that a test waits on.
#[derive(Default)]
pub(crate) struct FakeInterrupt {
    said: Mutex<Said>,
    news: Condvar,
}

impl FakeInterrupt {
    /// Waits until the device has said enough, with a deadline that no working
    /// device comes near.
    pub(crate) fn wait(&self, what: impl Fn(&Said) -> bool) -> Said {
        let said = self.said.lock().unwrap();
        let (said, timeout) = self
            .news
            .wait_timeout_while(said, DEADLINE, |said| !what(said))
            .unwrap();
        assert!(!timeout.timed_out(), "the device only said {said:?}");
        said.clone()
    }
    fn record(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said.lock().unwrap());
        self.news.notify_all();
    }
}

impl Interrupt for FakeInterrupt {
    fn queue(&self, index: u16) {
        self.record(|said| said.queues.push(index));
    }
    fn event(&self, _: u16) -> Option<EventFd> {
        None
    }
    fn config_changed(&self) {
        self.record(|said| said.config += 1);
    }
    fn needs_reset(&self) {
        self.record(|said| said.needs_reset += 1);
    }
}

/// Has a device become quiet, and waits for that. Returns where its queues stand, in
/// order.
pub(crate) fn quiesce(device: &mut dyn VirtioDevice, why: Why) -> Vec<QueueState> {
    let (said, heard) = channel();
    device.quiesce(why, Quiet::new(move |queues| said.send(queues).unwrap()));
    let mut queues = heard.recv_timeout(DEADLINE).expect("it becomes quiet");
    queues.sort_unstable_by_key(|queue| queue.index);
    queues
}

/// Resets a device, and waits for that.
pub(crate) fn reset(device: &mut dyn VirtioDevice) {
    quiesce(device, Why::Reset);
}

/// No working device comes near it.
const DEADLINE: Duration = Duration::from_secs(30);

/// Descriptor flag: another follows.
pub(crate) const NEXT: u16 = 1;
/// A descriptor that the device may read.
pub(crate) const READ: u16 = 0;
/// A descriptor that the device may write.
pub(crate) const WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub(crate) const INDIRECT: u16 = 4;

/// Entries of each of the guest's queues.
pub(crate) const SIZE: u16 = 16;

/// 16 MiB of memory with some queues at its start, and the hand of their driver.
/// Buffers belong at 1 MiB and above.
pub(crate) struct Guest {
    pub(crate) memory: Memory,
    doorbells: Vec<Arc<EventFd>>,
    next: Mutex<Vec<u16>>,
    shared: DeviceThread,
}

impl Guest {
    pub(crate) fn new(queues: u16) -> Self {
        Self::of(queues, Options::default())
    }

    /// One whose memory others can map.
    pub(crate) fn shared(queues: u16) -> Self {
        let options = Options {
            shared: true,
            ..Options::default()
        };
        Self::of(queues, options)
    }

    fn of(queues: u16, options: Options) -> Self {
        let ranges = [(0, 16 << 20)];
        let memory = Arc::new(Ram::new(&ranges, options).unwrap());
        Self {
            memory,
            doorbells: (0..queues)
                .map(|_| Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()))
                .collect(),
            next: Mutex::new(vec![0; queues.into()]),
            shared: DeviceThread::spawn("devices".into(), &SHARED).unwrap(),
        }
    }

    /// Ends all that serves it, and goes on with the same memory where no device is
    /// plugged yet: it is the copy's now.
    pub(crate) fn move_on(&mut self) {
        self.shared = DeviceThread::spawn("devices".into(), &SHARED).unwrap();
    }

    /// Plugs a device in, as the transport does.
    pub(crate) fn plug(&self, device: &mut dyn VirtioDevice) {
        let site = Site {
            doorbells: &self.doorbells,
            shared: &self.shared,
        };
        device.plugged(&site).unwrap();
    }

    /// Plugs a device in and has it serve all queues.
    pub(crate) fn start(
        &self,
        device: &mut dyn VirtioDevice,
        features: u64,
        interrupt: &Arc<FakeInterrupt>,
    ) {
        self.plug(device);
        device.activate(self.activation(features, interrupt));
    }

    /// Forgets all requests, as a driver does after a reset.
    pub(crate) fn start_over(&self) {
        let mut next = self.next.lock().unwrap();
        for (index, next) in (0..).zip(next.iter_mut()) {
            self.write(Self::table(index).0, &[0; 0x3000]);
            *next = 0;
        }
    }

    /// Where a queue's descriptor table is; its available and used rings have a
    /// page each behind it.
    pub(crate) fn table(queue: u16) -> GuestAddress {
        GuestAddress(0x4000 * (u64::from(queue) + 1))
    }

    pub(crate) fn available(queue: u16) -> GuestAddress {
        GuestAddress(Self::table(queue).0 + 0x1000)
    }

    pub(crate) fn used_ring(queue: u16) -> GuestAddress {
        GuestAddress(Self::table(queue).0 + 0x2000)
    }

    /// A queue as the transport would build it.
    pub(crate) fn queue(&self, queue: u16) -> Queue {
        let mut built = Queue::new(SIZE).unwrap();
        built
            .try_set_desc_table_address(Self::table(queue))
            .unwrap();
        built
            .try_set_avail_ring_address(Self::available(queue))
            .unwrap();
        built
            .try_set_used_ring_address(Self::used_ring(queue))
            .unwrap();
        built.set_ready(true);
        assert!(built.is_valid(self.memory.as_ref()));
        built
    }

    /// All queues, ready.
    pub(crate) fn activation(&self, features: u64, interrupt: &Arc<FakeInterrupt>) -> Activation {
        Activation {
            memory: Arc::clone(&self.memory),
            features,
            queues: (0..)
                .zip(&self.doorbells)
                .map(|(index, doorbell)| ActiveQueue {
                    index,
                    queue: self.queue(index),
                    doorbell: Arc::clone(doorbell),
                })
                .collect(),
            interrupt: Arc::clone(interrupt) as Arc<dyn Interrupt>,
            resumed: false,
        }
    }

    /// All queues as they were held.
    pub(crate) fn resumption(
        &self,
        features: u64,
        interrupt: &Arc<FakeInterrupt>,
        held: &[QueueState],
    ) -> Activation {
        let mut activation = self.activation(features, interrupt);
        for active in &mut activation.queues {
            let state = held.iter().find(|state| state.index == active.index);
            let state = state.expect("all were reported");
            active.queue.set_next_avail(state.next_available);
            active.queue.set_next_used(state.next_used);
        }
        activation.resumed = true;
        activation
    }

    /// Writes raw descriptors into the table, from `at` on.
    pub(crate) fn describe(&self, queue: u16, at: u16, descriptors: &[(u64, u32, u16, u16)]) {
        let table = Self::table(queue);
        for (index, (address, length, flags, next)) in (u64::from(at)..).zip(descriptors) {
            let descriptor = Descriptor::new(*address, *length, *flags, *next);
            let at = GuestAddress(table.0 + 16 * index);
            self.memory.write_obj(descriptor, at).unwrap();
        }
    }

    /// Makes the chain that begins at `head` available, and rings.
    pub(crate) fn kick(&self, queue: u16, head: u16) {
        let ring = Self::available(queue).0;
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let slot = GuestAddress(ring + 4 + 2 * u64::from(index % SIZE));
        self.memory.write_obj(head, slot).unwrap();
        self.set_available(queue, index.wrapping_add(1));
        self.ring(queue);
    }

    /// Sets the available ring's index.
    pub(crate) fn set_available(&self, queue: u16, index: u16) {
        let at = GuestAddress(Self::available(queue).0 + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    /// Sets the used ring's index, as whoever serves the queue elsewhere does.
    pub(crate) fn set_used(&self, queue: u16, index: u16) {
        let at = GuestAddress(Self::used_ring(queue).0 + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    pub(crate) fn ring(&self, queue: u16) {
        self.doorbells[usize::from(queue)].write(1).unwrap();
    }

    /// Offers a chain of (address, length, READ or WRITE). Returns its head.
    pub(crate) fn offer(&self, queue: u16, chain: &[(u64, u32, u16)]) -> u16 {
        let mut next = self.next.lock().unwrap();
        let head = &mut next[usize::from(queue)];
        let count = u16::try_from(chain.len()).unwrap();
        let start = if *head + count > SIZE { 0 } else { *head };
        *head = start + count;
        let descriptors: Vec<_> = (start..)
            .zip(chain)
            .map(|(at, (address, length, flags))| {
                let more = if at + 1 < *head { NEXT } else { 0 };
                (*address, *length, flags | more, at + 1)
            })
            .collect();
        self.describe(queue, start, &descriptors);
        self.kick(queue, start);
        start
    }

    /// What the device has returned: heads and lengths.
    pub(crate) fn used(&self, queue: u16) -> Vec<(u32, u32)> {
        let ring = Self::used_ring(queue).0;
        let at = GuestAddress(ring + 2);
        let count: u16 = self.memory.load(at, Ordering::Acquire).unwrap();
        (0..count)
            .map(|index| {
                let at = ring + 4 + 8 * u64::from(index % SIZE);
                let read = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
                (read(at), read(at + 4))
            })
            .collect()
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory
            .read_slice(&mut data, GuestAddress(address))
            .unwrap();
        data
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(address))
            .unwrap();
    }
}
