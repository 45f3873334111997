//! How long the steps of a launch took: what `hearth trace INSTANCE` shows.
//!
//! Whoever does a step marks its end; the marks of a boot are written to the
//! instance's folder when the launch is over, well or not, and stay until the
//! next boot's.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// No launch has so many steps; what is more is not kept.
const MOST: usize = 64;

/// The end of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What was done.
    pub step: String,
    /// When it was.
    pub at: Timestamp,
}

/// The marks of a launch so far. Clones are the same; any two are equal, for how
/// long it took is no part of what is launched.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    asked: Option<Timestamp>,
    marks: Mutex<Vec<Mark>>,
}

impl PartialEq for Trace {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Trace {}

impl Trace {
    /// One of a launch that was asked for by a call at this time.
    pub fn of(asked: Timestamp) -> Self {
        Self(Arc::new(Inner {
            asked: Some(asked),
            marks: Mutex::default(),
        }))
    }

    /// Marks the end of a step, now.
    pub fn mark(&self, step: &str) {
        let mut marks = self.marks_so_far();
        if marks.len() < MOST {
            marks.push(Mark {
                step: step.to_owned(),
                at: Timestamp::now(),
            });
        }
    }

    /// What is to be kept of it: the marks so far of this boot, and how it failed.
    pub fn record(&self, boot: u64, error: Option<String>) -> Record {
        Record {
            boot,
            asked: self.0.asked,
            marks: self.marks_so_far().clone(),
            error,
        }
    }

    fn marks_so_far(&self) -> MutexGuard<'_, Vec<Mark>> {
        self.0.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept of a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which cold boot it was.
    pub boot: u64,
    /// When the call was taken that asked for it, if that is known.
    pub asked: Option<Timestamp>,
    /// The ends of its steps.
    pub marks: Vec<Mark>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |from: Timestamp, to: Timestamp| {
            let nanos = to.duration_since(from).as_nanos();
            format!("{}.{:03}", nanos / 1_000_000, nanos / 1_000 % 1_000)
        };
        let Some(first) = self.asked.or(self.marks.first().map(|m| m.at)) else {
            return writeln!(f, "boot {}: no step was done", self.boot);
        };
        writeln!(f, "boot {}, asked for at {first}", self.boot)?;
        writeln!(f, "{:>12} {:>12}  step", "took ms", "at ms")?;
        let mut before = first;
        for mark in &self.marks {
            let (took, at) = (millis(before, mark.at), millis(first, mark.at));
            writeln!(f, "{took:>12} {at:>12}  {}", mark.step)?;
            before = mark.at;
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
    fn marks_are_in_order_shared_and_bounded() {
        let trace = Trace::default();
        let same = trace.clone();
        for n in 0..100 {
            trace.mark(&n.to_string());
        }
        let marks = same.record(1, None).marks;
        assert_eq!(marks.len(), MOST);
        assert!(marks.is_sorted_by_key(|m| m.at));
        assert_eq!(trace, Trace::default());
    }

    #[test]
    fn it_is_printed_with_what_each_step_took() {
        let at = |ms: i64| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
        let mark = |step: &str, ms| Mark {
            step: step.into(),
            at: at(ms),
        };
        let record = Record {
            boot: 1,
            asked: Some(at(0)),
            marks: vec![mark("root volume", 12), mark("VMM started", 52)],
            error: None,
        };
        let text = record.to_string();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines[2], ["12.000", "12.000", "root", "volume"]);
        assert_eq!(lines[3], ["40.000", "52.000", "VMM", "started"]);
        let none = Record {
            marks: vec![],
            asked: None,
            error: Some("no".into()),
            ..record
        };
        assert_eq!(none.to_string(), "boot 1: no step was done\n");
    }
}
