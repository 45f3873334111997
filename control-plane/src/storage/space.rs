//! How much room there is for volumes, and what to do when it runs out. Pure.
//!
//! Volumes are thin: their sizes are promises, and only what a guest writes takes
//! space. Three marks keep the store, which lies on the same file system, able to
//! write:
//!
//! ```text
//!  free space ──►   high              low              critical        0
//!   all may write    │  as it was      │ who grows is     │ all are
//!                    │                 │ paused           │ paused
//! ```
//!
//! A paused guest loses nothing: it goes on when there is room again. A write
//! that fails for want of space would have its file system go read-only.

/// One GiB in bytes.
const GIB: u64 = 1 << 30;

/// Room on the file systems under the volumes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// How big the data folder's file system is.
    pub total: u64,
    /// What can still be written, what is on its way to the disk taken off.
    pub available: u64,
    /// What the volumes take.
    pub allocated: u64,
}

/// What is kept free on a file system of this size, in bytes, unless a setting
/// says otherwise: a twentieth, but between 256 MiB, which a guest needs some
/// tenths of a second to write, and 2 GiB.
pub fn default_reserve(total: u64) -> u64 {
    (total / 20).clamp(256 << 20, 2 * GIB)
}

impl Space {
    /// What may be promised to volumes, in GiB, those that are there included:
    /// what they take already, and what is free beyond the reserve times the
    /// overcommit ratio. Nothing once the reserve is touched.
    pub fn capacity_gib(&self, reserve: u64, overcommit: f64) -> u64 {
        let free = self.available.saturating_sub(reserve);
        if free == 0 {
            return 0;
        }
        // Far below the integers' ends, and the ratio is at most 100.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let promised = (free as f64 * overcommit) as u64;
        promised.saturating_add(self.allocated) / GIB
    }
}

/// How near the end of the space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Enough: whoever is paused may go on.
    None,
    /// Between the marks: nobody is paused and nobody goes on, so that they
    /// don't alternate.
    Some,
    /// The reserve is touched: who grows is paused.
    Low,
    /// Half of the reserve is gone: everyone is paused.
    Critical,
}

impl Pressure {
    /// That of so much free space with such a reserve, in bytes.
    pub fn of(available: u64, reserve: u64) -> Self {
        if available < reserve / 2 {
            Self::Critical
        } else if available < reserve {
            Self::Low
        } else if available < reserve.saturating_add(reserve / 4) {
            Self::Some
        } else {
            Self::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_promised_several_times_and_what_is_taken_once() {
        let space = Space {
            total: 100 * GIB,
            available: 12 * GIB,
            allocated: 30 * GIB,
        };
        assert_eq!(space.capacity_gib(2 * GIB, 1.0), 40);
        assert_eq!(space.capacity_gib(2 * GIB, 4.0), 70);
        // The reserve is touched: nothing new, whatever was promised.
        assert_eq!(space.capacity_gib(12 * GIB, 4.0), 0);
        assert_eq!(space.capacity_gib(13 * GIB, 4.0), 0);
    }

    #[test]
    fn the_reserve_follows_from_the_size_within_bounds() {
        assert_eq!(default_reserve(GIB), 256 << 20);
        assert_eq!(default_reserve(20 * GIB), GIB);
        assert_eq!(default_reserve(1000 * GIB), 2 * GIB);
    }

    #[test]
    fn pressure_has_its_marks() {
        for (available, pressure) in [
            (1251, Pressure::None),
            (1250, Pressure::None),
            (1249, Pressure::Some),
            (1000, Pressure::Some),
            (999, Pressure::Low),
            (500, Pressure::Low),
            (499, Pressure::Critical),
            (0, Pressure::Critical),
        ] {
            assert_eq!(Pressure::of(available, 1000), pressure, "{available}");
        }
    }
}
