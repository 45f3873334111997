//! What one RunInstances call launches.
//!
//! A launch of a thousand instances is more than one transaction can carry. So
//! the call's own transaction writes this record, with every id allocated; then
//! its members get their records in several. Whoever finds one that a crash has
//! left half-way goes on from there: `records::launch` of the control plane. One
//! whose call had to be refused half-way is marked so, and ends.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Arn, Authority, Described as _, EniAttachmentId, EniId, GroupId, ImageId, Index, Instance,
    InstanceId, ReservationId, Scope, Settings, SubnetId, VolumeId, VpcId, resource::regional,
};

/// A reservation: what its instances have in common, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Its id.
    pub id: ReservationId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// When the call came.
    pub created: Timestamp,
    /// User data, base64 as it came; decoded at most 16 KiB.
    pub user_data: Option<String>,
    /// What is still to be made; `None` when all members have their records.
    pub pending: Option<Box<Launch>>,
}

/// What the members of a reservation are made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Their ids, in the order of their launch indexes.
    pub members: Vec<Member>,
    /// The image.
    pub image: ImageId,
    /// Its root device's name.
    pub root_device_name: String,
    /// The name of the instance type.
    pub instance_type: String,
    /// The name of the key pair.
    pub key_name: Option<String>,
    /// Its public key.
    pub public_key: Option<String>,
    /// The VPC.
    pub vpc: VpcId,
    /// The subnet.
    pub subnet: SubnetId,
    /// The availability zone.
    pub zone: String,
    /// The security groups.
    pub groups: Vec<GroupId>,
    /// Whether each gets a public address.
    pub public: bool,
    /// The interface's description.
    pub description: String,
    /// The root volume's size in GiB.
    pub volume_gib: u32,
    /// Its class.
    pub volume_type: String,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
    /// The caller's idempotency token.
    pub client_token: Option<String>,
    /// How they behave.
    #[serde(flatten)]
    pub settings: Settings,
    /// Their tags.
    pub instance_tags: BTreeMap<String, String>,
    /// Their volumes' tags.
    pub volume_tags: BTreeMap<String, String>,
    /// Their interfaces' tags.
    pub interface_tags: BTreeMap<String, String>,
    /// Whether the call was answered with an error after all: no more instances are
    /// made, the members are those that there were, and they end. A program that
    /// doesn't know this makes none either.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refused: bool,
}

// As serde calls it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The ids of one instance and of what comes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The instance.
    pub instance: InstanceId,
    /// Its interface.
    pub eni: EniId,
    /// The interface's attachment.
    pub attachment: EniAttachmentId,
    /// The interface's MAC address.
    pub mac: [u8; 6],
    /// Its root volume.
    pub volume: VolumeId,
}

regional! {
    Reservation {
        kind: "reservations",
        key: id,
        indexes: [PENDING],
        // Whoever finds it makes its instances.
        authority: |this| Authority::Of(Instance::arn_at(&this.scope, Arn::ANY)),
        refers: [BY_SUBNET => Subnet, BY_GROUP => SecurityGroup],
    }
}

impl Reservation {
    /// Those with members that are still to be made, under the empty key.
    pub const PENDING: Index<Self> = Index {
        name: "pending",
        keys: |this, key| {
            if this.pending.is_some() {
                key("");
            }
        },
    };
    /// The same, by the subnet.
    pub const BY_SUBNET: Index<Self> = Index {
        name: "subnet",
        keys: |this, key| {
            if let Some(launch) = &this.pending {
                key(launch.subnet.as_str());
            }
        },
    };
    /// The same, by each of the security groups.
    pub const BY_GROUP: Index<Self> = Index {
        name: "group",
        keys: |this, key| {
            let groups = this.pending.iter().flat_map(|launch| &launch.groups);
            groups.for_each(|group| key(group.as_str()));
        },
    };
}
