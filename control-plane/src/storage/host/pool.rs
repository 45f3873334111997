//! How volumes are cloned in a data folder, and the pool: an XFS in a sparse file,
//! mounted on the volumes' folder where its own file system has no reflink.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::ioctl_ficlone;
use rustix::mount::{UnmountFlags, unmount};

use super::{MAKING, absent_is_fine, doing, list};
use crate::storage::StorageError;

/// The pool's file, in the data folder.
const POOL: &str = "pool.xfs";
/// The smallest pool: XFS refuses less than 300 MiB.
const MIN_POOL: u64 = 512 << 20;

/// `XFS_SUPER_MAGIC` and `BTRFS_SUPER_MAGIC` of statfs(2).
const XFS: i64 = 0x5846_5342;
const BTRFS: i64 = 0x9123_683e;

/// How a volume comes from its image here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloning {
    /// By reflink, on the data folder's own file system.
    Reflink,
    /// By reflink, in the XFS file on a loop device.
    Pool,
    /// By copying what is not a hole.
    Copy,
}

/// Finds the best way to clone in this data folder, and prepares it.
pub(super) fn choose(data: &Path, volumes: &Path) -> Result<Cloning, StorageError> {
    let pool = data.join(POOL);
    if is_mounted(data, volumes) {
        return Ok(Cloning::Pool);
    }
    let has_volumes = !list(volumes).unwrap_or_default().is_empty();
    if !pool.exists() {
        if can_reflink(volumes) {
            return Ok(Cloning::Reflink);
        }
        // Volumes that are there already would vanish under a mount.
        if has_volumes {
            return Ok(Cloning::Copy);
        }
    }
    let is_new = !pool.exists();
    match mount_pool(data, &pool, volumes) {
        Ok(()) => Ok(Cloning::Pool),
        Err(e) if is_new => {
            let _ = fs::remove_file(&pool);
            tracing::warn!(
                error = %e,
                "no reflink and no XFS pool: volumes are copied, which is slow"
            );
            Ok(Cloning::Copy)
        }
        Err(source) => Err(StorageError::Host {
            doing: format!("mounting {}, which holds the volumes", pool.display()),
            source,
        }),
    }
}

/// Whether something is mounted on the volumes' folder.
fn is_mounted(data: &Path, volumes: &Path) -> bool {
    match (fs::metadata(data), fs::metadata(volumes)) {
        (Ok(outside), Ok(inside)) => outside.dev() != inside.dev(),
        _ => false,
    }
}

/// Tries a reflink of a block, as nothing else tells for sure. On a file system
/// that is too full for it, its kind must do.
pub(super) fn can_reflink(dir: &Path) -> bool {
    let (a, b) = (
        dir.join(format!("{MAKING}a")),
        dir.join(format!("{MAKING}b")),
    );
    let tried = (|| {
        let from = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&a)?;
        from.write_all_at(&[1; 4096], 0)?;
        let to = File::create(&b)?;
        ioctl_ficlone(to.as_fd(), from.as_fd()).map_err(io::Error::from)
    })();
    let _ = fs::remove_file(a);
    let _ = fs::remove_file(b);
    match tried {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::StorageFull => {
            rustix::fs::statfs(dir).is_ok_and(|s| s.f_type == XFS || s.f_type == BTRFS)
        }
        Err(_) => false,
    }
}

/// Makes the pool's file if it isn't there, and mounts it. The loop device
/// frees itself at the unmount (`mount -o loop` sets its autoclear flag).
fn mount_pool(data: &Path, pool: &Path, volumes: &Path) -> io::Result<()> {
    if !pool.exists() {
        let space = rustix::fs::statvfs(data)?;
        let size = (space.f_bavail * space.f_frsize).max(MIN_POOL);
        let temp = data.join(format!("{MAKING}{POOL}"));
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temp)
            .and_then(|file| file.set_len(size))
            .and_then(|()| {
                run(
                    "mkfs.xfs",
                    &[
                        "-q".as_ref(),
                        "-m".as_ref(),
                        "reflink=1".as_ref(),
                        temp.as_os_str(),
                    ],
                )
            })
            .and_then(|()| fs::rename(&temp, pool));
        if made.is_err() {
            let _ = fs::remove_file(&temp);
        }
        made?;
    }
    run(
        "mount",
        &[
            "-t".as_ref(),
            "xfs".as_ref(),
            "-o".as_ref(),
            "loop,noatime,nodev,nosuid,noexec,discard".as_ref(),
            pool.as_os_str(),
            volumes.as_os_str(),
        ],
    )
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> io::Result<()> {
    // The tools of mount and mkfs lie in sbin, which a service may not have.
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let done = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", path)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("{program}: {e}")))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let line = said.trim().lines().next_back().unwrap_or_default();
    Err(io::Error::other(format!(
        "{program}: {} ({line})",
        done.status
    )))
}

/// Unmounts and removes the pool, where there is one.
pub(super) fn purge(data: &Path, volumes: &Path) -> Result<(), StorageError> {
    if is_mounted(data, volumes) {
        doing(
            || format!("unmounting {}", volumes.display()),
            unmount(volumes, UnmountFlags::empty()).map_err(io::Error::from),
        )?;
    }
    for file in [POOL.to_owned(), format!("{MAKING}{POOL}")] {
        let file = data.join(file);
        doing(
            || format!("removing {}", file.display()),
            absent_is_fine(fs::remove_file(&file)),
        )?;
    }
    Ok(())
}
