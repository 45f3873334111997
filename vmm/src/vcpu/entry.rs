//! When the guest was first entered.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long a thread that may run can take until it does.
const ENTRY_DEADLINE: Duration = Duration::from_secs(1);

/// When the first vCPU first entered the guest. Resets don't change it.
#[derive(Debug, Default)]
pub struct Entry {
    at_ns: Mutex<Option<u64>>,
    noted: Condvar,
}

impl Entry {
    /// By [`unix_ns`]; none before.
    #[must_use]
    pub fn at_ns(&self) -> Option<u64> {
        *self.at_ns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for it, not for ever: a vCPU that can't run is in the reports.
    pub fn wait(&self) {
        let at_ns = self.at_ns.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .noted
            .wait_timeout_while(at_ns, ENTRY_DEADLINE, |at| at.is_none());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn note(&self) {
        let mut at_ns = self.at_ns.lock().unwrap_or_else(PoisonError::into_inner);
        at_ns.get_or_insert_with(unix_ns);
        self.noted.notify_all();
    }
}

/// The host's clock, in nanoseconds since 1970.
#[must_use]
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}
