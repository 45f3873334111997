//! Making a volume: where there is room, whole or not at all, by the quickest way that
//! its image's data gets there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use rustix::fs::ioctl_ficlone;
use rustix::io::Errno;

use super::super::{Source, StorageError, VolumeSpec};
use super::{Cloning, IMAGES, Inner, MAKING, doing, sparse::copy_sparse};
use crate::model::ImageId;

/// How a file came by what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// By reflink, or it is empty.
    Cloned,
    /// Byte by byte.
    Copied,
}

impl Inner {
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

    /// The volume's file, made if it isn't there, and as long as it should be.
    pub(super) fn ensure(&self, volume: &VolumeSpec) -> Result<PathBuf, StorageError> {
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
