//! The embedded store: SQLite in its write-ahead mode, on a thread of its own.
//!
//! A commit that fails, for want of space or because the disk does, leaves the
//! store as it was, and the next one is tried as if it had not been.
//!
//! A disk that stalls holds up the thread and nobody else: who commits hears of it
//! after `COMMIT_TIMEOUT`. What has not begun by then is never carried out, and what has
//! may be. So many commits as `MAX_QUEUED` are with the thread at once; more wait at its
//! door, where they leave nothing behind when their callers give up.

mod reserve;
mod schema;

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, config::DbConfig, params};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use super::{
    Entry, LeaseId, Outcome, Range, Revision, Store, StoreError, Txn, View, Watch,
    core::{Core, Engine, Write},
};

/// The first SQLite without the WAL-reset bug, which loses or corrupts commits
/// when a checkpoint meets a writer: <https://sqlite.org/wal.html#walresetbug>.
const SOUND: i32 = 3_051_003;

fn is_sound(version: i32) -> bool {
    version >= SOUND
}

/// After how many commits the store's own space is looked at.
const REFILL: u64 = 256;

struct Sqlite {
    connection: Connection,
    path: PathBuf,
    /// What the file system has yet to give, in bytes.
    available: fn(&Path) -> u64,
    revision: Revision,
    commits: u64,
    /// How many of them there were when the store's own space was last looked at.
    looked: u64,
    /// Whether it was found in use since.
    touched: bool,
    /// The revision before the group that has begun.
    group: Option<Revision>,
}

impl Sqlite {
    fn open(path: &Path) -> Result<Self, StoreError> {
        if !is_sound(rusqlite::version_number()) {
            return Err(StoreError::OldSqlite(rusqlite::version().to_owned()));
        }
        // User data may hold secrets. SQLite gives its other files the same mode.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::Io)?;
        let mut connection = Connection::open(path)?;
        set_up(&connection)?;
        schema::prepare(&mut connection, path, schema::KNOWN)?;
        let available = reserve::available;
        if let Err(error) = reserve::refill(&connection, path, available(path)) {
            tracing::warn!(%error, "the store has no space of its own");
        }
        let revision = Revision(schema::read_meta(&connection, "revision")?.unwrap_or(0));
        Ok(Self {
            connection,
            path: path.to_owned(),
            available,
            revision,
            commits: 0,
            looked: 0,
            touched: false,
            group: None,
        })
    }

    /// Sees now and then to the store's own space.
    fn keep_reserve(&mut self) {
        // One that was found touched is looked at each time, until there is room for it.
        if self.commits - self.looked < REFILL && !self.touched {
            return;
        }
        self.looked = self.commits;
        let available = (self.available)(&self.path);
        match reserve::refill(&self.connection, &self.path, available) {
            Ok(whole) => self.touched &= !whole,
            Err(error) => {
                self.touched = false;
                tracing::warn!(%error, "the store's own space can't be restored");
            }
        }
    }
}

/// The records in this file that can't be read, by their keys, and why; a `hearth` may
/// have it open.
///
/// # Errors
/// If SQLite can't read the file.
pub fn unreadable_in(path: &Path) -> Result<Vec<(String, String)>, StoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut statement =
        connection.prepare("SELECT key, value, created, modified FROM entries ORDER BY key")?;
    let entries = statement.query_map([], entry)?;
    let view = View::of(Range {
        revision: Revision::default(),
        entries: entries.collect::<Result<_, _>>()?,
    });
    let unreadable = view.unreadable();
    Ok(unreadable
        .map(|(key, why)| (key.to_owned(), why.to_owned()))
        .collect())
}

/// What a connection needs before its first statement.
fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit that was answered must outlast a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What SQLite puts aside must not need a disk that may be full.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // The log is part of the store's own space: it stays when the process ends.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(())
}

/// A row of `key, value, created, modified`.
fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        created: Revision(row.get::<_, i64>(2)?.cast_unsigned()),
        modified: Revision(row.get::<_, i64>(3)?.cast_unsigned()),
    })
}

impl Engine for Sqlite {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT key, value, created, modified FROM entries WHERE key = ?1")?;
        Ok(statement.query_row([key], entry).optional()?)
    }

    fn range(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        // Keys with the prefix are the ones from it on, up to the first without.
        let mut statement = self.connection.prepare_cached(
            "SELECT key, value, created, modified FROM entries WHERE key >= ?1 ORDER BY key",
        )?;
        let mut entries = Vec::new();
        for row in statement.query_map([prefix], entry)? {
            let entry = row?;
            if !entry.key.starts_with(prefix) {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn write(&mut self, revision: Revision, writes: &[Write<'_>]) -> Result<(), StoreError> {
        let number = revision.0.cast_signed();
        if self.group.is_some() && self.connection.is_autocommit() {
            return Err(StoreError::Io(io::Error::other(
                "the group was rolled back",
            )));
        }
        if self.group.is_none() && !self.connection.is_autocommit() {
            // What is written in one that was left open would be durable with its end.
            self.connection.execute_batch("ROLLBACK")?;
            return Err(StoreError::Io(io::Error::other(
                "a transaction was left open",
            )));
        }
        // In a group a part of its transaction, else a transaction of its own.
        let transaction = self.connection.savepoint()?;
        {
            let mut put = transaction.prepare_cached(
                "INSERT OR REPLACE INTO entries (key, value, created, modified, lease) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            let mut delete = transaction.prepare_cached("DELETE FROM entries WHERE key = ?1")?;
            for write in writes {
                match write.put {
                    Some((value, lease)) => put.execute(params![
                        write.key,
                        value,
                        write.created.0.cast_signed(),
                        number,
                        lease.map(|l| l.0.cast_signed()),
                    ])?,
                    None => delete.execute([write.key])?,
                };
            }
            transaction
                .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'revision'")?
                .execute([number])?;
        }
        // When this fails, the transaction is rolled back as it goes out of scope.
        transaction.commit()?;
        self.revision = revision;
        self.commits += 1;
        if self.group.is_none() {
            self.keep_reserve();
        }
        Ok(())
    }

    fn is_full(&mut self, to_come: usize) -> Result<bool, StoreError> {
        let room = reserve::room(&self.connection, (self.available)(&self.path))?;
        self.touched |= room.is_none();
        Ok(room.is_none_or(|room| room < to_come as u64))
    }

    fn begin_group(&mut self) -> Result<(), StoreError> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        self.group = Some(self.revision);
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), StoreError> {
        let before = self.group.take();
        // Some errors, a full disk's among them, have rolled it back already, and
        // then there is nothing to commit: an error, too.
        let committed = self.connection.execute_batch("COMMIT");
        if let Err(error) = committed {
            self.revision = before.unwrap_or(self.revision);
            if !self.connection.is_autocommit() {
                self.connection.execute_batch("ROLLBACK")?;
            }
            return Err(error.into());
        }
        self.keep_reserve();
        Ok(())
    }

    fn leased(&self, lease: LeaseId) -> Result<Vec<String>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT key FROM entries WHERE lease = ?1")?;
        let keys = statement.query_map([lease.0.cast_signed()], |row| row.get(0))?;
        Ok(keys.collect::<Result<_, _>>()?)
    }

    fn new_lease(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        self.connection
            .execute("INSERT INTO leases (ttl_ms) VALUES (?1)", [ttl])?;
        Ok(LeaseId(self.connection.last_insert_rowid().cast_unsigned()))
    }

    fn end_lease(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.connection
            .execute("DELETE FROM leases WHERE id = ?1", [lease.0.cast_signed()])?;
        Ok(())
    }

    fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, StoreError> {
        let mut statement = self.connection.prepare("SELECT id, ttl_ms FROM leases")?;
        let leases = statement.query_map([], |row| {
            let id = row.get::<_, i64>(0)?.cast_unsigned();
            let ttl = row.get::<_, i64>(1)?.cast_unsigned();
            Ok((LeaseId(id), Duration::from_millis(ttl)))
        })?;
        Ok(leases.collect::<Result<_, _>>()?)
    }
}

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
mod tests {
    use std::{cell::Cell, os::unix::fs::PermissionsExt as _};

    use tokio::task::JoinSet;

    use super::*;
    use crate::{Compare, Op};

    #[tokio::test]
    async fn what_was_committed_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let put = |key: &str| Txn {
            compares: vec![],
            ops: vec![Op::Put {
                key: key.into(),
                value: b"v".to_vec(),
                lease: None,
            }],
            ..Txn::default()
        };
        let store = SqliteStore::open(&path).await.unwrap();
        store.commit(put("/a")).await.unwrap();
        store.commit(put("/b")).await.unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
        let before = store.range("").await.unwrap();
        drop(store);

        let store = SqliteStore::open(&path).await.unwrap();
        assert_eq!(store.range("").await.unwrap(), before);
        assert_eq!(before.revision, Revision(2));
        // No history of another process: whoever watches from there reads anew.
        assert!(matches!(
            store.watch(Revision(1)).await,
            Err(StoreError::Compacted(Revision(1)))
        ));
        assert_eq!(
            store.commit(put("/c")).await.unwrap(),
            Outcome::Committed(Revision(3))
        );
    }

    #[tokio::test]
    async fn a_disk_that_stalls_holds_up_who_commits_and_only_so_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let store = Arc::new(SqliteStore::open(&path).await.unwrap());
        let db = crate::Db::open(store.clone()).await.unwrap();
        let put = |name: &str| {
            let host = hearth_model::samples::host(name, 1);
            let db = db.clone();
            async move {
                let put = db.transact_infallible(|_, change| change.overwrite(&host));
                put.await
            }
        };
        let hosts = || db.view().count::<hearth_model::Host>();
        put("before").await.unwrap();

        // As one that waits for its fsync.
        let (go_on, stall) = mpsc::channel::<()>();
        let stalled = move |_: &mut Core<Sqlite>| {
            let _ = stall.recv();
        };
        let stalled = store.jobs.send(Job::Other(Box::new(stalled)));
        assert!(stalled.is_ok());
        // From here on the clock goes forward when all wait.
        tokio::time::pause();
        let asked = tokio::time::Instant::now();
        let mut many = JoinSet::new();
        for n in 0..3 * MAX_QUEUED {
            many.spawn(put(&format!("meanwhile-{n}")));
        }
        for outcome in many.join_all().await {
            let error = outcome.unwrap_err();
            assert!(
                matches!(error, crate::TransactError::Store(StoreError::Stalled(_))),
                "{error:?}"
            );
        }
        assert_eq!(asked.elapsed().as_secs(), COMMIT_TIMEOUT.as_secs());
        // Who reads is no matter of the disk.
        assert_eq!(hosts(), 1);
        assert_eq!(store.places.available_permits(), 0);

        tokio::time::resume();
        go_on.send(()).unwrap();
        put("after").await.unwrap();
        // What nobody waits for any more is not carried out behind their backs.
        assert_eq!(hosts(), 2);
        assert_eq!(store.places.available_permits(), MAX_QUEUED);
    }

    #[test]
    fn commits_that_wait_together_are_decided_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let mut core = Sqlite::open(&path).and_then(Core::new).unwrap();
        let mut watch = core.watch(Revision(0)).unwrap();
        let put = |key: &str, compares: Vec<Compare>| Txn {
            compares,
            ops: vec![Op::Put {
                key: key.into(),
                value: b"v".to_vec(),
                lease: None,
            }],
            ..Txn::default()
        };
        let absent = |key: &str| vec![Compare::Absent(key.into())];
        // The second loses to the first, which is not on the disk yet.
        let txns = [
            put("/a", absent("/a")),
            put("/a", absent("/a")),
            put("/b", vec![]),
        ];
        let outcomes: Vec<_> = core
            .commit_all(&txns)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            outcomes,
            [
                Outcome::Committed(Revision(1)),
                Outcome::Conflict(Revision(1)),
                Outcome::Committed(Revision(2)),
            ]
        );
        let told: Vec<_> = std::iter::from_fn(|| watch.try_recv().ok()).collect();
        assert_eq!(
            told.iter().map(|b| b.revision.0).collect::<Vec<_>>(),
            [1, 2]
        );

        // One that can't be written is no matter of the others.
        core.engine_for_tests()
            .connection
            .execute_batch(
                "CREATE TRIGGER no BEFORE INSERT ON entries WHEN NEW.key = '/no' \
             BEGIN SELECT RAISE(ABORT, 'no'); END",
            )
            .unwrap();
        let outcomes = core.commit_all(&[put("/c", vec![]), put("/no", vec![]), put("/d", vec![])]);
        assert!(outcomes[0].is_ok() && outcomes[1].is_err() && outcomes[2].is_ok());
        // One that takes the whole group with it: each is tried by itself.
        core.engine_for_tests()
            .connection
            .execute_batch(
                "DROP TRIGGER no; CREATE TRIGGER no BEFORE INSERT ON entries WHEN NEW.key = '/no' \
             BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
            )
            .unwrap();
        let outcomes = core.commit_all(&[put("/e", vec![]), put("/no", vec![]), put("/f", vec![])]);
        assert!(outcomes[0].is_ok() && outcomes[1].is_err() && outcomes[2].is_ok());
        let told: Vec<_> = std::iter::from_fn(|| watch.try_recv().ok()).collect();
        assert_eq!(
            told.iter().map(|b| b.revision.0).collect::<Vec<_>>(),
            [3, 4, 5, 6]
        );
        drop(core);
        let core = Sqlite::open(&path).and_then(Core::new).unwrap();
        let keys: Vec<_> = core
            .range("")
            .unwrap()
            .entries
            .into_iter()
            .map(|e| e.key)
            .collect();
        assert_eq!(keys, ["/a", "/b", "/c", "/d", "/e", "/f"]);
        assert_eq!(core.range("").unwrap().revision, Revision(6));
    }

    #[test]
    fn its_own_space_is_back_with_the_first_commit_that_finds_room() {
        const PLENTY: u64 = 1 << 40;
        thread_local! { static AVAILABLE: Cell<u64> = const { Cell::new(PLENTY) } }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let mut core = Sqlite::open(&path).and_then(Core::new).unwrap();
        core.engine().available = |_| AVAILABLE.get();
        let put = |key: &str, size| Txn {
            ops: vec![Op::Put {
                key: key.into(),
                value: vec![b'v'; size],
                lease: None,
            }],
            ..Txn::default()
        };
        // More than there is room for: what needs none goes on.
        AVAILABLE.set(0);
        let full = |outcome| matches!(outcome, Err(StoreError::Full));
        let large = |n: u32| put(&format!("/{n}"), 256 << 10);
        let filled = (0..1000).find(|n| full(core.commit(&large(*n)))).unwrap();
        assert!(full(core.commit(&put("/more", 1))));
        core.commit(&put("/0", 256 << 10)).unwrap();
        assert!(u64::from(filled) < REFILL / 4, "{filled}");

        AVAILABLE.set(PLENTY);
        core.commit(&put("/more", 1)).unwrap();
        AVAILABLE.set(0);
        for n in 1000..1000 + filled / 2 {
            core.commit(&large(n)).unwrap();
        }
    }

    #[test]
    fn what_leads_to_more_than_there_is_room_for_is_not_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let mut core = Sqlite::open(&path).and_then(Core::new).unwrap();
        core.engine().available = |_| 1 << 20;
        let room = reserve::room(&core.engine().connection, 1 << 20);
        let room = usize::try_from(room.unwrap().unwrap()).unwrap();
        let put = |key: &str, to_come| Txn {
            ops: vec![Op::Put {
                key: key.into(),
                value: b"v".to_vec(),
                lease: None,
            }],
            to_come,
            ..Txn::default()
        };
        let full = |outcome| matches!(outcome, Err(StoreError::Full));
        assert!(full(core.commit(&put("/a", room + 1))));
        assert!(core.get("/a").unwrap().is_none());
        core.commit(&put("/a", room)).unwrap();
        // That was no use of its own space.
        assert!(!core.engine().touched);
    }

    #[test]
    fn a_commit_that_the_disk_has_no_room_for_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let mut core = Sqlite::open(&path).and_then(Core::new).unwrap();
        // The file may not grow, whatever the file system says that it has.
        core.engine().available = |_| u64::MAX;
        let connection = &core.engine().connection;
        let pages: i64 = connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .unwrap();
        connection
            .pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))
            .unwrap();
        let put = |key: &str, size| Txn {
            ops: vec![Op::Put {
                key: key.into(),
                value: vec![b'v'; size],
                lease: None,
            }],
            ..Txn::default()
        };
        let full = core.commit(&put("/large", 32 << 20));
        assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
        assert!(core.get("/large").unwrap().is_none());
        let after = core.commit(&put("/small", 1)).unwrap();
        assert_eq!(after, Outcome::Committed(Revision(1)));
    }

    #[tokio::test]
    async fn what_cant_be_read_is_listed_while_the_store_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let store = SqliteStore::open(&path).await.unwrap();
        assert_eq!(unreadable_in(&path).unwrap(), []);
        let ops = vec![Op::Put {
            key: "/hosts/a".into(),
            value: b"{}".to_vec(),
            lease: None,
        }];
        let compares = vec![];
        store
            .commit(Txn {
                compares,
                ops,
                ..Txn::default()
            })
            .await
            .unwrap();
        let listed = unreadable_in(&path).unwrap();
        assert_eq!(listed[0].0, "/hosts/a");
        assert!(listed[0].1.contains("version"), "{listed:?}");
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        drop(SqliteStore::open(&path).await.unwrap());
        Connection::open(&path)
            .unwrap()
            .execute(
                "UPDATE meta SET value = 99 WHERE name IN ('schema', 'min_reader')",
                [],
            )
            .unwrap();
        let refused = SqliteStore::open(&path).await;
        assert!(matches!(
            refused,
            Err(StoreError::Schema {
                found: 99,
                known: 3
            })
        ));
    }
}
