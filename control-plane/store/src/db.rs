//! A store with its view: what the rest of the control plane holds.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    Batch, Change, Changes, MemoryStore, Outcome, Revision, Scoped, Store, StoreError, View, Watch,
    changes::{self, Subscribers},
};
use hearth_model::Scope;

/// How often a transaction is tried when others keep getting in first.
const ATTEMPTS: u32 = 100;
/// From this attempt on it waits before each, at random and longer each time:
/// those who contend would meet again otherwise.
const PATIENT: u32 = 3;
/// The longest of these waits.
const PATIENCE: Duration = Duration::from_millis(100);
/// How many commits are taken into one new picture.
const DRAINED: usize = 256;

/// Why a transaction was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum TransactError<E> {
    /// The closure refused.
    #[error("refused")]
    Refused(E),
    /// Others changed what it needs, every time.
    #[error("gave up after {ATTEMPTS} conflicting changes")]
    Contended,
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] StoreError),
}

/// A handle on the store and its view. Clones are the same.
#[derive(Clone)]
pub struct Db {
    store: Arc<dyn Store>,
    view: watch::Receiver<Arc<View>>,
    subscribers: Subscribers,
}

impl Db {
    /// Reads everything and follows the store from then on. The following ends
    /// with the last clone of the handle.
    ///
    /// # Errors
    /// If the store fails. A record that can't be read is set aside.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (view, watch) = load(&*store).await?;
        let (sender, receiver) = watch::channel(Arc::new(view));
        let subscribers = Subscribers::default();
        let fed = feed(Arc::clone(&store), watch, sender, subscribers.clone());
        tokio::spawn(fed);
        Ok(Self {
            store,
            view: receiver,
            subscribers,
        })
    }

    /// A handle on a new store in memory.
    ///
    /// # Panics
    /// Never: an empty store in memory can always be read.
    #[allow(clippy::expect_used)]
    pub async fn in_memory() -> Self {
        Self::open(Arc::new(MemoryStore::new()))
            .await
            .expect("an empty store can be read")
    }

    /// The store itself.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The newest picture.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Wakes at each new picture, and has it.
    pub fn changed(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Which records change from now on, by kind.
    pub fn changes(&self) -> Changes {
        self.subscribers.subscribe()
    }

    /// Decides on the view and carries the decision out, all or nothing. When
    /// another change comes between, the closure is called again with the newer
    /// view, so it must have no effect but its [`Change`]. After this returns,
    /// [`Db::view`] has the change.
    ///
    /// # Errors
    /// What the closure refuses with, or the store's failure.
    pub async fn transact<T, E>(
        &self,
        decide: impl FnMut(&View, &mut Change<'_>) -> Result<T, E>,
    ) -> Result<T, TransactError<E>> {
        self.commit(None, decide).await
    }

    /// The same for a decision that can't refuse.
    ///
    /// # Errors
    /// As [`transact`](Self::transact).
    pub async fn transact_infallible<T>(
        &self,
        mut decide: impl FnMut(&View, &mut Change<'_>) -> T,
    ) -> Result<T, TransactError<Infallible>> {
        self.commit(None, |view, change| Ok(decide(view, change)))
            .await
    }

    /// What [`transact`](Self::transact) does, for a decision that sees one scope, and changes nothing beyond
    /// it but what all accounts share.
    ///
    /// # Errors
    /// As [`transact`](Self::transact), and the store's `Invalid` if the change
    /// leaves the scope.
    pub async fn transact_at<T, E>(
        &self,
        scope: &Scope,
        mut decide: impl FnMut(Scoped<'_>, &mut Change<'_>) -> Result<T, E>,
    ) -> Result<T, TransactError<E>> {
        self.commit(Some(scope), |view, change| decide(view.at(scope), change))
            .await
    }

    /// What [`transact_at`](Self::transact_at) would answer on this view,
    /// without carrying it out. It may be more than one transaction can carry.
    ///
    /// # Errors
    /// What the closure refuses with, and what the store would of any part of it.
    pub fn try_out<T, E>(
        &self,
        view: &View,
        scope: &Scope,
        decide: &mut impl FnMut(Scoped<'_>, &mut Change<'_>) -> Result<T, E>,
    ) -> Result<T, TransactError<E>> {
        let mut change = Change::new(view, Some(scope));
        let result = decide(view.at(scope), &mut change).map_err(TransactError::Refused)?;
        change.fault().map_err(TransactError::Store)?;
        Ok(result)
    }

    async fn commit<T, E>(
        &self,
        only: Option<&Scope>,
        mut decide: impl FnMut(&View, &mut Change<'_>) -> Result<T, E>,
    ) -> Result<T, TransactError<E>> {
        for attempt in 0..ATTEMPTS {
            if attempt >= PATIENT {
                let most = PATIENCE.min(Duration::from_millis(1) * 2u32.pow(attempt.min(16)));
                tokio::time::sleep(most.mul_f64(rand::random())).await;
            }
            let view = self.view();
            // The change borrows the view, and neither may be held across an await.
            let (result, txn) = {
                let mut change = Change::new(&view, only);
                let result = decide(&view, &mut change).map_err(TransactError::Refused)?;
                if change.is_empty() {
                    return Ok(result);
                }
                (result, change.into_txn().map_err(TransactError::Store)?)
            };
            match self.store.commit(txn).await.map_err(TransactError::Store)? {
                Outcome::Committed(revision) => {
                    self.reach(revision).await.map_err(TransactError::Store)?;
                    return Ok(result);
                }
                Outcome::Conflict(current) => {
                    self.reach(current).await.map_err(TransactError::Store)?;
                }
            }
        }
        Err(TransactError::Contended)
    }

    /// Waits until the view has this revision.
    async fn reach(&self, revision: Revision) -> Result<(), StoreError> {
        let mut view = self.view.clone();
        view.wait_for(|v| v.revision() >= revision)
            .await
            .map_err(|_| StoreError::Closed)?;
        Ok(())
    }
}

async fn load(store: &dyn Store) -> Result<(View, Watch), StoreError> {
    loop {
        let range = store.range("").await?;
        let revision = range.revision;
        let view = View::of(range);
        match store.watch(revision).await {
            // Much happened between the two calls: again.
            Err(StoreError::Compacted(_)) => {}
            other => return Ok((view, other?)),
        }
    }
}

/// Keeps the view up to date until the last reader is gone or the store fails
/// for good.
async fn feed(
    store: Arc<dyn Store>,
    mut watch: Watch,
    sender: watch::Sender<Arc<View>>,
    subscribers: Subscribers,
) {
    let mut batches: Vec<Batch> = Vec::new();
    loop {
        let received = tokio::select! {
            received = watch.recv_many(&mut batches, DRAINED) => received,
            () = sender.closed() => break,
        };
        // None: anything.
        let keys = (received > 0).then(|| changes::keys(&batches));
        let next = if received == 0 {
            // We fell behind, or the store ended.
            load(&*store).await.map(|(view, again)| {
                watch = again;
                view
            })
        } else {
            let mut view = View::clone(&sender.borrow());
            batches.drain(..).for_each(|batch| view.apply(batch));
            Ok(view)
        };
        match next {
            Ok(view) => {
                sender.send_replace(Arc::new(view));
                match keys {
                    Some(keys) => subscribers.post(&keys),
                    None => subscribers.post_all(),
                }
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the view is lost");
                break;
            }
        }
    }
    subscribers.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::{Host, Resource as _, samples, samples::host};

    #[tokio::test]
    async fn a_transaction_reads_its_own_write() {
        let db = Db::in_memory().await;
        db.transact(|_, change| {
            change.overwrite(&host("a", 1));
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
        assert_eq!(db.view().shared::<Host>("a"), Some(&host("a", 1)));
    }

    #[tokio::test]
    async fn what_cant_be_read_is_never_written_over() {
        let db = Db::in_memory().await;
        let put = super::super::Op::Put {
            key: host("a", 1).key(),
            value: b"?".to_vec(),
            lease: None,
        };
        let txn = super::super::Txn {
            compares: vec![],
            ops: vec![put],
            ..Default::default()
        };
        let outcome = db.store.commit(txn).await.unwrap();
        let Outcome::Committed(revision) = outcome else {
            panic!("{outcome:?}")
        };
        db.reach(revision).await.unwrap();
        let refused = db
            .transact(|_, change| {
                change.overwrite(&host("a", 2));
                Ok::<_, ()>(())
            })
            .await;
        assert!(matches!(
            refused,
            Err(TransactError::Store(StoreError::Unreadable(key))) if key == "/hosts/a"
        ));
    }

    #[tokio::test]
    async fn a_refusal_changes_nothing() {
        let db = Db::in_memory().await;
        let refused = db
            .transact(|_, change| {
                change.overwrite(&host("a", 1));
                Err::<(), _>("no")
            })
            .await;
        assert!(matches!(refused, Err(TransactError::Refused("no"))));
        assert_eq!(db.view().revision(), Revision(0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn concurrent_increments_are_all_counted() {
        let db = Db::in_memory().await;
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let db = db.clone();
                tokio::spawn(async move {
                    for _ in 0..10 {
                        db.transact(|view, change| {
                            let n = view.shared::<Host>("a").map_or(0, |h| h.vcpus);
                            change.overwrite(&host("a", n + 1));
                            Ok::<_, ()>(())
                        })
                        .await
                        .unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(db.view().shared::<Host>("a").unwrap().vcpus, 80);
    }

    /// Decides with another's write of host "a" between the first decision and its
    /// commit; how often it was decided.
    async fn with_another_between(
        db: &Db,
        mut decide: impl FnMut(&View, &mut Change<'_>),
    ) -> Result<u32, TransactError<Infallible>> {
        let handle = tokio::runtime::Handle::current();
        let mut calls = 0;
        db.transact_infallible(|view, change| {
            calls += 1;
            if calls == 1 {
                let txn = super::super::Txn {
                    ops: vec![super::super::Op::Put {
                        key: "/hosts/a".into(),
                        value: crate::record::encode(&host("a", 10)),
                        lease: None,
                    }],
                    ..Default::default()
                };
                let (store, handle) = (Arc::clone(&db.store), handle.clone());
                let commit = std::thread::spawn(move || handle.block_on(store.commit(txn)));
                commit.join().unwrap().unwrap();
            }
            decide(view, change);
        })
        .await?;
        Ok(calls)
    }

    #[tokio::test]
    async fn what_was_read_and_changed_meanwhile_makes_the_closure_run_again() {
        let db = Db::in_memory().await;
        db.transact_infallible(|_, change| change.create(&host("a", 1)))
            .await
            .unwrap();
        let copied = with_another_between(&db, |view, change| {
            let a = view.shared::<Host>("a").unwrap();
            change.expect_unchanged(a);
            change.overwrite(&host("b", a.vcpus));
        });
        assert_eq!(copied.await.unwrap(), 2);
        assert_eq!(db.view().shared::<Host>("b").unwrap().vcpus, 10);
    }

    #[tokio::test]
    async fn no_update_is_lost() {
        let db = Db::in_memory().await;
        db.transact_infallible(|_, change| change.create(&host("a", 1)))
            .await
            .unwrap();
        let added = with_another_between(&db, |view, change| {
            let a = view.shared::<Host>("a").unwrap();
            change.update(a, &host("a", a.vcpus + 1));
        });
        assert_eq!(added.await.unwrap(), 2);
        assert_eq!(db.view().shared::<Host>("a").unwrap().vcpus, 11);
    }

    #[tokio::test]
    async fn of_two_that_make_one_record_the_later_sees_the_first() {
        let db = Db::in_memory().await;
        let made = with_another_between(&db, |view, change| {
            // As who gives a name does.
            if view.shared::<Host>("a").is_none() {
                change.create(&host("a", 1));
            }
        });
        assert_eq!(made.await.unwrap(), 2);
        // As who draws an id does: it is taken, and that is an error.
        let drawn = with_another_between(&db, |_, change| change.create(&host("a", 1)));
        assert!(matches!(
            drawn.await,
            Err(TransactError::Store(StoreError::Exists(key))) if key == "/hosts/a"
        ));
        assert_eq!(db.view().shared::<Host>("a").unwrap().vcpus, 10);
    }

    #[tokio::test]
    async fn what_is_tried_out_is_refused_as_the_store_would() {
        let db = Db::in_memory().await;
        let (here, there) = (samples::scope(), Scope::new("1", "elsewhere"));
        let view = db.view();
        let mut put = |_: Scoped<'_>, change: &mut Change<'_>| {
            change.overwrite(&samples::volume(1));
            Ok::<_, ()>(())
        };
        db.try_out(&view, &here, &mut put).unwrap();
        let refused = db.try_out(&view, &there, &mut put).unwrap_err();
        assert!(
            matches!(refused, TransactError::Store(StoreError::Invalid(_))),
            "{refused:?}"
        );
        assert_eq!(db.view().revision(), Revision(0));
    }

    #[tokio::test]
    async fn what_only_reads_asks_nothing_of_the_store() {
        let db = Db::in_memory().await;
        db.transact_infallible(|_, change| change.create(&host("a", 1)))
            .await
            .unwrap();
        let revision = db.view().revision();
        // Others may change it meanwhile: nothing that is written depends on it.
        let read = with_another_between(&db, |view, change| {
            change.expect_unchanged(view.shared::<Host>("a").unwrap());
        });
        assert_eq!(read.await.unwrap(), 1);
        db.reach(Revision(revision.0 + 1)).await.unwrap();
    }
}
