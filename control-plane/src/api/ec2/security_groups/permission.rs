//! `IpPermissions`: EC2's older form of rules, which puts all peers of one
//! protocol and port range together; and the rules that we keep.

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{named, plain_text};
use crate::{
    api::{
        ApiError,
        shared::{not_found, parse_id},
    },
    model::{Direction, GroupId, Peer, Protocol, Rule, SecurityGroup},
    store::Scoped,
};

/// An `IpPermission` of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Input {
    pub ip_protocol: Option<String>,
    pub from_port: Option<i32>,
    pub to_port: Option<i32>,
    #[serde(default)]
    pub ip_ranges: Vec<RangeInput>,
    #[serde(default)]
    pub ipv6_ranges: Vec<Range6Input>,
    #[serde(default)]
    pub groups: Vec<GroupInput>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct RangeInput {
    pub cidr_ip: String,
    pub description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Range6Input {
    pub cidr_ipv6: String,
    pub description: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct GroupInput {
    pub group_id: Option<String>,
    pub group_name: Option<String>,
    pub user_id: Option<String>,
    pub description: Option<String>,
}

/// What we don't have of an `IpPermission`, for every action that has one.
pub(super) const UNSUPPORTED: &[&str] = &[
    "IpPermissions.PrefixListIds",
    "IpPermissions.Groups.VpcId",
    "IpPermissions.Groups.VpcPeeringConnectionId",
    "IpPermissions.Groups.PeeringStatus",
];

/// A rule that has no id yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub matcher: Protocol,
    pub peer: Peer,
    pub description: Option<String>,
}

impl Wanted {
    pub(super) fn is(&self, rule: &Rule, direction: Direction) -> bool {
        rule.direction == direction && rule.matcher == self.matcher && rule.peer == self.peer
    }

    /// As EC2 words a rule in its errors.
    fn words(&self) -> String {
        let (from, to) = ports(self.matcher);
        let ports = match (from, to) {
            (Some(from), Some(to)) => format!("from port: {from}, to port: {to}, "),
            _ => String::new(),
        };
        let protocol = match self.matcher {
            Protocol::All => "ALL".to_owned(),
            other => protocol_name(other).to_uppercase(),
        };
        let peer = match &self.peer {
            Peer::Ipv4(net) => net.to_string(),
            Peer::Ipv6(net) => net.to_string(),
            Peer::Group(id) => id.to_string(),
        };
        format!("peer: {peer}, {protocol}, {ports}ALLOW")
    }
}

/// That a group has such a rule already.
pub(super) fn duplicate(new: &Wanted) -> ApiError {
    ApiError::new(
        "InvalidPermission.Duplicate",
        format!("the specified rule \"{}\" already exists", new.words()),
    )
}

/// That a group has no such rule.
pub(super) fn no_such_rule() -> ApiError {
    ApiError::new(
        "InvalidPermission.NotFound",
        "The specified rule does not exist in this security group.",
    )
}

/// The single rules of a request's permissions, for a group of `owner`'s.
pub(super) fn expand(
    view: Scoped<'_>,
    owner: &SecurityGroup,
    permissions: &[Input],
) -> Result<Vec<Wanted>, ApiError> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for permission in permissions {
        let (from, to) = (permission.from_port, permission.to_port);
        let matcher = protocol(permission.ip_protocol.as_deref(), from, to)?;
        let mut peers = Vec::new();
        for range in &permission.ip_ranges {
            peers.push((Peer::Ipv4(cidr4(&range.cidr_ip)?), &range.description));
        }
        for range in &permission.ipv6_ranges {
            peers.push((Peer::Ipv6(cidr6(&range.cidr_ipv6)?), &range.description));
        }
        for group in &permission.groups {
            peers.push((
                Peer::Group(peer_group(view, owner, group)?),
                &group.description,
            ));
        }
        if peers.is_empty() {
            return Err(ApiError::missing(
                "IpPermissions.IpRanges, Ipv6Ranges or Groups",
            ));
        }
        for (peer, description) in peers {
            let new = Wanted {
                matcher,
                peer,
                description: noted(description.as_deref())?,
            };
            if wanted
                .iter()
                .any(|w| w.matcher == new.matcher && w.peer == new.peer)
            {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    "The same permission must not appear multiple times",
                ));
            }
            wanted.push(new);
        }
    }
    Ok(wanted)
}

/// A rule's description: an empty one is none.
pub(super) fn noted(description: Option<&str>) -> Result<Option<String>, ApiError> {
    if description.is_some_and(|text| !plain_text(text)) {
        return Err(ApiError::new(
            "InvalidParameterValue",
            "Invalid rule description. Valid descriptions are strings less than 256 characters from the following set: a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*",
        ));
    }
    let text = description.filter(|text| !text.is_empty());
    Ok(text.map(str::to_owned))
}

/// A protocol by its name or number, with its `FromPort` and `ToPort`.
pub(super) fn protocol(
    name: Option<&str>,
    from: Option<i32>,
    to: Option<i32>,
) -> Result<Protocol, ApiError> {
    let name = name.ok_or_else(|| ApiError::missing("IpProtocol"))?;
    let port_range = || {
        let (Some(from), Some(to)) = (from, to) else {
            return Err(ApiError::new(
                "InvalidParameterValue",
                "Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange.",
            ));
        };
        match (u16::try_from(from), u16::try_from(to)) {
            (Ok(from), Ok(to)) if from <= to => Ok((from, to)),
            _ => Err(ApiError::new(
                "InvalidParameterValue",
                format!("Invalid TCP/UDP port range ({from}:{to})"),
            )),
        }
    };
    let icmp = || {
        let part = |parameter, value: Option<i32>| match value {
            None | Some(-1) => Ok(None),
            Some(value) => u8::try_from(value).map(Some).map_err(|_| {
                let why = "It must be -1, or from 0 to 255.";
                ApiError::invalid_value(parameter, &value.to_string(), why)
            }),
        };
        let (kind, code) = (part("FromPort", from)?, part("ToPort", to)?);
        if kind.is_none() && code.is_some() {
            return Err(ApiError::new(
                "InvalidParameterValue",
                "ICMP code (ToPort) must be -1 when the type (FromPort) is",
            ));
        }
        Ok((kind, code))
    };
    match name.to_ascii_lowercase().as_str() {
        "-1" | "all" => Ok(Protocol::All),
        "tcp" | "6" => port_range().map(|(from, to)| Protocol::Tcp { from, to }),
        "udp" | "17" => port_range().map(|(from, to)| Protocol::Udp { from, to }),
        "icmp" | "1" => icmp().map(|(kind, code)| Protocol::Icmp { kind, code }),
        "icmpv6" | "58" => icmp().map(|(kind, code)| Protocol::Icmpv6 { kind, code }),
        other => match other.parse() {
            Ok(number) => Ok(Protocol::Number(number)),
            Err(_) => Err(ApiError::invalid_value(
                "IpProtocol",
                name,
                "It must be tcp, udp, icmp, icmpv6, -1 or a protocol number.",
            )),
        },
    }
}

pub(super) fn cidr4(text: &str) -> Result<Ipv4Net, ApiError> {
    let net: Ipv4Net = text.parse().map_err(|_| malformed_cidr(text))?;
    // EC2 drops the host bits, too.
    Ok(net.trunc())
}

pub(super) fn cidr6(text: &str) -> Result<Ipv6Net, ApiError> {
    let net: Ipv6Net = text.parse().map_err(|_| malformed_cidr(text))?;
    Ok(net.trunc())
}

fn malformed_cidr(text: &str) -> ApiError {
    let text = crate::api::wire::quoted(text);
    ApiError::new(
        "InvalidParameterValue",
        format!("CIDR block {text} is malformed"),
    )
}

pub(super) fn peer_group(
    view: Scoped<'_>,
    owner: &SecurityGroup,
    input: &GroupInput,
) -> Result<GroupId, ApiError> {
    if input
        .user_id
        .as_deref()
        .is_some_and(|id| id != owner.scope.account)
    {
        return Err(ApiError::unsupported("A security group of another account"));
    }
    let group = match (&input.group_id, &input.group_name) {
        (Some(id), _) => {
            let id: GroupId = parse_id(id)?;
            view.get::<SecurityGroup>(&id)
                .filter(|group| group.vpc == owner.vpc)
                .ok_or_else(|| not_found::<GroupId>(&id))?
        }
        (None, Some(name)) => named(view, &owner.vpc, name)?,
        (None, None) => return Err(ApiError::missing("IpPermissions.Groups.GroupId")),
    };
    Ok(group.id.clone())
}

/// A rule's peer as EC2's newer calls show it: one of three.
#[derive(Debug, Default)]
pub(super) struct PeerText {
    pub cidr_ipv4: Option<String>,
    pub cidr_ipv6: Option<String>,
    pub group: Option<String>,
}

impl PeerText {
    pub(super) fn new(peer: &Peer) -> Self {
        let mut text = Self::default();
        match peer {
            Peer::Ipv4(net) => text.cidr_ipv4 = Some(net.to_string()),
            Peer::Ipv6(net) => text.cidr_ipv6 = Some(net.to_string()),
            Peer::Group(id) => text.group = Some(id.to_string()),
        }
        text
    }
}

/// EC2's name of a protocol.
pub(super) fn protocol_name(protocol: Protocol) -> String {
    match protocol {
        Protocol::All => "-1".into(),
        Protocol::Tcp { .. } => "tcp".into(),
        Protocol::Udp { .. } => "udp".into(),
        Protocol::Icmp { .. } => "icmp".into(),
        Protocol::Icmpv6 { .. } => "icmpv6".into(),
        Protocol::Number(number) => number.to_string(),
    }
}

/// `FromPort` and `ToPort`, where a protocol has them.
pub(super) fn ports(protocol: Protocol) -> (Option<i32>, Option<i32>) {
    let any = |part: Option<u8>| Some(part.map_or(-1, i32::from));
    match protocol {
        Protocol::All | Protocol::Number(_) => (None, None),
        Protocol::Tcp { from, to } | Protocol::Udp { from, to } => {
            (Some(i32::from(from)), Some(i32::from(to)))
        }
        Protocol::Icmp { kind, code } | Protocol::Icmpv6 { kind, code } => (any(kind), any(code)),
    }
}

/// An `IpPermission` of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Permission {
    ip_protocol: String,
    from_port: Option<i32>,
    to_port: Option<i32>,
    groups: Vec<GroupPair>,
    ip_ranges: Vec<IpRange>,
    ipv6_ranges: Vec<Ipv6Range>,
    prefix_list_ids: Vec<PrefixList>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupPair {
    user_id: String,
    group_id: String,
    description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IpRange {
    cidr_ip: String,
    description: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipv6Range {
    cidr_ipv6: String,
    description: Option<String>,
}

/// Always empty: EC2 shows the list all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PrefixList {
    prefix_list_id: String,
}

/// A group's rules of one direction, put together as EC2 shows them.
pub(super) fn collect(group: &SecurityGroup, direction: Direction) -> Vec<Permission> {
    let mut out: Vec<(Protocol, Permission)> = Vec::new();
    for rule in group.rules.iter().filter(|r| r.direction == direction) {
        let at = out
            .iter()
            .position(|(p, _)| *p == rule.matcher)
            .unwrap_or_else(|| {
                let (from_port, to_port) = ports(rule.matcher);
                out.push((
                    rule.matcher,
                    Permission {
                        ip_protocol: protocol_name(rule.matcher),
                        from_port,
                        to_port,
                        groups: Vec::new(),
                        ip_ranges: Vec::new(),
                        ipv6_ranges: Vec::new(),
                        prefix_list_ids: Vec::new(),
                    },
                ));
                out.len() - 1
            });
        let permission = &mut out[at].1;
        let description = rule.description.clone();
        match &rule.peer {
            Peer::Ipv4(net) => permission.ip_ranges.push(IpRange {
                cidr_ip: net.to_string(),
                description,
            }),
            Peer::Ipv6(net) => permission.ipv6_ranges.push(Ipv6Range {
                cidr_ipv6: net.to_string(),
                description,
            }),
            Peer::Group(id) => permission.groups.push(GroupPair {
                user_id: group.scope.account.clone(),
                group_id: id.to_string(),
                description,
            }),
        }
    }
    out.into_iter().map(|(_, permission)| permission).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        let read = |name, from, to| protocol(Some(name), from, to).ok();
        let tcp = Protocol::Tcp { from: 22, to: 80 };
        assert_eq!(read("tcp", Some(22), Some(80)), Some(tcp));
        assert_eq!(read("6", Some(22), Some(80)), Some(tcp));
        assert_eq!(read("TCP", Some(22), Some(80)), Some(tcp));
        assert_eq!(read("tcp", Some(80), Some(22)), None);
        assert_eq!(read("tcp", None, Some(22)), None);
        assert_eq!(read("udp", Some(-1), Some(-1)), None);
        assert_eq!(read("udp", Some(0), Some(65536)), None);
        assert_eq!(read("-1", Some(7), None), Some(Protocol::All));
        let ping = Protocol::Icmp {
            kind: Some(8),
            code: None,
        };
        assert_eq!(read("icmp", Some(8), Some(-1)), Some(ping));
        assert_eq!(read("icmp", Some(-1), Some(0)), None);
        assert_eq!(read("icmp", Some(256), Some(0)), None);
        assert_eq!(read("50", None, None), Some(Protocol::Number(50)));
        assert_eq!(read("256", None, None), None);
        assert_eq!(read("esp", None, None), None);
    }

    #[test]
    fn host_bits_are_dropped() {
        assert_eq!(
            cidr4("100.68.0.18/18").unwrap().to_string(),
            "100.68.0.0/18"
        );
        assert_eq!(
            cidr6("2001:db8::1/32").unwrap().to_string(),
            "2001:db8::/32"
        );
        for bad in ["", "1.2.3.4", "1.2.3.4/33", "::/0"] {
            assert!(cidr4(bad).is_err(), "{bad}");
        }
    }
}
