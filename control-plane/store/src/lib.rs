//! The cloud's desired state: a small store with revisions, its in-memory
//! picture, and the one way to change it.
//!
//! ```text
//!   handler / reconciler ── Db::transact ──► Store::commit ──► SQLite, memory, …
//!            ▲                                   │
//!            └────── Arc<View> ◄── feeder ◄── Store::watch
//! ```
//!
//! The store speaks etcd's language (get, range, compare-and-swap over several
//! keys, watch from a revision, leases), so that an etcd can stand behind the
//! same trait; `conformance` is the suite that every store must pass. Readers
//! never ask the store: they read the [`View`], which the watch feeds.

mod change;
mod changes;
mod core;
mod db;
mod memory;
mod record;
mod scoped;
mod sqlite;
mod view;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

pub use change::Change;
pub use changes::{Changed, Changes};
pub use db::{Db, TransactError};
pub use memory::MemoryStore;
pub use scoped::{OwnedView, Scoped};
pub use sqlite::{SqliteStore, view_of};
pub use view::View;

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// The number of a commit: each one that changes anything has the next number.
/// 0 is the empty store.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// The number of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The commit that made the key; a key deleted and put again is made anew.
    pub created: Revision,
    /// The commit that last wrote it.
    pub modified: Revision,
}

/// What must hold for a transaction to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// There is no such key.
    Absent(String),
    /// The key was last written by this very commit.
    Unchanged(String, Revision),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key. Without a lease, one that it had is dropped.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
        /// The lease it goes with.
        lease: Option<LeaseId>,
    },
    /// Removes a key; no matter if there is none.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// If every compare holds then all operations are carried out at once, else none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is done. No two may have the same key.
    pub ops: Vec<Op>,
    /// Whether it is a step towards more room, as that of an instance's end: on a disk
    /// that is full such a one may make what it writes anew a little bigger.
    pub makes_room: bool,
    /// So many bytes the transactions will add that follow from it: where there is no
    /// room for them, none is begun.
    pub to_come: usize,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out; the store is now at this revision. One that changed
    /// nothing has no revision of its own.
    Committed(Revision),
    /// A compare failed; nothing was done. The store was at this revision.
    Conflict(Revision),
}

/// What one commit did to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key has this value now.
    Put(Entry),
    /// The key is gone.
    Delete {
        /// The key.
        key: String,
    },
}

/// All that one commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The commit's number.
    pub revision: Revision,
    /// Its events, one a key.
    pub events: Vec<Event>,
}

/// The keys with a prefix, all as they were at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The revision they were read at: watch from it and nothing is missed.
    pub revision: Revision,
    /// The entries, in the order of their keys.
    pub entries: Vec<Entry>,
}

/// Commits in the order of their revisions. It ends when the store is gone or
/// the reader fell too far behind; then read the range again and watch anew.
pub type Watch = mpsc::Receiver<Batch>;

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The history no longer reaches back so far: read the range again.
    #[error("the commits after revision {0:?} are no longer kept")]
    Compacted(Revision),
    /// There is no such lease, or it has run out.
    #[error("there is no lease {0:?}")]
    NoLease(LeaseId),
    /// The transaction is malformed.
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// A record that the transaction depends on can't be read: it is set aside.
    #[error("the record {0} can't be read, and is neither replaced nor deleted")]
    Unreadable(String),
    /// A record that the transaction makes is there already: what was drawn for its id
    /// by chance is taken, and another try draws another.
    #[error("the record {0} is there already")]
    Exists(String),
    /// There is no space left, or what is left is kept for transactions that take
    /// none: those that delete, and those that write anew what is there.
    #[error("the store's disk is full")]
    Full,
    /// The disk has not answered for so long. The transaction may yet be carried out if
    /// it had begun.
    #[error("the store's disk has not answered for {} seconds", .0.as_secs())]
    Stalled(Duration),
    /// The store has ended.
    #[error("the store is closed")]
    Closed,
    /// This SQLite corrupts write-ahead logs.
    #[error("SQLite {0} has a bug that can corrupt the database; 3.51.3 or newer is needed")]
    OldSqlite(String),
    /// The database's file can't be made.
    #[error("can't make the file")]
    Io(#[source] std::io::Error),
    /// SQLite failed.
    #[error("database error")]
    Sqlite(#[source] rusqlite::Error),
    /// The database was written by a newer Hearth.
    #[error(
        "the database has schema {found} and this program knows {known}: run the Hearth that \
         wrote it, or put back the copy that it made (hearth.db.schema-{known})"
    )]
    Schema {
        /// What the file says.
        found: u64,
        /// What is known here.
        known: u64,
    },
    /// The database was written by an older Hearth, and can't be brought up.
    #[error("can't bring the database from schema {from} to {to}; it is as it was")]
    Migration {
        /// What the file says.
        from: u64,
        /// What this program needs.
        to: u64,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
    /// The database can't be copied before it is brought up.
    #[error("can't copy the database to {}, so it is not brought up to this program", path.display())]
    Backup {
        /// Where the copy would be.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Sqlite(error),
        }
    }
}

/// A store of keys and values with revisions.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key.
    ///
    /// # Errors
    /// If the store fails.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Reads all keys with a prefix, at one revision.
    ///
    /// # Errors
    /// If the store fails.
    async fn range(&self, prefix: &str) -> Result<Range, StoreError>;

    /// Carries out a transaction, or not at all. When this returns, the
    /// transaction is durable.
    ///
    /// # Errors
    /// `Invalid` if two operations have the same key, `NoLease`, `Stalled` when the disk
    /// doesn't answer in time, or if the store fails.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Every commit after this revision, each once, in order.
    ///
    /// # Errors
    /// `Compacted` if the history doesn't reach back so far.
    async fn watch(&self, after: Revision) -> Result<Watch, StoreError>;

    /// Makes a lease: unless kept alive, it and its keys are gone after `ttl`.
    ///
    /// # Errors
    /// If the store fails.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Starts a lease's time anew.
    ///
    /// # Errors
    /// `NoLease` if it has run out.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// `NoLease` if it has run out.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}
