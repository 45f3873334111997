//! What every embedded store shares: the rules of a transaction, the history
//! for watchers, and leases. Where the entries lie is the [`Engine`]'s matter.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use super::{
    Batch, Compare, Entry, Event, LeaseId, Op, Outcome, Range, Revision, StoreError, Txn, Watch,
};

/// How many commits are kept for those who watch from an older revision.
const HISTORY: usize = 1024;
/// How many commits a watcher may be behind before it is let go.
const BACKLOG: usize = 1024;

/// An operation whose fate is decided: what an engine must write.
pub(super) struct Write<'a> {
    pub(super) key: &'a str,
    /// The new value with its lease, or `None` to delete.
    pub(super) put: Option<(&'a [u8], Option<LeaseId>)>,
    pub(super) created: Revision,
}

/// Where the entries lie.
pub(super) trait Engine: Send + 'static {
    fn revision(&self) -> Revision;
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    fn range(&self, prefix: &str) -> Result<Vec<Entry>, StoreError>;
    /// Writes all or nothing; the store is at `revision` then. Durably, unless a group
    /// has begun.
    fn write(&mut self, revision: Revision, writes: &[Write<'_>]) -> Result<(), StoreError>;
    /// Whether the space that is left is for transactions that take none, or would be
    /// with so many more bytes.
    fn is_full(&mut self, _to_come: usize) -> Result<bool, StoreError> {
        Ok(false)
    }
    /// What is written from here on is durable when the group ends.
    fn begin_group(&mut self) -> Result<(), StoreError>;
    /// Makes it so. After an error nothing of the group is written.
    fn end_group(&mut self) -> Result<(), StoreError>;
    fn leased(&self, lease: LeaseId) -> Result<Vec<String>, StoreError>;
    fn new_lease(&mut self, ttl: Duration) -> Result<LeaseId, StoreError>;
    fn end_lease(&mut self, lease: LeaseId) -> Result<(), StoreError>;
    /// The leases that outlived the last process.
    fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, StoreError>;
}

struct Lease {
    ttl: Duration,
    deadline: Instant,
}

/// An engine with history, watchers and leases.
pub(super) struct Core<E> {
    engine: E,
    history: VecDeque<Batch>,
    watchers: Vec<mpsc::Sender<Batch>>,
    leases: BTreeMap<LeaseId, Lease>,
}

/// By so many bytes a record may grow as it is written anew by what makes room, and
/// count as taking no space: an instance does by the reason why it ends. Others have
/// none: tags given one at a time would eat what is left.
const SLACK: usize = 512;

/// What a transaction adds to the store and takes from it, in bytes.
struct Growth {
    more: usize,
    less: usize,
    /// By so much each record may grow.
    slack: usize,
}

impl Growth {
    /// Of what makes room: it may take so much, as the leader's lease is.
    fn with(slack: usize) -> Self {
        Self {
            more: 0,
            less: slack,
            slack,
        }
    }

    fn add(&mut self, op: &Op, before: Option<&Entry>) {
        let there = before.map(|entry| entry.value.len());
        match op {
            Op::Put { key, value, .. } => {
                self.more += value.len();
                match there {
                    Some(there) => self.less += there + self.slack,
                    None => self.more += key.len(),
                }
            }
            Op::Delete { .. } => self.less += there.unwrap_or_default(),
        }
    }

    fn takes_space(&self) -> bool {
        self.more > self.less
    }
}

impl<E: Engine> Core<E> {
    /// Leases that the engine already has start their time anew: nobody could
    /// keep them alive while there was no process.
    pub(super) fn new(engine: E) -> Result<Self, StoreError> {
        let leases = engine.leases()?;
        Ok(Self::with_leases(engine, leases))
    }

    /// The same for an engine whose leases are known.
    pub(super) fn with_leases(engine: E, leases: Vec<(LeaseId, Duration)>) -> Self {
        let now = Instant::now();
        let leases = leases
            .into_iter()
            .map(|(id, ttl)| {
                (
                    id,
                    Lease {
                        ttl,
                        deadline: now + ttl,
                    },
                )
            })
            .collect();
        Self {
            engine,
            history: VecDeque::new(),
            watchers: Vec::new(),
            leases,
        }
    }

    pub(super) fn engine(&mut self) -> &mut E {
        &mut self.engine
    }

    #[cfg(test)]
    pub(super) fn engine_for_tests(&self) -> &E {
        &self.engine
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.engine.get(key)
    }

    pub(super) fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        Ok(Range {
            revision: self.engine.revision(),
            entries: self.engine.range(prefix)?,
        })
    }

    pub(super) fn commit(&mut self, txn: &Txn) -> Result<Outcome, StoreError> {
        let (outcome, batch) = self.write(txn)?;
        batch.into_iter().for_each(|batch| self.publish(batch));
        Ok(outcome)
    }

    /// Commits one after the other what has come in meanwhile, and waits for the disk
    /// once. Nobody learns of one before it is durable; where the group as a whole
    /// can't be made so, each is tried by itself.
    pub(super) fn commit_all<T: Borrow<Txn>>(
        &mut self,
        txns: &[T],
    ) -> Vec<Result<Outcome, StoreError>> {
        let txns = || txns.iter().map(Borrow::borrow);
        let each = |core: &mut Self| txns().map(|txn| core.commit(txn)).collect();
        let commits = txns().len();
        if commits < 2 {
            return each(self);
        }
        if let Err(error) = self.engine.begin_group() {
            tracing::warn!(%error, commits, "no group of commits can begin");
            return each(self);
        }
        let written: Vec<_> = txns().map(|txn| self.write(txn)).collect();
        if let Err(error) = self.engine.end_group() {
            tracing::warn!(%error, commits, "commits failed together");
            return each(self);
        }
        let outcomes = written.into_iter().map(|written| {
            let (outcome, batch) = written?;
            batch.into_iter().for_each(|batch| self.publish(batch));
            Ok(outcome)
        });
        outcomes.collect()
    }

    /// Writes what a transaction decides; those who watch are yet to be told.
    fn write(&mut self, txn: &Txn) -> Result<(Outcome, Option<Batch>), StoreError> {
        let current = self.engine.revision();
        let mut keys = BTreeSet::new();
        for op in &txn.ops {
            if !keys.insert(op.key()) {
                return Err(StoreError::Invalid(format!(
                    "{} is changed twice",
                    op.key()
                )));
            }
            if let Op::Put {
                lease: Some(lease), ..
            } = op
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::NoLease(*lease));
            }
        }
        for compare in &txn.compares {
            let holds = match compare {
                Compare::Absent(key) => self.engine.get(key)?.is_none(),
                Compare::Unchanged(key, revision) => {
                    self.engine.get(key)?.map(|e| e.modified) == Some(*revision)
                }
            };
            if !holds {
                return Ok((Outcome::Conflict(current), None));
            }
        }
        let next = Revision(current.0 + 1);
        let mut writes = Vec::new();
        let mut events = Vec::new();
        let slack = if txn.makes_room { SLACK } else { 0 };
        let mut growth = Growth::with(slack);
        for op in &txn.ops {
            let before = self.engine.get(op.key())?;
            growth.add(op, before.as_ref());
            match op {
                Op::Put { key, value, lease } => {
                    let created = before.map_or(next, |e| e.created);
                    writes.push(Write {
                        key,
                        put: Some((value, *lease)),
                        created,
                    });
                    events.push(Event::Put(Entry {
                        key: key.clone(),
                        value: value.clone(),
                        created,
                        modified: next,
                    }));
                }
                Op::Delete { key } if before.is_some() => {
                    writes.push(Write {
                        key,
                        put: None,
                        created: next,
                    });
                    events.push(Event::Delete { key: key.clone() });
                }
                Op::Delete { .. } => {}
            }
        }
        if writes.is_empty() {
            return Ok((Outcome::Committed(current), None));
        }
        if growth.takes_space() && self.engine.is_full(txn.to_come)? {
            return Err(StoreError::Full);
        }
        self.engine.write(next, &writes)?;
        let batch = Batch {
            revision: next,
            events,
        };
        Ok((Outcome::Committed(next), Some(batch)))
    }

    fn publish(&mut self, batch: Batch) {
        // One who is too far behind is let go: its channel ends, and it reads anew.
        self.watchers.retain(|w| w.try_send(batch.clone()).is_ok());
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(batch);
    }

    pub(super) fn watch(&mut self, after: Revision) -> Result<Watch, StoreError> {
        let missed: Vec<Batch> = self
            .history
            .iter()
            .filter(|b| b.revision > after)
            .cloned()
            .collect();
        let current = self.engine.revision();
        let complete = match missed.first() {
            Some(first) => first.revision.0 <= after.0 + 1,
            None => after >= current,
        };
        if !complete {
            return Err(StoreError::Compacted(after));
        }
        let (sender, receiver) = mpsc::channel(missed.len() + BACKLOG);
        for batch in missed {
            // There is room for all of them.
            let _ = sender.try_send(batch);
        }
        self.watchers.push(sender);
        Ok(receiver)
    }

    pub(super) fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let id = self.engine.new_lease(ttl)?;
        let deadline = Instant::now() + ttl;
        self.leases.insert(id, Lease { ttl, deadline });
        Ok(id)
    }

    pub(super) fn keep_alive(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&id).ok_or(StoreError::NoLease(id))?;
        lease.deadline = Instant::now() + lease.ttl;
        Ok(())
    }

    pub(super) fn revoke(&mut self, id: LeaseId) -> Result<(), StoreError> {
        if !self.leases.contains_key(&id) {
            return Err(StoreError::NoLease(id));
        }
        let ops = self
            .engine
            .leased(id)?
            .into_iter()
            .map(|key| Op::Delete { key })
            .collect();
        self.commit(&Txn {
            ops,
            ..Txn::default()
        })?;
        // Whatever becomes of its own record: it must not be kept alive without its keys.
        self.leases.remove(&id);
        self.engine.end_lease(id)
    }

    /// Ends the leases whose time is over; when the next one's is.
    pub(super) fn expire(&mut self) -> Result<Option<Instant>, StoreError> {
        let now = Instant::now();
        let over: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, l)| l.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.revoke(id)?;
        }
        Ok(self.leases.values().map(|l| l.deadline).min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine that keeps nothing, and counts the groups.
    #[derive(Default)]
    struct Counting {
        revision: Revision,
        groups: u32,
    }

    impl Engine for Counting {
        fn revision(&self) -> Revision {
            self.revision
        }
        fn get(&self, _: &str) -> Result<Option<Entry>, StoreError> {
            Ok(None)
        }
        fn range(&self, _: &str) -> Result<Vec<Entry>, StoreError> {
            Ok(Vec::new())
        }
        fn write(&mut self, revision: Revision, _: &[Write<'_>]) -> Result<(), StoreError> {
            self.revision = revision;
            Ok(())
        }
        fn begin_group(&mut self) -> Result<(), StoreError> {
            self.groups += 1;
            Ok(())
        }
        fn end_group(&mut self) -> Result<(), StoreError> {
            Ok(())
        }
        fn leased(&self, _: LeaseId) -> Result<Vec<String>, StoreError> {
            Ok(Vec::new())
        }
        fn new_lease(&mut self, _: Duration) -> Result<LeaseId, StoreError> {
            Ok(LeaseId(1))
        }
        fn end_lease(&mut self, _: LeaseId) -> Result<(), StoreError> {
            Ok(())
        }
        fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, StoreError> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn two_that_wait_are_a_group_and_one_is_none() {
        let put = Txn {
            ops: vec![Op::Put {
                key: "/k".into(),
                value: Vec::new(),
                lease: None,
            }],
            ..Txn::default()
        };
        let mut core = Core::new(Counting::default()).unwrap();
        for (commits, groups) in [(0, 0), (1, 0), (2, 1), (3, 2)] {
            let outcomes = core.commit_all(&vec![put.clone(); commits]);
            assert_eq!(outcomes.len(), commits);
            assert_eq!(core.engine().groups, groups, "{commits}");
        }
        assert_eq!(core.engine().revision, Revision(6));
    }

    #[test]
    fn what_takes_space_is_what_adds_more_than_it_takes_away() {
        let put = |size| Op::Put {
            key: "/k".into(),
            value: vec![0; size],
            lease: None,
        };
        let delete = || Op::Delete { key: "/k".into() };
        let there = |size| Entry {
            key: "/k".into(),
            value: vec![0; size],
            created: Revision(1),
            modified: Revision(1),
        };
        let takes_space = |slack: usize, steps: &[(Op, Option<Entry>)]| {
            let mut growth = Growth::with(slack);
            for (op, before) in steps {
                growth.add(op, before.as_ref());
            }
            growth.takes_space()
        };
        let (none, some) = (0, SLACK);
        assert!(takes_space(none, &[(put(0), None)]));
        assert!(!takes_space(none, &[(put(1000), Some(there(1000)))]));
        assert!(takes_space(none, &[(put(1001), Some(there(1000)))]));
        assert!(!takes_space(none, &[(delete(), Some(there(10)))]));
        assert!(!takes_space(none, &[(delete(), None)]));
        // One record for another.
        let (gone, key) = ((delete(), Some(there(10))), "/k".len());
        assert!(!takes_space(none, &[(put(10 - key), None), gone.clone()]));
        assert!(takes_space(none, &[(put(11 - key), None), gone]));
        // What makes room has a little for itself, and a little for each record.
        assert!(!takes_space(some, &[(put(SLACK - key), None)]));
        assert!(takes_space(some, &[(put(SLACK), None)]));
        let grown = |by| (put(1000 + by), Some(there(1000)));
        assert!(!takes_space(some, &[grown(2 * SLACK)]));
        assert!(takes_space(some, &[grown(2 * SLACK + 1)]));
    }
}
