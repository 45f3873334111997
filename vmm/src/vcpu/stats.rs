//! What vCPUs left the guest for, how often, and how long it kept them: for who studies
//! guests, or this program. Each vCPU counts for itself, a few relaxed additions an
//! exit; whoever reads adds them up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hearth_vmm_api::{ExitCount, ExitLatency, ExitReason};

use super::trace::{Access, Trace, VcpuTrace};
use crate::arch;
use crate::machine::bus::Target;

/// One for each power of two of ticks.
const BUCKETS: usize = u64::BITS as usize;

/// What one vCPU counts.
pub struct ExitStats {
    /// All, also the one that is being handled.
    total: AtomicU64,
    /// By reason, then by target.
    counts: [[Count; Target::COUNT]; ExitReason::ALL.len()],
    /// By reason: of exits that took less than 2^n ticks and no less than half of that.
    latency: [[AtomicU64; BUCKETS]; ExitReason::ALL.len()],
    /// Where each is noted, if any is.
    trace: Option<VcpuTrace>,
}

#[derive(Default)]
struct Count {
    exits: AtomicU64,
    ticks: AtomicU64,
}

impl Default for ExitStats {
    fn default() -> Self {
        Self {
            total: AtomicU64::new(0),
            counts: std::array::from_fn(|_| std::array::from_fn(|_| Count::default())),
            latency: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            trace: None,
        }
    }
}

impl ExitStats {
    /// Those of a vCPU, which is traced if any is.
    #[must_use]
    pub fn of(index: usize, trace: Option<&Trace>) -> Self {
        Self {
            trace: trace.map(|trace| trace.of(index)),
            ..Self::default()
        }
    }

    /// Whether each exit is noted.
    pub(super) fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Notes an exit, after it was handled; not at all where there is no trace.
    pub(super) fn note(
        &self,
        at: u64,
        ticks: u64,
        reason: ExitReason,
        target: Target,
        access: Access,
    ) {
        if let Some(trace) = &self.trace {
            trace.note(at, ticks, reason, target, access);
        }
    }

    /// Has readers find what was noted.
    pub(super) fn flush(&self) {
        if let Some(trace) = &self.trace {
            trace.flush();
        }
    }

    /// Counts an exit, before it is handled.
    pub(super) fn begin(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what it was, after it was handled for so many ticks.
    pub(super) fn end(&self, reason: ExitReason, target: Target, ticks: u64) {
        let count = &self.counts[reason as usize][target.index()];
        count.exits.fetch_add(1, Ordering::Relaxed);
        count.ticks.fetch_add(ticks, Ordering::Relaxed);
        self.latency[reason as usize][bucket(ticks)].fetch_add(1, Ordering::Relaxed);
    }

    /// All exits.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// The first power of two above it.
fn bucket(ticks: u64) -> usize {
    let bits = u64::BITS - ticks.leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}

/// How ticks and time go together: told by both, a while apart.
pub struct TickRate {
    ticks: u64,
    at: Instant,
}

impl Default for TickRate {
    fn default() -> Self {
        Self {
            ticks: arch::ticks(),
            at: Instant::now(),
        }
    }
}

impl TickRate {
    /// Nanoseconds of a tick, from what went by since this was made.
    fn ns(&self) -> f64 {
        let ticks = arch::ticks().saturating_sub(self.ticks).max(1);
        #[expect(clippy::cast_precision_loss, reason = "it is a measurement")]
        let (ns, ticks) = (self.at.elapsed().as_nanos() as f64, ticks as f64);
        ns / ticks
    }
}

/// Adds up what all vCPUs counted: what there was, by reason and by the name that `name`
/// has for a target.
pub fn summary(
    all: &[ExitStats],
    rate: &TickRate,
    name: impl Fn(Target) -> String,
) -> (Vec<ExitCount>, Vec<ExitLatency>) {
    let tick = rate.ns();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is a measurement, and not negative"
    )]
    let ns = |ticks: u64| (ticks as f64 * tick) as u64;
    let sum = |of: &dyn Fn(&ExitStats) -> &AtomicU64| -> u64 {
        let each = all.iter().map(|stats| of(stats).load(Ordering::Relaxed));
        each.fold(0, u64::wrapping_add)
    };
    let mut counts = Vec::new();
    let mut latencies = Vec::new();
    for reason in ExitReason::ALL {
        let row = reason as usize;
        for target in Target::all() {
            let exits = sum(&|stats| &stats.counts[row][target.index()].exits);
            if exits > 0 {
                let ticks = sum(&|stats| &stats.counts[row][target.index()].ticks);
                counts.push(ExitCount {
                    reason,
                    device: name(target),
                    exits,
                    ns: ns(ticks),
                });
            }
        }
        let buckets: Vec<_> = (0..BUCKETS)
            .map(|place| (ns(1 << place), sum(&|stats| &stats.latency[row][place])))
            .filter(|(_, exits)| *exits > 0)
            .collect();
        if !buckets.is_empty() {
            latencies.push(ExitLatency { reason, buckets });
        }
    }
    (counts, latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        for (ticks, place) in [
            (0, 0),
            (1, 1),
            (2, 2),
            (3, 2),
            (4, 3),
            (1023, 10),
            (1024, 11),
        ] {
            assert_eq!(bucket(ticks), place, "{ticks}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_all_vcpus_counted_is_added_up() {
        let all = [ExitStats::default(), ExitStats::default()];
        let reason = ExitReason::PortWrite;
        all[0].end(reason, Target::Serial, 100);
        all[1].end(reason, Target::Serial, 1000);
        all[1].end(reason, Target::Slot(31), 1000);
        all[1].end(ExitReason::Interrupted, Target::None, u64::MAX);
        all[1].begin();
        assert_eq!((all[0].total(), all[1].total()), (0, 1));
        let rate = TickRate::default();
        let (counts, latency) = summary(&all, &rate, |target| format!("{target:?}"));
        let found: Vec<_> = counts
            .iter()
            .map(|count| (count.reason, count.device.as_str(), count.exits))
            .collect();
        assert_eq!(
            found,
            [
                (reason, "Serial", 2),
                (reason, "Slot(31)", 1),
                (ExitReason::Interrupted, "None", 1),
            ]
        );
        let buckets = |at: usize| -> Vec<_> {
            let buckets = latency[at].buckets.iter();
            buckets.map(|(_, exits)| *exits).collect()
        };
        assert_eq!(buckets(0), [1, 2]);
        assert_eq!(buckets(1), [1]);
    }
}
