//! Elastic IP addresses.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/elastic-ip-addresses-eip.html>

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ConditionKey, EniId, Index, Scope, condition_key::ec2, resource::resource};

/// A public address that an account holds until it releases it. That nobody else has it
/// is said by its [`PublicAddress`](super::PublicAddress).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElasticIp {
    /// Its allocation's id.
    pub id: AllocationId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// The address.
    pub address: Ipv4Addr,
    /// When it was allocated.
    pub allocated: Timestamp,
    /// What it is associated with. That interface's `public_ip` is this address, then.
    pub association: Option<Association>,
}

/// The association of an Elastic IP address with the one private address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Association {
    /// Its id.
    pub id: AssociationId,
    /// The interface.
    pub eni: EniId,
}

resource! {
    ElasticIp {
        /// The allocation of an Elastic IP address.
        id: AllocationId = "eipalloc",
        kind: "elastic-ips",
        key: id,
        service: "ec2",
        arn: "elastic-ip",
        malformed: "InvalidParameterValue",
        not_found: "InvalidAllocationID.NotFound",
        noun: "allocation ID",
        indexes: [BY_ADDRESS, BY_ASSOCIATION, BY_ENI],
        conditions: conditions,
    }
}

crate::ids::identifier! {
    /// The association of an Elastic IP address.
    AssociationId = "eipassoc" of "ec2" "elastic-ip",
    "InvalidParameterValue", "InvalidAssociationID.NotFound", "association ID"
}

impl ElasticIp {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        vec![
            (ec2::ALLOCATION_ID, self.id.to_string()),
            (ec2::DOMAIN, "vpc".to_owned()),
            (ec2::PUBLIC_IP_ADDRESS, self.address.to_string()),
        ]
    }

    /// By the address.
    pub const BY_ADDRESS: Index<Self> = Index {
        name: "address",
        keys: |this, key| key(&this.address.to_string()),
    };
    /// By its association.
    pub const BY_ASSOCIATION: Index<Self> = Index {
        name: "association",
        keys: |this, key| {
            if let Some(association) = &this.association {
                key(association.id.as_str());
            }
        },
    };
    /// By the interface that it is associated with.
    pub const BY_ENI: Index<Self> = Index {
        name: "eni",
        keys: |this, key| {
            if let Some(association) = &this.association {
                key(association.eni.as_str());
            }
        },
    };
}
