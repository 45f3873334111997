//! `AuthorizeSecurityGroupIngress` and `AuthorizeSecurityGroupEgress`: one
//! handler, two directions, and ingress has the flat forms of old, too.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AuthorizeSecurityGroupIngress.html>,
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AuthorizeSecurityGroupEgress.html>

use serde::{Deserialize, Serialize};

use super::{
    describe_security_group_rules::RuleItem,
    find,
    flat::{EGRESS_UNSUPPORTED, Flat, flat_of},
    permission::{Input, duplicate, expand},
    refer_to, target,
};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{TagSpecification, not_found, tag},
    },
    model::{Direction, GroupId, Part as _, Peer, Rule, RuleId},
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

async fn authorize(
    ctx: &Ctx,
    direction: Direction,
    group: (Option<&str>, Option<&str>),
    permissions: &[Input],
    specifications: &[TagSpecification],
) -> Result<Response, ApiError> {
    let tags = tag::specified_for(specifications, RuleId::TYPE)?;
    if permissions.is_empty() {
        return Err(ApiError::missing("IpPermissions"));
    }
    let (group, added) = ctx
        .transact(|view, change| {
            let there = find(view, group.0, group.1)?;
            let mut group = there.clone();
            if group.deleting {
                return Err(not_found::<GroupId>(&group.id));
            }
            let wanted = expand(view, &group, permissions)?;
            let mut added: Vec<Rule> = Vec::new();
            for new in wanted {
                if group.rules.iter().any(|rule| new.is(rule, direction)) {
                    return Err(duplicate(&new));
                }
                // A group that a rule names must still be there when this commits.
                if let Peer::Group(id) = &new.peer
                    && *id != group.id
                {
                    refer_to(view, change, id)?;
                }
                added.push(Rule {
                    id: ctx.fresh_id(RuleId::from_random),
                    direction,
                    matcher: new.matcher,
                    peer: new.peer,
                    description: new.description,
                });
            }
            let same = group.rules.iter().filter(|r| r.direction == direction);
            if same.count() + added.len() > MAX_RULES {
                return Err(ApiError::new(
                    "RulesPerSecurityGroupLimitExceeded",
                    "The maximum number of rules per security group has been reached.",
                ));
            }
            group.rules.extend(added.iter().cloned());
            change.update(there, &group);
            if !tags.is_empty() {
                for rule in &added {
                    change.put_part_tags(ctx.scope(), &rule.id, tags.clone());
                }
            }
            Ok((group, added))
        })
        .await?;
    let item = |rule| RuleItem::new(&group, rule, &tags);
    Ok(Response {
        done: true,
        security_group_rule_set: added.iter().map(item).collect(),
    })
}

impl Action for AuthorizeSecurityGroupIngress {
    const NAME: &'static str = "AuthorizeSecurityGroupIngress";
    const UNSUPPORTED: &'static [&'static str] = super::permission::UNSUPPORTED;
    type Request = IngressRequest;
    type Response = Response;

    fn targets(request: &IngressRequest, to: &mut Targets<'_>) {
        let (id, name) = (request.group_id.as_deref(), request.group_name.as_deref());
        target(to, id, name);
        to.made_part::<RuleId>(&request.tag_specifications);
    }

    async fn handle(ctx: &Ctx, request: IngressRequest) -> Result<Response, ApiError> {
        let permissions = flat_of!(request).join(request.ip_permissions)?;
        let group = (request.group_id.as_deref(), request.group_name.as_deref());
        let tags = &request.tag_specifications;
        authorize(ctx, Direction::Ingress, group, &permissions, tags).await
    }
}

impl Action for AuthorizeSecurityGroupEgress {
    const NAME: &'static str = "AuthorizeSecurityGroupEgress";
    const UNSUPPORTED: &'static [&'static str] = EGRESS_UNSUPPORTED;
    type Request = EgressRequest;
    type Response = Response;

    fn targets(request: &EgressRequest, to: &mut Targets<'_>) {
        target(to, Some(&request.group_id), None);
        to.made_part::<RuleId>(&request.tag_specifications);
    }

    async fn handle(ctx: &Ctx, request: EgressRequest) -> Result<Response, ApiError> {
        let group = (Some(request.group_id.as_str()), None);
        let tags = &request.tag_specifications;
        authorize(ctx, Direction::Egress, group, &request.ip_permissions, tags).await
    }
}
