//! One run of guest memory in this process's address space.

#![allow(unsafe_code, reason = "maps guest memory")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};

use super::{Options, Pages};

/// Bytes of a transparent huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of the smallest page.
pub(super) const PAGE_BYTES: usize = 4096;

/// Nothing is behind it.
const NOTHING: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

impl Pages {
    /// Bytes of the pages that memory is given and taken in.
    pub(super) fn size(self) -> usize {
        match self {
            Self::Transparent | Self::Small => PAGE_BYTES,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    /// Where a mapping starts, so that KVM can map it by huge pages.
    fn alignment(self) -> usize {
        self.size().max(HUGE_PAGE)
    }

    /// Flags for `mmap`, whose size of huge pages stands where that of `memfd_create`
    /// does (`linux/mman.h`).
    fn map_flags(self) -> libc::c_int {
        match self {
            // Not all that a guest may have is there: it is taken when touched.
            Self::Transparent | Self::Small => libc::MAP_NORESERVE,
            // These are few. One that is not there when touched would be a SIGBUS.
            Self::Huge2M => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            Self::Huge1G => libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
        }
    }

    fn memfd_flags(self) -> MemfdFlags {
        match self {
            Self::Transparent | Self::Small => MemfdFlags::empty(),
            Self::Huge2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Self::Huge1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        }
    }
}

/// What is behind a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    /// Pages of this process alone.
    Anonymous,
    /// A file's pages until they are written, then pages of this process alone.
    Copied,
    /// A memory file, which others may map too.
    Shared,
}

/// Guest memory, mapped; unmapped when dropped.
///
/// It starts on a huge page here as it does in the guest, so that KVM can map it by
/// huge pages: a fault for each 2 MiB, not for each 4 KiB. That part of the address
/// space is reserved first, which leaves less than a huge page unused on each side.
pub(super) struct Mapping {
    reserved: *mut libc::c_void,
    reserved_size: usize,
    start: *mut libc::c_void,
    size: usize,
    pages: Pages,
    backing: Backing,
    file: Option<Arc<File>>,
}

// SAFETY: it is an address range, which any thread may use and which one of them, the
// last owner, unmaps.
unsafe impl Send for Mapping {}
// SAFETY: as above; what is in it is shared with the guest and accessed as such.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Memory that reads as zero and is not yet backed by pages.
    ///
    /// # Errors
    /// When the size is not one of whole pages, or the host has no address space or, of
    /// huge pages, not enough.
    pub(super) fn new(size: usize, options: Options) -> io::Result<Self> {
        let mapped = if options.shared {
            Self::shared(size, options.pages)
        } else {
            Self::anonymous(size, options.pages)
        };
        mapped.map_err(|error| match (error.raw_os_error(), options.pages) {
            (Some(libc::ENOMEM), Pages::Huge2M | Pages::Huge1G) => {
                let few = format!(
                    "the host has set too few pages of {} MiB aside",
                    options.pages.size() >> 20
                );
                io::Error::new(error.kind(), few)
            }
            _ => error,
        })
    }

    fn anonymous(size: usize, pages: Pages) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        if pages.map_flags() & libc::MAP_HUGETLB == 0 {
            return Self::reserve(size, pages, READ_WRITE).map(Self::advised);
        }
        let mapping = Self::reserve(size, pages, libc::PROT_NONE)?;
        mapping.map(flags | pages.map_flags(), None)?;
        Ok(mapping.advised())
    }

    fn shared(size: usize, pages: Pages) -> io::Result<Self> {
        let mut mapping = Self::reserve(size, pages, libc::PROT_NONE)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages.memfd_flags();
        let file = rustix::fs::memfd_create("guest-memory", flags)?;
        rustix::fs::ftruncate(&file, size as u64)?;
        // Who else maps it can't take pages away, which would be a SIGBUS here.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let file = File::from(file);
        mapping.map(libc::MAP_SHARED, Some((&file, 0)))?;
        mapping.backing = Backing::Shared;
        mapping.file = Some(Arc::new(file));
        Ok(mapping.advised())
    }

    /// A memory file that another process maps too.
    ///
    /// # Errors
    /// As [`Self::new`], and when it is none, has another size, or could become shorter.
    pub(super) fn shared_with(file: File, size: usize, pages: Pages) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if !seals.contains(SealFlags::SHRINK) || file.metadata()?.len() != size as u64 {
            let wrong = "it is no memory file of this size";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
        }
        let mut mapping = Self::reserve(size, pages, libc::PROT_NONE)?;
        mapping.map(libc::MAP_SHARED, Some((&file, 0)))?;
        mapping.backing = Backing::Shared;
        mapping.file = Some(Arc::new(file));
        Ok(mapping.advised())
    }

    /// A file's content from an offset on, read when touched. What is written stays
    /// here; the file may not change meanwhile, nor become shorter.
    ///
    /// # Errors
    /// As [`Self::new`], and when the file can't be mapped.
    pub(super) fn of_file(file: &File, offset: u64, size: usize, pages: Pages) -> io::Result<Self> {
        let mut mapping = Self::reserve(size, pages, libc::PROT_NONE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        mapping.map(flags, Some((file, offset)))?;
        mapping.backing = Backing::Copied;
        Ok(mapping.advised())
    }

    /// A place for memory, which reads as zero and can't be written until it is
    /// [filled](Self::fill).
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn kept(size: usize, pages: Pages) -> io::Result<Self> {
        Self::reserve(size, pages, libc::PROT_READ).map(Self::advised)
    }

    /// Finds room for a mapping.
    fn reserve(size: usize, pages: Pages, protection: libc::c_int) -> io::Result<Self> {
        if size == 0 || !size.is_multiple_of(pages.size()) {
            let wrong = format!("its size is no multiple of {} KiB", pages.size() >> 10);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let reserved_size = size
            .checked_add(pages.alignment())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a new mapping, at no given place.
        let reserved = unsafe { libc::mmap(null_mut(), reserved_size, protection, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = reserved.align_offset(pages.alignment());
        Ok(Self {
            reserved,
            reserved_size,
            // SAFETY: less than the alignment further, which was reserved for this.
            start: unsafe { reserved.byte_add(before) },
            size,
            pages,
            backing: Backing::Anonymous,
            file: None,
        })
    }

    /// Maps something else where it is.
    fn map(&self, flags: libc::c_int, file: Option<(&File, u64)>) -> io::Result<()> {
        self.map_part(0..self.size, READ_WRITE, flags, file)
    }

    /// Has part of it be empty memory.
    ///
    /// # Errors
    /// When the host can't have it: it is as it was then.
    pub(super) fn fill(&self, part: Range<usize>) -> io::Result<()> {
        self.map_part(part.clone(), READ_WRITE, NOTHING, None)?;
        self.advise_part(part);
        Ok(())
    }

    /// Has part of it read as zero, and not be written.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(super) fn keep(&self, part: Range<usize>) -> io::Result<()> {
        self.map_part(part.clone(), libc::PROT_READ, NOTHING, None)?;
        self.advise_part(part);
        Ok(())
    }

    /// Has each step of a part of it be the one file, of as many bytes.
    ///
    /// # Errors
    /// When the host can't, which leaves some as it was.
    pub(super) fn sink(&self, part: Range<usize>, step: u64, file: &File) -> io::Result<()> {
        let step = usize::try_from(step).map_err(io::Error::other)?;
        for start in part.clone().step_by(step) {
            let one = start..start + step;
            self.map_part(one, READ_WRITE, libc::MAP_SHARED, Some((file, 0)))?;
        }
        // That it isn't dumped, as all of it.
        self.advise_part(part);
        Ok(())
    }

    fn map_part(
        &self,
        part: Range<usize>,
        protection: libc::c_int,
        flags: libc::c_int,
        file: Option<(&File, u64)>,
    ) -> io::Result<()> {
        debug_assert!(part.start <= part.end && part.end <= self.size);
        let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
        let offset = offset.try_into().map_err(io::Error::other)?;
        let flags = flags | libc::MAP_FIXED;
        // SAFETY: the range is this mapping's own; no Rust object lives there, and
        // pointers into it stay good.
        let mapped = unsafe {
            let start = self.start.byte_add(part.start);
            libc::mmap(start, part.len(), protection, flags, fd, offset)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Says what it is for. Where the host has no transparent huge pages, that changes
    /// nothing; and a core dump of this process is not to hold what the guest had in
    /// memory.
    fn advise(&self) {
        self.advise_part(0..self.size);
    }

    fn advise_part(&self, part: Range<usize>) {
        let transparent = match self.pages {
            Pages::Transparent => Some(libc::MADV_HUGEPAGE),
            Pages::Small => Some(libc::MADV_NOHUGEPAGE),
            Pages::Huge2M | Pages::Huge1G => None,
        };
        for advice in transparent.into_iter().chain([libc::MADV_DONTDUMP]) {
            // SAFETY: the range is this mapping's own; neither advice changes what is
            // in it.
            unsafe { libc::madvise(self.start.byte_add(part.start), part.len(), advice) };
        }
    }

    fn advised(self) -> Self {
        self.advise();
        self
    }

    /// Its first byte.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.cast()
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// What others can map to share it.
    pub(super) fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// Makes all of it zero, and gives its pages back to the host.
    ///
    /// # Errors
    /// When the host refuses, which leaves it as it was.
    pub(super) fn clear(&self) -> io::Result<()> {
        if self.backing == Backing::Copied {
            // Pages dropped would be the file's again.
            self.map(NOTHING, None)?;
            self.advise();
            return Ok(());
        }
        self.drop_pages(0, self.size)
    }

    /// Gives the whole pages of a part back to the host, and returns their bytes. They
    /// read as zero when next touched, or as the file that they were restored from. One
    /// that the host won't take stays as it is, which does no harm.
    pub(super) fn release(&self, offset: usize, length: usize) -> usize {
        let page = self.pages.size();
        let end = offset.saturating_add(length).min(self.size) / page * page;
        let start = offset.next_multiple_of(page);
        let length = end.saturating_sub(start);
        match length > 0 && self.drop_pages(start, length).is_ok() {
            true => length,
            false => 0,
        }
    }

    /// Drops pages within it.
    fn drop_pages(&self, offset: usize, length: usize) -> io::Result<()> {
        let advice = match self.backing {
            Backing::Anonymous | Backing::Copied => libc::MADV_DONTNEED,
            // Out of the memory file, too: others don't see them any more.
            Backing::Shared => libc::MADV_REMOVE,
        };
        debug_assert!(offset + length <= self.size);
        // SAFETY: the range is within this mapping. No reference into it outlives a
        // single access, so none sees its pages go.
        let result = unsafe { libc::madvise(self.start.byte_add(offset), length, advice) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: its own range, which nobody has a pointer into any more: who has one
        // holds the memory too.
        unsafe { libc::munmap(self.reserved, self.reserved_size) };
    }
}
