//! VPCs and subnets.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{DhcpOptionsId, Resource, SubnetId, VpcId};

/// A virtual private cloud: one network namespace on each host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// Its id.
    pub id: VpcId,
    /// Its owner's account.
    pub owner: String,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// Whether it is the account's default VPC.
    pub is_default: bool,
    /// Its DHCP options.
    pub dhcp_options: DhcpOptionsId,
}

impl Resource for Vpc {
    const KIND: &'static str = "vpcs";
    fn id(&self) -> &str {
        self.id.as_str()
    }
}

/// A part of a VPC's addresses, in one availability zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// Its owner's account.
    pub owner: String,
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

impl Resource for Subnet {
    const KIND: &'static str = "subnets";
    fn id(&self) -> &str {
        self.id.as_str()
    }
}

impl Subnet {
    /// The router's address: the first after the network's own.
    pub fn router(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()) + 1)
    }

    /// The addresses that interfaces may have: all but EC2's first four and the last.
    ///
    /// <https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html>
    pub fn usable(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let first = u32::from(self.cidr.network()).saturating_add(4);
        let last = u32::from(self.cidr.broadcast());
        (first..last).map(Ipv4Addr::from)
    }
}
