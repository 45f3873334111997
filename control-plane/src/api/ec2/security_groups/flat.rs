//! The flat form of one permission, which ingress has from EC2's first days
//! beside `IpPermissions`.

use super::permission::{GroupInput, Input, RangeInput};
use crate::api::ApiError;

/// The flat forms, which EC2 lists for egress but does not support there either.
pub(super) const EGRESS_UNSUPPORTED: &[&str] = &[
    "IpPermissions.PrefixListIds",
    "IpPermissions.Groups.VpcId",
    "IpPermissions.Groups.VpcPeeringConnectionId",
    "IpPermissions.Groups.PeeringStatus",
    "CidrIp",
    "FromPort",
    "IpProtocol",
    "SourceSecurityGroupName",
    "SourceSecurityGroupOwnerId",
    "ToPort",
];

/// The flat form of a permission, which ingress has from EC2's first days.
#[derive(Debug, Default)]
pub(super) struct Flat {
    pub ip_protocol: Option<String>,
    pub from_port: Option<i32>,
    pub to_port: Option<i32>,
    pub cidr_ip: Option<String>,
    pub source_group: Option<String>,
    pub source_owner: Option<String>,
}

impl Flat {
    /// Puts the flat form beside the permissions: a request has one or the other.
    pub(super) fn join(self, permissions: Vec<Input>) -> Result<Vec<Input>, ApiError> {
        let plain = self.ip_protocol.is_some()
            || self.from_port.is_some()
            || self.to_port.is_some()
            || self.cidr_ip.is_some();
        let source = self.source_group.is_some() || self.source_owner.is_some();
        match (plain, source, permissions.is_empty()) {
            (false, false, _) => Ok(permissions),
            (true, false, true) => Ok(vec![Input {
                ip_protocol: self.ip_protocol,
                from_port: self.from_port,
                to_port: self.to_port,
                ip_ranges: self
                    .cidr_ip
                    .into_iter()
                    .map(|cidr_ip| RangeInput {
                        cidr_ip,
                        description: None,
                    })
                    .collect(),
                ..Input::default()
            }]),
            (false, true, true) => {
                let group = GroupInput {
                    group_name: self.source_group,
                    user_id: self.source_owner,
                    ..GroupInput::default()
                };
                // As EC2 does: full TCP, UDP and ICMP access.
                let all = [("tcp", 0, 65535), ("udp", 0, 65535), ("icmp", -1, -1)];
                Ok(all
                    .into_iter()
                    .map(|(protocol, from, to)| Input {
                        ip_protocol: Some(protocol.into()),
                        from_port: Some(from),
                        to_port: Some(to),
                        groups: vec![group.clone()],
                        ..Input::default()
                    })
                    .collect())
            }
            (true, true, _) => Err(ApiError::combination(
                "SourceSecurityGroupName can't be combined with CidrIp, IpProtocol, FromPort or ToPort",
            )),
            (_, _, false) => Err(ApiError::combination(
                "IpPermissions can't be combined with the flat parameters of a rule",
            )),
        }
    }
}

/// Takes the flat form out of a request that has its parameters.
macro_rules! flat_of {
    ($request:ident) => {
        Flat {
            ip_protocol: $request.ip_protocol,
            from_port: $request.from_port,
            to_port: $request.to_port,
            cidr_ip: $request.cidr_ip,
            source_group: $request.source_security_group_name,
            source_owner: $request.source_security_group_owner_id,
        }
    };
}
pub(super) use flat_of;
