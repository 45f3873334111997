//! A run of guest memory, as vm-memory accesses it.

#![allow(unsafe_code, reason = "hands out guest memory, bounds-checked")]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    MemoryRegionAddress, VolatileSlice,
};

use super::blocks::Blocks;
use super::dirty::Tracker;
use super::mapping::Mapping;

/// A run of guest memory.
pub struct Region {
    start: u64,
    position: u64,
    mapping: Mapping,
    file: Option<FileOffset>,
    writes: Writes,
    blocks: Option<Blocks>,
}

impl Region {
    pub(super) fn new(
        start: u64,
        position: u64,
        mapping: Mapping,
        tracker: Arc<Tracker>,
        blocks: Option<Blocks>,
    ) -> Self {
        let file = mapping
            .file()
            .map(|file| FileOffset::from_arc(Arc::clone(file), 0));
        Self {
            start,
            position,
            mapping,
            file,
            writes: Writes { start, tracker },
            blocks,
        }
    }

    /// Its first address.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.mapping.size() as u64
    }

    /// Where it is mapped in this process.
    #[must_use]
    pub fn host(&self) -> *mut u8 {
        self.mapping.start()
    }

    /// Where it begins in a file that memory is saved to, in bytes: regions stand there
    /// one behind the other.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Where an address lies in it.
    pub(super) fn offset(&self, address: u64) -> Option<u64> {
        address
            .checked_sub(self.start)
            .filter(|offset| *offset < self.size())
    }

    /// Its blocks, if it is one of blocks that come and go.
    #[must_use]
    pub fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    /// How many bytes from an offset on are memory, at most so many.
    pub(super) fn available(&self, offset: u64, length: u64) -> u64 {
        let length = length.min(self.size().saturating_sub(offset));
        match &self.blocks {
            None => length,
            Some(blocks) => blocks.length(offset, length),
        }
    }

    /// The runs of bytes in it that are memory.
    pub(super) fn runs(&self) -> Vec<Range<u64>> {
        match &self.blocks {
            None => std::iter::once(0..self.size()).collect(),
            Some(blocks) => {
                let bytes = |run: Range<u64>| run.start * blocks.size()..run.end * blocks.size();
                blocks.runs().map(bytes).collect()
            }
        }
    }

    /// Says that a range of addresses was written.
    pub(super) fn mark(&self, start: u64, length: usize) {
        self.writes.tracker.mark(start, length);
    }

    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.start + self.size();
        write!(f, "Region({:#x}..{end:#x})", self.start)
    }
}

impl GuestMemoryRegion for Region {
    type B = Writes;

    fn len(&self) -> u64 {
        self.size()
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) -> RefSlice<'_, Writes> {
        self.writes.slice_at(0)
    }

    fn get_host_address(&self, at: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.get_slice(at, 1)
            .map(|slice| slice.ptr_guard_mut().as_ptr())
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, RefSlice<'_, Writes>>, GuestMemoryError> {
        let outside = GuestMemoryError::InvalidBackendAddress;
        let start = usize::try_from(offset.0).ok();
        let fits = |start: &usize| {
            let end = start.checked_add(count);
            end.is_some_and(|end| end <= self.mapping.size())
        };
        let is_there = |start: &usize| {
            let length = self.available(*start as u64, count as u64);
            length == count as u64
        };
        let start = start.filter(fits).filter(is_there).ok_or(outside)?;
        // SAFETY: as far as `start + count`, all is in the mapping, which lives as long
        // as this does, and which everybody accesses volatile.
        Ok(unsafe {
            let host = self.mapping.start().add(start);
            VolatileSlice::with_bitmap(host, count, self.writes.slice_at(start), None)
        })
    }
}

impl GuestMemoryRegionBytes for Region {}

/// Where vm-memory says what it wrote into a region.
#[derive(Debug)]
pub struct Writes {
    start: u64,
    tracker: Arc<Tracker>,
}

impl<'a> WithBitmapSlice<'a> for Writes {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for Writes {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.tracker
            .mark(self.start.wrapping_add(offset as u64), length);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.tracker
            .is_marked(self.start.wrapping_add(offset as u64))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}
