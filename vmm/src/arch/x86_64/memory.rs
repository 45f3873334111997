//! Guest memory: which ranges are RAM, and what the kernel learns about them.

#![allow(unsafe_code, reason = "maps guest memory")]

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::layout::{
    ABOVE_4G, ACPI, ACPI_SIZE, ECAM, ECAM_SIZE, HIGH_RAM, HOLE, LOW_RAM_END, SMBIOS,
};

/// What a range of the guest-physical address space is, with the numbers of the
/// e820 map (ACPI 6.5, table 15.6), which PVH uses too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Memory to use.
    Ram = 1,
    /// Not memory, or memory to leave alone.
    Reserved = 2,
    /// Memory that holds ACPI tables.
    AcpiData = 3,
}

/// One range of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Its first address.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The RAM of a guest with `size` bytes: at most 3 GiB below the hole, the rest
/// from 4 GiB on.
#[must_use]
pub fn ram(size: u64) -> Vec<(u64, u64)> {
    if size <= HOLE {
        vec![(0, size)]
    } else {
        vec![(0, HOLE), (ABOVE_4G, size - HOLE)]
    }
}

/// How far RAM reaches below the hole.
#[must_use]
pub fn low_end(size: u64) -> u64 {
    size.min(HOLE)
}

/// The memory map that the kernel gets.
#[must_use]
pub fn map(size: u64) -> Vec<Range> {
    let range = |start, end, kind| Range {
        start,
        size: end - start,
        kind,
    };
    let mut ranges = vec![
        range(0, LOW_RAM_END, RangeKind::Ram),
        range(LOW_RAM_END, ACPI, RangeKind::Reserved),
        range(ACPI, ACPI + ACPI_SIZE, RangeKind::AcpiData),
        range(SMBIOS, HIGH_RAM, RangeKind::Reserved),
        range(HIGH_RAM, low_end(size), RangeKind::Ram),
        range(ECAM, ECAM + ECAM_SIZE, RangeKind::Reserved),
    ];
    if size > HOLE {
        ranges.push(range(ABOVE_4G, ABOVE_4G + size - HOLE, RangeKind::Ram));
    }
    ranges
}

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Maps the guest's memory: private and not yet backed by pages.
///
/// Each region starts on a huge page here as it does in the guest, so that KVM can
/// map it by huge pages: a fault for each 2 MiB, not for each 4 KiB. It stays
/// mapped until the process ends, as the machine does.
///
/// # Errors
/// When the host has no address space or memory for it.
pub fn allocate(size: u64) -> io::Result<Arc<GuestMemoryMmap>> {
    let regions = ram(size)
        .into_iter()
        .map(|(start, size)| {
            let size = usize::try_from(size).map_err(io::Error::other)?;
            GuestRegionMmap::new(map_aligned(size)?, GuestAddress(start))
                .ok_or_else(|| io::Error::other("the address space is too small"))
        })
        .collect::<io::Result<Vec<_>>>()?;
    GuestMemoryMmap::from_regions(regions)
        .map(Arc::new)
        .map_err(io::Error::other)
}

/// Anonymous memory that starts on a huge page.
fn map_aligned(size: usize) -> io::Result<MmapRegion> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let reserved = size
        .checked_add(HUGE_PAGE)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    // SAFETY: a new mapping, at no given place.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), reserved, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = base.align_offset(HUGE_PAGE);
    // SAFETY: less than a huge page further, which was reserved for this.
    let start = unsafe { base.byte_add(before) };
    // Where the host has no transparent huge pages, nothing changes; and a core dump of
    // this process is not to hold what the guest had in memory.
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
        // SAFETY: the range is in the mapping above; neither advice changes what is
        // in it.
        unsafe { libc::madvise(start, size, advice) };
    }
    // SAFETY: the range lies in the mapping above, which nobody else knows and
    // nobody unmaps.
    unsafe { MmapRegion::build_raw(start.cast(), size, protection, flags) }
        .map_err(io::Error::other)
}

/// Gives all pages back to the host: the memory reads as zero again.
///
/// # Errors
/// When the host refuses, which leaves the memory as it was.
pub fn clear(memory: &GuestMemoryMmap) -> io::Result<()> {
    for region in memory.iter() {
        // SAFETY: the range is this region's own anonymous private mapping, which
        // stays mapped; no reference into it outlives a single access.
        let result =
            unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::layout::{GIB, MIB};
    use super::*;

    #[test]
    fn small_memory_stays_below_the_hole() {
        assert_eq!(ram(64 * MIB), [(0, 64 * MIB)]);
        assert_eq!(ram(3 * GIB), [(0, 3 * GIB)]);
    }

    #[test]
    fn large_memory_goes_on_above_4_gib() {
        assert_eq!(ram(5 * GIB), [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
    }

    #[test]
    fn map_is_sorted_and_holds_all_ram() {
        for size in [64 * MIB, 3 * GIB, 3 * GIB + MIB, 5 * GIB] {
            let map = map(size);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            let ram: u64 = map
                .iter()
                .filter(|range| range.kind == RangeKind::Ram)
                .map(|range| range.size)
                .sum();
            assert_eq!(ram, size - (HIGH_RAM - LOW_RAM_END));
        }
    }

    #[test]
    fn memory_starts_on_a_huge_page() {
        let memory = allocate(3 * GIB + 64 * MIB).expect("memory");
        assert_eq!(memory.num_regions(), 2);
        for region in memory.iter() {
            assert_eq!(region.as_ptr().addr() % HUGE_PAGE, 0);
        }
    }

    #[test]
    fn memory_stays_out_of_core_dumps() {
        let memory = allocate(64 * MIB).expect("memory");
        let start = memory.iter().next().expect("a region").as_ptr().addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("maps");
        let flags = maps
            .split("VmFlags:")
            .find(|map| map.contains(&format!("{start:x}-")))
            .and_then(|map| maps.split(map).nth(1))
            .and_then(|rest| rest.lines().next())
            .expect("the mapping");
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }

    #[test]
    fn cleared_memory_is_zero() {
        use vm_memory::Bytes;
        let memory = allocate(MIB).expect("1 MiB");
        memory
            .write_obj(7u64, GuestAddress(0x1000))
            .expect("in range");
        clear(&memory).expect("madvise");
        let value: u64 = memory.read_obj(GuestAddress(0x1000)).expect("in range");
        assert_eq!(value, 0);
    }
}
