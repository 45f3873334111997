//! A virtqueue as devices use it: take a chain as host ranges, give it back, ask
//! whether the other side wants to be told.
//!
//! Virtio 1.2, section 2.7. The rules that a chain must keep are checked here,
//! once, for all devices; a breach is [`Broken`], after which the queue is not
//! looked at again until the driver resets the device.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::Memory;

/// The most descriptors of one chain, and the most host ranges they may become:
/// what one `readv` takes (UIO_MAXIOV).
pub const MAX_SEGMENTS: usize = 1024;

/// Bytes of flags and index before a ring's entries. Sections 2.7.6 and 2.7.8.
const RING_HEADER: u64 = 4;
/// Bytes of `struct virtq_used_elem`.
const USED_ELEMENT: u64 = 8;

/// The driver broke the rules of the queue. Why is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// More available buffers than the queue has room for, or the rings are gone.
    #[error("the available ring is not possible")]
    Ring,
    /// A chain loops, leaves its table, nests indirect tables, or exceeds 2^32 bytes.
    #[error("a descriptor chain is malformed")]
    Chain,
    /// A chain has more descriptors than any request needs.
    #[error("a descriptor chain is longer than {MAX_SEGMENTS}")]
    TooLong,
    /// A buffer is not in guest memory.
    #[error("a buffer lies outside of guest memory")]
    Address,
    /// A buffer for the device to read follows one to write (section 2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    Order,
    /// The chain is no request of this device.
    #[error("a request is too short")]
    Request,
}

/// Ranges of guest memory as the host sees them, in order. They stay valid as long
/// as the [`Memory`] they came from is held.
#[derive(Default)]
pub struct Segments {
    list: Vec<libc::iovec>,
    length: usize,
}

// SAFETY: the pointers are into guest memory, which is shared with vCPU threads
// anyway and is only ever accessed by the kernel or by volatile copies; whoever
// sends segments to another thread sends the `Memory` that keeps them valid too.
unsafe impl Send for Segments {}

impl Segments {
    /// Bytes in all.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// For `readv` and its kin.
    #[must_use]
    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.list
    }

    /// Moves all of `other` to the end.
    pub fn append(&mut self, other: &mut Self) {
        self.list.append(&mut other.list);
        self.length += other.length;
        other.length = 0;
    }

    /// Forgets all, and keeps the allocation.
    pub fn clear(&mut self) {
        self.list.clear();
        self.length = 0;
    }

    /// Appends the host ranges behind guest memory.
    fn push(
        &mut self,
        memory: &Memory,
        address: GuestAddress,
        length: usize,
    ) -> Result<(), Broken> {
        for slice in GuestMemoryBackend::get_slices(memory.as_ref(), address, length) {
            let slice = slice.map_err(|_| Broken::Address)?;
            if self.list.len() == MAX_SEGMENTS {
                return Err(Broken::TooLong);
            }
            self.list.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            // A chain is at most 2^32 bytes, which usize holds.
            self.length += slice.len();
        }
        Ok(())
    }

    /// Copies out bytes from `offset`. Returns how many there were.
    pub fn copy_out(&self, offset: usize, data: &mut [u8]) -> usize {
        let mut done = 0;
        self.walk(offset, data.len(), |host, length| {
            // SAFETY: `walk` yields ranges inside segments, which are valid guest
            // memory, and at most `data.len()` bytes in all. The guest may write
            // at the same time: the copy may be torn, and is checked as hostile.
            unsafe { std::ptr::copy_nonoverlapping(host, data[done..].as_mut_ptr(), length) };
            done += length;
        });
        done
    }

    /// Copies in bytes from `offset` on. Returns how many had room.
    pub fn copy_in(&self, offset: usize, data: &[u8]) -> usize {
        let mut done = 0;
        self.walk(offset, data.len(), |host, length| {
            // SAFETY: as in `copy_out`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(data[done..].as_ptr(), host, length) };
            done += length;
        });
        done
    }

    /// Visits the host ranges of `length` bytes from `offset` on.
    fn walk(&self, mut offset: usize, mut length: usize, mut visit: impl FnMut(*mut u8, usize)) {
        for segment in &self.list {
            if length == 0 {
                break;
            }
            if offset >= segment.iov_len {
                offset -= segment.iov_len;
                continue;
            }
            let count = length.min(segment.iov_len - offset);
            // SAFETY: `offset` is below the segment's length.
            visit(unsafe { segment.iov_base.cast::<u8>().add(offset) }, count);
            length -= count;
            offset = 0;
        }
    }

    /// Drops `count` bytes at the front.
    pub fn trim_front(&mut self, mut count: usize) {
        count = count.min(self.length);
        self.length -= count;
        let whole = self
            .list
            .iter()
            .take_while(|segment| {
                let fits = segment.iov_len <= count;
                if fits {
                    count -= segment.iov_len;
                }
                fits
            })
            .count();
        self.list.drain(..whole);
        if let Some(first) = self.list.first_mut() {
            // SAFETY: `count` is below the segment's length now.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(count) }.cast();
            first.iov_len -= count;
        }
    }

    /// Cuts off the last byte.
    pub fn split_last(&mut self) -> Option<HostByte> {
        let last = self.list.last()?;
        // SAFETY: no segment is empty, so its last byte is inside.
        let byte = unsafe { last.iov_base.cast::<u8>().add(last.iov_len - 1) };
        self.truncate(self.length - 1);
        Some(HostByte(byte))
    }

    /// Keeps `length` bytes and drops the rest.
    pub fn truncate(&mut self, length: usize) {
        while self.length > length {
            let surplus = self.length - length;
            let Some(last) = self.list.last_mut() else {
                break;
            };
            let cut = surplus.min(last.iov_len);
            last.iov_len -= cut;
            self.length -= cut;
            if last.iov_len == 0 {
                self.list.pop();
            }
        }
    }
}

/// One byte of guest memory, valid as long as the [`Memory`] it came from.
pub struct HostByte(*mut u8);

// SAFETY: as for `Segments`.
unsafe impl Send for HostByte {}

impl HostByte {
    /// Writes it.
    pub fn write(&self, value: u8) {
        // SAFETY: the pointer is into guest memory, which whoever holds this holds.
        unsafe { self.0.write_volatile(value) };
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

/// A queue and the memory its rings are in.
pub struct Ring {
    queue: Queue,
    memory: Memory,
    /// The used index when the driver was last told, or decided not to be.
    told: u16,
}

impl Ring {
    /// A ring over a queue that the transport has checked.
    #[must_use]
    pub fn new(queue: Queue, memory: Memory) -> Self {
        let told = queue.next_used();
        Self {
            queue,
            memory,
            told,
        }
    }

    /// Descriptors in the queue: no chain's head is at or past it.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next available chain into `buffers`, which are cleared first, and
    /// returns its head. Empty descriptors are dropped.
    ///
    /// # Errors
    /// When the driver broke the rules.
    pub fn pop(&mut self, buffers: &mut Buffers) -> Result<Option<u16>, Broken> {
        buffers.clear();
        let memory = self.memory.as_ref();
        let Some(chain) = self.queue.iter(memory).map_err(|_| Broken::Ring)?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        if head >= self.queue.size() {
            return Err(Broken::Chain);
        }
        let mut last: Option<Descriptor> = None;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_SEGMENTS {
                return Err(Broken::TooLong);
            }
            last = Some(descriptor);
            let length = usize::try_from(descriptor.len()).map_err(|_| Broken::Chain)?;
            let segments = if descriptor.is_write_only() {
                &mut buffers.writable
            } else if buffers.writable.length() > 0 {
                return Err(Broken::Order);
            } else {
                &mut buffers.readable
            };
            if length > 0 {
                segments.push(&self.memory, descriptor.addr(), length)?;
            }
        }
        // The iterator ends early, without a word, at whatever it finds malformed;
        // but a chain that is whole ends with a descriptor that has no next.
        match last {
            Some(descriptor) if !descriptor.has_next() => Ok(Some(head)),
            _ => Err(Broken::Chain),
        }
    }

    /// Puts back the chain that [`Self::pop`] returned last.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a chain, with the bytes written to it.
    ///
    /// # Errors
    /// When the used ring is gone.
    pub fn push_used(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        self.queue
            .add_used(self.memory.as_ref(), head, written)
            .map_err(|_| Broken::Ring)
    }

    /// Returns several chains at once: the driver sees all of them or none, which
    /// a packet in several buffers needs (section 2.7.8.2).
    ///
    /// # Errors
    /// When the used ring is gone, or more are returned than it holds.
    pub fn push_used_all(&mut self, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let Some(((head, written), before)) = chains.split_last() else {
            return Ok(());
        };
        let size = self.queue.size();
        if before.len() >= usize::from(size) {
            return Err(Broken::Ring);
        }
        let mut next = self.queue.next_used();
        for (head, written) in before {
            let slot = u64::from(next % size) * USED_ELEMENT;
            let at = self.queue.used_ring() + RING_HEADER + slot;
            let element = u64::from(*head) | u64::from(*written) << 32;
            self.memory
                .write_obj(element.to_le(), GuestAddress(at))
                .map_err(|_| Broken::Ring)?;
            next = next.wrapping_add(1);
        }
        // The last one publishes the index, and all with it.
        self.queue.set_next_used(next);
        self.push_used(*head, *written)
    }

    /// Whether the driver wants an interrupt for what was returned since the last
    /// call (sections 2.7.7 and 2.7.10).
    ///
    /// # Errors
    /// When the rings are gone.
    pub fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.told, new);
        // The used index must be out before we read what the driver wants; it looks
        // the other way round.
        fence(Ordering::SeqCst);
        // The available ring was checked to be in memory: no sum overflows.
        let flags = self.queue.avail_ring();
        let load = |at| {
            self.memory
                .load(GuestAddress(at), Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(|_| Broken::Ring)
        };
        if self.queue.event_idx_enabled() {
            let event = load(flags + RING_HEADER + 2 * u64::from(self.queue.size()))?;
            let since = new.wrapping_sub(event).wrapping_sub(1);
            return Ok(since < new.wrapping_sub(old));
        }
        Ok(new != old && u32::from(load(flags)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks for no doorbell from now on. With event indices one may still come.
    ///
    /// # Errors
    /// When the rings are gone.
    pub fn quiet(&mut self) -> Result<(), Broken> {
        self.queue
            .disable_notification(self.memory.as_ref())
            .map_err(|_| Broken::Ring)
    }

    /// Asks for a doorbell for the next chain. Returns whether one is there
    /// already, and then there may be no doorbell.
    ///
    /// # Errors
    /// When the rings are gone.
    pub fn listen(&mut self) -> Result<bool, Broken> {
        self.queue
            .enable_notification(self.memory.as_ref())
            .map_err(|_| Broken::Ring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Guest, READ, SIZE, WRITE};
    use proptest::prelude::*;
    use std::sync::Arc;

    const DATA: u64 = 0x10_0000;

    fn ring(guest: &Guest, event_idx: bool) -> Ring {
        let mut queue = guest.queue(0);
        queue.set_event_idx(event_idx);
        Ring::new(queue, Arc::clone(&guest.memory))
    }

    fn put(guest: &Guest, at: GuestAddress, offset: u64, value: u16) {
        guest.write(at.0 + offset, &value.to_le_bytes());
    }

    fn get(guest: &Guest, at: GuestAddress, offset: u64) -> u16 {
        let bytes = guest.read(at.0 + offset, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    #[test]
    fn the_flag_holds_interrupts_back() {
        let guest = Guest::new(1);
        let mut ring = ring(&guest, false);
        assert_eq!(ring.wants_interrupt(), Ok(false), "nothing was returned");
        ring.push_used(0, 0).unwrap();
        assert_eq!(ring.wants_interrupt(), Ok(true));
        put(&guest, Guest::available(0), 0, 1);
        ring.push_used(0, 0).unwrap();
        assert_eq!(ring.wants_interrupt(), Ok(false));
    }

    #[test]
    fn the_used_event_says_when() {
        let guest = Guest::new(1);
        let mut ring = ring(&guest, true);
        let event = 4 + 2 * u64::from(SIZE);
        put(&guest, Guest::available(0), event, 2);
        ring.push_used_all(&[(0, 0), (1, 0)]).unwrap();
        assert_eq!(ring.wants_interrupt(), Ok(false), "0 and 1 are not 2");
        ring.push_used_all(&[(2, 0), (3, 0), (4, 0)]).unwrap();
        assert_eq!(ring.wants_interrupt(), Ok(true), "2 is among them");
        ring.push_used(5, 0).unwrap();
        assert_eq!(ring.wants_interrupt(), Ok(false), "2 is past");
    }

    #[test]
    fn doorbells_are_asked_for_and_not() {
        let guest = Guest::new(1);
        let mut buffers = Buffers::default();
        let mut plain = ring(&guest, false);
        plain.quiet().unwrap();
        assert_eq!(get(&guest, Guest::used_ring(0), 0), 1);
        assert_eq!(plain.listen(), Ok(false));
        assert_eq!(get(&guest, Guest::used_ring(0), 0), 0);
        guest.offer(0, &[(DATA, 16, READ)]);
        assert_eq!(plain.listen(), Ok(true));
        let mut events = ring(&guest, true);
        assert_eq!(events.pop(&mut buffers), Ok(Some(0)));
        assert_eq!(events.listen(), Ok(false));
        let avail_event = 4 + 8 * u64::from(SIZE);
        assert_eq!(get(&guest, Guest::used_ring(0), avail_event), 1);
    }

    #[test]
    fn several_chains_are_returned_at_once() {
        let guest = Guest::new(1);
        let mut ring = ring(&guest, true);
        for _ in 0..5 {
            ring.push_used_all(&[(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)])
                .unwrap();
        }
        assert_eq!(get(&guest, Guest::used_ring(0), 2), 25);
        // The last five: positions 20 to 24, behind the ring's end.
        let last = guest.used(0).split_off(20);
        assert_eq!(last, [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]);
        assert_eq!(ring.push_used_all(&[]), Ok(()));
        let many = vec![(0, 0); usize::from(SIZE) + 1];
        assert_eq!(ring.push_used_all(&many), Err(Broken::Ring));
        assert_eq!(ring.push_used(SIZE, 0), Err(Broken::Ring));
    }

    proptest! {
        #[test]
        fn segments_are_one_run_of_bytes(
            lengths in prop::collection::vec(0u32..40, 1..8),
            front in 0usize..200,
            keep in 0usize..200,
            at in 0usize..200,
        ) {
            let guest = Guest::new(1);
            let chain: Vec<_> = (0u64..).zip(&lengths)
                .map(|(index, length)| (DATA + index * 0x1000, *length, WRITE))
                .collect();
            let mut model: Vec<u8> = (0u8..).take(lengths.iter().sum::<u32>() as usize).collect();
            guest.offer(0, &chain);
            let mut buffers = Buffers::default();
            ring(&guest, false).pop(&mut buffers).unwrap();
            let segments = &mut buffers.writable;
            prop_assert_eq!(segments.copy_in(0, &model), model.len());
            segments.trim_front(front);
            model.drain(..front.min(model.len()));
            segments.truncate(keep);
            model.truncate(keep);
            if let Some(last) = segments.split_last() {
                last.write(0xee);
                model.pop();
            }
            prop_assert_eq!(segments.length(), model.len());
            let mut read = vec![0; 300];
            let got = segments.copy_out(at, &mut read);
            let expected = model.get(at..).unwrap_or_default();
            prop_assert_eq!(&read[..got], expected);
        }
    }
}
