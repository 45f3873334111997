//! What a handle does when others are quicker, and when its watch ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hearth_model::samples::host;

use crate::{
    Db, Entry, LeaseId, MemoryStore, Op, Outcome, Range, Revision, Store, StoreError,
    TransactError, Txn, Watch, record,
};

/// A store in memory with a fault.
struct Faulty {
    store: MemoryStore,
    /// Whether another gets in before each commit.
    contended: AtomicBool,
    /// Whether the next watch ends at once.
    watch_ends: AtomicBool,
}

impl Faulty {
    fn new(contended: bool, watch_ends: bool) -> Arc<Self> {
        Arc::new(Self {
            store: MemoryStore::new(),
            contended: contended.into(),
            watch_ends: watch_ends.into(),
        })
    }
}

#[async_trait]
impl Store for Faulty {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        self.store.range(prefix).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        if self.contended.load(Ordering::Relaxed) {
            let ops = vec![Op::Put {
                key: "/hosts/a".into(),
                value: record::encode(&host("a", 9)),
                lease: None,
            }];
            let theirs = Txn {
                ops,
                ..Txn::default()
            };
            self.store.commit(theirs).await?;
        }
        self.store.commit(txn).await
    }
    async fn watch(&self, after: Revision) -> Result<Watch, StoreError> {
        if self.watch_ends.swap(false, Ordering::Relaxed) {
            return Ok(tokio::sync::mpsc::channel(1).1);
        }
        self.store.watch(after).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

/// By a clock that goes forward when all wait.
#[tokio::test(start_paused = true)]
async fn who_loses_tries_again_at_once_then_waits_and_gives_up_at_last() {
    let store = Faulty::new(true, false);
    let db = Db::open(store.clone()).await.unwrap();
    let put = async |lost: u32| {
        let asked = tokio::time::Instant::now();
        let mut tries = 0;
        let put = db.transact_infallible(|_, change| {
            tries += 1;
            store.contended.store(tries <= lost, Ordering::Relaxed);
            change.overwrite(&host("a", 1));
        });
        let answer = put.await;
        (tries, asked.elapsed(), answer)
    };
    for (lost, tries) in [(0, 1), (2, 3)] {
        let (tried, waited, answer) = put(lost).await;
        answer.unwrap();
        assert_eq!((tried, waited), (tries, Duration::ZERO));
    }
    // Each wait is at random, up to a tenth of a second: some seconds in all.
    let (tried, waited, answer) = put(u32::MAX).await;
    assert!(matches!(answer, Err(TransactError::Contended)));
    assert!(
        tried == 100 && waited > Duration::from_millis(500),
        "{waited:?}"
    );
    assert!(waited <= Duration::from_secs(10), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn when_the_watch_ends_anything_may_have_changed() {
    let db = Db::open(Faulty::new(false, true)).await.unwrap();
    // What feeds it has not run yet.
    let mut changes = db.changes();
    let told = tokio::time::timeout(Duration::from_secs(60), changes.next());
    assert!(told.await.unwrap().unwrap().all);
    // It is followed again.
    db.transact_infallible(|_, change| change.create(&host("a", 1)))
        .await
        .unwrap();
    let changed = changes.next().await.unwrap();
    assert!(!changed.all && changed.keys.contains_key("hosts"));
}
