//! What the targets share: a guest whose memory, queues and doorbells are as the
//! fuzzer says.
//!
//! A device is activated on memory that is already painted and then reset: its
//! thread serves its queues once before it looks for more orders, so that every
//! input runs the same way.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use arbitrary::{Result, Unstructured};
use hearth_vmm::irq::{Doorbell, Interrupts, MsiMessage, MsiVector};
use hearth_vmm::memory::{Memory, Ram};
use hearth_vmm::virtio::pci::Backplane;
use hearth_vmm::virtio::quiet::{Quiet, Why};
use hearth_vmm::virtio::thread::DeviceThread;
use hearth_vmm::virtio::{Activation, ActiveQueue, Interrupt, SHARED, Site, VirtioDevice};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes of guest memory, in two regions that touch.
pub const MEMORY: u64 = 2 * REGION;
const REGION: u64 = 128 << 10;

/// Where most buffers are.
pub const DATA: u64 = 0x1_0000;

/// Bytes from one thing that a painter paints to the next.
pub const STEP: u64 = 64;

/// Entries of each queue.
pub const SIZE: u16 = 16;

/// Guest memory, made once: the fuzzer is one thread.
pub fn memory() -> Memory {
    static MEMORY: OnceLock<Memory> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| {
        let ranges = [(0, REGION), (REGION, REGION)];
        Arc::new(Ram::private(&ranges).expect("memory"))
    });
    Arc::clone(memory)
}

/// Where a queue's table and its two rings are.
#[must_use]
pub fn areas(queue: u16) -> [GuestAddress; 3] {
    let base = 0x1000 + 0x1000 * u64::from(queue);
    [base, base + 0x400, base + 0x800].map(GuestAddress)
}

/// Flags of a descriptor. Virtio 1.2, section 2.7.5.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Writes one descriptor.
fn describe(memory: &Memory, queue: u16, entry: u16, fields: (u64, u32, u16, u16)) {
    let (address, length, flags, next) = fields;
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    let at = GuestAddress(areas(queue)[0].0 + 16 * u64::from(entry));
    memory.write_slice(&bytes, at).expect("in memory");
}

/// A queue as a driver fills it: chains of the same shape, each descriptor at the
/// next of the things that are painted.
fn tidy_queue(memory: &Memory, queue: u16, u: &mut Unstructured) -> Result<()> {
    let links = u.int_in_range(1..=3u16)?;
    let writable: u8 = u.arbitrary()?;
    for entry in 0..SIZE {
        let place = entry % links;
        let mut flags = 0;
        if place + 1 < links {
            flags |= NEXT;
        }
        if writable >> place & 1 != 0 {
            flags |= WRITE;
        }
        let length = *u.choose(&[1u32, 16, 44, 64, 512, 600, 1600, 4096])?;
        let address = DATA + u64::from(entry) * STEP;
        describe(memory, queue, entry, (address, length, flags, entry + 1));
    }
    let count = u16::from(u.arbitrary::<u8>()?) % (SIZE / links + 1);
    let mut ring = vec![0, 0];
    ring.extend(count.to_le_bytes());
    for chain in 0..count {
        ring.extend((chain * links).to_le_bytes());
    }
    memory.write_slice(&ring, areas(queue)[1]).expect("fits");
    Ok(())
}

/// Writes a queue's descriptors and available ring, mostly near to what a driver
/// would write: a fuzzer would never find valid addresses among 2^64.
///
/// # Errors
/// When the input is too short.
pub fn paint_queue(memory: &Memory, queue: u16, u: &mut Unstructured) -> Result<()> {
    if u.ratio(1, 2)? {
        return tidy_queue(memory, queue, u);
    }
    let [_, available, _] = areas(queue);
    for entry in 0..u16::from(u.int_in_range(0..=16u8)?) {
        let control: u8 = u.arbitrary()?;
        let address = match control & 0x90 {
            // Where a painter puts things: see `run_painted`.
            0 => DATA + (u64::from(u.arbitrary::<u8>()?) & 0x1f) * STEP,
            0x10 => DATA + u64::from(u.arbitrary::<u16>()?),
            _ => u.arbitrary()?,
        };
        let length = if control & 0x40 == 0 {
            u32::from(u.arbitrary::<u16>()?) & 0x7ff
        } else {
            u.arbitrary()?
        };
        let next = if control & 0x20 == 0 {
            entry + 1
        } else {
            u.arbitrary()?
        };
        let flags = u16::from(control & 7);
        describe(memory, queue, entry, (address, length, flags, next));
    }
    let count = u.int_in_range(0..=17u8)?;
    let mut ring = vec![u.arbitrary()?, 0, count, 0];
    for _ in 0..count {
        ring.extend([u.int_in_range(0..=17u8)?, 0]);
    }
    memory.write_slice(&ring, available).expect("in memory");
    Ok(())
}

/// A disk in memory, of 64 KiB.
#[must_use]
pub fn disk() -> File {
    // SAFETY: the name is a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no memory file");
    // SAFETY: the descriptor is open and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(64 << 10).expect("length");
    file
}

/// Says nothing to anybody.
struct Silence;

impl Interrupt for Silence {
    fn queue(&self, _: u16) {}
    fn event(&self, _: u16) -> Option<EventFd> {
        None
    }
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

/// Runs a device over queues and memory as the input has them.
///
/// # Errors
/// When the input is too short.
pub fn run(device: &mut dyn VirtioDevice, u: Unstructured) -> Result<()> {
    run_painted(device, u, |_| Ok(Vec::new()))
}

/// The same, with what `paint` makes of the input at [`DATA`], before the rest.
///
/// # Errors
/// When the input is too short.
pub fn run_painted(
    device: &mut dyn VirtioDevice,
    mut u: Unstructured,
    paint: impl FnOnce(&mut Unstructured) -> Result<Vec<u8>>,
) -> Result<()> {
    let memory = memory();
    let zeroes = vec![0; usize::try_from(MEMORY).expect("small")];
    memory.write_slice(&zeroes, GuestAddress(0)).expect("all");
    let features = u64::from(u.arbitrary::<u32>()?) & device.features();
    let mut queues = Vec::new();
    for (index, _) in (0..).zip(device.queue_sizes()) {
        paint_queue(&memory, index, &mut u)?;
        let [table, available, used] = areas(index);
        let mut queue = Queue::new(SIZE).expect("a size");
        queue.try_set_desc_table_address(table).expect("aligned");
        queue
            .try_set_avail_ring_address(available)
            .expect("aligned");
        queue.try_set_used_ring_address(used).expect("aligned");
        queue.set_event_idx(features & hearth_vmm::virtio::F_EVENT_IDX != 0);
        queue.set_ready(true);
        queues.push(ActiveQueue {
            index,
            queue,
            doorbell: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("event")),
        });
    }
    let mut data = paint(&mut u)?;
    data.extend(u.take_rest());
    data.truncate(usize::try_from(MEMORY - DATA).expect("small"));
    memory.write_slice(&data, GuestAddress(DATA)).expect("fits");
    let doorbells: Vec<_> = queues
        .iter()
        .map(|queue| Arc::clone(&queue.doorbell))
        .collect();
    let shared = DeviceThread::spawn("devices".to_owned(), &SHARED).expect("a thread");
    let site = Site {
        doorbells: &doorbells,
        shared: &shared,
    };
    device.plugged(&site).expect("threads");
    device.activate(Activation {
        memory,
        features,
        queues,
        interrupt: Arc::new(Silence),
        resumed: false,
    });
    let (said, heard) = channel();
    device.quiesce(Why::Reset, Quiet::new(move |_| drop::<Sender<()>>(said)));
    // Until the last clone is gone.
    let _ = heard.recv();
    Ok(())
}

/// What a function is plugged into.
pub fn backplane() -> Backplane {
    Backplane {
        memory: memory(),
        interrupts: Arc::new(NoInterrupts),
        shared: Arc::new(DeviceThread::spawn("devices".to_owned(), &SHARED).expect("a thread")),
        bell: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("event")),
    }
}

/// A vector that nobody hears.
struct Vector(EventFd);

impl MsiVector for Vector {
    fn route(&self, _: MsiMessage, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn signal(&self) -> io::Result<()> {
        Ok(())
    }
    fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

/// An interrupt controller that does nothing.
pub struct NoInterrupts;

impl Interrupts for NoInterrupts {
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>> {
        Ok(Arc::new(Vector(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)))
    }
    fn bind_doorbell(&self, _: Doorbell, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn unbind_doorbell(&self, _: Doorbell, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}
