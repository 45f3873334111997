//! What a disk hashes to, and the record of it that saves hashing it again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::read_capped;

/// The file beside the images that remembers what was verified.
pub(super) const CACHE_NAME: &str = ".verified.json";
/// One entry is about 150 bytes: room for more images than a folder will have.
const MAX_CACHE: u64 = 4 << 20;

/// A file as it was when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Verified {
    pub(super) size: u64,
    mtime_sec: i64,
    mtime_nsec: i64,
    // Nobody can set it, so it tells a disk that was put in another's place; an
    // inode number would too, but isn't the same over a shared file system.
    ctime_sec: i64,
    ctime_nsec: i64,
    pub(super) sha256: String,
}

/// Hashes the file, unless it is the one that was hashed before; says whether it
/// did. None when it would have to and may not.
pub(super) fn verify(
    disk: &Path,
    before: Option<&Verified>,
    may_hash: bool,
) -> io::Result<Option<(Verified, bool)>> {
    let mut file = File::open(disk)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut now = Verified {
        size: meta.len(),
        mtime_sec: meta.mtime(),
        mtime_nsec: meta.mtime_nsec(),
        ctime_sec: meta.ctime(),
        ctime_nsec: meta.ctime_nsec(),
        sha256: String::new(),
    };
    if let Some(before) = before {
        now.sha256.clone_from(&before.sha256);
        if now == *before {
            return Ok(Some((now, false)));
        }
    }
    if !may_hash {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    now.sha256 = hex::encode(hash.finalize());
    Ok(Some((now, true)))
}

pub(super) fn read_cache(dir: &Path) -> BTreeMap<String, Verified> {
    // A cache that is absent or damaged only means hashing again.
    read_capped(&dir.join(CACHE_NAME), MAX_CACHE)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

pub(super) fn write_cache(dir: &Path, cache: &BTreeMap<String, Verified>) -> io::Result<()> {
    let temp = dir.join(format!("{CACHE_NAME}.{}", std::process::id()));
    let mut file = File::create(&temp)?;
    let written = serde_json::to_vec_pretty(cache)
        .map_err(io::Error::from)
        .and_then(|bytes| file.write_all(&bytes))
        .and_then(|()| fs::rename(&temp, dir.join(CACHE_NAME)));
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written
}
