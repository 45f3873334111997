//! What there is of an instance: its records, its process, and whether that lives.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use hearth_vmm_api::Exit;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup::Cgroups;
use super::folder::{self, Folder, Launch};
use super::hibernation::under;
use super::memory::Memory;
use super::process::{self, Identity};
use super::{HostCompute, blocking, client, doing};
use crate::compute::{ComputeError, Observed};
use crate::model::InstanceId;

impl HostCompute {
    /// What is observed of the instance, by its records and its process.
    pub(super) async fn state(&self, id: &InstanceId) -> io::Result<Observed> {
        let folder = self.folder(id);
        let there = folder.clone();
        let mut there = blocking(move || There::read(&there)).await?;
        if there.identity.is_none()
            && there.launch.is_some()
            // While it is being launched, the launch will note the process.
            && let Ok(held) = self.lock(id).try_lock_owned()
            && let Some(identity) = self.stray(id, &folder).await?
        {
            tracing::info!(instance = %id, pid = identity.pid, "found a VMM that was never noted");
            let (folder, noted) = (folder.clone(), identity.clone());
            under(&Arc::new(held), move || {
                folder.set_identity(&noted)?;
                // As the launch would have done next.
                Memory::of(&folder).remove_used()
            })
            .await?;
            there.identity = Some((true, identity));
        }
        if let Some((false, ended)) = &there.identity
            && there.launch.is_some()
            && there.exit.is_none()
            && let Some(heir) = self.heir(id, &folder, ended).await?
        {
            there.identity = Some((true, heir));
        }
        if let Some((alive @ true, identity)) = &mut there.identity
            && !self.watch_exit(id, identity)?
        {
            *alive = false;
            there.exit = blocking(move || Ok(folder.exit())).await?;
        }
        Ok(there.judge())
    }

    /// A VMM of this instance that runs although no record says so.
    async fn stray(&self, id: &InstanceId, folder: &Folder) -> io::Result<Option<Identity>> {
        let members = self.cgroups.members(id)?;
        let Some(pid) = folder.claimed_pid().filter(|pid| members.contains(pid)) else {
            return Ok(None);
        };
        match client::machine(&folder.socket()).await {
            Ok(machine) if machine.id == id.as_str() && machine.pid == pid => Identity::of(pid),
            _ => Ok(None),
        }
    }

    /// The VMM that has taken the machine over from one that has ended, where nobody came to
    /// note it.
    ///
    /// # Errors
    /// When that isn't clear yet.
    async fn heir(
        &self,
        id: &InstanceId,
        folder: &Folder,
        ended: &Identity,
    ) -> io::Result<Option<Identity>> {
        let others = || {
            let all = self.cgroups.members(id)?;
            io::Result::Ok(all.into_iter().filter(|pid| *pid != ended.pid).collect())
        };
        let first: Vec<u32> = others()?;
        if first.is_empty() {
            return Ok(None);
        }
        let unclear = |why| Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        let Ok(held) = self.lock(id).try_lock_owned() else {
            return unclear("its VMM has ended, and whoever is at work on it knows why");
        };
        if folder.identity()?.as_ref() != Some(ended) {
            return unclear("its VMM has just been noted");
        }
        let others: Vec<u32> = others()?;
        let Some(pid) = folder.claimed_pid().filter(|pid| others.contains(pid)) else {
            // It was killed as it handed its machine over. Nothing of that may go on
            // unnoticed.
            if !others.is_empty() {
                self.cgroups.kill(id)?;
            }
            return Ok(None);
        };
        let machine = client::machine(&folder.socket()).await?;
        let heir = Identity::of(pid)?;
        let (true, Some(heir)) = (machine.id == id.as_str() && machine.pid == pid, heir) else {
            return unclear("its VMM has ended, and who answers in its place is another");
        };
        tracing::info!(instance = %id, was = ended.pid, pid, "found a VMM that had taken its machine over");
        let (to, noted) = (folder.clone(), heir.clone());
        under(&Arc::new(held), move || to.set_identity(&noted)).await?;
        Ok(Some(heir))
    }

    /// Has the end of the process counted, if there is one to come.
    pub(super) fn watched_or_gone(
        &self,
        id: &InstanceId,
        identity: &Identity,
    ) -> Result<(), ComputeError> {
        // One that has ended already counts as an end, too.
        if !doing("watching the VMM", self.watch_exit(id, identity))? {
            let _ = self.exits.send(id.clone());
        }
        Ok(())
    }

    /// Has the end of the process counted. False when it has ended already.
    pub(super) fn watch_exit(&self, id: &InstanceId, identity: &Identity) -> io::Result<bool> {
        let pid = identity.pid;
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.contains(&pid) {
            return Ok(true);
        }
        let Some(fd) = identity.open()? else {
            return Ok(false);
        };
        // SAFETY: an OwnedFd returns the same open descriptor for as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        watched.insert(pid);
        let (watched, exits, id) = (self.watched.clone(), self.exits.clone(), id.clone());
        tokio::spawn(async move {
            // Readable is all there is to know; an error is a reason to look, too.
            let _ = fd.readable().await;
            watched
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&pid);
            // Nobody may be listening.
            let _ = exits.send(id);
        });
        Ok(true)
    }
}

/// What the records of an instance and its process say.
struct There {
    launch: Option<Launch>,
    /// Its process, and whether that lives.
    identity: Option<(bool, Identity)>,
    exit: Option<Exit>,
    host_boot: String,
}

impl There {
    fn read(folder: &Folder) -> io::Result<Self> {
        let launch = folder.launch()?;
        folder.trim_log()?;
        let identity = match folder.identity()? {
            Some(identity) => Some((identity.is_alive()?, identity)),
            None => None,
        };
        Ok(Self {
            launch,
            identity,
            // After the process: what it said last is there by then.
            exit: folder.exit(),
            host_boot: process::host_boot()?,
        })
    }

    fn judge(self) -> Observed {
        let launched = self.identity.as_ref().map(|(_, i)| i.host_boot.as_str());
        let noted = self.launch.as_ref().and_then(|l| l.host_boot.as_deref());
        let lost = (launched.or(noted)).is_some_and(|boot| boot != self.host_boot);
        let process = self.identity.map(|(alive, identity)| folder::Process {
            pid: identity.pid,
            alive,
        });
        folder::judge(self.launch.as_ref(), process, self.exit, lost)
    }
}

/// Every instance of which there is a trace.
pub(super) fn known(instances: &Path, cgroups: &Cgroups) -> io::Result<BTreeSet<InstanceId>> {
    let mut found = cgroups.list()?;
    for entry in fs::read_dir(instances)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|n| n.parse::<InstanceId>().ok()));
    }
    Ok(found)
}
