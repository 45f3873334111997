//! Elastic network interfaces.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{EniAttachmentId, EniId, GroupId, InstanceId, Resource, SubnetId, VpcId};

/// A network interface: the unit that addresses and security groups belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// Its owner's account.
    pub owner: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// Its description.
    pub description: String,
    /// Its MAC address, locally administered and unicast.
    pub mac: [u8; 6],
    /// Its private address, kept for its life.
    pub private_ip: Ipv4Addr,
    /// Its public address, while its instance runs.
    pub public_ip: Option<Ipv4Addr>,
    /// Whether a public address is wanted whenever its instance starts.
    pub auto_public_ip: bool,
    /// Its security groups.
    pub groups: Vec<GroupId>,
    /// `SourceDestCheck`: whether only its own addresses may pass.
    pub source_dest_check: bool,
    /// The instance it belongs to.
    pub instance: Option<InstanceId>,
    /// Its place among the instance's interfaces, 0 the primary.
    pub device_index: u32,
    /// Its attachment's id.
    pub attachment: Option<EniAttachmentId>,
}

impl Resource for Eni {
    const KIND: &'static str = "network-interfaces";
    fn id(&self) -> &str {
        self.id.as_str()
    }
}

impl Eni {
    /// The MAC address in the usual colon form.
    pub fn mac_string(&self) -> String {
        let [a, b, c, d, e, f] = self.mac;
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}
