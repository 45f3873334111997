//! Instances as processes: one `hearth-vmm` each, in a control group of its own,
//! with a folder that says everything about it, and no one's child, so that it
//! outlives `hearth`.
//!
//! - `argv`: what to launch → the command line (pure)
//! - `bootfiles`: reads kernel and initrd out of a root disk, in a sandbox
//! - `host`: the real thing: folders, cgroup v2, processes, pidfds, sockets
//! - [`simulated`]: instances in memory, for simulations and tests
//!
//! The reconcilers speak to [`ComputeHost`] alone. Every method may be called
//! again after a crash at any point and finds its way from what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use hearth_vmm_api::Exit;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::broadcast;

use crate::model::{BootMethod, EniId, ImageId, InstanceId, Quota, VolumeId};

pub mod argv;
pub mod bootfiles;
pub mod host;
pub mod simulated;
pub mod trace;

/// The biggest kernel that is read: 64 MiB. Distribution kernels have 10 to 20.
pub const MAX_KERNEL: u64 = 64 << 20;
/// The biggest initrd that is read: 512 MiB. The biggest in use, with every
/// driver and firmware, have less than half.
pub const MAX_INITRD: u64 = 512 << 20;

/// Everything that a cold boot of an instance needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The instance.
    pub instance: InstanceId,
    /// Which cold boot this is: [`crate::model::Instance::boots`]. A VMM of an
    /// older boot is never taken for this one's.
    pub boot: u64,
    /// The instance type's name, which the guest sees as its product name.
    pub instance_type: String,
    /// How many vCPUs the guest sees; also its quota of CPU time.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// How its kernel is found, on the first disk.
    pub boot_method: BootMethod,
    /// The disks, the root first.
    pub disks: Vec<DiskSpec>,
    /// The interfaces, the primary first; the taps given to
    /// [`ComputeHost::launch`] are in the same order.
    pub nics: Vec<NicSpec>,
    /// What the root disk is a fresh clone of: at a first boot, whose boot files
    /// may be taken from there.
    #[serde(default)]
    pub clone_of: Option<Box<CloneOf>>,
    /// The boot whose memory it goes on from, if its host keeps that
    /// ([`ComputeHost::hibernate`]); where there is none, or the VMM refuses it, it
    /// boots from cold.
    #[serde(default)]
    pub resume: Option<u64>,
    /// What was done for it so far, and when.
    #[serde(skip)]
    pub trace: trace::Trace,
}

/// The image that a root disk was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneOf {
    /// The image; its id is a hash of its disk.
    pub image: ImageId,
    /// Its disk. It may be gone.
    pub path: PathBuf,
    /// The account whose instances share a template that they go on from; none where the
    /// image's initramfs can't hold for one.
    #[serde(default)]
    pub warm_for: Option<String>,
}

/// A disk of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The volume; the guest sees its id as the disk's serial.
    pub volume: VolumeId,
    /// The raw file ([`crate::storage::StorageHost::volume_path`]).
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// A network interface of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// The interface.
    pub eni: EniId,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u16,
}

/// What there is of an instance on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Its VMM lives.
    Running {
        /// The VMM's process id.
        pid: u32,
        /// The boot it belongs to.
        boot: u64,
    },
    /// Its VMM ended, and its folder (with the console) is still there.
    Exited {
        /// The boot that ended.
        boot: u64,
        /// Why. A VMM that was killed counts as crashed.
        exit: Exit,
    },
    /// Its VMM ran until the host went down, and said nothing of another end. The
    /// host has been started again since.
    HostLost {
        /// The boot that was lost.
        boot: u64,
    },
    /// A launch that was cut short. [`ComputeHost::launch`] begins anew,
    /// [`ComputeHost::forget`] clears it away.
    Incomplete,
}

/// What a host keeps of an instance's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// All of it, as it was when this boot was hibernated, and nothing has run since on
    /// its disks.
    Whole {
        /// The boot.
        boot: u64,
    },
    /// What can't be gone on from, as memory that was never written whole.
    Rest,
}

/// Why the host could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// The root disk holds nothing that can be booted. Trying again won't help
    /// before the disk changes.
    #[error("the root disk can't be booted: {0}")]
    Unbootable(String),
    /// The VMM refused to start, in its own words.
    #[error("hearth-vmm did not start: {0}")]
    Refused(String),
    /// There is no VMM to ask.
    #[error("{0} is not running on this host")]
    NotRunning(InstanceId),
    /// The host lacks something, or an operation on it failed.
    #[error("{doing}")]
    Host {
        /// What was being done.
        doing: String,
        /// What went wrong with it.
        #[source]
        source: std::io::Error,
    },
}

/// The processes of one host. Every method is idempotent.
#[async_trait]
pub trait ComputeHost: Send + Sync {
    /// The instances of which there is a trace.
    async fn known(&self) -> Result<BTreeSet<InstanceId>, ComputeError>;

    /// What there is of this instance; none when there is no trace of it.
    async fn look(&self, id: &InstanceId) -> Result<Option<Observed>, ComputeError>;

    /// What is there, of any instance.
    async fn observe(&self) -> Result<BTreeMap<InstanceId, Observed>, ComputeError> {
        let mut all = BTreeMap::new();
        for id in self.known().await? {
            if let Some(observed) = self.look(&id).await? {
                all.insert(id, observed);
            }
        }
        Ok(all)
    }

    /// Boots the instance from cold, unless this very boot runs already; the
    /// kernel and initrd are those on its root disk. `taps` are in the order
    /// of [`LaunchSpec::nics`]. After an error nothing runs. Memory that is kept is
    /// gone on from if [`LaunchSpec::resume`] says so, once, and is else lost; where the
    /// host lacked something for it, it stays, and that is an error.
    async fn launch(&self, spec: &LaunchSpec, taps: Vec<OwnedFd>) -> Result<(), ComputeError>;

    /// Whether somebody asked for its VMM to be replaced by the installed program.
    async fn wants_update(&self, id: &InstanceId) -> Result<bool, ComputeError>;

    /// Has the installed program take the running machine over from its VMM, if somebody
    /// [asked for that](Self::wants_update). Afterwards nobody does, but for an error
    /// that may pass; one VMM has the machine, the old one where the new one can't.
    async fn update(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError>;

    /// Saves the instance's memory, and leaves it held: its VMM is only to be ended.
    /// After an error it runs on, or will when its power button is pressed, or was ended,
    /// and no memory is kept.
    async fn hibernate(&self, id: &InstanceId, boot: u64) -> Result<(), ComputeError>;

    /// What is kept of its memory.
    async fn kept_memory(&self, id: &InstanceId) -> Result<Option<Kept>, ComputeError>;

    /// Removes what is kept of its memory; nothing is no error.
    async fn discard_memory(&self, id: &InstanceId) -> Result<(), ComputeError>;

    /// Presses the power button: a guest that listens shuts itself down. One that
    /// was held to be hibernated goes on first, and its memory is lost.
    async fn power_button(&self, id: &InstanceId) -> Result<(), ComputeError>;

    /// Sends the guest's processors a non-maskable interrupt.
    async fn interrupt(&self, id: &InstanceId) -> Result<(), ComputeError>;

    /// Asks the guest to reboot by the power button: the power-off that follows
    /// resets it, in the same process. Not if it was reset since the caller
    /// learned of `resets`, which is an error.
    async fn reboot(&self, id: &InstanceId, resets: u64) -> Result<(), ComputeError>;

    /// How often the guest was reset since this boot, by itself or others.
    async fn resets(&self, id: &InstanceId) -> Result<u64, ComputeError>;

    /// Resets the guest at once, in the same process.
    async fn reset(&self, id: &InstanceId) -> Result<(), ComputeError>;

    /// Ends the VMM at once; when it returns no process is left. The folder
    /// stays, and with it the console: the instance is then
    /// [`Observed::Exited`]. Nothing to kill is no error.
    async fn kill(&self, id: &InstanceId) -> Result<(), ComputeError>;

    /// The last 64 KiB of the serial console; empty when there is none.
    async fn console(&self, id: &InstanceId) -> Result<Vec<u8>, ComputeError>;

    /// Removes every trace: process, control group, folder.
    async fn forget(&self, id: &InstanceId) -> Result<(), ComputeError>;

    /// Forgets every instance and removes what the host module itself made.
    async fn purge(&self) -> Result<(), ComputeError>;

    /// The instances whose VMMs have ended: time to look again.
    fn exits(&self) -> broadcast::Receiver<InstanceId>;
}

/// How many ends of VMMs may be waiting to be heard of; who misses some looks at all.
const EXITS: usize = 1024;

/// Instances that can be stopped where they are, when the host has no disk left
/// for what they write. They notice nothing but the time that has passed.
pub trait Pausable: Send + Sync {
    /// Stops the instance where it is, or lets it go on; one that isn't there is
    /// no error.
    ///
    /// # Errors
    /// When the host can't do it.
    fn set_paused(&self, id: &InstanceId, paused: bool) -> std::io::Result<()>;

    /// The instances that are stopped so, whoever did it.
    ///
    /// # Errors
    /// When the host can't be asked.
    fn paused(&self) -> std::io::Result<BTreeSet<InstanceId>>;

    /// Has something that is there for speed alone make room on the disk, before anybody is
    /// paused; false: there is nothing of that kind any more.
    ///
    /// # Errors
    /// When it can't be removed.
    fn give_way(&self) -> std::io::Result<bool>;

    /// What the memory of hibernated instances takes on this host's disk, in bytes.
    ///
    /// # Errors
    /// When the host can't be asked.
    fn kept_bytes(&self) -> std::io::Result<u64>;
}

/// Says what there is beyond all promises, for what is no instance's. Who takes of it
/// gives it back as soon as there is less: a promise goes first.
pub trait Spare: Send + Sync + fmt::Debug {
    /// What of the host no instance and no volume was promised.
    fn left(&self) -> Quota;
}

/// The SMBIOS UUID of an instance: the same for its whole life, and beginning
/// with `ec2`, by which cloud-init and others tell EC2.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html>
pub fn smbios_uuid(id: &InstanceId) -> String {
    let d = hex::encode(Sha256::digest(id.as_str()));
    format!(
        "ec2{}-{}-{}-{}-{}",
        &d[..5],
        &d[5..9],
        &d[9..13],
        &d[13..17],
        &d[17..29]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_is_ec2s_and_stable() {
        let id = InstanceId::from_random(7);
        let uuid = smbios_uuid(&id);
        assert_eq!(uuid, smbios_uuid(&id));
        assert_ne!(uuid, smbios_uuid(&InstanceId::from_random(8)));
        assert!(uuid.starts_with("ec2"));
        assert_eq!(
            uuid.split('-').map(str::len).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
    }
}
