//! `AuthorizeSecurityGroupIngress` and `AuthorizeSecurityGroupEgress`: one
//! handler, two directions, and ingress has the flat forms of old, too.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AuthorizeSecurityGroupIngress.html>,
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AuthorizeSecurityGroupEgress.html>

use serde::{Deserialize, Serialize};

use super::{
    describe_security_group_rules::RuleItem,
    find,
    permission::{GroupInput, Input, RangeInput, expand},
};
use crate::{
    api::{
        Action, ApiError, Ctx,
        ec2::shared::{TagSpecification, tag},
    },
    model::{Direction, Peer, Rule, RuleId, SecurityGroup},
};

/// EC2's default quota of rules in one direction.
const MAX_RULES: usize = 60;

/// The action.
pub(crate) struct AuthorizeSecurityGroupIngress;

/// The action.
pub(crate) struct AuthorizeSecurityGroupEgress;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct IngressRequest {
    group_id: Option<String>,
    group_name: Option<String>,
    #[serde(default)]
    ip_permissions: Vec<Input>,
    ip_protocol: Option<String>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr_ip: Option<String>,
    source_security_group_name: Option<String>,
    source_security_group_owner_id: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct EgressRequest {
    group_id: String,
    #[serde(default)]
    ip_permissions: Vec<Input>,
    #[serde(default, rename = "TagSpecification")]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    #[serde(rename = "return")]
    done: bool,
    security_group_rule_set: Vec<RuleItem>,
}

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

async fn authorize(
    ctx: &Ctx,
    direction: Direction,
    group: (Option<&str>, Option<&str>),
    permissions: &[Input],
    specifications: &[TagSpecification],
) -> Result<Response, ApiError> {
    let tags = tag::specified_for(specifications, "security-group-rule")?;
    if permissions.is_empty() {
        return Err(ApiError::missing("IpPermissions"));
    }
    let (group, added) = ctx
        .db
        .transact(|view, change| {
            let mut group = find(view, group.0, group.1)?.clone();
            let wanted = expand(view, &group, permissions)?;
            let mut added: Vec<Rule> = Vec::new();
            for new in wanted {
                if group.rules.iter().any(|rule| new.is(rule, direction)) {
                    return Err(ApiError::new(
                        "InvalidPermission.Duplicate",
                        format!("the specified rule \"{}\" already exists", new.words()),
                    ));
                }
                // A group that a rule names must still be there when this commits,
                // and its deletion must see that it is named.
                if let Peer::Group(id) = &new.peer {
                    change.refer_to::<SecurityGroup>(id);
                }
                added.push(Rule {
                    id: ctx.fresh_id(RuleId::from_random),
                    direction,
                    matcher: new.matcher,
                    peer: new.peer,
                    description: new.description,
                });
            }
            let there = group.rules.iter().filter(|r| r.direction == direction);
            if there.count() + added.len() > MAX_RULES {
                return Err(ApiError::new(
                    "RulesPerSecurityGroupLimitExceeded",
                    "The maximum number of rules per security group has been reached.",
                ));
            }
            group.rules.extend(added.iter().cloned());
            change.put(&group);
            if !tags.is_empty() {
                for rule in &added {
                    change.put_tags(&rule.id, tags.clone());
                }
            }
            Ok((group, added))
        })
        .await?;
    let item = |rule| RuleItem::new(ctx, &group, rule, &tags);
    Ok(Response {
        done: true,
        security_group_rule_set: added.iter().map(item).collect(),
    })
}

impl Action for AuthorizeSecurityGroupIngress {
    const NAME: &'static str = "AuthorizeSecurityGroupIngress";
    const IAM: &'static str = "ec2:AuthorizeSecurityGroupIngress";
    const UNSUPPORTED: &'static [&'static str] = super::permission::UNSUPPORTED;
    type Request = IngressRequest;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: IngressRequest) -> Result<Response, ApiError> {
        let flat = Flat {
            ip_protocol: request.ip_protocol,
            from_port: request.from_port,
            to_port: request.to_port,
            cidr_ip: request.cidr_ip,
            source_group: request.source_security_group_name,
            source_owner: request.source_security_group_owner_id,
        };
        let permissions = flat.join(request.ip_permissions)?;
        let group = (request.group_id.as_deref(), request.group_name.as_deref());
        let tags = &request.tag_specifications;
        authorize(ctx, Direction::Ingress, group, &permissions, tags).await
    }
}

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

impl Action for AuthorizeSecurityGroupEgress {
    const NAME: &'static str = "AuthorizeSecurityGroupEgress";
    const IAM: &'static str = "ec2:AuthorizeSecurityGroupEgress";
    const UNSUPPORTED: &'static [&'static str] = EGRESS_UNSUPPORTED;
    type Request = EgressRequest;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: EgressRequest) -> Result<Response, ApiError> {
        let group = (Some(request.group_id.as_str()), None);
        let tags = &request.tag_specifications;
        authorize(ctx, Direction::Egress, group, &request.ip_permissions, tags).await
    }
}
