//! What vCPU threads report to the main loop. However fast a guest makes them do so, it
//! is one ending, two masks, one trap of each vCPU and one bell that has rung: nothing
//! grows.
//!
//! ```text
//!   open ── the first to end ──► ended ── take ──► taken ── clear ──► open
//! ```

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::bell::Bell;
use crate::arch::debug::Trap;
use crate::sync::{AtomicU32, Mutex, MutexGuard};

/// Why a machine can't go on as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asks for a reset.
    Reset,
    /// A vCPU can't run: which one, why, and its registers.
    Crashed(String),
}

/// What there was to report.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Slots whose devices the guest let go of, one bit for each.
    pub ejected: u32,
    /// vCPUs that the guest let go of, one bit for each.
    pub unplugged: u32,
    /// The first ending.
    pub ending: Option<Ending>,
}

#[derive(Debug)]
enum Slot {
    Open,
    Ended(Ending),
    Taken,
}

/// Where vCPU threads leave their reports.
#[derive(Debug)]
pub struct Reports {
    ending: Mutex<Slot>,
    ejected: AtomicU32,
    unplugged: AtomicU32,
    traps: Mutex<Vec<(usize, Trap)>>,
    bell: Bell,
}

impl Reports {
    /// Nothing to report yet, by this bell.
    #[must_use]
    pub fn new(bell: Bell) -> Self {
        Self {
            ending: Mutex::new(Slot::Open),
            ejected: AtomicU32::new(0),
            unplugged: AtomicU32::new(0),
            traps: Mutex::new(Vec::new()),
            bell,
        }
    }

    /// Rung for each report, and as each vCPU parks or ends.
    #[must_use]
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Reports that a machine can't go on. The first one is why; what other vCPUs still
    /// say until they are ended as well, is dropped.
    pub fn end(&self, ending: Ending) {
        let mut slot = self.slot();
        if matches!(*slot, Slot::Open) {
            *slot = Slot::Ended(ending);
            drop(slot);
            self.bell.ring();
        }
    }

    /// Reports that the guest let go of the devices in these slots.
    pub fn eject(&self, slots: u32) {
        // Bits that are there already were rung for, and not taken yet.
        if self.ejected.fetch_or(slots, Ordering::AcqRel) == 0 {
            self.bell.ring();
        }
    }

    /// Reports that the guest let go of these vCPUs.
    pub fn unplug(&self, vcpus: u32) {
        if self.unplugged.fetch_or(vcpus, Ordering::AcqRel) == 0 {
            self.bell.ring();
        }
    }

    /// Whether there is nothing to take. An ending that was taken counts as one, for as
    /// long as the machine has not started anew.
    #[must_use]
    pub fn are_taken(&self) -> bool {
        matches!(*self.slot(), Slot::Open)
            && self.ejected.load(Ordering::Acquire) == 0
            && self.unplugged.load(Ordering::Acquire) == 0
            && self.traps().is_empty()
    }

    /// Reports that a trap holds this vCPU, which therefore has no second one.
    pub fn trap(&self, index: usize, trap: Trap) {
        self.traps().push((index, trap));
        self.bell.ring();
    }

    /// Takes the traps that hold vCPUs until a debugger releases them, by their number.
    #[must_use]
    pub fn take_traps(&self) -> Vec<(usize, Trap)> {
        std::mem::take(&mut *self.traps())
    }

    /// Takes what else there is, and silences the bell.
    #[must_use]
    pub fn take(&self) -> Taken {
        self.bell.silence();
        let mut slot = self.slot();
        let ending = match std::mem::replace(&mut *slot, Slot::Taken) {
            Slot::Ended(ending) => Some(ending),
            other => {
                *slot = other;
                None
            }
        };
        Taken {
            ejected: self.ejected.swap(0, Ordering::AcqRel),
            unplugged: self.unplugged.swap(0, Ordering::AcqRel),
            ending,
        }
    }

    /// Forgets everything, for a machine that starts anew: no vCPU of the old one is
    /// left.
    pub fn clear(&self) {
        *self.slot() = Slot::Open;
        self.ejected.store(0, Ordering::Release);
        self.unplugged.store(0, Ordering::Release);
        self.traps().clear();
    }

    fn traps(&self) -> MutexGuard<'_, Vec<(usize, Trap)>> {
        self.traps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn reports() -> Reports {
        Reports::new(Bell::new().expect("eventfd"))
    }

    #[test]
    fn the_first_ending_is_the_one() {
        let reports = reports();
        assert_eq!(reports.take(), Taken::default());
        reports.end(Ending::Reset);
        reports.end(Ending::Crashed("late".to_owned()));
        assert_eq!(reports.take().ending, Some(Ending::Reset));
        reports.end(Ending::PowerOff);
        assert!(!reports.bell().silence(), "nobody is woken for nothing");
        assert_eq!(reports.take(), Taken::default());
        reports.clear();
        reports.end(Ending::PowerOff);
        assert_eq!(reports.take().ending, Some(Ending::PowerOff));
    }

    #[test]
    fn ejected_slots_add_up_until_they_are_taken() {
        let reports = reports();
        reports.eject(1 << 3);
        reports.eject(1 << 31 | 1 << 3);
        reports.unplug(1 << 1);
        assert!(!reports.are_taken());
        let taken = reports.take();
        assert_eq!((taken.ejected, taken.unplugged), (1 << 31 | 1 << 3, 1 << 1));
        assert_eq!(reports.take(), Taken::default());
        assert!(!reports.bell().silence());
    }

    #[test]
    fn nothing_is_lost_between_many_vcpus_and_the_bell() {
        let deadline = Instant::now() + Duration::from_secs(60);
        for _ in 0..100 {
            let reports = reports();
            thread::scope(|scope| {
                for index in 0..8 {
                    let reports = &reports;
                    scope.spawn(move || {
                        for slot in (index..32).step_by(8) {
                            reports.eject(1 << slot);
                        }
                        reports.end(Ending::Crashed(index.to_string()));
                    });
                }
                let (mut ejected, mut endings) = (0, 0);
                while ejected != u32::MAX || endings == 0 {
                    assert!(Instant::now() < deadline, "{ejected:#x}, {endings} endings");
                    // Looks only when it was rung for, as the main loop does.
                    if !reports.bell().silence() {
                        thread::yield_now();
                        continue;
                    }
                    let taken = reports.take();
                    assert_eq!(ejected & taken.ejected, 0, "a bit came twice");
                    ejected |= taken.ejected;
                    endings += u32::from(taken.ending.is_some());
                }
                assert_eq!(endings, 1);
            });
        }
    }
}
