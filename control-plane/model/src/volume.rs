//! EBS volumes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ConditionKey, HostId, ImageId, Index, InstanceId, Quota, Scope, condition_key::ec2,
    resource::resource,
};

/// A volume: a raw disk of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its availability zone.
    pub zone: String,
    /// The host whose storage it is in; none before it is placed. No other
    /// host's controllers touch it.
    #[serde(default)]
    pub host: Option<HostId>,
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

resource! {
    Volume {
        /// An EBS volume's identifier.
        id: VolumeId = "vol",
        kind: "volumes",
        key: id,
        service: "ec2",
        arn: "volume",
        malformed: "InvalidVolumeID.Malformed",
        not_found: "InvalidVolume.NotFound",
        noun: "volume",
        indexes: [BY_INSTANCE, DELETING],
        claim: taken,
        conditions: conditions,
    }
}

impl Volume {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        vec![
            (ec2::AVAILABILITY_ZONE, self.zone.clone()),
            (ec2::AVAILABILITY_ZONE_ID, crate::zone_id(&self.zone)),
            (ec2::ENCRYPTED, "false".to_owned()),
            (ec2::VOLUME_ID, self.id.to_string()),
            (ec2::VOLUME_SIZE, self.size_gib.to_string()),
            (ec2::VOLUME_TYPE, self.volume_type.clone()),
        ]
    }

    fn taken(&self) -> Option<(&HostId, Quota)> {
        let disk_gib = u64::from(self.size_gib);
        let quota = Quota {
            disk_gib,
            ..Quota::default()
        };
        self.host.as_ref().map(|host| (host, quota))
    }

    /// By the instance that it is attached to.
    pub const BY_INSTANCE: Index<Self> = Index {
        name: "instance",
        keys: |this, key| {
            if let Some(attachment) = &this.attachment {
                key(attachment.instance.as_str());
            }
        },
    };
    /// Those that were deleted and are attached to nothing, under the empty key.
    pub const DELETING: Index<Self> = Index {
        name: "deleting",
        keys: |this, key| {
            if this.deleting && this.attachment.is_none() {
                key("");
            }
        },
    };
}

crate::ids::identifier! {
    /// An EBS snapshot's identifier.
    SnapshotId = "snap" of "ec2" "snapshot",
    "InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound", "snapshot"
}
