//! Resources as services beside EC2 have them, whose identifiers are names and ARNs. No
//! list of kinds has them, so the view keeps none.

use serde::{Deserialize, Serialize};

use crate::{ConditionKey, Listed, Scope, condition_key::aws, resource::resource};

/// A role of IAM: it has a name, and its ARN no region.
///
/// <https://docs.aws.amazon.com/IAM/latest/APIReference/API_Role.html>
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Role {
    /// Its name.
    pub id: RoleName,
    /// The account that it is in.
    pub scope: Scope,
}

resource! {
    Role {
        /// A role's name.
        id: RoleName = { name: 64, more: "_+=,.@-" },
        kind: "roles",
        key: id,
        service: "iam",
        arn: "role", in_region: false,
        malformed: "ValidationError",
        not_found: "NoSuchEntity",
        noun: "role",
        absent: [
            "The role with name {ids} cannot be found.",
            "The roles with names {ids} cannot be found.",
        ],
        in_use: "Cannot delete entity, must remove roles from instance profile first.",
        indexes: [],
        conditions: conditions,
    }
}

impl Role {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        vec![(aws::REQUESTED_REGION, self.scope.region.clone())]
    }
}

impl Listed for Role {
    const SLOT: usize = usize::MAX;
}

/// A load balancer: its identifier is its ARN, it is kept under its name.
///
/// <https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_LoadBalancer.html>
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadBalancer {
    /// Its ARN.
    pub id: LoadBalancerArn,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its name, unique in its scope.
    pub name: String,
}

resource! {
    LoadBalancer {
        /// A load balancer's ARN.
        id: LoadBalancerArn = { arn },
        kind: "load-balancers",
        key: name,
        service: "elasticloadbalancing",
        arn: "loadbalancer",
        malformed: "ValidationError",
        not_found: "LoadBalancerNotFound",
        noun: "load balancer",
        absent: [
            "Load balancers '[{ids}]' not found",
            "Load balancers '[{ids}]' not found",
        ],
        indexes: [],
        conditions: conditions,
    }
}

impl LoadBalancer {
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        Vec::new()
    }
}

impl Listed for LoadBalancer {
    const SLOT: usize = usize::MAX;
}
