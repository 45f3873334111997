//! A range of guest-physical addresses from which BARs are placed: first fit,
//! naturally aligned.

use std::collections::BTreeMap;
use std::ops::Range;

/// Addresses to hand out, and what is taken.
#[derive(Debug, Clone)]
pub struct Window {
    range: Range<u64>,
    taken: BTreeMap<u64, u64>,
}

impl Window {
    /// A window over `range`, all free.
    #[must_use]
    pub fn new(range: Range<u64>) -> Self {
        Self {
            range,
            taken: BTreeMap::new(),
        }
    }

    /// The whole range.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Takes `size` bytes, a power of two, aligned to themselves.
    pub fn allocate(&mut self, size: u64) -> Option<u64> {
        if !size.is_power_of_two() {
            return None;
        }
        let mut candidate = self.range.start.checked_next_multiple_of(size)?;
        for (&start, &length) in &self.taken {
            if candidate.checked_add(size)? <= start {
                break;
            }
            candidate = candidate.max((start + length).checked_next_multiple_of(size)?);
        }
        if candidate.checked_add(size)? > self.range.end {
            return None;
        }
        self.taken.insert(candidate, size);
        Some(candidate)
    }

    /// Takes `size` bytes, a power of two, at an address that is aligned to that. Returns
    /// whether they were there, and free.
    pub fn take(&mut self, address: u64, size: u64) -> bool {
        let end = address.checked_add(size);
        let is_inside = address >= self.range.start && end.is_some_and(|end| end <= self.range.end);
        if !size.is_power_of_two() || !address.is_multiple_of(size) || !is_inside {
            return false;
        }
        // The last that begins before the end.
        let before = self.taken.range(..address + size).next_back();
        if before.is_some_and(|(start, length)| start + length > address) {
            return false;
        }
        self.taken.insert(address, size);
        true
    }

    /// Gives an allocation back, named by its first address.
    pub fn free(&mut self, address: u64) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hands_out_aligned_holes_first() {
        let mut window = Window::new(0x1100..0x10000);
        assert_eq!(window.allocate(0x1000), Some(0x2000));
        assert_eq!(window.allocate(0x1000), Some(0x3000));
        assert_eq!(window.allocate(0x100), Some(0x1100));
        window.free(0x2000);
        assert_eq!(window.allocate(0x1000), Some(0x2000));
        assert_eq!(window.allocate(0x10000), None);
        assert_eq!(window.allocate(0), None);
        assert_eq!(window.allocate(u64::MAX), None);
    }

    #[test]
    fn only_what_is_free_inside_and_aligned_is_taken() {
        let mut window = Window::new(0x1000..0x4000);
        assert!(window.take(0x2000, 0x1000));
        for (address, size) in [
            (0x2000, 0x1000),
            (0x2800, 0x800),
            (0x2000, 0x2000),
            (0x1800, 0x1000),
            (0x0, 0x1000),
            (0x4000, 0x1000),
            (0x3000, 0x1800),
            (0x3000, 0),
            (u64::MAX - 0xfff, 0x1000),
        ] {
            assert!(!window.take(address, size), "{address:#x} {size:#x}");
        }
        assert!(window.take(0x3000, 0x1000));
        assert!(window.take(0x1800, 0x800));
        assert_eq!(window.allocate(0x800), Some(0x1000));
        assert_eq!(window.allocate(0x800), None);
    }

    proptest! {
        #[test]
        fn allocations_stay_inside_and_apart(
            sizes in prop::collection::vec((4u32..16, any::<bool>()), 1..64)
        ) {
            let mut window = Window::new(0x4321..0x40000);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (shift, free) in sizes {
                let size = 1u64 << shift;
                if free && !held.is_empty() {
                    let (start, _) = held.swap_remove(0);
                    window.free(start);
                }
                if let Some(start) = window.allocate(size) {
                    prop_assert!(start % size == 0 && start >= 0x4321 && start + size <= 0x40000);
                    for (other, length) in &held {
                        prop_assert!(start + size <= *other || other + length <= start);
                    }
                    held.push((start, size));
                }
            }
        }
    }
}
