//! EBS volumes as raw files on this host.
//!
//! A root volume is a clone of its image's disk, grown (sparsely) to its size.
//! How it is cloned depends on what the data folder's file system can do, best
//! first: by reflink; by reflink inside a sparse XFS file on a loop device, the
//! pool; as a sparse copy.
//!
//! - `host`: the real thing
//! - [`simulated`]: a host in memory, for tests

use std::collections::BTreeSet;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::model::{ImageId, VolumeId};

pub mod host;
pub mod simulated;
mod space;

pub use host::found_in;
pub use space::{Pressure, Space, default_reserve};

/// A volume to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes; a source that is bigger is an error.
    pub size_bytes: u64,
    /// What it is a clone of; zeroes when none.
    pub source: Option<Source>,
}

/// An image's disk to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The image.
    pub image: ImageId,
    /// Its raw disk ([`crate::images::disk_path`]).
    pub path: PathBuf,
}

/// Why the host could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The source does not fit.
    #[error("{volume} of {size_bytes} bytes is smaller than its image of {source_bytes} bytes")]
    TooSmall {
        /// The volume.
        volume: VolumeId,
        /// Its size.
        size_bytes: u64,
        /// The size of the image's disk.
        source_bytes: u64,
    },
    /// The volume would take from what the host keeps free.
    #[error(
        "{volume} is not made: it takes {needed_bytes} bytes at once, and {free_bytes} are free \
         beyond the reserve"
    )]
    NoSpace {
        /// The volume.
        volume: VolumeId,
        /// What making it takes.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// An operation on the host failed.
    #[error("{doing}")]
    Host {
        /// What was being done.
        doing: String,
        /// What went wrong with it.
        #[source]
        source: std::io::Error,
    },
}

/// The volumes of one host. Every method is idempotent, and nothing half-made
/// is ever under a volume's name.
#[async_trait]
pub trait StorageHost: Send + Sync {
    /// Makes the volume unless it is there; its data is never touched again,
    /// but it is grown when it is smaller than asked. Returns its path.
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<PathBuf, StorageError>;

    /// Removes the volume; none is no error.
    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError>;

    /// Whether the volume is there.
    async fn holds(&self, id: &VolumeId) -> Result<bool, StorageError> {
        Ok(self.observe().await?.contains(id))
    }

    /// The volumes that are there.
    async fn observe(&self) -> Result<BTreeSet<VolumeId>, StorageError>;

    /// Where the volume's raw file is or would be.
    fn volume_path(&self, id: &VolumeId) -> PathBuf;

    /// Removes every volume and what the host module itself made: mount, loop
    /// device, files.
    async fn purge(&self) -> Result<(), StorageError>;
}
