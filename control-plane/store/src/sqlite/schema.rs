//! The layout of the database's file, and how an older one is brought up to it.
//!
//! Two numbers in `meta` say who may open a file: `schema`, the layout that it
//! has, and `min_reader`, the oldest layout whose programs can use it. A program
//! that is older than that refuses in one line. One that is newer first copies
//! the file to `<file>.schema-<n>`, and then brings it up in one transaction: it
//! succeeds or leaves all as it was.
//!
//! Going back to the older program: end `hearth`, remove `<file>-wal` and
//! `<file>-shm`, and move the copy to the file's place.

use std::{
    cmp::Ordering,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::super::StoreError;

/// The tables of schema 1, from which all others come by migration: so each file,
/// new or old, went the same way.
const FIRST: &str = "
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE entries (
    key      TEXT PRIMARY KEY,
    value    BLOB NOT NULL,
    created  INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    lease    INTEGER
) WITHOUT ROWID, STRICT;
CREATE INDEX entries_by_lease ON entries (lease) WHERE lease IS NOT NULL;
CREATE TABLE leases (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    ttl_ms INTEGER NOT NULL
) STRICT;
INSERT INTO meta (name, value) VALUES ('schema', 1), ('revision', 0);
";

/// Brings a file from one schema to the next.
type Migration = fn(&Transaction<'_>) -> rusqlite::Result<()>;

/// What a program knows.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// The first brings schema 1 to 2.
    migrations: &'static [Migration],
    /// The oldest schema whose programs can use what this one writes.
    min_reader: u64,
}

/// What this program knows.
pub(super) const KNOWN: Known = Known {
    migrations: &[reserve_table, forms, forms, forms],
    min_reader: 5,
};

/// What records have had a new form that older programs can't read, and which it is. Each
/// came with a schema of its own, so that such a program says so in one line, and doesn't
/// set aside what it can't read and go on beside it.
#[cfg(test)]
const FORMS: &[(&str, u32)] = &[("instances", 3), ("public-addresses", 2)];

/// 2: [`super::reserve`] needs a table to come by its pages.
fn reserve_table(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch("CREATE TABLE reserve (filler BLOB NOT NULL) STRICT;")
}

/// 3, 4, 5, and any other that [`FORMS`] is the reason for: records are brought up as they are
/// read.
fn forms(_: &Transaction<'_>) -> rusqlite::Result<()> {
    Ok(())
}

impl Known {
    fn schema(&self) -> u64 {
        self.migrations.len() as u64 + 1
    }
}

/// Sees to it that the file has the schema that this program knows, or one that
/// it can use.
pub(super) fn prepare(
    connection: &mut Connection,
    path: &Path,
    known: Known,
) -> Result<(), StoreError> {
    let is_new: bool = connection.query_row(
        "SELECT NOT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'meta')",
        [],
        |row| row.get(0),
    )?;
    let found = match is_new {
        true => 0,
        false => read_meta(connection, "schema")?.unwrap_or(0),
    };
    match found.cmp(&known.schema()) {
        Ordering::Equal => return Ok(()),
        Ordering::Greater => {
            return match read_meta(connection, "min_reader")? {
                Some(oldest) if oldest <= known.schema() => Ok(()),
                _ => Err(StoreError::Schema {
                    found,
                    known: known.schema(),
                }),
            };
        }
        Ordering::Less => {}
    }
    let backup = match is_new {
        true => None,
        false => Some(back_up(connection, path, found)?),
    };
    migrate(connection, found, known).map_err(|source| StoreError::Migration {
        from: found,
        to: known.schema(),
        source,
    })?;
    if let Some(backup) = backup {
        tracing::info!(
            from = found,
            to = known.schema(),
            backup = %backup.display(),
            "the database was brought up to this program's schema"
        );
    }
    Ok(())
}

fn migrate(connection: &mut Connection, found: u64, known: Known) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if found == 0 {
        transaction.execute_batch(FIRST)?;
    }
    let done = usize::try_from(found.max(1) - 1).unwrap_or(usize::MAX);
    for migration in known.migrations.iter().skip(done) {
        migration(&transaction)?;
    }
    let mut set =
        transaction.prepare("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?;
    set.execute(params!["schema", known.schema().cast_signed()])?;
    set.execute(params!["min_reader", known.min_reader.cast_signed()])?;
    drop(set);
    transaction.commit()
}

/// Where the copy of a file of this schema lies.
fn backup_path(path: &Path, schema: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".schema-{schema}"));
    name.into()
}

/// Copies the database, what is still in its log included; whole or not at all.
fn back_up(connection: &Connection, path: &Path, schema: u64) -> Result<PathBuf, StoreError> {
    let to = backup_path(path, schema);
    let made = to.with_extension("new");
    let copied = (|| {
        // One that a crash left. Where it can't be removed, none can be made either.
        let _ = fs::remove_file(&made);
        // It holds what the database holds. SQLite copies into an empty file.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&made)?;
        let name = made
            .to_str()
            .ok_or_else(|| io::Error::other("its name is not UTF-8"))?;
        connection
            .execute("VACUUM INTO ?1", [name])
            .map_err(io::Error::other)?;
        file.sync_all()?;
        fs::rename(&made, &to)?;
        match to.parent() {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    })();
    if let Err(source) = copied {
        let _ = fs::remove_file(&made);
        return Err(StoreError::Backup { path: to, source });
    }
    Ok(to)
}

pub(super) fn read_meta(connection: &Connection, name: &str) -> Result<Option<u64>, StoreError> {
    let value = connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
            row.get::<_, i64>(0)
        })
        .optional()?;
    Ok(value.map(i64::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program before the first migration.
    const OLD: Known = Known {
        migrations: &[],
        min_reader: 1,
    };

    fn open(path: &Path, known: Known) -> Result<Connection, StoreError> {
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        prepare(&mut connection, path, known)?;
        Ok(connection)
    }

    fn put(connection: &Connection, key: &str) {
        let sql = "INSERT INTO entries (key, value, created, modified) VALUES (?1, x'00', 1, 1)";
        connection.execute(sql, [key]).unwrap();
    }

    fn count(connection: &Connection) -> i64 {
        let sql = "SELECT count(*) FROM entries";
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn schema(connection: &Connection) -> Option<u64> {
        read_meta(connection, "schema").unwrap()
    }

    #[test]
    fn an_older_file_is_copied_and_brought_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let old = open(&path, OLD).unwrap();
        put(&old, "/a");
        drop(old);

        let new = open(&path, KNOWN).unwrap();
        assert_eq!((schema(&new), count(&new)), (Some(KNOWN.schema()), 1));
        assert_eq!(
            read_meta(&new, "min_reader").unwrap(),
            Some(KNOWN.min_reader)
        );
        put(&new, "/b");
        // What the migration is for.
        new.execute("INSERT INTO reserve VALUES (zeroblob(10))", [])
            .unwrap();
        drop(new);
        // Once is enough.
        assert_eq!(count(&open(&path, KNOWN).unwrap()), 2);

        // The older program refuses, in one line that says what to do.
        let refused = open(&path, OLD).unwrap_err();
        let line = refused.to_string();
        assert!(
            line.contains(&format!("schema {}", KNOWN.schema()))
                && line.contains("knows 1")
                && !line.contains('\n'),
            "{line}"
        );

        // And back again, as the module says.
        let backup = backup_path(&path, 1);
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&backup).unwrap());
        assert_eq!(mode & 0o077, 0);
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", path.display()));
        }
        fs::rename(&backup, &path).unwrap();
        let old = open(&path, OLD).unwrap();
        assert_eq!((schema(&old), count(&old)), (Some(1), 1));
    }

    #[test]
    fn a_migration_that_fails_leaves_all_as_it_was() {
        fn fails(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
            transaction.execute_batch("DELETE FROM entries; CREATE TABLE x (y); SELECT no_such();")
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        put(&open(&path, OLD).unwrap(), "/a");
        let broken = Known {
            migrations: &[reserve_table, fails],
            min_reader: 3,
        };
        for _ in 0..2 {
            let failed = open(&path, broken).unwrap_err();
            assert!(
                matches!(failed, StoreError::Migration { from: 1, to: 3, .. }),
                "{failed}"
            );
            let old = open(&path, OLD).unwrap();
            assert_eq!((schema(&old), count(&old)), (Some(1), 1));
        }
    }

    #[test]
    fn without_a_copy_there_is_no_migration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        put(&open(&path, OLD).unwrap(), "/a");
        // Something that can't be replaced is in the copy's place.
        fs::create_dir_all(backup_path(&path, 1).join("x")).unwrap();
        let refused = open(&path, KNOWN).unwrap_err();
        assert!(matches!(refused, StoreError::Backup { .. }), "{refused}");
        assert_eq!(schema(&open(&path, OLD).unwrap()), Some(1));
        assert_eq!(
            fs::read_dir(folder.path())
                .unwrap()
                .filter(|e| e
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .contains("new"))
                .count(),
            0
        );
    }

    #[test]
    fn the_program_before_the_last_form_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        drop(open(&path, KNOWN).unwrap());
        let before = Known {
            migrations: KNOWN.migrations.split_last().unwrap().1,
            min_reader: KNOWN.min_reader - 1,
        };
        let refused = open(&path, before);
        assert!(matches!(
            refused,
            Err(StoreError::Schema { found, known })
                if found == KNOWN.schema() && known + 1 == found
        ));
    }

    macro_rules! versions {
        (described: [$($resource:ident),* $(,)?], others: [$($other:ident),* $(,)?] $(,)?) => {
            [$(version::<hearth_model::$resource>(),)* $(version::<hearth_model::$other>(),)*]
        };
    }

    fn version<T: hearth_model::Resource>() -> (&'static str, u32) {
        (T::KIND, T::VERSION)
    }

    #[test]
    fn each_new_form_of_a_record_has_a_schema() {
        let versions = hearth_model::each_kind!(versions);
        let newer: Vec<_> = versions.into_iter().filter(|(_, v)| *v > 1).collect();
        let why = "a new form wants a migration here (`forms`), a `min_reader`, and its line";
        assert_eq!(newer, FORMS, "{why}");
        assert_eq!(KNOWN.min_reader, KNOWN.schema());
    }

    #[test]
    fn a_newer_file_that_says_so_can_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let newer = Known {
            migrations: &[reserve_table, forms, forms, |_| Ok(())],
            min_reader: 4,
        };
        put(&open(&path, newer).unwrap(), "/a");
        let this = open(&path, KNOWN).unwrap();
        assert_eq!((schema(&this), count(&this)), (Some(KNOWN.schema()), 1));
        drop(this);
        assert!(matches!(
            open(&path, OLD),
            Err(StoreError::Schema { found, known: 1 }) if found == KNOWN.schema()
        ));
    }
}
