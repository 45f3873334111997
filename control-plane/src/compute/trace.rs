//! How long the steps of a launch took: what `hearth trace INSTANCE` shows.
//!
//! Whoever does a step holds what [`Trace::begin`] gives for as long; the steps of a
//! boot are written to the instance's folder when the launch is over, well or not,
//! and stay until the next boot's.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_vmm_api::Start;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// No launch has so many steps; what is more is not kept.
const MOST: usize = 64;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub step: String,
    /// When it began.
    pub from: Timestamp,
    /// When it was over.
    pub to: Timestamp,
}

/// The steps of a launch so far. Clones are the same; any two are equal, for how
/// long it took is no part of what is launched.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    asked: Option<Timestamp>,
    done: Mutex<Done>,
}

#[derive(Debug, Default)]
struct Done {
    steps: Vec<Step>,
    vmm: Option<Start>,
}

impl PartialEq for Trace {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Trace {}

/// A step that is under way; it is over when this is dropped.
#[derive(Debug)]
#[must_use = "the step is over at once"]
pub struct Begun<'a> {
    trace: &'a Trace,
    step: &'static str,
    from: Timestamp,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.trace.add(self.step, self.from, Timestamp::now());
    }
}

impl Trace {
    /// One of a launch that was asked for by a call at this time.
    pub fn of(asked: Timestamp) -> Self {
        Self(Arc::new(Inner {
            asked: Some(asked),
            done: Mutex::default(),
        }))
    }

    /// Begins a step.
    pub fn begin(&self, step: &'static str) -> Begun<'_> {
        Begun {
            trace: self,
            step,
            from: Timestamp::now(),
        }
    }

    /// Adds a step.
    pub fn add(&self, step: &str, from: Timestamp, to: Timestamp) {
        let steps = &mut self.done().steps;
        if steps.len() < MOST {
            let step = step.to_owned();
            steps.push(Step { step, from, to });
        }
    }

    /// Keeps when the VMM says that it came up.
    pub fn vmm(&self, start: Start) {
        self.done().vmm = Some(start);
    }

    /// What is to be kept of it: the steps so far of this boot, and how it failed.
    pub fn record(&self, boot: u64, error: Option<String>) -> Record {
        let done = self.done();
        let (mut steps, vmm) = (done.steps.clone(), done.vmm);
        steps.sort_by_key(|step| step.from);
        Record {
            boot,
            asked: self.0.asked,
            steps,
            vmm,
            error,
        }
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.0.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept of a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which cold boot it was.
    pub boot: u64,
    /// When the call was taken that asked for it, if that is known.
    pub asked: Option<Timestamp>,
    /// Its steps, as they began.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// When the VMM began, and the guest with it.
    #[serde(default)]
    pub vmm: Option<Start>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Record {
    /// When the VMM's program began and when it first entered the guest.
    fn entered(&self) -> Option<(Timestamp, Timestamp)> {
        let at = |ns: u64| Timestamp::from_nanosecond(ns.into()).ok();
        let vmm = self.vmm?;
        Some((at(vmm.began_ns)?, at(vmm.entered_ns?)?))
    }

    /// All that a table shows of it, as it began.
    fn rows(&self) -> Vec<Step> {
        let mut rows = self.steps.clone();
        rows.extend(self.entered().map(|(from, to)| Step {
            step: "the VMM, up to the guest's first instruction".to_owned(),
            from,
            to,
        }));
        rows.sort_by_key(|row| row.from);
        rows
    }
}

/// A time in milliseconds.
fn millis(from: Timestamp, to: Timestamp) -> String {
    let micros = to.duration_since(from).as_micros();
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    format!("{sign}{}.{:03}", micros / 1_000, micros % 1_000)
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows();
        let Some(first) = self.asked.or(rows.first().map(|row| row.from)) else {
            return writeln!(f, "boot {}: no step was done", self.boot);
        };
        writeln!(f, "boot {}, asked for at {first}", self.boot)?;
        writeln!(
            f,
            "{:>10} {:>10} {:>10}  step",
            "from ms", "to ms", "took ms"
        )?;
        for (n, row) in rows.iter().enumerate() {
            let (from, to) = (millis(first, row.from), millis(first, row.to));
            let took = millis(row.from, row.to);
            let beside = |other: &Step| other.from < row.to && row.from < other.to;
            let others = rows.iter().enumerate().filter(|(other, _)| *other != n);
            let side = if others.map(|(_, row)| row).any(beside) {
                "| "
            } else {
                ""
            };
            writeln!(f, "{from:>10} {to:>10} {took:>10}  {side}{}", row.step)?;
        }
        if rows.windows(2).any(|pair| pair[1].from < pair[0].to) {
            writeln!(f, "side by side: |")?;
        }
        if let Some((began, entered)) = self.entered() {
            writeln!(
                f,
                "the guest's first instruction came after {} ms, of which the VMM took {}",
                millis(first, entered),
                millis(began, entered)
            )?;
        }
        match &self.error {
            Some(error) => writeln!(f, "failed: {error}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_order_shared_and_bounded() {
        let trace = Trace::default();
        let same = trace.clone();
        let outer = trace.begin("outer");
        for _ in 0..100 {
            drop(trace.begin("inner"));
        }
        assert_eq!(same.record(1, None).steps.len(), MOST);
        drop(outer);
        let trace = Trace::default();
        let outer = trace.begin("outer");
        drop(trace.begin("inner"));
        drop(outer);
        let steps = trace.record(1, None).steps;
        assert_eq!(steps.len(), 2);
        assert!(steps.is_sorted_by_key(|step| step.from));
        assert!(steps.iter().all(|step| step.from <= step.to));
        assert_eq!(trace, Trace::default());
    }

    #[test]
    fn it_is_printed_with_what_each_step_took_and_what_ran_beside_it() {
        let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        let ns = |ms: u64| (1_800_000_000_000 + ms) * 1_000_000;
        let trace = Trace::of(at(0));
        trace.add("network", at(12), at(30));
        trace.add("placed", at(0), at(12));
        trace.add("root volume", at(12), at(20));
        let vmm = Start {
            began_ns: ns(40),
            entered_ns: Some(ns(52)),
        };
        trace.vmm(vmm);
        let record = trace.record(1, None);
        let text = record.to_string();
        let lines: Vec<String> = text
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines[2..],
            [
                "0.000 12.000 12.000 placed",
                "12.000 30.000 18.000 | network",
                "12.000 20.000 8.000 | root volume",
                "40.000 52.000 12.000 the VMM, up to the guest's first instruction",
                "side by side: |",
                "the guest's first instruction came after 52.000 ms, of which the VMM took 12.000",
            ]
        );
        let none = Record {
            steps: vec![],
            vmm: None,
            asked: None,
            error: Some("no".into()),
            ..record
        };
        assert_eq!(none.to_string(), "boot 1: no step was done\n");
    }
}
