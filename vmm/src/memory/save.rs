//! Guest memory in a file, and out of it: its regions one behind the other, and nothing
//! else. Pages of zeroes are holes.
//!
//! What is saved of a guest that runs is of no use by itself: hold it, or save what was
//! written meanwhile over it ([`Ram::save_dirty`]), as often as it takes, and hold it for
//! the last time of these. So that the file of before stays, write over a clone of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate, ioctl_ficlone};
use rustix::io::Errno;
use vm_memory::{GuestMemoryRegion, MemoryRegionAddress, ReadVolatile, WriteVolatile};

use super::mapping::PAGE_BYTES;
use super::{Dirty, PAGE, Ram, Region};

/// What a page of zeroes is in the file.
#[derive(Clone, Copy)]
enum Zeroes {
    /// A hole already.
    Hole,
    /// Whatever was there.
    Stale,
}

/// What is written by one call: none is cancelled in the midst of it.
const CHUNK: u64 = 8 << 20;

/// What is read at once: whole pages.
const FILL_BYTES: usize = 1 << 20;

/// Has a save that is under way on another thread fail soon.
#[derive(Debug, Default)]
pub struct Cancel(AtomicBool);

impl Cancel {
    /// Has it fail.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is to go on.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(io::Error::other("cancelled")),
            false => Ok(()),
        }
    }
}

impl Ram {
    /// Writes all of it to a file, which is emptied first. Returns the bytes written,
    /// which those of zeroes are not.
    ///
    /// # Errors
    /// When the file can't be written, or it was cancelled, and what it has is then good
    /// for nothing; or this memory is still read from it.
    pub fn save(&self, file: &mut File, cancel: &Cancel) -> io::Result<u64> {
        self.refuse_origin(file)?;
        file.set_len(0)?;
        file.set_len(self.size())?;
        let mut written = 0;
        for region in self.regions() {
            match region.file_offset() {
                // To look at a hole of a memory file would fill it.
                Some(memory) => {
                    for part in data(memory.file(), 0..region.size()) {
                        written += write(file, region, part?, Zeroes::Hole, cancel)?;
                    }
                }
                None => {
                    for part in region.runs() {
                        written += write(file, region, part, Zeroes::Hole, cancel)?;
                    }
                }
            }
        }
        Ok(written)
    }

    /// Writes the pages that changed since a file was written over it. Returns the bytes
    /// written.
    ///
    /// # Errors
    /// When it is another memory's file, by its size, or this memory is still read from
    /// it; or when it can't be written. What is in it is then neither the old nor the
    /// new; the same pages may be saved again.
    pub fn save_dirty(&self, file: &mut File, dirty: &Dirty, cancel: &Cancel) -> io::Result<u64> {
        self.refuse_origin(file)?;
        if file.metadata()?.len() != self.size() {
            let wrong = "there is another machine's memory in the file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
        }
        let mut written = 0;
        for region in self.regions() {
            for (begin, end) in dirty.runs(region.start(), region.size()) {
                written += write(file, region, begin..end, Zeroes::Stale, cancel)?;
            }
        }
        Ok(written)
    }

    /// Writes all of it to a file that is new: as a clone of one that it was saved to, with
    /// the pages over it that changed since; whole where the file system has no clones.
    /// Returns the bytes written.
    ///
    /// # Errors
    /// As [`Self::save`] and [`Self::save_dirty`].
    pub fn save_since(
        &self,
        file: &mut File,
        base: &File,
        dirty: &Dirty,
        cancel: &Cancel,
    ) -> io::Result<u64> {
        match ioctl_ficlone(&*file, base) {
            Ok(()) => self.save_dirty(file, dirty, cancel),
            Err(_) => self.save(file, cancel),
        }
    }

    /// Sends what isn't zero to another process: each run of pages as its first guest
    /// address and its length in bytes (64 bits each, little endian) and its content; one
    /// of no length is the end.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn send(&self, stream: &mut UnixStream) -> io::Result<()> {
        for region in self.regions() {
            let mut at = 0;
            while at < region.size() {
                let is_hole = is_zero(region, at)?;
                let begin = at;
                let most = region.size().min(begin + CHUNK);
                at += PAGE;
                while at < most && is_zero(region, at)? == is_hole {
                    at += PAGE;
                }
                if !is_hole {
                    stream.write_all(&run(region.start() + begin, at - begin))?;
                    let content = slice(region, &(begin..at))?;
                    stream
                        .write_all_volatile(&content)
                        .map_err(io::Error::other)?;
                }
            }
        }
        stream.write_all(&run(0, 0))
    }

    /// Receives what another process sent, into memory of zeroes.
    ///
    /// # Errors
    /// When it does not go on, or there is no such memory here.
    pub fn receive(&self, stream: &mut UnixStream) -> io::Result<()> {
        loop {
            let mut head = [[0; 8]; 2];
            for word in &mut head {
                stream.read_exact(word)?;
            }
            let [start, length] = head.map(u64::from_le_bytes);
            if length == 0 {
                return Ok(());
            }
            let found = self.regions().find_map(|region| {
                let begin = region.offset(start)?;
                let end = begin.checked_add(length)?;
                (end <= region.size()).then_some((region, begin..end))
            });
            let Some((region, part)) = found else {
                let none = format!("there is no memory of {length:#x} bytes at {start:#x} here");
                return Err(io::Error::new(io::ErrorKind::InvalidData, none));
            };
            stream
                .read_exact_volatile(&mut slice(region, &part)?)
                .map_err(io::Error::other)?;
        }
    }

    /// Reads all of it from a file that it was saved to, into memory of zeroes.
    ///
    /// The file is not asked where its holes are: where it is a clone that was written to,
    /// XFS before Linux 6.8 calls data a hole (`xfs_seek_iomap_begin`, "fix SEEK_HOLE/DATA
    /// for regions with active COW extents").
    pub(super) fn fill(&self, file: &File) -> io::Result<()> {
        let mut bytes = vec![0; FILL_BYTES];
        for region in self.regions() {
            let mut at = 0;
            while at < region.size() {
                let end = region.size().min(at + FILL_BYTES as u64);
                let length = usize::try_from(end - at).map_err(io::Error::other)?;
                let bytes = &mut bytes[..length];
                file.read_exact_at(bytes, region.position() + at)?;
                for (from, page) in (at..).step_by(PAGE_BYTES).zip(bytes.chunks(PAGE_BYTES)) {
                    // To write zeroes would take memory.
                    if page.iter().any(|byte| *byte != 0) {
                        slice(region, &(from..from + PAGE))?.copy_from(page);
                    }
                }
                at = end;
            }
        }
        Ok(())
    }
}

/// The head of a run of pages.
fn run(start: u64, length: u64) -> [u8; 16] {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&start.to_le_bytes());
    head[8..].copy_from_slice(&length.to_le_bytes());
    head
}

/// Part of a region.
pub(super) fn slice<'a>(
    region: &'a Region,
    part: &Range<u64>,
) -> io::Result<vm_memory::VolatileSlice<'a, vm_memory::bitmap::BS<'a, super::Writes>>> {
    let length = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
    region
        .get_slice(MemoryRegionAddress(part.start), length)
        .map_err(io::Error::other)
}

/// Whether a page of a region is all zeroes, or none.
fn is_zero(region: &Region, at: u64) -> io::Result<bool> {
    if region.available(at, PAGE) < PAGE {
        return Ok(true);
    }
    let mut page = [0u8; PAGE_BYTES];
    slice(region, &(at..at + PAGE))?.copy_to(&mut page);
    Ok(page.iter().all(|byte| *byte == 0))
}

/// Writes part of a region to its place in the file. Returns the bytes written.
fn write(
    file: &mut File,
    region: &Region,
    part: Range<u64>,
    zeroes: Zeroes,
    cancel: &Cancel,
) -> io::Result<u64> {
    let mut written = 0;
    let mut at = part.start;
    while at < part.end {
        cancel.check()?;
        let is_hole = is_zero(region, at)?;
        let mut end = at + PAGE;
        let most = part.end.min(at + CHUNK);
        while end < most && is_zero(region, end)? == is_hole {
            end += PAGE;
        }
        let position = region.position() + at;
        if !is_hole {
            file.seek(SeekFrom::Start(position))?;
            file.write_all_volatile(&slice(region, &(at..end))?)
                .map_err(io::Error::other)?;
            written += end - at;
        } else if let Zeroes::Stale = zeroes {
            punch(file, position..position + end - at)?;
        }
        at = end;
    }
    Ok(written)
}

/// Makes part of a file zero.
fn punch(file: &mut File, part: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if fallocate(&*file, flags, part.start, part.end - part.start).is_ok() {
        return Ok(());
    }
    // Not every file system has holes.
    file.seek(SeekFrom::Start(part.start))?;
    for _ in part.step_by(PAGE_BYTES) {
        file.write_all(&[0; PAGE_BYTES])?;
    }
    Ok(())
}

/// The parts of a memory file within a range that are no holes. Of a file on a disk, see
/// [`Ram::fill`].
pub(super) fn data(file: &File, range: Range<u64>) -> impl Iterator<Item = io::Result<Range<u64>>> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        if next >= range.end {
            return None;
        }
        let part = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(next)) {
            Ok(begin) => rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(begin))
                .map(|end| begin.min(range.end)..end.min(range.end)),
            // Holes as far as the end.
            Err(Errno::NXIO) => Ok(range.end..range.end),
            // It can't tell, as hugetlbfs can't: all of it may be data.
            Err(Errno::INVAL | Errno::SPIPE | Errno::OPNOTSUPP) => Ok(next..range.end),
            Err(error) => Err(error),
        };
        match part {
            Ok(part) => {
                next = part.end;
                (part.start < part.end).then_some(Ok(part))
            }
            Err(error) => {
                next = range.end;
                Some(Err(error.into()))
            }
        }
    })
}
