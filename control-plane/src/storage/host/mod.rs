//! Volumes in a folder: `<data>/volumes/<id>.raw`.
//!
//! Where the data folder's file system has no reflink, `<data>/pool.xfs`, a
//! sparse file with an XFS in it, is mounted over `<data>/volumes`, if this
//! process may. Images that lie on another file system are imported once
//! (`volumes/.images/<ami>.raw`), and cloned from there.
//!
//! Everything is made under a name of its own (`.making-…`) and renamed, so that
//! a crash leaves nothing half-made under a volume's name; what it leaves is
//! swept when the host is opened.

mod pool;
mod space;
mod sparse;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::fs::ioctl_ficlone;
use rustix::io::Errno;

pub use self::pool::Cloning;
use self::sparse::copy_sparse;
use super::{Source, Space, StorageError, StorageHost, VolumeSpec, default_reserve};
use crate::model::{ImageId, VolumeId};

/// What a volume's name begins with while it is made.
const MAKING: &str = ".making-";
/// Where imported images lie, in the volumes' folder.
const IMAGES: &str = ".images";

/// How a file came by what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// By reflink, or it is empty.
    Cloned,
    /// Byte by byte.
    Copied,
}

type Locks = Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>;

/// The volumes of this machine.
#[derive(Debug)]
pub struct HostStorage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data: PathBuf,
    volumes: PathBuf,
    cloning: Cloning,
    /// What guests must leave free, in bytes.
    reserve: u64,
    /// One maker at a time for each file.
    locks: Locks,
}

fn doing<T>(what: impl FnOnce() -> String, outcome: io::Result<T>) -> Result<T, StorageError> {
    outcome.map_err(|source| StorageError::Host {
        doing: what(),
        source,
    })
}

impl HostStorage {
    /// Opens the volumes under `data`: mounts the pool where one is needed,
    /// and sweeps what a crash has left half-made. No volume is made of the last
    /// `reserve` bytes ([`default_reserve`] when none). Blocks.
    ///
    /// # Errors
    /// When the folder can't be made or a pool that has volumes can't be mounted.
    pub fn open(data: &Path, reserve: Option<u64>) -> Result<Self, StorageError> {
        let volumes = data.join("volumes");
        doing(
            || format!("making {}", volumes.display()),
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&volumes),
        )?;
        let cloning = pool::choose(data, &volumes)?;
        for dir in [volumes.clone(), volumes.join(IMAGES)] {
            doing(|| format!("sweeping {}", dir.display()), sweep(&dir))?;
        }
        let space = doing(
            || format!("measuring {}", data.display()),
            space::measure(data, &volumes, cloning == Cloning::Pool),
        )?;
        let reserve = reserve.unwrap_or_else(|| default_reserve(space.total));
        tracing::info!(
            folder = %volumes.display(),
            ?cloning,
            available_mib = space.available >> 20,
            reserve_mib = reserve >> 20,
            "volumes"
        );
        Ok(Self {
            inner: Arc::new(Inner {
                data: data.to_owned(),
                volumes,
                cloning,
                reserve,
                locks: Mutex::default(),
            }),
        })
    }

    /// How a volume comes from its image here.
    pub fn cloning(&self) -> Cloning {
        self.inner.cloning
    }

    /// What guests must leave free, in bytes.
    pub fn reserve(&self) -> u64 {
        self.inner.reserve
    }

    /// How much room there is now.
    ///
    /// # Errors
    /// When the file system can't be asked.
    pub async fn space(&self) -> Result<Space, StorageError> {
        self.blocking(Inner::space).await
    }

    /// What each volume takes, in bytes.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub async fn allocated(&self) -> Result<BTreeMap<VolumeId, u64>, StorageError> {
        self.blocking(|inner| {
            let folder = &inner.volumes;
            doing(
                || format!("reading {}", folder.display()),
                space::allocated(folder),
            )
        })
        .await
    }

    /// Runs what blocks where it may.
    async fn blocking<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Inner) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || what(&inner)).await {
            Ok(outcome) => outcome,
            Err(e) => Err(StorageError::Host {
                doing: "working on a volume".to_owned(),
                source: io::Error::other(e),
            }),
        }
    }
}

#[async_trait]
impl StorageHost for HostStorage {
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<PathBuf, StorageError> {
        let volume = volume.clone();
        self.blocking(move |inner| inner.ensure(&volume)).await
    }

    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError> {
        let path = self.inner.path(id);
        self.blocking(move |_| {
            doing(
                || format!("removing {}", path.display()),
                absent_is_fine(fs::remove_file(&path)),
            )
        })
        .await
    }

    async fn holds(&self, id: &VolumeId) -> Result<bool, StorageError> {
        let path = self.inner.path(id);
        self.blocking(move |_| {
            doing(
                || format!("looking for {}", path.display()),
                path.try_exists(),
            )
        })
        .await
    }

    async fn observe(&self) -> Result<BTreeSet<VolumeId>, StorageError> {
        self.blocking(|inner| {
            let folder = &inner.volumes;
            doing(|| format!("reading {}", folder.display()), list(folder))
        })
        .await
    }

    fn volume_path(&self, id: &VolumeId) -> PathBuf {
        self.inner.path(id)
    }

    async fn purge(&self) -> Result<(), StorageError> {
        self.blocking(|inner| purge(&inner.data)).await
    }
}

impl Inner {
    fn path(&self, id: &VolumeId) -> PathBuf {
        self.volumes.join(format!("{id}.raw"))
    }

    fn space(&self) -> Result<Space, StorageError> {
        doing(
            || format!("measuring {}", self.data.display()),
            space::measure(&self.data, &self.volumes, self.cloning == Cloning::Pool),
        )
    }

    /// Whether there is room to make this volume now, beyond what is kept free.
    fn check_room(&self, volume: &VolumeSpec) -> Result<(), StorageError> {
        let needed = match &volume.source {
            // A clone takes a few blocks, a copy all that is in the image.
            Some(source) if self.cloning == Cloning::Copy => doing(
                || format!("reading image {}", source.image),
                fs::metadata(&source.path),
            )?
            .blocks()
            .saturating_mul(512),
            _ => 0,
        };
        let free = self.space()?.available.saturating_sub(self.reserve);
        if free > needed {
            return Ok(());
        }
        Err(StorageError::NoSpace {
            volume: volume.id.clone(),
            needed_bytes: needed,
            free_bytes: free,
        })
    }

    fn ensure(&self, volume: &VolumeSpec) -> Result<PathBuf, StorageError> {
        let path = self.path(&volume.id);
        if !path.exists() {
            self.check_room(volume)?;
        }
        if let Some(source) = &volume.source {
            let size = doing(
                || format!("reading image {}", source.image),
                fs::metadata(&source.path),
            )?
            .len();
            if size > volume.size_bytes {
                return Err(StorageError::TooSmall {
                    volume: volume.id.clone(),
                    size_bytes: volume.size_bytes,
                    source_bytes: size,
                });
            }
        }
        self.make(&path, |temp| match &volume.source {
            Some(source) => self.fill(source, temp),
            None => Ok(Filled::Cloned),
        })?;
        doing(|| format!("growing {}", path.display()), {
            OpenOptions::new().write(true).open(&path).and_then(|f| {
                // Never cut: there is data behind.
                if f.metadata()?.len() < volume.size_bytes {
                    f.set_len(volume.size_bytes)?;
                }
                Ok(())
            })
        })?;
        Ok(path)
    }

    /// Makes a file, whole or not at all, unless it is there.
    fn make(
        &self,
        path: &Path,
        fill: impl FnOnce(&File) -> Result<Filled, StorageError>,
    ) -> Result<(), StorageError> {
        let lock = self
            .locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(path.to_owned())
            .or_default()
            .clone();
        let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let made = if path.exists() {
            Ok(())
        } else {
            self.make_locked(path, fill)
        };
        drop(held);
        drop(lock);
        self.locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, lock| Arc::strong_count(lock) > 1);
        made
    }

    fn make_locked(
        &self,
        path: &Path,
        fill: impl FnOnce(&File) -> Result<Filled, StorageError>,
    ) -> Result<(), StorageError> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        let temp = folder.join(format!("{MAKING}{}", name.to_string_lossy()));
        let made = doing(
            || format!("making {}", temp.display()),
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temp),
        )
        .and_then(|file| {
            let copied = fill(&file)?;
            doing(|| format!("making {}", path.display()), {
                // A name must not outlast its data in a power cut. XFS and Btrfs
                // log a clone and a rename in their order, and a guest's first
                // flush brings both to the disk: there nothing waits for it here.
                match copied {
                    Filled::Copied => file
                        .sync_all()
                        .and_then(|()| fs::rename(&temp, path))
                        .and_then(|()| File::open(folder)?.sync_all()),
                    Filled::Cloned => fs::rename(&temp, path),
                }
            })
        });
        if made.is_err() {
            let _ = fs::remove_file(&temp);
        }
        made
    }

    /// Fills an empty file with an image, the quickest way there is.
    fn fill(&self, source: &Source, to: &File) -> Result<Filled, StorageError> {
        let context = || format!("cloning image {}", source.image);
        let image = doing(context, File::open(&source.path))?;
        if self.cloning == Cloning::Copy {
            return doing(context, copy_sparse(&image, to)).map(|()| Filled::Copied);
        }
        match ioctl_ficlone(to.as_fd(), image.as_fd()) {
            Ok(()) => Ok(Filled::Cloned),
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL) => {
                let base = doing(context, self.import(&source.image, &image)?)?;
                doing(
                    context,
                    ioctl_ficlone(to.as_fd(), base.as_fd()).map_err(io::Error::from),
                )
                .map(|()| Filled::Cloned)
            }
            Err(e) => doing(context, Err(e.into())),
        }
    }

    /// Copies an image beside the volumes, once.
    fn import(&self, id: &ImageId, image: &File) -> Result<io::Result<File>, StorageError> {
        let folder = self.volumes.join(IMAGES);
        let context = || format!("importing image {id}");
        doing(
            context,
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder),
        )?;
        let base = folder.join(format!("{id}.raw"));
        self.make(&base, |temp| {
            doing(context, copy_sparse(image, temp)).map(|()| Filled::Copied)
        })?;
        Ok(File::open(base))
    }
}

fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sweep(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(MAKING) {
            absent_is_fine(fs::remove_file(entry.path()))?;
        }
    }
    Ok(())
}

fn list(dir: &Path) -> io::Result<BTreeSet<VolumeId>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        found.extend(
            name.to_str()
                .and_then(|n| n.strip_suffix(".raw"))
                .and_then(|n| n.parse::<VolumeId>().ok()),
        );
    }
    Ok(found)
}

/// Removes all that [`HostStorage`] has ever made under `data`, whether it is
/// open or not. Blocks.
///
/// # Errors
/// When something is in use or can't be removed.
pub fn purge(data: &Path) -> Result<(), StorageError> {
    let volumes = data.join("volumes");
    pool::purge(data, &volumes)?;
    doing(
        || format!("removing {}", volumes.display()),
        absent_is_fine(fs::remove_dir_all(&volumes)),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Volumes on whatever the temporary folder's file system is, without a pool.
    fn opened(data: &Path) -> HostStorage {
        let volumes = data.join("volumes");
        fs::create_dir_all(&volumes).unwrap();
        let cloning = if pool::can_reflink(&volumes) {
            Cloning::Reflink
        } else {
            Cloning::Copy
        };
        sweep(&volumes).unwrap();
        HostStorage {
            inner: Arc::new(Inner {
                data: data.to_owned(),
                volumes,
                cloning,
                reserve: 0,
                locks: Mutex::default(),
            }),
        }
    }

    fn image(dir: &Path) -> Source {
        let path = dir.join("image.raw");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", (4 << 20) + 17).unwrap();
        Source {
            image: ImageId::from_random(1),
            path,
        }
    }

    fn spec(n: u128, source: Option<Source>) -> VolumeSpec {
        VolumeSpec {
            id: VolumeId::from_random(n),
            size_bytes: 16 << 20,
            source,
        }
    }

    #[tokio::test]
    async fn a_clone_is_whole_grown_and_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let host = opened(dir.path());
        let want = spec(1, Some(image(dir.path())));
        let path = host.ensure_volume(&want).await.unwrap();
        assert_eq!(path, host.volume_path(&want.id));
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 16 << 20);
        assert!(
            meta.blocks() * 512 < 4 << 20,
            "not sparse: {}",
            meta.blocks()
        );
        let mut expected = fs::read(&want.source.as_ref().unwrap().path).unwrap();
        expected.resize(16 << 20, 0);
        assert!(fs::read(&path).unwrap() == expected);
        assert_eq!(host.observe().await.unwrap(), [want.id].into());
    }

    #[tokio::test]
    async fn what_is_there_is_kept_and_grown() {
        let dir = tempfile::tempdir().unwrap();
        let host = opened(dir.path());
        let mut want = spec(1, Some(image(dir.path())));
        let path = host.ensure_volume(&want).await.unwrap();
        fs::write(&path, b"the guest's").unwrap();
        host.ensure_volume(&want).await.unwrap();
        want.size_bytes = 32 << 20;
        host.ensure_volume(&want).await.unwrap();
        let now = fs::read(&path).unwrap();
        assert_eq!(now.len(), 32 << 20);
        assert!(now.starts_with(b"the guest's"));
        want.size_bytes = 16 << 20;
        host.ensure_volume(&want).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 32 << 20, "never cut");
    }

    #[tokio::test]
    async fn nothing_is_made_of_what_is_kept_free() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = opened(dir.path());
        let want = spec(1, Some(image(dir.path())));
        Arc::get_mut(&mut host.inner).unwrap().reserve = u64::MAX;
        let e = host.ensure_volume(&want).await.unwrap_err();
        assert!(matches!(e, StorageError::NoSpace { .. }), "{e}");
        assert!(host.observe().await.unwrap().is_empty());
        // What is there already stays usable.
        Arc::get_mut(&mut host.inner).unwrap().reserve = 0;
        host.ensure_volume(&want).await.unwrap();
        Arc::get_mut(&mut host.inner).unwrap().reserve = u64::MAX;
        host.ensure_volume(&want).await.unwrap();
    }

    #[tokio::test]
    async fn removing_twice_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let host = opened(dir.path());
        let want = spec(1, None);
        host.ensure_volume(&want).await.unwrap();
        for _ in 0..2 {
            host.remove_volume(&want.id).await.unwrap();
            assert!(host.observe().await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn an_image_too_big_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let host = opened(dir.path());
        let mut want = spec(1, Some(image(dir.path())));
        want.size_bytes = 4 << 20;
        let e = host.ensure_volume(&want).await.unwrap_err();
        assert!(matches!(e, StorageError::TooSmall { .. }), "{e}");
        want.source.as_mut().unwrap().path = dir.path().join("none");
        host.ensure_volume(&want).await.unwrap_err();
        assert_eq!(fs::read_dir(&host.inner.volumes).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_crash_leaves_nothing_under_a_volumes_name() {
        let dir = tempfile::tempdir().unwrap();
        let host = opened(dir.path());
        let want = spec(1, Some(image(dir.path())));
        // As a crash in the middle of the copy would leave it.
        let half = host.inner.volumes.join(format!("{MAKING}{}.raw", want.id));
        fs::write(&half, b"half").unwrap();
        assert!(host.observe().await.unwrap().is_empty());
        let host = opened(dir.path());
        assert!(!half.exists());
        host.ensure_volume(&want).await.unwrap();
        assert_eq!(host.observe().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn many_at_once_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let host = opened(dir.path());
        let want = spec(1, Some(image(dir.path())));
        let all = (0..8).map(|_| host.ensure_volume(&want));
        for outcome in futures_util::future::join_all(all).await {
            outcome.unwrap();
        }
        let bytes = fs::read(host.volume_path(&want.id)).unwrap();
        assert!(bytes.starts_with(b"begin"));
        assert!(host.inner.locks.lock().unwrap().is_empty());
    }

    #[test]
    fn purge_takes_all_and_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let host = opened(dir.path());
        fs::write(host.inner.volumes.join("x"), b"x").unwrap();
        for _ in 0..2 {
            purge(dir.path()).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
