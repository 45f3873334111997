//! Network namespaces by name, kept as `ip netns` keeps them: each is a file
//! under `/run/netns` that the namespace is bind-mounted on, so that it lives
//! without a process in it and `ip netns exec` works.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::network::names::HostNames;

const FOLDER: &str = "/run/netns";

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// An open namespace; it lives at least as long as this.
#[derive(Debug, Clone)]
pub(super) struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// The namespace of this name, if it is there.
    pub(super) fn open(name: &str) -> io::Result<Option<Self>> {
        let file = match File::open(path(name)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        // A file that nothing is mounted on (a crash, or /run kept over a
        // reboot in a container) is no namespace.
        let stat = nix::sys::statfs::fstatfs(&file)?;
        if stat.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
            return Ok(None);
        }
        let file = Arc::new(file);
        Ok(Some(Self { file }))
    }

    /// Makes the namespace.
    pub(super) fn create(name: &str) -> io::Result<Self> {
        std::fs::create_dir_all(FOLDER)?;
        share_folder()?;
        let target = path(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&target)?;
        let mounted = on_a_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let none: Option<&str> = None;
            let source = Some("/proc/thread-self/ns/net");
            mount(source, &target, none, MsFlags::MS_BIND, none)?;
            Ok(())
        });
        if let Err(e) = mounted {
            // The empty file is of no use, and the error is worth more than its removal's.
            let _ = std::fs::remove_file(path(name));
            return Err(e);
        }
        Self::open(name)?.ok_or_else(|| io::Error::other("the namespace went away"))
    }

    /// The descriptor, as netlink takes it.
    pub(super) fn as_file(&self) -> &File {
        &self.file
    }

    /// Runs `f` on a thread of its own that is in the namespace. Sockets made
    /// there belong to it for good.
    pub(super) fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = Arc::clone(&self.file);
        on_a_thread(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET)?;
            f()
        })
    }

    /// Runs an asynchronous `f` in the namespace, on a runtime of its own there,
    /// away from the caller's threads.
    pub(super) async fn run_async<T, F, Fut>(&self, f: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = io::Result<T>>,
    {
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            this.run(move || {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?
                    .block_on(f())
            })
        })
        .await
        .map_err(io::Error::other)?
    }
}

fn on_a_thread<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(f)?
        .join()
        .map_err(|_| io::Error::other("the thread in the namespace panicked"))?
}

/// Makes mounts under the folder seen by all mount namespaces, as `ip netns`
/// does: otherwise a process that copied the mounts before would keep a removed
/// namespace alive.
fn share_folder() -> io::Result<()> {
    let none: Option<&str> = None;
    let share = || {
        mount(
            Some(""),
            FOLDER,
            Some("none"),
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            none,
        )
    };
    match share() {
        // Not a mount point yet.
        Err(nix::errno::Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(FOLDER), FOLDER, Some("none"), bind, none)?;
            share()?;
        }
        other => other?,
    }
    Ok(())
}

/// The names of the namespaces that this hearth made.
pub(super) fn list(names: &HostNames) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && names.is_namespace(&name)
        {
            found.push(name);
        }
    }
    Ok(found)
}

/// Removes the name. The kernel removes what is in the namespace, with the last
/// process and descriptor that hold it.
pub(super) fn delete(name: &str) -> io::Result<()> {
    let target = path(name);
    match umount2(&target, MntFlags::MNT_DETACH) {
        // Not mounted, or not there.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    match std::fs::remove_file(&target) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
