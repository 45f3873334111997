//! A store that is gone with its process: for tests and for trying things out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    Entry, LeaseId, Outcome, Range, Revision, Store, StoreError, Txn, Watch,
    core::{Core, Engine, Write},
};

#[derive(Default)]
struct Memory {
    revision: Revision,
    entries: BTreeMap<String, (Entry, Option<LeaseId>)>,
    last_lease: u64,
    /// How many more commits that take space it has room for, if that is bounded.
    room: Option<u32>,
}

impl Engine for Memory {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.entries.get(key).map(|(entry, _)| entry.clone()))
    }

    fn range(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        Ok(self
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, (entry, _))| entry.clone())
            .collect())
    }

    fn write(&mut self, revision: Revision, writes: &[Write<'_>]) -> Result<(), StoreError> {
        for write in writes {
            let key = write.key.to_owned();
            match write.put {
                Some((value, lease)) => {
                    let entry = Entry {
                        key: key.clone(),
                        value: value.to_vec(),
                        created: write.created,
                        modified: revision,
                    };
                    self.entries.insert(key, (entry, lease));
                }
                None => {
                    self.entries.remove(&key);
                }
            }
        }
        self.revision = revision;
        Ok(())
    }

    fn is_full(&mut self, _to_come: usize) -> Result<bool, StoreError> {
        let full = self.room == Some(0);
        self.room = self.room.map(|room| room.saturating_sub(1));
        Ok(full)
    }

    fn begin_group(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn leased(&self, lease: LeaseId) -> Result<Vec<String>, StoreError> {
        let of_lease = |(key, (_, l)): (&String, &(Entry, Option<LeaseId>))| {
            (*l == Some(lease)).then(|| key.clone())
        };
        Ok(self.entries.iter().filter_map(of_lease).collect())
    }

    fn new_lease(&mut self, _: Duration) -> Result<LeaseId, StoreError> {
        self.last_lease += 1;
        Ok(LeaseId(self.last_lease))
    }

    fn end_lease(&mut self, _: LeaseId) -> Result<(), StoreError> {
        Ok(())
    }

    fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, StoreError> {
        // None outlives its process.
        Ok(Vec::new())
    }
}

/// A store in memory.
pub struct MemoryStore {
    core: Arc<Mutex<Core<Memory>>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            core: Arc::new(Mutex::new(Core::with_leases(Memory::default(), Vec::new()))),
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on it has room for so many more commits that take space, and is then
    /// as full as a store whose disk is; `None` for as many as come.
    pub fn set_room(&self, commits: Option<u32>) {
        self.core().engine().room = commits;
    }

    fn core(&self) -> MutexGuard<'_, Core<Memory>> {
        // A panic under the lock can only be one of allocation.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that the leases end in time, for as long as there are any.
    fn watch_leases(&self) {
        let weak = Arc::downgrade(&self.core);
        tokio::spawn(async move {
            loop {
                let Some(core) = weak.upgrade() else { return };
                let next = core.lock().unwrap_or_else(PoisonError::into_inner).expire();
                drop(core);
                let Ok(Some(next)) = next else { return };
                tokio::time::sleep_until(next).await;
            }
        });
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.core().get(key)
    }
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        self.core().range(prefix)
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.core().commit(&txn)
    }
    async fn watch(&self, after: Revision) -> Result<Watch, StoreError> {
        self.core().watch(after)
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let lease = self.core().grant(ttl);
        self.watch_leases();
        lease
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.core().keep_alive(lease)
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.core().revoke(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    async fn put(store: &MemoryStore, key: &str, lease: Option<LeaseId>) -> bool {
        let ops = vec![Op::Put {
            key: key.into(),
            value: b"v".to_vec(),
            lease,
        }];
        let txn = Txn {
            ops,
            ..Txn::default()
        };
        match store.commit(txn).await {
            Ok(_) => true,
            Err(StoreError::Full) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn it_is_full_when_it_is_said_to_be() {
        let store = MemoryStore::new();
        assert!(put(&store, "/a", None).await);
        store.set_room(Some(1));
        assert!(put(&store, "/b", None).await && !put(&store, "/c", None).await);
        // What is written anew takes no space.
        assert!(put(&store, "/a", None).await);
        store.set_room(None);
        assert!(put(&store, "/c", None).await && put(&store, "/d", None).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_kept_alive_ends_later() {
        let store = MemoryStore::new();
        let lease = store.grant(Duration::from_secs(10)).await.unwrap();
        assert!(put(&store, "/a", Some(lease)).await);
        let there_after = async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            store.get("/a").await.unwrap().is_some()
        };
        assert!(there_after(6).await);
        store.keep_alive(lease).await.unwrap();
        assert!(there_after(9).await);
        assert!(!there_after(2).await);
    }
}
