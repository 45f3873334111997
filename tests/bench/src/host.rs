//! What the host's kernel is told, and asked.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Transparent huge pages only where a program asks for them; as it was, when dropped.
pub(crate) struct HugePages {
    before: String,
}

impl HugePages {
    pub(crate) fn only_where_asked_for() -> Result<Self> {
        let text = fs::read_to_string(HUGE_PAGES).context(HUGE_PAGES)?;
        let word = text.split_whitespace().find_map(|word| {
            let word = word.strip_prefix('[')?;
            word.strip_suffix(']')
        });
        let before = word.context(HUGE_PAGES)?.to_owned();
        fs::write(HUGE_PAGES, "madvise").context(HUGE_PAGES)?;
        Ok(Self { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, &self.before);
    }
}

/// Has what is read next come from the disk.
pub(crate) fn drop_caches() -> Result<()> {
    // SAFETY: takes nothing.
    unsafe { libc::sync() };
    fs::write("/proc/sys/vm/drop_caches", "1").context("drop_caches")
}

const TRACING: &str = "/sys/kernel/tracing";
const EVENT: &str = "events/kvm/kvm_entry";

/// The first time that KVM enters a guest, by the host's own tracepoint, which then is
/// off again.
pub(crate) struct FirstEntry(());

impl FirstEntry {
    /// Waits for it from now on. None where the kernel has no such tracepoint, or doesn't
    /// let us.
    pub(crate) fn watch() -> Option<Self> {
        let this = Self(());
        // The clock is that of `Instant`.
        let steps = [
            ("tracing_on", "0"),
            ("trace_clock", "mono"),
            ("trace", ""),
            // Once more, where one is still there.
            (&format!("{EVENT}/trigger"), "!traceoff"),
            (&format!("{EVENT}/trigger"), "traceoff:1"),
            (&format!("{EVENT}/enable"), "1"),
            ("tracing_on", "1"),
        ];
        for (file, text) in steps {
            let written = fs::write(Path::new(TRACING).join(file), text);
            if written.is_err() && text != "!traceoff" {
                return None;
            }
        }
        Some(this)
    }

    /// How long after `began` it was, in seconds.
    pub(crate) fn since(&self, began: Instant) -> Option<f64> {
        let trace = fs::read_to_string(Path::new(TRACING).join("trace")).ok()?;
        let entry = Duration::from_secs_f64(first_entry(&trace)?);
        let now = monotonic()?;
        let began = now.checked_sub(began.elapsed())?;
        Some(entry.checked_sub(began)?.as_secs_f64())
    }
}

impl Drop for FirstEntry {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(TRACING).join(EVENT).join("enable"), "0");
    }
}

/// The clock behind `Instant`, which doesn't show it.
fn monotonic() -> Option<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
        return None;
    }
    let (seconds, ns) = (time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?);
    Some(Duration::new(seconds, ns))
}

/// Seconds in the first line of an entry: `vcpu0-130 [000] d..1. 5.173726: kvm_entry: …`.
fn first_entry(trace: &str) -> Option<f64> {
    let line = trace.lines().find(|line| line.contains(": kvm_entry:"))?;
    let (before, _) = line.split_once(": kvm_entry:")?;
    before.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_is_found_in_a_trace() {
        let trace = "\
# tracer: nop
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
           vcpu0-130     [000] d..1.     5.173726: kvm_entry: vcpu 0, rip 0x1000000
           vcpu0-130     [000] d..1.     6.0: kvm_entry: vcpu 0, rip 0x1000000
";
        assert_eq!(first_entry(trace), Some(5.173_726));
        assert_eq!(first_entry("# tracer: nop"), None);
    }
}
