//! EBS volumes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ImageId, InstanceId, Resource, VolumeId};

/// A volume: a raw disk of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its owner's account.
    pub owner: String,
    /// Its availability zone.
    pub zone: String,
    /// Its size in GiB, never below the source's.
    pub size_gib: u32,
    /// EC2's name of its class, as `gp3`.
    pub volume_type: String,
    /// The image it is a clone of.
    pub image: Option<ImageId>,
    /// When it was asked for.
    pub created: Timestamp,
    /// Whether it was deleted, and is a record only until it is gone.
    #[serde(default)]
    pub deleting: bool,
    /// What it is attached to.
    pub attachment: Option<VolumeAttachment>,
}

/// A volume's place at an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// The instance.
    pub instance: InstanceId,
    /// The device name that the user gave, as `/dev/xvda`.
    pub device: String,
    /// When it was attached.
    pub attached: Timestamp,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
}

impl Resource for Volume {
    const KIND: &'static str = "volumes";
    fn id(&self) -> &str {
        self.id.as_str()
    }
}
