//! Which ranges are RAM, and what the kernel learns about them.

use super::layout::{
    ABOVE_4G, ACPI, ACPI_SIZE, ECAM, ECAM_SIZE, HIGH_RAM, HOLE, LOW_RAM_END, MEMORY_BLOCK, MIB,
    SMBIOS,
};
use crate::memory::Pluggable;

/// A page of the second level.
const HUGE_PAGE: u64 = 2 * MIB;

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
    ram_around(size, HOLE)
}

/// The same where the hole begins elsewhere.
#[must_use]
pub fn ram_around(size: u64, hole: u64) -> Vec<(u64, u64)> {
    if size <= hole {
        vec![(0, size)]
    } else {
        vec![(0, hole), (ABOVE_4G, size - hole)]
    }
}

/// The most blocks that come and go: each that has gone is a mapping of its own, of which
/// a process has 65,530 (`/proc/sys/vm/max_map_count`).
const MAX_BLOCKS: u64 = 8192;

/// Where memory may be plugged, of a guest that begins with `size` bytes: `more`, above
/// all else. Its blocks are as small as the pages that KVM maps best, but not too many.
#[must_use]
pub fn pluggable(size: u64, more: u64) -> Pluggable {
    let end = ram(size).into_iter().map(|(start, size)| start + size);
    let end = end.max().unwrap_or(0).max(ABOVE_4G);
    Pluggable {
        start: end.next_multiple_of(MEMORY_BLOCK),
        size: more,
        block: more.div_ceil(MAX_BLOCKS).next_power_of_two().max(HUGE_PAGE),
    }
}

/// Whether a range may be RAM: there are no devices in it.
#[must_use]
pub fn may_be_ram(start: u64, size: u64) -> bool {
    start >= ABOVE_4G || start.checked_add(size).is_some_and(|end| end <= HOLE)
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

#[cfg(test)]
mod tests {
    use super::super::layout::GIB;
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
    fn blocks_lie_above_all_ram_where_linux_takes_whole_ones() {
        let place = |size, more| {
            let Pluggable { start, size, block } = pluggable(size, more);
            assert_eq!(size, more);
            (start, block)
        };
        assert_eq!(place(GIB, 3 * GIB), (4 * GIB, 2 * MIB));
        assert_eq!(place(4 * GIB, 16 * GIB), (6 * GIB, 2 * MIB));
        assert_eq!(place(3 * GIB + MIB, 16 * GIB + MIB), (6 * GIB, 4 * MIB));
        assert_eq!(place(64 * MIB, 1 << 40), (4 * GIB, 128 * MIB));
    }

    #[test]
    fn there_is_no_ram_in_the_hole() {
        for (start, size) in ram(5 * GIB) {
            assert!(may_be_ram(start, size));
        }
        for start in [HOLE - MIB, HOLE, ECAM, ABOVE_4G - MIB] {
            assert!(!may_be_ram(start, 2 * MIB), "{start:#x}");
        }
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
}
