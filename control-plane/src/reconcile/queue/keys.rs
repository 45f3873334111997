//! Which keys are due: the bookkeeping of the queue, with no clock of its own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::Requeue;

/// The pause after a first failed step; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Not even a change of the record shortens it below this: a step that fails
/// because of what it keeps changing would turn in a hot loop.
const BACKOFF_LEAST: Duration = Duration::from_millis(200);

/// The pause after so many failures in a row.
pub fn backoff(failures: u32) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(BACKOFF_MAX)
}

/// Why a key is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake<K> {
    /// There may be something to do. It shortens no pause after a failure.
    News(K),
    /// Its own record changed: what failed before is no reason to wait.
    Changed(K),
}

impl<K> Wake<K> {
    pub(crate) fn into_key(self) -> K {
        match self {
            Self::News(key) | Self::Changed(key) => key,
        }
    }
}

/// Where a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    /// How it was woken since its step began, if it was: whether its own record
    /// changed.
    Running(Option<bool>),
    Waiting(Instant),
}

#[derive(Debug)]
struct Entry {
    place: Place,
    /// How often it has failed in a row.
    failures: u32,
    failed_at: Option<Instant>,
}

/// The keys that are not idle.
#[derive(Debug)]
pub(super) struct Keys<K> {
    entries: BTreeMap<K, Entry>,
    /// First come, first served.
    ready: VecDeque<K>,
    timers: BTreeSet<(Instant, K)>,
}

impl<K: Ord + Clone> Keys<K> {
    pub(super) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
        }
    }

    pub(super) fn wake(&mut self, wake: Wake<K>, now: Instant) {
        let changed = matches!(wake, Wake::Changed(_));
        let key = wake.into_key();
        let Some(entry) = self.entries.get_mut(&key) else {
            let entry = Entry {
                place: Place::Ready,
                failures: 0,
                failed_at: None,
            };
            self.entries.insert(key.clone(), entry);
            self.ready.push_back(key);
            return;
        };
        match &mut entry.place {
            Place::Ready => {}
            Place::Running(again) => *again = Some(changed || *again == Some(true)),
            Place::Waiting(_) if entry.failures > 0 && !changed => {}
            Place::Waiting(at) => {
                entry.failures = 0;
                let earliest = entry.failed_at.map_or(now, |at| at + BACKOFF_LEAST);
                if earliest > now {
                    let at = std::mem::replace(at, earliest);
                    self.timers.remove(&(at, key.clone()));
                    self.timers.insert((earliest, key));
                } else {
                    self.timers.remove(&(*at, key.clone()));
                    entry.place = Place::Ready;
                    self.ready.push_back(key);
                }
            }
        }
    }

    /// Makes ready what has waited long enough.
    pub(super) fn due(&mut self, now: Instant) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
            && let Some((_, key)) = self.timers.pop_first()
        {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.place = Place::Ready;
                self.ready.push_back(key);
            }
        }
    }

    /// When the next is due.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next key to step; it runs until [`done`](Self::done) or
    /// [`failed`](Self::failed).
    pub(super) fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.place = Place::Running(None);
        }
        Some(key)
    }

    /// Its step went well.
    pub(super) fn done(&mut self, key: K, requeue: Requeue, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.failures = 0;
        entry.failed_at = None;
        let woken = matches!(entry.place, Place::Running(Some(_)));
        match requeue {
            Requeue::After(pause) if !woken => {
                entry.place = Place::Waiting(now + pause);
                self.timers.insert((now + pause, key));
            }
            Requeue::Idle if !woken => {
                self.entries.remove(&key);
            }
            _ => {
                entry.place = Place::Ready;
                self.ready.push_back(key);
            }
        }
    }

    /// Its step failed; after which pause it is tried again.
    pub(super) fn failed(&mut self, key: K, now: Instant) -> Duration {
        let Some(entry) = self.entries.get_mut(&key) else {
            return BACKOFF_MIN;
        };
        entry.failures = entry.failures.saturating_add(1);
        entry.failed_at = Some(now);
        let mut pause = backoff(entry.failures);
        if entry.place == Place::Running(Some(true)) {
            pause = BACKOFF_LEAST;
        }
        entry.place = Place::Waiting(now + pause);
        self.timers.insert((now + pause, key));
        pause
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
