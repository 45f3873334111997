//! A virtqueue as devices use it: take a chain as host ranges, give it back, ask
//! whether the other side wants to be notified.
//!
//! Virtio 1.2, section 2.7. The rules that a chain must keep are checked here,
//! once, for all devices; a breach is [`Broken`], after which the queue is not
//! looked at again until the driver resets the device.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::{Queue, QueueT};

use super::quiet::QueueState;
use crate::memory::{Area, BadRange, Host, MAX_SEGMENTS, Memory, Segments, WritableArea};

/// Bytes of `struct virtq_desc`. Section 2.7.5.
const DESCRIPTOR: usize = 16;
/// Where the index is in both rings, after 16 bits of flags. Sections 2.7.6 and
/// 2.7.8.
const RING_INDEX: usize = 2;
/// Where their entries begin.
const RING_ENTRIES: usize = 4;
/// Bytes of an entry of the available ring.
const AVAILABLE_ENTRY: usize = 2;
/// Bytes of `struct virtq_used_elem`.
const USED_ENTRY: usize = 8;
/// Bytes of the event index after the entries. Sections 2.7.7 and 2.7.10.
const RING_EVENT: usize = 2;

/// The driver broke the rules of the queue. Why is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// More available buffers than the queue has room for, or the rings are gone.
    #[error("the available ring is not possible")]
    Ring,
    /// A chain loops, leaves its table, nests indirect tables, or exceeds 2^32 bytes.
    #[error("a descriptor chain is malformed")]
    Chain,
    /// A chain has more descriptors than any request needs, or becomes more host ranges.
    #[error("a descriptor chain is longer than {MAX_SEGMENTS}")]
    TooLong,
    /// A buffer is not in guest memory.
    #[error("a buffer lies outside of guest memory")]
    Address,
    /// A buffer for the device to read follows one to write (section 2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    Order,
    /// The chain is no request of this device.
    #[error("a chain is no request of this device")]
    Request,
}

impl From<BadRange> for Broken {
    fn from(range: BadRange) -> Self {
        match range {
            BadRange::Outside => Self::Address,
            BadRange::TooMany => Self::TooLong,
        }
    }
}

/// The buffers of one chain.
#[derive(Default)]
pub struct Buffers {
    /// What the device may read.
    pub readable: Segments,
    /// What the device may write.
    pub writable: Segments,
}

impl Buffers {
    /// Forgets all, and keeps the allocations.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

/// One descriptor, as read once.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(table: &Area, index: u16) -> Self {
        let bytes: [u8; DESCRIPTOR] = table.read(DESCRIPTOR * usize::from(index));
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = bytes;
        Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn has(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

/// A queue, with host pointers to its rings. What it returns to the driver is seen
/// by it from the next [`Self::publish`] or [`Self::wants_interrupt`] on.
///
/// All 16-bit numbers of a ring run freely and wrap; a place is one modulo the size,
/// which is a power of two.
pub struct Ring {
    host: Host,
    descriptors: Area,
    available: Area,
    used: WritableArea,
    size: u16,
    event_idx: bool,
    /// The next chain to take.
    next: u16,
    /// The driver's index when last looked at: chains before it can be taken.
    seen: u16,
    /// The next chain to return.
    next_used: u16,
    /// The used index when the driver was last signalled, or decided not to be.
    signalled: u16,
}

impl Ring {
    /// A ring over a queue that the transport has checked: its size is a power of
    /// two, its rings are aligned.
    ///
    /// # Errors
    /// When its size is none, or one of its rings not whole in one region of guest
    /// memory.
    pub fn new(queue: &Queue, memory: Memory) -> Result<Self, Broken> {
        if !queue.size().is_power_of_two() {
            return Err(Broken::Ring);
        }
        let host = Host::new(memory);
        let entries = usize::from(queue.size());
        let length = |entry| RING_ENTRIES + entry * entries + RING_EVENT;
        let available = host.range(queue.avail_ring(), length(AVAILABLE_ENTRY))?;
        let used = host.writable(queue.used_ring(), length(USED_ENTRY))?;
        if !available.is_aligned() || !used.is_aligned() {
            return Err(Broken::Ring);
        }
        Ok(Self {
            descriptors: host.range(queue.desc_table(), DESCRIPTOR * entries)?,
            available,
            used,
            host,
            size: queue.size(),
            event_idx: queue.event_idx_enabled(),
            next: queue.next_avail(),
            seen: queue.next_avail(),
            next_used: queue.next_used(),
            signalled: queue.next_used(),
        })
    }

    /// Descriptors in the queue: no chain's head is at or past it.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where a free-running number is in a ring.
    fn place(&self, number: u16) -> usize {
        usize::from(number & (self.size - 1))
    }

    /// Takes the next available chain into `buffers`, which are cleared first, and
    /// returns its head. Empty descriptors are dropped.
    ///
    /// # Errors
    /// When the driver broke the rules.
    pub fn pop(&mut self, buffers: &mut Buffers) -> Result<Option<u16>, Broken> {
        buffers.clear();
        if self.next == self.seen {
            // What the driver wrote before it moved the index is read after it.
            self.seen = self.available.load(RING_INDEX, Ordering::Acquire);
            let waiting = self.seen.wrapping_sub(self.next);
            if waiting == 0 {
                return Ok(None);
            }
            if waiting > self.size {
                return Err(Broken::Ring);
            }
        }
        let entry = RING_ENTRIES + AVAILABLE_ENTRY * self.place(self.next);
        let head = self.available.load(entry, Ordering::Relaxed);
        if head >= self.size {
            return Err(Broken::Chain);
        }
        self.next = self.next.wrapping_add(1);
        self.walk(head, |descriptor| self.collect(descriptor, buffers))?;
        Ok(Some(head))
    }

    /// Visits the buffers of the chain that begins at `head`.
    fn walk(
        &self,
        head: u16,
        mut visit: impl FnMut(Descriptor) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        let (mut table, mut entries) = (self.descriptors, self.size);
        let (mut indirect, mut at) = (false, head);
        // Each descriptor at most once: more is a loop.
        let mut left = entries;
        for _ in 0..MAX_SEGMENTS {
            left = left.checked_sub(1).ok_or(Broken::Chain)?;
            let descriptor = Descriptor::read(&table, at);
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                // Section 2.7.5.3.1: neither nested nor followed by another.
                if indirect || descriptor.has(VRING_DESC_F_NEXT) {
                    return Err(Broken::Chain);
                }
                (table, entries) = self.indirect(descriptor)?;
                (indirect, at, left) = (true, 0, entries);
                continue;
            }
            visit(descriptor)?;
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            at = descriptor.next;
            if at >= entries {
                return Err(Broken::Chain);
            }
        }
        Err(Broken::TooLong)
    }

    /// The table that a descriptor stands for, and its entries.
    fn indirect(&self, descriptor: Descriptor) -> Result<(Area, u16), Broken> {
        let length = usize::try_from(descriptor.length).map_err(|_| Broken::Chain)?;
        if length == 0 || !length.is_multiple_of(DESCRIPTOR) {
            return Err(Broken::Chain);
        }
        let entries = u16::try_from(length / DESCRIPTOR).map_err(|_| Broken::TooLong)?;
        Ok((self.host.range(descriptor.address, length)?, entries))
    }

    /// Adds one descriptor's buffer.
    fn collect(&self, descriptor: Descriptor, buffers: &mut Buffers) -> Result<(), Broken> {
        let length = usize::try_from(descriptor.length).map_err(|_| Broken::Chain)?;
        let segments = if descriptor.has(VRING_DESC_F_WRITE) {
            &mut buffers.writable
        } else if buffers.writable.length() > 0 {
            return Err(Broken::Order);
        } else {
            &mut buffers.readable
        };
        segments.push(&self.host, descriptor.address, length)?;
        let total = buffers.readable.length() + buffers.writable.length();
        // Section 2.7.5: a chain has at most 2^32 bytes; lengths count them.
        u32::try_from(total).map_or(Err(Broken::Chain), |_| Ok(()))
    }

    /// Where it stands as the device's queue `index`: what was taken and not yet
    /// returned counts as taken.
    #[must_use]
    pub fn state(&self, index: u16) -> QueueState {
        QueueState {
            index,
            next_available: self.next,
            next_used: self.next_used,
        }
    }

    /// The used ring's index as it is in memory: of a queue that somebody else serves.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.used.load(RING_INDEX, Ordering::Acquire)
    }

    /// Chains that the driver made available and that were not returned, as both rings are
    /// in memory: of a queue that somebody else serves.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        let available = self.available.load(RING_INDEX, Ordering::Acquire);
        available.wrapping_sub(self.used_index())
    }

    /// Puts back the chain that [`Self::pop`] returned last.
    pub fn unpop(&mut self) {
        self.next = self.next.wrapping_sub(1);
    }

    /// Returns a chain, with the bytes written to it.
    pub fn push_used(&mut self, head: u16, written: u32) {
        if self.host.is_tracking() {
            self.mark(head);
        }
        let at = RING_ENTRIES + USED_ENTRY * self.place(self.next_used);
        let element = u64::from(head) | u64::from(written) << 32;
        self.used.write(at, element.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Marks what the device may have written to a chain, now that it is done with it:
    /// all that it could, since `written` need not count a failed read. The driver
    /// leaves a chain alone until it is returned, so it is looked at again; one that
    /// doesn't spoils what is saved of it, and nothing else.
    #[cold]
    fn mark(&self, head: u16) {
        let mut left = u32::MAX;
        let _ = self.walk(head, |descriptor| {
            left = left.checked_sub(descriptor.length).ok_or(Broken::Chain)?;
            if descriptor.has(VRING_DESC_F_WRITE) {
                let length = usize::try_from(descriptor.length).map_err(|_| Broken::Chain)?;
                self.host.written(descriptor.address, length);
            }
            Ok(())
        });
    }

    /// Lets the driver see what was returned.
    pub fn publish(&mut self) {
        self.used
            .store(RING_INDEX, self.next_used, Ordering::Release);
    }

    /// Publishes, and says whether the driver wants an interrupt for what was
    /// returned since the last call (sections 2.7.7 and 2.7.10).
    pub fn wants_interrupt(&mut self) -> bool {
        let new = self.next_used;
        let old = std::mem::replace(&mut self.signalled, new);
        if new == old {
            return false;
        }
        self.publish();
        // The used index must be out before we read what the driver wants; it looks
        // the other way round.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let at = RING_ENTRIES + AVAILABLE_ENTRY * usize::from(self.size);
            let event = self.available.load(at, Ordering::Relaxed);
            return new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        let flags = self.available.load(0, Ordering::Relaxed);
        u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
    }

    /// Asks for no doorbell from now on. With event indices none comes unless one
    /// was asked for, but for one that was asked for earlier.
    pub fn disable_notification(&mut self) {
        if !self.event_idx {
            self.used.store(0, NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Asks for a doorbell for the next chain. Returns whether one is there
    /// already, and then there may be no doorbell.
    pub fn enable_notification(&mut self) -> bool {
        if self.event_idx {
            let at = RING_ENTRIES + USED_ENTRY * usize::from(self.size);
            self.used.store(at, self.next, Ordering::Relaxed);
        } else {
            self.used.store(0, 0, Ordering::Relaxed);
        }
        // What we ask for must be out before we look; the driver looks the other
        // way round.
        fence(Ordering::SeqCst);
        self.available.load(RING_INDEX, Ordering::Relaxed) != self.next
    }
}

/// Flag of the used ring: no doorbells please. Section 2.7.10.
#[expect(clippy::cast_possible_truncation, reason = "it is 1")]
const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;

#[cfg(test)]
mod tests;
