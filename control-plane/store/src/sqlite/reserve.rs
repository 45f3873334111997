//! Space of the store's own, so that it can write when its file system is full to
//! the last byte: TerminateInstances must work just then.
//!
//! It lies inside the database's own files, where nobody else can take it in the
//! moment that it is needed: pages of the file that hold nothing, which SQLite
//! uses before it grows the file, and a write-ahead log that keeps its length and
//! is written over from its beginning after each checkpoint. Neither needs a new
//! block of a file system that writes in place, as ext4 and XFS do.
//!
//! Half of it is kept from transactions that make the database bigger: whoever goes on
//! calling RunInstances on a full disk must not take TerminateInstances' space.
//!
//! <https://sqlite.org/fileformat2.html#the_freelist>,
//! <https://sqlite.org/wal.html#avoiding_excessively_large_wal_files>

use std::{fs, path::Path};

use rusqlite::Connection;

/// How much there is of either, in bytes. A commit of one instance's step takes
/// some 20 KiB of the log, which begins anew every 4 MiB; only what is new takes
/// pages.
const RESERVE: u64 = 8 << 20;

/// Restores the reserve if half of it is gone and the file system has plenty
/// [`available`]; whether it is whole then.
///
/// # Errors
/// If SQLite fails; the database is as it was.
pub(super) fn refill(
    connection: &Connection,
    path: &Path,
    available: u64,
) -> rusqlite::Result<bool> {
    if pages(connection)? * page_size(connection)? >= RESERVE / 2 && log_length(path) >= RESERVE {
        return Ok(true);
    }
    if available <= 4 * RESERVE {
        return Ok(false);
    }
    // The pages go through the log, which so comes by its length as well.
    connection.execute(
        "INSERT INTO reserve (filler) VALUES (zeroblob(?1))",
        [RESERVE.cast_signed()],
    )?;
    connection.execute("DELETE FROM reserve", [])?;
    // Not so far as to cut the log.
    connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(true))
}

/// How many bytes there are beyond the half of it that is kept, what the file system
/// has yet to give included; `None` when even that half is touched.
///
/// # Errors
/// If SQLite fails.
pub(super) fn room(connection: &Connection, available: u64) -> rusqlite::Result<Option<u64>> {
    let left = pages(connection)? * page_size(connection)?;
    Ok(left.saturating_add(available).checked_sub(RESERVE / 2))
}

/// What the file system has yet to give, in bytes; nothing when it doesn't say.
pub(super) fn available(path: &Path) -> u64 {
    let folder = path.parent().and_then(|f| rustix::fs::statvfs(f).ok());
    folder.map_or(0, |s| s.f_bavail * s.f_frsize)
}

/// How many pages hold nothing.
fn pages(connection: &Connection) -> rusqlite::Result<u64> {
    pragma(connection, "freelist_count")
}

fn page_size(connection: &Connection) -> rusqlite::Result<u64> {
    pragma(connection, "page_size")
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<u64> {
    connection
        .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
        .map(i64::cast_unsigned)
}

fn log_length(path: &Path) -> u64 {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    fs::metadata(name).map_or(0, |m| m.len())
}

#[cfg(test)]
mod tests {
    use super::super::schema::{KNOWN, prepare};
    use super::*;

    fn open(path: &Path) -> Connection {
        let mut connection = Connection::open(path).unwrap();
        super::super::engine::set_up(&connection).unwrap();
        prepare(&mut connection, path, KNOWN).unwrap();
        connection
    }

    #[test]
    fn it_is_there_outlasts_the_process_and_is_restored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let connection = open(&path);
        refill(&connection, &path, u64::MAX).unwrap();
        let size = fs::metadata(&path).unwrap().len();
        let all = pages(&connection).unwrap();
        assert!(all >= RESERVE / 4096 && log_length(&path) >= RESERVE);
        // Twice is once, and asks nothing of the file system.
        assert!(refill(&connection, &path, 0).unwrap());
        assert_eq!(pages(&connection).unwrap(), all);
        drop(connection);
        assert!(
            log_length(&path) >= RESERVE,
            "the log went with the process"
        );

        let connection = open(&path);
        refill(&connection, &path, u64::MAX).unwrap();
        let put = "INSERT INTO entries (key, value, created, modified) VALUES (?1, zeroblob(65536), 1, 1)";
        for n in 0..100 {
            connection.execute(put, [format!("/{n}")]).unwrap();
        }
        // What is new went into the reserve.
        assert_eq!(fs::metadata(&path).unwrap().len(), size);
        let left = pages(&connection).unwrap();
        assert!(left < all / 2, "{left}");
        // Not from a file system that has little itself.
        assert!(!refill(&connection, &path, 4 * RESERVE).unwrap());
        assert_eq!(pages(&connection).unwrap(), left);
        assert!(refill(&connection, &path, 4 * RESERVE + 1).unwrap());
        assert!(pages(&connection).unwrap() >= RESERVE / 4096);
    }

    #[test]
    fn half_of_it_is_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hearth.db");
        let connection = open(&path);
        assert_eq!(room(&connection, RESERVE / 2 - 4096 * 3).unwrap(), None);
        refill(&connection, &path, u64::MAX).unwrap();
        let whole = pages(&connection).unwrap() * 4096;
        assert_eq!(room(&connection, 0).unwrap(), Some(whole - RESERVE / 2));
        let more = room(&connection, 5).unwrap();
        assert_eq!(more, Some(whole - RESERVE / 2 + 5));
    }
}
