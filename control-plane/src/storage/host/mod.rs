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

mod making;
mod pool;
mod space;
mod sparse;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

pub use self::pool::Cloning;
use super::{Space, StorageError, StorageHost, VolumeSpec, default_reserve};
use crate::model::VolumeId;

/// What a volume's name begins with while it is made.
const MAKING: &str = ".making-";
/// Where imported images lie, in the volumes' folder.
const IMAGES: &str = ".images";

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

    /// What can still be written to the data folder beside the volumes, in bytes. Blocks.
    ///
    /// # Errors
    /// When the file system can't be asked.
    pub fn available(&self) -> io::Result<u64> {
        space::outside(&self.inner.data, self.inner.cloning == Cloning::Pool)
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

/// The volumes under `data`, whether it is open or not; those of a pool that isn't
/// mounted are not seen. Blocks.
///
/// # Errors
/// When the folder of the volumes is there and can't be read.
pub fn found_in(data: &Path) -> Result<BTreeSet<VolumeId>, StorageError> {
    let volumes = data.join("volumes");
    let found = match list(&volumes) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        other => other,
    };
    doing(|| format!("reading {}", volumes.display()), found)
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
mod tests;
