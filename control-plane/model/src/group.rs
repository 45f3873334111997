//! Security groups and their rules.
//!
//! <https://docs.aws.amazon.com/vpc/latest/userguide/vpc-security-groups.html>

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{
    Authority, ConditionKey, Described as _, Index, Part, Scope, VpcId,
    condition_key::ec2,
    resource::{regional, resource},
    vpc::vpc_arn,
};

/// A security group with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: GroupId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its name, unique in the VPC.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Its rules, in the order they were made.
    pub rules: Vec<Rule>,
    /// Whether it is about to be deleted: nothing new may refer to it.
    #[serde(default)]
    pub deleting: bool,
}

resource! {
    SecurityGroup {
        /// A security group's identifier.
        id: GroupId = "sg",
        kind: "security-groups",
        key: id,
        service: "ec2",
        arn: "security-group",
        malformed: "InvalidGroupId.Malformed",
        not_found: "InvalidGroup.NotFound",
        noun: "security group",
        in_use: "resource {id} has a dependent object",
        indexes: [BY_NAME, BY_RULE, DELETING],
        refers: [BY_VPC => Vpc, BY_PEER => SecurityGroup],
        conditions: conditions,
    }
}

impl SecurityGroup {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        vec![
            (ec2::SECURITY_GROUP_ID, self.id.to_string()),
            (ec2::VPC, vpc_arn(&self.scope, &self.vpc)),
        ]
    }
}

crate::ids::identifier! {
    /// The identifier of one rule of a security group.
    RuleId = "sgr" of "ec2" "security-group-rule",
    "InvalidSecurityGroupRuleId.Malformed",
    "InvalidSecurityGroupRuleId.NotFound",
    "security group rule ID"
}

impl Part for RuleId {
    type Whole = SecurityGroup;
    const TYPE: &'static str = "security-group-rule";
    const INDEX: Index<SecurityGroup> = SecurityGroup::BY_RULE;
}

impl SecurityGroup {
    /// The name of the group that each VPC is born with, and that nobody can delete.
    pub const DEFAULT: &'static str = "default";

    /// By its VPC and name: [`SecurityGroup::named`].
    pub const BY_NAME: Index<Self> = Index {
        name: "name",
        keys: |this, key| key(&Self::named(&this.vpc, &this.name)),
    };
    /// By the id of each of its rules.
    pub const BY_RULE: Index<Self> = Index {
        name: "rule",
        keys: |this, key| this.rules.iter().for_each(|rule| key(rule.id.as_str())),
    };
    /// By its VPC, but for the default group, which goes with that.
    pub const BY_VPC: Index<Self> = Index {
        name: "vpc",
        keys: |this, key| {
            if this.name != Self::DEFAULT {
                key(this.vpc.as_str());
            }
        },
    };
    /// By each other group that its rules name.
    pub const BY_PEER: Index<Self> = Index {
        name: "peer",
        keys: |this, key| {
            for rule in &this.rules {
                if let Peer::Group(id) = &rule.peer
                    && *id != this.id
                {
                    key(id.as_str());
                }
            }
        },
    };

    /// Those that are about to be deleted, under the empty key.
    pub const DELETING: Index<Self> = Index {
        name: "deleting",
        keys: |this, key| {
            if this.deleting {
                key("");
            }
        },
    };

    /// The key of [`SecurityGroup::BY_NAME`].
    pub fn named(vpc: &VpcId, name: &str) -> String {
        format!("{vpc} {name}")
    }
}

/// A group's name in its VPC, taken: a record of its own, so that of two calls
/// that take the same name only one commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupName {
    /// [`SecurityGroup::named`].
    pub name: String,
    /// The account and region that it is in.
    pub scope: Scope,
    /// The group that has it.
    pub group: GroupId,
}

regional! {
    GroupName {
        kind: "group-names",
        key: name,
        indexes: [],
        authority: |this| Authority::Of(SecurityGroup::arn_at(&this.scope, this.group.as_str())),
    }
}

impl GroupName {
    /// The record of a group's name.
    pub fn of(group: &SecurityGroup) -> Self {
        Self {
            name: SecurityGroup::named(&group.vpc, &group.name),
            scope: group.scope.clone(),
            group: group.id.clone(),
        }
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
