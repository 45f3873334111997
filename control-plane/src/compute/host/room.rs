//! Room on the disk for memory that is saved: of several saves, and of the template that is
//! made beside them, each finds what the others leave.
//!
//! ```text
//!  free space ──►    a save is begun     │ it goes on │ it is given up │ all are paused   0
//!                    if it ends here     │            │                │
//!                                    reserve · 5/4  reserve        reserve / 2
//! ```
//! The marks are those of `storage::Pressure`, at which guests are paused. A save that goes
//! on where they are would pause them all, its own VMM too, and free nothing.
//!
//! Before any of that happens, templates go, one after the other.
//!
//! What saves have still to write is read from the instances' folders and kept nowhere: a
//! `hearth` that was killed has left VMMs that go on saving.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::statvfs;

use super::cgroup::Cgroups;
use super::folder::Folder;
use super::memory::Memory;
use super::warm::Templates;
use super::{blocking, instances_in};

/// The fastest that memory and guests together are thought to fill the disk, in bytes a
/// second.
const FASTEST: u64 = 4 << 30;
/// How often is looked at least and most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The bytes that can still be written to the disk.
pub type Free = Arc<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// The room that there is.
#[derive(Clone)]
pub(super) struct Room {
    instances: PathBuf,
    cgroups: Cgroups,
    /// What gives way to all else.
    templates: Arc<Templates>,
    free: Free,
    /// What is kept free, in bytes.
    reserve: u64,
    /// What is promised to templates, in bytes. Who holds it is the only one that looks for
    /// room and takes it.
    promised: Arc<Mutex<u64>>,
    /// Held by who gives up a save: the others look again when it has.
    giving_up: Arc<tokio::sync::Mutex<()>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut room = f.debug_struct("Room");
        room.field("reserve", &self.reserve).finish_non_exhaustive()
    }
}

/// Room that was found, until this is dropped.
#[derive(Debug)]
pub(super) struct Promise {
    bytes: u64,
    promised: Arc<Mutex<u64>>,
}

impl Drop for Promise {
    fn drop(&mut self) {
        *lock(&self.promised) -= self.bytes;
    }
}

fn lock(promised: &Mutex<u64>) -> MutexGuard<'_, u64> {
    promised.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    /// Where instances' folders are, with nothing kept free.
    pub(super) fn new(instances: &Path, cgroups: &Cgroups, templates: &Arc<Templates>) -> Self {
        let folder = instances.to_owned();
        let free = move || {
            let has = statvfs(&folder)?;
            Ok(has.f_bavail.saturating_mul(has.f_frsize))
        };
        Self {
            instances: instances.to_owned(),
            cgroups: cgroups.clone(),
            templates: Arc::clone(templates),
            free: Arc::new(free),
            reserve: 0,
            promised: Arc::default(),
            giving_up: Arc::default(),
        }
    }

    /// With so much kept free, in bytes, and another way to tell what is.
    pub(super) fn keeping(&self, reserve: u64, free: Free) -> Self {
        Self {
            reserve,
            free,
            ..self.clone()
        }
    }

    /// Has `take` take room for so many bytes, if they are there, or are when templates have
    /// gone. Blocks.
    ///
    /// # Errors
    /// `StorageFull` where they aren't.
    pub(super) fn take<T>(
        &self,
        bytes: u64,
        take: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let promised = lock(&self.promised);
        while let Err(error) = self.check(bytes, *promised) {
            let is_full = error.kind() == io::ErrorKind::StorageFull;
            if !is_full || !self.templates.give_way()? {
                return Err(error);
            }
        }
        take()
    }

    /// Room for so many bytes of a template. Blocks.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) fn promise(&self, bytes: u64) -> io::Result<Promise> {
        let mut promised = lock(&self.promised);
        self.check(bytes, *promised)?;
        *promised += bytes;
        Ok(Promise {
            bytes,
            promised: Arc::clone(&self.promised),
        })
    }

    fn check(&self, bytes: u64, promised: u64) -> io::Result<()> {
        let kept = self.reserve.saturating_add(self.reserve / 4);
        let others = self.unwritten()?.saturating_add(promised);
        let free = (self.free)()?;
        if free >= kept.saturating_add(others).saturating_add(bytes) {
            return Ok(());
        }
        let free = free.saturating_sub(kept);
        let message = format!(
            "it takes {bytes} bytes, and {free} are free beyond the reserve, of which others take {others}"
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, message))
    }

    /// What the saves under way have still to write at most, in bytes.
    fn unwritten(&self) -> io::Result<u64> {
        let mut bytes = 0u64;
        for (id, path) in instances_in(&self.instances)? {
            let folder = Folder::new(path);
            let Some(written) = Memory::of(&folder).written()? else {
                continue;
            };
            // What has lost its VMM takes no more than it has.
            if let Some(launch) = folder.launch()?
                && !self.cgroups.members(&id)?.is_empty()
            {
                let all = u64::from(launch.spec.memory_mib) << 20;
                bytes = bytes.saturating_add(all.saturating_sub(written));
            }
        }
        Ok(bytes)
    }

    /// Returns when there is so little that one save is to be given up: by the caller, who
    /// holds what this returns until it has.
    pub(super) async fn runs_short(&self) -> tokio::sync::OwnedMutexGuard<()> {
        loop {
            let free = match self.available().await {
                Ok(free) => free,
                Err(error) => {
                    tracing::warn!(%error, "the room for memory can't be told");
                    self.reserve
                }
            };
            if free < self.reserve {
                let chosen = Arc::clone(&self.giving_up).lock_owned().await;
                // Another may have made room.
                if self.available().await.is_ok_and(|free| free < self.reserve) {
                    let templates = Arc::clone(&self.templates);
                    match blocking(move || templates.give_way()).await {
                        Ok(true) => continue,
                        Ok(false) => {}
                        Err(error) => tracing::warn!(%error, "no template makes room"),
                    }
                    return chosen;
                }
            }
            let micros = free.saturating_sub(self.reserve).saturating_mul(1000) / (FASTEST / 1000);
            tokio::time::sleep(Duration::from_micros(micros).clamp(LOOKS.0, LOOKS.1)).await;
        }
    }

    async fn available(&self) -> io::Result<u64> {
        let free = Arc::clone(&self.free);
        blocking(move || free()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn room(free: &Arc<AtomicU64>) -> (tempfile::TempDir, Room) {
        let dir = tempfile::tempdir().unwrap();
        let templates = Arc::new(Templates::open(dir.path(), 0));
        let room = Room::new(dir.path(), &Cgroups::without_limits(dir.path()), &templates);
        let free = Arc::clone(free);
        let room = room.keeping(100, Arc::new(move || Ok(free.load(Ordering::Relaxed))));
        (dir, room)
    }

    #[test]
    fn what_is_promised_is_promised_once() {
        let (_dir, room) = room(&Arc::new(225.into()));
        let promise = room.promise(60).unwrap();
        let full = room.take(41, || Ok(())).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        room.take(40, || Ok(())).unwrap();
        drop(promise);
        room.take(100, || Ok(())).unwrap();
        assert!(room.promise(101).is_err());
        // Nothing has no room either where the reserve is touched.
        let full = room.keeping(u64::MAX, Arc::new(|| Ok(1 << 40)));
        assert!(full.promise(0).is_err());
    }

    #[tokio::test]
    async fn one_save_at_a_time_is_given_up() {
        let free = Arc::new(100.into());
        let (_dir, room) = room(&free);
        let mut waits = [Box::pin(room.runs_short()), Box::pin(room.runs_short())];
        for wait in &mut waits {
            assert!(futures_util::poll!(wait).is_pending());
        }
        free.store(99, Ordering::Relaxed);
        let [first, second] = &mut waits;
        let chosen = tokio::select! {
            chosen = &mut *first => chosen,
            chosen = &mut *second => chosen,
        };
        // That has made room enough.
        free.store(100, Ordering::Relaxed);
        drop(chosen);
        assert!(
            tokio::time::timeout(2 * LOOKS.0, room.runs_short())
                .await
                .is_err()
        );
    }
}
