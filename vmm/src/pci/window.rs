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
