//! How many bytes of answers wait for their callers to take them, in all and of one
//! account.
//!
//! An answer stays in memory until the last of it is with the kernel, however slowly
//! its caller reads. A large one needs room for that: an account that has its share
//! is refused another, and when there is none left at all, the account that has most
//! loses its oldest, which is the one that is read most slowly. Small answers always
//! pass: connections are few, and each has one at a time.
//!
//! Pure but for the lock: nothing here waits.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// How many bytes there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes {
    /// Of an answer that needs no room.
    pub small: usize,
    /// Of the answers of one account.
    pub account: usize,
    /// Of all answers.
    pub total: usize,
}

struct Held {
    account: Arc<str>,
    bytes: usize,
    /// Closes the connection.
    evicted: Arc<Notify>,
}

struct Table {
    limits: Bytes,
    /// The oldest first.
    held: BTreeMap<u64, Held>,
    next: u64,
}

/// All answers. Clones are the same.
#[derive(Clone)]
pub(super) struct Answers(Arc<Mutex<Table>>);

/// Room for one answer, free again when this is dropped.
pub(super) struct Room {
    answers: Answers,
    number: u64,
}

impl Answers {
    pub(super) fn new(limits: Bytes) -> Self {
        Self(Arc::new(Mutex::new(Table {
            limits,
            held: BTreeMap::new(),
            next: 0,
        })))
    }

    /// Whether an answer of so many bytes needs room.
    pub(super) fn is_large(&self, bytes: usize) -> bool {
        bytes > self.table().limits.small
    }

    /// Room for an answer to this account, on the connection that `evicted` closes.
    /// `None` when there is none left for it, if it `may_fail`: what has been done must
    /// be answered.
    pub(super) fn take(
        &self,
        account: &str,
        bytes: usize,
        evicted: &Arc<Notify>,
        may_fail: bool,
    ) -> Option<Room> {
        let mut table = self.table();
        let shares = table.shares();
        let own = shares.get(account).copied().unwrap_or(0) + bytes;
        if own > table.limits.account && may_fail {
            return None;
        }
        while table.total() + bytes > table.limits.total {
            let victim = table.oldest_of_the_largest(if may_fail { own } else { 0 });
            let victim = match victim {
                Some(victim) => victim,
                None if may_fail => return None,
                None => break,
            };
            if let Some(held) = table.held.remove(&victim) {
                held.evicted.notify_one();
            }
        }
        let number = table.next;
        table.next += 1;
        let held = Held {
            account: account.into(),
            bytes,
            evicted: Arc::clone(evicted),
        };
        table.held.insert(number, held);
        Some(Room {
            answers: self.clone(),
            number,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn total(&self) -> usize {
        self.held.values().map(|held| held.bytes).sum()
    }

    fn shares(&self) -> BTreeMap<Arc<str>, usize> {
        let mut shares = BTreeMap::new();
        for held in self.held.values() {
            *shares.entry(Arc::clone(&held.account)).or_default() += held.bytes;
        }
        shares
    }

    /// The oldest answer of the account that has most, if that is more than `own`.
    fn oldest_of_the_largest(&self, own: usize) -> Option<u64> {
        let shares = self.shares();
        let (account, bytes) = shares.iter().max_by_key(|(_, bytes)| **bytes)?;
        let mut oldest = self
            .held
            .iter()
            .filter(|(_, held)| held.account == *account);
        let (number, _) = oldest.next().filter(|_| *bytes > own)?;
        Some(*number)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.answers.table().held.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Bytes = Bytes {
        small: 10,
        account: 60,
        total: 100,
    };

    struct Connection(Arc<Notify>);

    impl Connection {
        fn new() -> Self {
            Self(Arc::new(Notify::new()))
        }

        async fn closed(&self) -> bool {
            let limit = std::time::Duration::from_millis(1);
            tokio::time::timeout(limit, self.0.notified()).await.is_ok()
        }
    }

    #[test]
    fn an_account_has_its_share_and_no_more() {
        let answers = Answers::new(LIMITS);
        assert!(!answers.is_large(10) && answers.is_large(11));
        let one = Connection::new();
        let first = answers.take("a", 30, &one.0, true).unwrap();
        let _second = answers.take("a", 30, &one.0, true).unwrap();
        assert!(answers.take("a", 11, &one.0, true).is_none());
        let other = answers.take("b", 40, &one.0, true);
        assert!(other.is_some());
        drop(first);
        assert!(answers.take("a", 11, &one.0, true).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_is_full_the_largest_account_loses_its_slowest() {
        let answers = Answers::new(LIMITS);
        let connections: Vec<_> = (0..5).map(|_| Connection::new()).collect();
        let _a = answers.take("a", 20, &connections[0].0, true).unwrap();
        let first = answers.take("b", 30, &connections[1].0, true).unwrap();
        let _second = answers.take("b", 30, &connections[2].0, true).unwrap();
        let _c = answers.take("c", 20, &connections[3].0, true).unwrap();
        // As much as the largest has: it may not put that one out.
        assert!(answers.take("c", 40, &connections[4].0, true).is_none());
        assert!(answers.take("c", 20, &connections[4].0, true).is_some());
        assert!(connections[1].closed().await);
        for i in [0, 2, 3, 4] {
            assert!(!connections[i].closed().await, "{i}");
        }
        // What was put out gives nothing back twice.
        drop(first);
        assert_eq!(answers.table().total(), 70);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_answered_beyond_every_share() {
        let answers = Answers::new(LIMITS);
        let connections: Vec<_> = (0..3).map(|_| Connection::new()).collect();
        let _first = answers.take("a", 60, &connections[0].0, true).unwrap();
        assert!(answers.take("a", 30, &connections[1].0, true).is_none());
        let _second = answers.take("a", 30, &connections[1].0, false).unwrap();
        assert!(!connections[0].closed().await);
        let _third = answers.take("a", 30, &connections[2].0, false).unwrap();
        assert!(connections[0].closed().await && !connections[1].closed().await);
        // Also one that is longer than all that there may be.
        assert!(answers.take("a", 101, &connections[0].0, false).is_some());
    }

    #[test]
    fn a_dropped_permit_returns_its_bytes() {
        let answers = Answers::new(LIMITS);
        let connection = Connection::new();
        drop(answers.take("a", 60, &connection.0, true).unwrap());
        assert!(answers.table().held.is_empty());
        assert!(answers.take("a", 61, &connection.0, true).is_none());
    }
}
