//! Security groups and their rules.
//!
//! <https://docs.aws.amazon.com/vpc/latest/userguide/vpc-security-groups.html>

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{GroupId, Resource, RuleId, VpcId};

/// A security group with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: GroupId,
    /// Its owner's account.
    pub owner: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its name, unique in the VPC.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Its rules, in the order they were made.
    pub rules: Vec<Rule>,
}

impl Resource for SecurityGroup {
    const KIND: &'static str = "security-groups";
    fn id(&self) -> &str {
        self.id.as_str()
    }
}

/// One rule: one direction, one protocol and port range, one peer. EC2 groups
/// them into `IpPermissions` for its older calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its id.
    pub id: RuleId,
    /// Which way the first packet goes.
    pub direction: Direction,
    /// What it lets through.
    pub matcher: Protocol,
    /// Whom it lets through.
    pub peer: Peer,
    /// The caller's note.
    pub description: Option<String>,
}

/// Seen from the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the instance.
    Ingress,
    /// From the instance.
    Egress,
}

/// A protocol with its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// `-1`: everything.
    All,
    /// `tcp`, ports inclusive.
    Tcp {
        /// First port.
        from: u16,
        /// Last port.
        to: u16,
    },
    /// `udp`, ports inclusive.
    Udp {
        /// First port.
        from: u16,
        /// Last port.
        to: u16,
    },
    /// `icmp`; -1 on EC2's wire is `None` here: any.
    Icmp {
        /// ICMP type.
        kind: Option<u8>,
        /// ICMP code.
        code: Option<u8>,
    },
    /// `icmpv6`.
    Icmpv6 {
        /// ICMPv6 type.
        kind: Option<u8>,
        /// ICMPv6 code.
        code: Option<u8>,
    },
    /// Another protocol by its IANA number.
    Number(u8),
}

/// The other side of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// An IPv4 range.
    Ipv4(Ipv4Net),
    /// An IPv6 range; kept and shown, but there is no IPv6 in a VPC yet.
    Ipv6(Ipv6Net),
    /// The members of a group of the same VPC.
    Group(GroupId),
}
