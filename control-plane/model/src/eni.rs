//! Elastic network interfaces.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{
    ConditionKey, Described as _, EniAttachmentId, GroupId, Index, InstanceId, Scope, Subnet,
    SubnetId, VpcId, condition_key::ec2, resource::resource, vpc::vpc_arn,
};

/// A network interface: the unit that addresses and security groups belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// Its id.
    pub id: EniId,
    /// The account and region that it is in.
    pub scope: Scope,
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
    /// Its public address: what has that, and so until when, says its
    /// [`PublicAddress`](super::PublicAddress).
    pub public_ip: Option<Ipv4Addr>,
    /// The public address that it had before: the next one is another.
    #[serde(default)]
    pub last_public_ip: Option<Ipv4Addr>,
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

resource! {
    Eni {
        /// A network interface's identifier.
        id: EniId = "eni",
        kind: "network-interfaces",
        key: id,
        service: "ec2",
        arn: "network-interface",
        malformed: "InvalidNetworkInterfaceId.Malformed",
        not_found: "InvalidNetworkInterfaceID.NotFound",
        noun: "networkInterface ID",
        indexes: [BY_VPC, BY_ADDRESS, BY_PUBLIC_ADDRESS],
        refers: [BY_SUBNET => Subnet, BY_GROUP => SecurityGroup],
        conditions: conditions,
    }
}

impl Eni {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        let subnet = Subnet::arn_at(&self.scope, self.subnet.as_str());
        vec![
            (ec2::NETWORK_INTERFACE_ID, self.id.to_string()),
            (ec2::SUBNET, subnet.to_string()),
            (ec2::VPC, vpc_arn(&self.scope, &self.vpc)),
        ]
    }
}

impl Eni {
    /// By its VPC.
    pub const BY_VPC: Index<Self> = Index {
        name: "vpc",
        keys: |this, key| key(this.vpc.as_str()),
    };
    /// By its VPC and private address: [`Eni::at_address`].
    pub const BY_ADDRESS: Index<Self> = Index {
        name: "address",
        keys: |this, key| key(&Self::at_address(&this.vpc, this.private_ip)),
    };
    /// By its public address.
    pub const BY_PUBLIC_ADDRESS: Index<Self> = Index {
        name: "public-address",
        keys: |this, key| {
            if let Some(address) = this.public_ip {
                key(&address.to_string());
            }
        },
    };
    /// By its subnet.
    pub const BY_SUBNET: Index<Self> = Index {
        name: "subnet",
        keys: |this, key| key(this.subnet.as_str()),
    };
    /// By each of its security groups.
    pub const BY_GROUP: Index<Self> = Index {
        name: "group",
        keys: |this, key| this.groups.iter().for_each(|group| key(group.as_str())),
    };

    /// The key of [`Eni::BY_ADDRESS`].
    pub fn at_address(vpc: &VpcId, address: Ipv4Addr) -> String {
        format!("{vpc} {address}")
    }
}

impl Eni {
    /// The region that it is in.
    pub fn region(&self) -> &str {
        &self.scope.region
    }

    /// The MAC address in the usual colon form.
    pub fn mac_string(&self) -> String {
        let [a, b, c, d, e, f] = self.mac;
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}
