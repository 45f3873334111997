//! `RevokeSecurityGroupIngress` and `RevokeSecurityGroupEgress`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RevokeSecurityGroupIngress.html>,
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RevokeSecurityGroupEgress.html>

use serde::{Deserialize, Serialize};

use super::{
    find,
    flat::{EGRESS_UNSUPPORTED, Flat, flat_of},
    permission::{Input, PeerText, expand, no_such_rule, ports, protocol_name},
    target,
};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{not_found, parse_id},
    },
    model::{Direction, Rule, RuleId},
};

/// The action.
pub(crate) struct RevokeSecurityGroupIngress;

/// The action.
pub(crate) struct RevokeSecurityGroupEgress;

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
    #[serde(default, rename = "SecurityGroupRuleId")]
    rule_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct EgressRequest {
    group_id: String,
    #[serde(default)]
    ip_permissions: Vec<Input>,
    #[serde(default, rename = "SecurityGroupRuleId")]
    rule_ids: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    #[serde(rename = "return")]
    done: bool,
    revoked_security_group_rule_set: Vec<Revoked>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Revoked {
    security_group_rule_id: String,
    group_id: String,
    is_egress: bool,
    ip_protocol: String,
    from_port: i32,
    to_port: i32,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    referenced_group_id: Option<String>,
    description: Option<String>,
}

async fn revoke(
    ctx: &Ctx,
    direction: Direction,
    group: (Option<&str>, Option<&str>),
    permissions: &[Input],
    rule_ids: &[String],
) -> Result<Response, ApiError> {
    match (permissions.is_empty(), rule_ids.is_empty()) {
        (true, true) => return Err(ApiError::missing("IpPermissions or SecurityGroupRuleIds")),
        (false, false) => {
            return Err(ApiError::combination(
                "IpPermissions can't be combined with SecurityGroupRuleIds",
            ));
        }
        _ => {}
    }
    let ids: Vec<RuleId> = rule_ids
        .iter()
        .map(|id| parse_id(id))
        .collect::<Result<_, _>>()?;
    let (group, gone) = ctx
        .transact(|view, change| {
            let there = find(view, group.0, group.1)?;
            let mut group = there.clone();
            let mut gone: Vec<Rule> = Vec::new();
            let mut take = |picked: &dyn Fn(&Rule) -> bool| {
                let at = group.rules.iter().position(picked);
                at.map(|at| gone.push(group.rules.remove(at))).is_some()
            };
            for id in &ids {
                if !take(&|rule| rule.direction == direction && rule.id == *id) {
                    return Err(not_found::<RuleId>(id));
                }
            }
            for wanted in expand(view, there, permissions)? {
                if !take(&|rule| wanted.is(rule, direction)) {
                    return Err(no_such_rule());
                }
            }
            change.update(there, &group);
            for rule in &gone {
                change.delete_part_tags(&group, &rule.id);
            }
            Ok((group, gone))
        })
        .await?;
    let item = |rule: Rule| {
        let (from, to) = ports(rule.matcher);
        let peer = PeerText::new(&rule.peer);
        Revoked {
            security_group_rule_id: rule.id.to_string(),
            group_id: group.id.to_string(),
            is_egress: direction == Direction::Egress,
            ip_protocol: protocol_name(rule.matcher),
            from_port: from.unwrap_or(-1),
            to_port: to.unwrap_or(-1),
            cidr_ipv4: peer.cidr_ipv4,
            cidr_ipv6: peer.cidr_ipv6,
            referenced_group_id: peer.group,
            description: rule.description,
        }
    };
    Ok(Response {
        done: true,
        revoked_security_group_rule_set: gone.into_iter().map(item).collect(),
    })
}

impl Action for RevokeSecurityGroupIngress {
    const NAME: &'static str = "RevokeSecurityGroupIngress";
    const UNSUPPORTED: &'static [&'static str] = super::permission::UNSUPPORTED;
    type Request = IngressRequest;
    type Response = Response;

    fn targets(request: &IngressRequest, to: &mut Targets<'_>) {
        let (id, name) = (request.group_id.as_deref(), request.group_name.as_deref());
        target(to, id, name);
    }

    async fn handle(ctx: &Ctx, request: IngressRequest) -> Result<Response, ApiError> {
        let permissions = flat_of!(request).join(request.ip_permissions)?;
        let group = (request.group_id.as_deref(), request.group_name.as_deref());
        revoke(
            ctx,
            Direction::Ingress,
            group,
            &permissions,
            &request.rule_ids,
        )
        .await
    }
}

impl Action for RevokeSecurityGroupEgress {
    const NAME: &'static str = "RevokeSecurityGroupEgress";
    const UNSUPPORTED: &'static [&'static str] = EGRESS_UNSUPPORTED;
    type Request = EgressRequest;
    type Response = Response;

    fn targets(request: &EgressRequest, to: &mut Targets<'_>) {
        target(to, Some(&request.group_id), None);
    }

    async fn handle(ctx: &Ctx, request: EgressRequest) -> Result<Response, ApiError> {
        let group = (Some(request.group_id.as_str()), None);
        let permissions = &request.ip_permissions;
        revoke(
            ctx,
            Direction::Egress,
            group,
            permissions,
            &request.rule_ids,
        )
        .await
    }
}
