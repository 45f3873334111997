//! Guest memory as the host sees it: from guest-physical ranges to pointers, and
//! the few kinds of access that queues need.
//!
//! The guest may write any of it at any time, so it is only ever read and written
//! volatile or atomically, and never looked at twice: what was read is a copy.

#![allow(
    unsafe_code,
    reason = "a virtqueue in guest memory, which the guest changes meanwhile"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::dirty::Tracker;
use super::{BadRange, Memory};

/// Where guest memory is mapped. The pointers it hands out are valid as long as it, or
/// the [`Memory`] it was made from, is held.
pub(crate) struct Host {
    memory: Memory,
}

impl Host {
    pub(crate) fn new(memory: Memory) -> Self {
        Self { memory }
    }

    /// Whether it matters to say what was [`written`](Self::written).
    pub(crate) fn is_tracking(&self) -> bool {
        self.memory.is_tracking()
    }

    /// Says that a device wrote a range: it has, and does so no more.
    pub(crate) fn written(&self, address: u64, length: usize) {
        self.memory.tracker().mark(address, length);
    }

    /// The longest piece of a range, from its start, that lies in one region.
    fn piece(&self, address: u64, length: usize) -> Option<(*mut u8, usize)> {
        // Machines have one region or two.
        self.memory.regions().find_map(|region| {
            let offset = region.offset(address)?;
            let there = usize::try_from(region.available(offset, length as u64)).ok()?;
            let offset = usize::try_from(offset).ok()?;
            // SAFETY: `offset` is below the region's length, and all of the region
            // is mapped.
            let host = || unsafe { region.host().add(offset) };
            (there > 0 || length == 0).then(|| (host(), there))
        })
    }

    /// Visits the host ranges behind a guest range, which may go on from one region
    /// into the next.
    ///
    /// # Errors
    /// When some of it is not guest memory, or `visit` fails.
    pub(crate) fn pieces(
        &self,
        mut address: u64,
        mut length: usize,
        mut visit: impl FnMut(*mut u8, usize) -> Result<(), BadRange>,
    ) -> Result<(), BadRange> {
        while length > 0 {
            let (host, part) = self.piece(address, length).ok_or(BadRange::Outside)?;
            visit(host, part)?;
            length -= part;
            address = address.checked_add(part as u64).ok_or(BadRange::Outside)?;
        }
        Ok(())
    }

    /// A guest range that is one on the host too.
    pub(crate) fn range(&self, address: u64, length: usize) -> Result<Area, BadRange> {
        let (base, part) = self.piece(address, length).ok_or(BadRange::Outside)?;
        if part < length {
            return Err(BadRange::Outside);
        }
        Ok(Area { base, length })
    }

    /// The same, to write to.
    pub(crate) fn writable(&self, address: u64, length: usize) -> Result<WritableArea, BadRange> {
        Ok(WritableArea {
            area: self.range(address, length)?,
            address,
            tracker: Arc::clone(self.memory.tracker()),
        })
    }
}

/// Some guest memory, bounds-checked when it was made: a table or a ring. Its user
/// holds the [`Host`] it came from.
#[derive(Clone, Copy)]
pub(crate) struct Area {
    base: *mut u8,
    length: usize,
}

// SAFETY: as for `Host`, which is sent along.
unsafe impl Send for Area {}

impl Area {
    /// What part of it is at an offset, if all of it lies within.
    fn at<T>(&self, offset: usize) -> *mut T {
        debug_assert!(offset + size_of::<T>() <= self.length);
        // An offset past the end would be our own mistake, not the guest's; it must
        // not reach beyond guest memory all the same.
        let offset = offset.min(self.length - size_of::<T>());
        // SAFETY: `offset` is within the area, which is mapped.
        unsafe { self.base.add(offset) }.cast()
    }

    /// Whether 16-bit fields are where the processor can access them atomically.
    pub(crate) fn is_aligned(&self) -> bool {
        self.base.cast::<AtomicU16>().is_aligned()
    }

    /// Loads a 16-bit field.
    pub(crate) fn load(&self, offset: usize, order: Ordering) -> u16 {
        // SAFETY: `at` is within the area and, as `is_aligned` was asked of it and
        // all offsets are even, aligned. Nobody makes a Rust reference to it.
        u16::from_le(unsafe { AtomicU16::from_ptr(self.at(offset)) }.load(order))
    }

    /// Reads plain data of any alignment, once.
    pub(crate) fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        // SAFETY: `at` is within the area; bytes have no alignment.
        unsafe { self.at::<[u8; N]>(offset).read_volatile() }
    }
}

/// Some guest memory to write to, and to say so.
pub(crate) struct WritableArea {
    area: Area,
    address: u64,
    tracker: Arc<Tracker>,
}

impl WritableArea {
    /// See [`Area::is_aligned`].
    pub(crate) fn is_aligned(&self) -> bool {
        self.area.is_aligned()
    }

    /// See [`Area::load`].
    pub(crate) fn load(&self, offset: usize, order: Ordering) -> u16 {
        self.area.load(offset, order)
    }

    /// Stores a 16-bit field.
    pub(crate) fn store(&self, offset: usize, value: u16, order: Ordering) {
        // SAFETY: as in `load`.
        unsafe { AtomicU16::from_ptr(self.area.at(offset)) }.store(value.to_le(), order);
        self.written(offset, size_of::<u16>());
    }

    /// Writes plain data of any alignment.
    pub(crate) fn write<const N: usize>(&self, offset: usize, value: [u8; N]) {
        // SAFETY: as in `read`.
        unsafe { self.area.at::<[u8; N]>(offset).write_volatile(value) };
        self.written(offset, N);
    }

    fn written(&self, offset: usize, length: usize) {
        self.tracker.mark(self.address + offset as u64, length);
    }
}

/// Bytes that are copied in one go.
const WORD: usize = 8;

/// Copies out of guest memory, reading each byte once.
///
/// # Safety
/// `from` has `to.len()` bytes of mapped guest memory.
pub(super) unsafe fn copy_from(from: *const u8, to: &mut [u8]) {
    let mut words = to.chunks_exact_mut(WORD);
    let mut at = from;
    for word in &mut words {
        // SAFETY: the caller says so; an array of bytes has no alignment.
        word.copy_from_slice(&unsafe { at.cast::<[u8; WORD]>().read_volatile() });
        // SAFETY: as above: `at` stays within or one past the range.
        at = unsafe { at.add(WORD) };
    }
    for byte in words.into_remainder() {
        // SAFETY: as above.
        *byte = unsafe { at.read_volatile() };
        // SAFETY: as above.
        at = unsafe { at.add(1) };
    }
}

/// Copies into guest memory.
///
/// # Safety
/// `to` has `from.len()` bytes of mapped guest memory.
pub(super) unsafe fn copy_to(from: &[u8], to: *mut u8) {
    // SAFETY: the caller says so; `from` is ours and can't overlap guest memory.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
}

#[cfg(test)]
mod tests {
    use super::super::{PAGE, Ram};
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    /// Two regions that touch, a hole, a third.
    fn memory() -> Memory {
        let ranges = [(0x1000, 0x2000), (0x3000, 0x1000), (0x8000, 0x1000)];
        Arc::new(Ram::private(&ranges).unwrap())
    }

    fn pieces(host: &Host, address: u64, length: usize) -> Result<Vec<usize>, BadRange> {
        let mut list = Vec::new();
        host.pieces(address, length, |_, part| {
            list.push(part);
            Ok(())
        })
        .map(|()| list)
    }

    #[test]
    fn ranges_are_found_and_bounded() {
        let host = Host::new(memory());
        assert_eq!(pieces(&host, 0x1000, 0x3000), Ok(vec![0x2000, 0x1000]));
        assert_eq!(pieces(&host, 0x2fff, 2), Ok(vec![1, 1]));
        assert_eq!(pieces(&host, 0x8000, 0x1000), Ok(vec![0x1000]));
        assert_eq!(pieces(&host, 0x7000, 0), Ok(vec![]));
        for (address, length) in [
            (0xfff, 1),
            (0x3fff, 2),
            (0x7fff, 2),
            (0x8000, 0x1001),
            (0x9000, 1),
            (u64::MAX, 1),
            (0x1000, usize::MAX),
        ] {
            assert_eq!(pieces(&host, address, length), Err(BadRange::Outside));
            assert!(host.range(address, length).is_err());
        }
        assert!(host.range(0x1000, 0x2000).is_ok());
        assert!(host.range(0x2fff, 2).is_err(), "two pieces on the host");
    }

    #[test]
    fn fields_are_where_the_guest_sees_them() {
        let memory = memory();
        let host = Host::new(Arc::clone(&memory));
        let area = host.writable(0x8100, 0x20).unwrap();
        assert!(area.is_aligned());
        area.store(2, 0x1234, Ordering::Release);
        area.write(5, [1, 2, 3]);
        let mut seen = [0; 8];
        memory.read_slice(&mut seen, GuestAddress(0x8100)).unwrap();
        assert_eq!(seen, [0, 0, 0x34, 0x12, 0, 1, 2, 3]);
        let area = host.range(0x8100, 0x20).unwrap();
        assert_eq!(area.load(2, Ordering::Acquire), 0x1234);
        assert_eq!(area.read(5), [1, 2, 3]);
        assert!(!host.range(0x8101, 2).unwrap().is_aligned());
    }

    #[test]
    fn memory_added_later_is_found() {
        let memory = memory();
        let host = Host::new(Arc::clone(&memory));
        assert!(host.range(0x10_0000, 1).is_err());
        memory.add(0x10_0000, 0x1000).unwrap();
        assert!(host.range(0x10_0000, 0x1000).is_ok());
    }

    #[test]
    fn what_is_written_through_it_is_marked() {
        let memory = memory();
        let host = Host::new(Arc::clone(&memory));
        let area = host.writable(0x2000, 0x1000).unwrap();
        area.write(0, [1]);
        assert!(!host.is_tracking());
        memory.begin_tracking().unwrap();
        assert!(host.is_tracking());
        assert_eq!(memory.take_dirty().count(), 0);
        area.write(0, [1]);
        assert!(memory.take_dirty().contains(0x2000));
        area.store(0, 1, Ordering::Release);
        assert!(memory.take_dirty().contains(0x2000));
        host.written(0x1fff, 2);
        let dirty = memory.take_dirty();
        assert_eq!(dirty.count(), 2);
        assert!(dirty.contains(0x1000) && dirty.contains(0x2000));
        assert_eq!(PAGE, 0x1000);
    }

    #[test]
    fn copies_are_whole_at_any_length_and_alignment() {
        let source: Vec<u8> = (0..40).collect();
        for start in 0..9 {
            for length in 0..30 {
                let mut copy = vec![0; length];
                // SAFETY: `start + length` is below the source's 40 bytes.
                unsafe { copy_from(source.as_ptr().add(start), &mut copy) };
                assert_eq!(copy, source[start..start + length]);
            }
        }
    }
}
