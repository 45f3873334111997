//! The statements: what the store's core asks of one connection.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, config::DbConfig, params};

use super::{reserve, schema};
use crate::{
    Entry, LeaseId, Range, Revision, StoreError, View,
    core::{Engine, Write},
};

/// The first SQLite without the WAL-reset bug, which loses or corrupts commits
/// when a checkpoint meets a writer: <https://sqlite.org/wal.html#walresetbug>.
pub(super) const SOUND: i32 = 3_051_003;

pub(super) fn is_sound(version: i32) -> bool {
    version >= SOUND
}

/// After how many commits the store's own space is looked at.
pub(super) const REFILL: u64 = 256;

/// One connection to the store's file.
pub(super) struct Sqlite {
    pub(super) connection: Connection,
    path: PathBuf,
    /// What the file system has yet to give, in bytes.
    pub(super) available: fn(&Path) -> u64,
    revision: Revision,
    commits: u64,
    /// How many of them there were when the store's own space was last looked at.
    looked: u64,
    /// Whether it was found in use since.
    pub(super) touched: bool,
    /// The revision before the group that has begun.
    group: Option<Revision>,
}

impl Sqlite {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
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

/// The picture of the records in this file, without its revision; a `hearth` may have it
/// open.
///
/// # Errors
/// If SQLite can't read the file.
pub fn view_of(path: &Path) -> Result<View, StoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut statement =
        connection.prepare("SELECT key, value, created, modified FROM entries ORDER BY key")?;
    let entries = statement.query_map([], entry)?;
    Ok(View::of(Range {
        revision: Revision::default(),
        entries: entries.collect::<Result<_, _>>()?,
    }))
}

/// What a connection needs before its first statement.
pub(super) fn set_up(connection: &Connection) -> rusqlite::Result<()> {
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
