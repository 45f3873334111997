//! VPCs and subnets.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{
    ConditionKey, Described, DhcpOptionsId, Index, Scope, condition_key::ec2, resource::resource,
};

/// A virtual private cloud: one network namespace on each host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// Its id.
    pub id: VpcId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// Whether it is the account's default VPC.
    pub is_default: bool,
    /// Its DHCP options.
    pub dhcp_options: DhcpOptionsId,
}

resource! {
    Vpc {
        /// A VPC's identifier.
        id: VpcId = "vpc",
        kind: "vpcs",
        key: id,
        service: "ec2",
        arn: "vpc",
        malformed: "InvalidVpcID.Malformed",
        not_found: "InvalidVpcID.NotFound",
        noun: "vpc ID",
        in_use: "The vpc '{id}' has dependencies and cannot be deleted.",
        indexes: [],
        conditions: conditions,
    }
}

impl Vpc {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        vec![
            (ec2::TENANCY, "default".to_owned()),
            (ec2::VPC_ID, self.id.to_string()),
        ]
    }
}

/// The ARN of a VPC, as the condition key `ec2:Vpc` has it.
pub(super) fn vpc_arn(scope: &Scope, id: &VpcId) -> String {
    Vpc::arn_at(scope, id.as_str()).to_string()
}

/// A part of a VPC's addresses, in one availability zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its addresses. The first four and the last are EC2's own.
    pub cidr: Ipv4Net,
    /// Its availability zone.
    pub zone: String,
    /// Whether it is its zone's default subnet.
    pub is_default: bool,
    /// `MapPublicIpOnLaunch`.
    pub map_public_ip: bool,
}

resource! {
    Subnet {
        /// A subnet's identifier.
        id: SubnetId = "subnet",
        kind: "subnets",
        key: id,
        service: "ec2",
        arn: "subnet",
        malformed: "InvalidSubnetID.Malformed",
        not_found: "InvalidSubnetID.NotFound",
        noun: "subnet ID",
        in_use: "The subnet '{id}' has dependencies and cannot be deleted.",
        indexes: [],
        refers: [BY_VPC => Vpc],
        conditions: conditions,
    }
}

impl Subnet {
    /// By its VPC.
    pub const BY_VPC: Index<Self> = Index {
        name: "vpc",
        keys: |this, key| key(this.vpc.as_str()),
    };

    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        vec![
            (ec2::AVAILABILITY_ZONE, self.zone.clone()),
            (ec2::AVAILABILITY_ZONE_ID, crate::zone_id(&self.zone)),
            (ec2::SUBNET_ID, self.id.to_string()),
            (ec2::VPC, vpc_arn(&self.scope, &self.vpc)),
        ]
    }

    /// The router's address: the first after the network's own.
    pub fn router(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()) + 1)
    }

    /// How many addresses interfaces may have: all but EC2's first four and the
    /// last.
    ///
    /// <https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html>
    pub fn usable(&self) -> u32 {
        let last = u32::from(self.cidr.broadcast());
        last.saturating_sub(self.first_usable())
    }

    /// The `n`th of these, 0 the first.
    pub fn usable_at(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first_usable().saturating_add(n))
    }

    fn first_usable(&self) -> u32 {
        u32::from(self.cidr.network()).saturating_add(4)
    }
}
