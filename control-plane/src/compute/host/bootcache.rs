//! The boot files of images, `<data>/boot-files/<ami>-<hash>/{kernel,initrd}`: read
//! once from the image's own disk, for all the instances that boot a fresh clone
//! of it.
//!
//! An entry's name is the image's id, which is a hash of the disk, and a hash of
//! which files on it are meant, so what it holds never changes. It is made under
//! another name and renamed. What it holds may be used by another launch in this
//! moment, so an entry goes only when it was not used for a while.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::folder::absent_is_fine;
use crate::compute::CloneOf;
use crate::model::BootMethod;

/// How many images' files are kept. Each has some 10 to 100 MB.
const KEPT: usize = 8;
/// How long after its last use an entry may go. A launch takes seconds.
const IDLE: Duration = Duration::from_secs(600);
/// What an entry's name begins with while it is made.
const MAKING: &str = ".making-";

/// The boot files of images.
#[derive(Debug)]
pub(super) struct BootCache {
    folder: PathBuf,
    /// One maker at a time for each entry.
    locks: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

/// A kernel and an initrd, which are there if they were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BootFiles {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl BootFiles {
    fn at(folder: &Path) -> Self {
        Self {
            kernel: folder.join("kernel"),
            initrd: folder.join("initrd"),
        }
    }
}

fn entry_name(clone: &CloneOf, method: &BootMethod) -> io::Result<String> {
    let BootMethod::Linux {
        partition,
        kernel,
        initrd,
        ..
    } = method;
    let which = serde_json::to_vec(&(partition, kernel, initrd))?;
    let hash = hex::encode(&Sha256::digest(which)[..8]);
    Ok(format!("{}-{hash}", clone.image))
}

impl BootCache {
    /// The files under `data`; sweeps what a crash has left half-made.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join("boot-files");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        for entry in entries {
            if entry.file_name().to_string_lossy().starts_with(MAKING) {
                absent_is_fine(fs::remove_dir_all(entry.path()))?;
            }
        }
        Ok(Self {
            folder,
            locks: Mutex::default(),
        })
    }

    /// The files of this image. When they aren't there yet, `read` is called to
    /// make them; what it returns as an error is returned, and nothing kept.
    pub(super) async fn get<E>(
        &self,
        clone: &CloneOf,
        method: &BootMethod,
        read: impl AsyncFnOnce(&BootFiles) -> io::Result<Result<(), E>>,
    ) -> io::Result<Result<BootFiles, E>> {
        let name = entry_name(clone, method)?;
        let entry = self.folder.join(&name);
        let lock = self.lock(&entry);
        let _held = lock.lock().await;
        if !entry.exists() {
            let making = self.folder.join(format!("{MAKING}{name}"));
            absent_is_fine(fs::remove_dir_all(&making))?;
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&making)?;
            let outcome = read(&BootFiles::at(&making)).await;
            if !matches!(outcome, Ok(Ok(()))) {
                let _ = fs::remove_dir_all(&making);
            }
            if let Err(error) = outcome? {
                return Ok(Err(error));
            }
            self.make_room()?;
            fs::rename(&making, &entry)?;
        }
        // Its last use.
        fs::File::open(&entry)?.set_modified(SystemTime::now())?;
        Ok(Ok(BootFiles::at(&entry)))
    }

    /// Removes all of it.
    pub(super) fn purge(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(&self.folder))
    }

    fn lock(&self, entry: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(entry.to_owned()).or_default().clone()
    }

    /// Removes the entries that were used longest ago, until one more fits.
    fn make_room(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(MAKING) {
                entries.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        entries.sort();
        let over = (entries.len() + 1).saturating_sub(KEPT);
        for (used, path) in entries.into_iter().take(over) {
            if used.elapsed().is_ok_and(|idle| idle > IDLE) {
                absent_is_fine(fs::remove_dir_all(path))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::model::ImageId;

    fn method(kernel: &str) -> BootMethod {
        BootMethod::Linux {
            partition: 1,
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
        }
    }

    fn image(n: u128) -> CloneOf {
        CloneOf {
            image: ImageId::from_random(n),
            path: "/image".into(),
            warm_for: None,
        }
    }

    #[tokio::test]
    async fn each_image_is_read_once_and_failures_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BootCache::open(dir.path()).unwrap();
        let reads = Cell::new(0);
        let get = async |n, kernel: &str, fail: bool| {
            cache
                .get(&image(n), &method(kernel), async |files| {
                    reads.set(reads.get() + 1);
                    fs::write(&files.kernel, kernel)?;
                    Ok(if fail { Err("broken") } else { Ok(()) })
                })
                .await
                .unwrap()
        };
        assert_eq!(get(1, "/a", true).await, Err("broken"));
        let all = (0..8).map(|_| get(1, "/a", false));
        let all = futures_util::future::join_all(all).await;
        assert!(all.iter().all(|files| *files == all[0]));
        assert_eq!(reads.get(), 2);
        let files = all[0].clone().unwrap();
        assert_eq!(fs::read(files.kernel).unwrap(), b"/a");
        // Another image, and other files of the first, are others.
        get(2, "/a", false).await.unwrap();
        get(1, "/b", false).await.unwrap();
        assert_eq!(reads.get(), 4);
        cache.purge().unwrap();
        cache.purge().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_was_not_used_for_long_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BootCache::open(dir.path()).unwrap();
        let get = async |n| {
            let read = async |files: &BootFiles| {
                fs::write(&files.kernel, "k")?;
                Ok(Ok::<_, ()>(()))
            };
            cache
                .get(&image(n), &method("/a"), read)
                .await
                .unwrap()
                .unwrap()
        };
        let idle = |files: &BootFiles, secs| {
            let folder = fs::File::open(files.kernel.parent().unwrap()).unwrap();
            let then = SystemTime::now() - IDLE - Duration::from_secs(secs);
            folder.set_modified(then).unwrap();
        };
        let mut all = Vec::new();
        for n in 0..10 {
            all.push(get(n).await);
        }
        // All were used just now: none goes, however many there are.
        assert!(all.iter().all(|f| f.kernel.exists()));
        for (n, files) in all.iter().enumerate() {
            idle(files, 100 - n as u64);
        }
        get(0).await;
        all.push(get(10).await);
        let left: Vec<_> = (0..11).filter(|n| all[*n].kernel.exists()).collect();
        assert_eq!(left, [0, 4, 5, 6, 7, 8, 9, 10]);

        // What a crash leaves half-made goes at the next start.
        let half = dir.path().join("boot-files").join(format!("{MAKING}x"));
        fs::create_dir(&half).unwrap();
        BootCache::open(dir.path()).unwrap();
        assert!(!half.exists() && all[10].kernel.exists());
    }
}
