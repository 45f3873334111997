//! The embedded store: SQLite in its write-ahead mode, on a thread of its own.
//!
//! A commit that fails, for want of space or because the disk does, leaves the
//! store as it was, and the next one is tried as if it had not been.
//!
//! A disk that stalls holds up the thread and nobody else: who commits hears of it
//! after `COMMIT_TIMEOUT`. What has not begun by then is never carried out, and what has
//! may be. So many commits as `MAX_QUEUED` are with the thread at once; more wait at its
//! door, where they leave nothing behind when their callers give up.

mod engine;
mod reserve;
mod schema;

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use self::engine::Sqlite;
use super::{Entry, LeaseId, Outcome, Range, Revision, Store, StoreError, Txn, Watch, core::Core};

pub use self::engine::view_of;

/// The pause after a failure to end leases.
const RETRY: Duration = Duration::from_secs(1);

type OnCore = Box<dyn FnOnce(&mut Core<Sqlite>) + Send>;

/// What the thread is asked.
enum Job {
    Commit(Commit),
    Other(OnCore),
}

/// A transaction, and who waits for it.
struct Commit {
    txn: Txn,
    caller: oneshot::Sender<Result<Outcome, StoreError>>,
    /// One of those that may be with the thread.
    _place: OwnedSemaphorePermit,
}

impl Commit {
    /// Whether its caller has given up: then it is not to be carried out.
    fn is_void(&self) -> bool {
        self.caller.is_closed()
    }
}

/// As many commits wait for the disk together.
const GROUP: usize = 64;
/// As many are with the thread, of 1.5 MiB each at most: some groups of them.
const MAX_QUEUED: usize = 256;
/// How long the disk may take until a commit's caller hears that it stalls. Clients of
/// the API wait a minute for an answer.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Does what it is asked, until nobody can ask any more.
fn work(core: &mut Core<Sqlite>, queue: &mpsc::Receiver<Job>) {
    let mut next = queue.recv().ok();
    while let Some(job) = next.take() {
        match job {
            Job::Other(job) => job(core),
            Job::Commit(first) => {
                let group;
                (group, next) = gather(first, queue);
                commit_group(core, group);
            }
        }
        next = next.or_else(|| queue.recv().ok());
    }
}

/// The commits that wait with this one, as many as go together; the job that comes
/// after them, if one was taken to see that it is none.
fn gather(first: Commit, queue: &mpsc::Receiver<Job>) -> (Vec<Commit>, Option<Job>) {
    let mut group = vec![first];
    while group.len() < GROUP {
        match queue.try_recv() {
            Ok(Job::Commit(commit)) => group.push(commit),
            Ok(other) => return (group, Some(other)),
            Err(_) => break,
        }
    }
    (group, None)
}

fn commit_group(core: &mut Core<Sqlite>, mut group: Vec<Commit>) {
    group.retain(|commit| !commit.is_void());
    let txns: Vec<&Txn> = group.iter().map(|commit| &commit.txn).collect();
    let outcomes = core.commit_all(&txns);
    for (commit, outcome) in group.into_iter().zip(outcomes) {
        // Whoever asked may have gone; what was done is done.
        let _ = commit.caller.send(outcome);
    }
}

/// A store in one SQLite file. One process at a time may have it open: whoever
/// opens it holds the data folder's lock.
pub struct SqliteStore {
    // The thread ends with the last sender.
    jobs: Arc<mpsc::Sender<Job>>,
    /// For commits that are with the thread.
    places: Arc<Semaphore>,
}

impl SqliteStore {
    /// Opens the file, or makes it. Must be called on a runtime.
    ///
    /// # Errors
    /// If SQLite is too old, or fails, or the file is of another schema.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, result) = oneshot::channel();
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let core = Sqlite::open(&path).and_then(Core::new);
                match core {
                    Ok(mut core) => {
                        if opened.send(Ok(())).is_ok() {
                            work(&mut core, &queue);
                        }
                    }
                    Err(error) => {
                        let _ = opened.send(Err(error));
                    }
                }
            })
            .map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)??;
        let store = Self {
            jobs: Arc::new(jobs),
            places: Arc::new(Semaphore::new(MAX_QUEUED)),
        };
        store.watch_leases();
        Ok(store)
    }

    async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core<Sqlite>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        call(&self.jobs, job).await
    }

    /// Sees to it that the leases end in time, for as long as there are any.
    fn watch_leases(&self) {
        let weak = Arc::downgrade(&self.jobs);
        tokio::spawn(async move {
            loop {
                let Some(jobs) = weak.upgrade() else { return };
                let next = call(&jobs, Core::expire).await;
                drop(jobs);
                match next {
                    Ok(Some(next)) => tokio::time::sleep_until(next).await,
                    Ok(None) | Err(StoreError::Closed) => return,
                    // The disk may be full, and won't be for ever.
                    Err(error) => {
                        tracing::warn!(%error, "leases can't be ended");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        });
    }
}

async fn call<T: Send + 'static>(
    jobs: &mpsc::Sender<Job>,
    job: impl FnOnce(&mut Core<Sqlite>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, receiver) = oneshot::channel();
    jobs.send(Job::Other(Box::new(move |core| {
        if !sender.is_closed() {
            // As above.
            let _ = sender.send(job(core));
        }
    })))
    .map_err(|_| StoreError::Closed)?;
    receiver.await.map_err(|_| StoreError::Closed)?
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.call(move |core| core.get(&key)).await
    }
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        let prefix = prefix.to_owned();
        self.call(move |core| core.range(&prefix)).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let committed = async {
            let place = Arc::clone(&self.places).acquire_owned().await;
            let (caller, outcome) = oneshot::channel();
            let commit = Commit {
                txn,
                caller,
                _place: place.map_err(|_| StoreError::Closed)?,
            };
            let sent = self.jobs.send(Job::Commit(commit));
            sent.map_err(|_| StoreError::Closed)?;
            outcome.await.map_err(|_| StoreError::Closed)?
        };
        let stalled = |_| Err(StoreError::Stalled(COMMIT_TIMEOUT));
        timeout(COMMIT_TIMEOUT, committed)
            .await
            .unwrap_or_else(stalled)
    }
    async fn watch(&self, after: Revision) -> Result<Watch, StoreError> {
        self.call(move |core| core.watch(after)).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let lease = self.call(move |core| core.grant(ttl)).await;
        self.watch_leases();
        lease
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(move |core| core.keep_alive(lease)).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(move |core| core.revoke(lease)).await
    }
}

#[cfg(test)]
mod engine_tests;

#[cfg(test)]
mod tests;
