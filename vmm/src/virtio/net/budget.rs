//! How often a guest may have the host take its RTNL lock.
//!
//! The kernel has one such lock for all that is set up of networks, in all namespaces,
//! and what a driver may ask of a tap (other offloads, other queues) takes it each time:
//! in a loop, it would keep the host's own networks from being set up.

use std::time::{Duration, Instant};

use hearth_vmm_api::MAX_PAIRS;

/// What may be spent at once: a driver that goes to all of its pairs some times over.
/// One that is no enemy does so once, when it starts.
#[expect(clippy::cast_possible_truncation, reason = "it is 16")]
const BURST: u32 = 4 * MAX_PAIRS as u32;

/// How long it takes until one more may be spent.
const PERIOD: Duration = Duration::from_millis(250);

/// What a device may spend. What a driver takes up is paid for, each queue and each
/// change to more offloads; what it lays down is not, since it must have taken that up.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When all will have been regained.
    whole: Option<Instant>,
}

impl Budget {
    /// Spends `count`, all or nothing: 64 at most.
    ///
    /// # Errors
    /// How long it takes until there is enough.
    pub(super) fn spend(&mut self, count: u32, now: Instant) -> Result<(), Duration> {
        let start = self.whole.map_or(now, |whole| whole.max(now));
        let whole = start + count * PERIOD;
        let debt = whole.duration_since(now).saturating_sub(BURST * PERIOD);
        if debt.is_zero() {
            self.whole = Some(whole);
            Ok(())
        } else {
            Err(debt)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_comes_back_and_no_more_than_that() {
        let mut budget = Budget::default();
        let start = Instant::now();
        let at = |periods: u32| start + periods * PERIOD;
        assert_eq!(budget.spend(BURST - 1, at(0)), Ok(()));
        assert_eq!(budget.spend(1, at(0)), Ok(()));
        assert_eq!(budget.spend(1, at(0)), Err(PERIOD));
        assert_eq!(budget.spend(15, at(0)), Err(15 * PERIOD));
        assert_eq!(budget.spend(0, at(0)), Ok(()));
        assert_eq!(budget.spend(3, at(2)), Err(PERIOD), "all or nothing");
        assert_eq!(budget.spend(3, at(3)), Ok(()));
        assert_eq!(budget.spend(1, at(3)), Err(PERIOD));
        assert_eq!(budget.spend(BURST, at(1000)), Ok(()));
        assert_eq!(budget.spend(1, at(1000)), Err(PERIOD));
    }
}
