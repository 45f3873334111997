//! Namespaces of its own, and a root with nothing in it but the folders that the
//! process still writes to, each under the name it had before.
//!
//! There is no way back: the old root is unmounted, and the capability to mount
//! anything is given up right after.

#![allow(unsafe_code, reason = "unshare(2)")]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, mount_move, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Where the new root is put together: any folder will do, it is covered in our
/// own namespace only.
const SITES: [&str; 4] = ["/tmp", "/run", "/var", "/usr"];

/// Moves into new namespaces and a new root. Must come before any thread.
///
/// # Errors
/// When the kernel refuses the namespaces: nothing has changed then.
pub(super) fn namespaces() -> io::Result<()> {
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: the file descriptor table, which threads would share, stays.
    unsafe { unshare_unsafe(flags) }.map_err(Into::into)
}

/// Makes a root of these folders, and leaves the old one. They are absolute, with
/// no symbolic link on the way.
///
/// # Errors
/// When the kernel refuses; the caller must not go on.
pub(super) fn change(folders: &[PathBuf]) -> io::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    // Taken before the site is covered, since they may lie in it.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let trees: Vec<(&Path, OwnedFd)> = folders
        .iter()
        .map(|folder| {
            let name = folder.strip_prefix("/").unwrap_or(folder);
            Ok((name, open_tree(CWD, folder, flags)?))
        })
        .collect::<io::Result<_>>()?;
    let site = SITES
        .into_iter()
        .find(|site| Path::new(site).is_dir())
        .ok_or(io::ErrorKind::NotFound)?;
    let bare = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", site, "tmpfs", bare, c"size=64k,mode=755")?;
    chdir(site)?;
    for (name, tree) in &trees {
        fs::create_dir_all(name)?;
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(tree, "", CWD, *name, from)?;
        mount_remount(*name, MountFlags::BIND | bare, "")?;
    }
    mount_remount(".", MountFlags::BIND | MountFlags::RDONLY | bare, "")?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        // The root of a machine that runs from its initramfs can't be exchanged,
        // only covered.
        Err(rustix::io::Errno::INVAL) => {
            mount_move(".", "/")?;
            chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    chdir("/")?;
    Ok(())
}
