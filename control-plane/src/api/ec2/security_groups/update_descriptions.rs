//! `UpdateSecurityGroupRuleDescriptionsIngress` and `…Egress`: what rules are for, in
//! the caller's words.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_UpdateSecurityGroupRuleDescriptionsIngress.html>,
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_UpdateSecurityGroupRuleDescriptionsEgress.html>

use serde::Deserialize;

use super::{
    find,
    permission::{Input, UNSUPPORTED, expand, no_such_rule, noted},
    target,
};
use crate::{
    api::{
        Action, ApiError, Ctx, Done, Targets,
        shared::{not_found, parse_id},
    },
    model::{Direction, RuleId},
};

/// The action.
pub(crate) struct UpdateSecurityGroupRuleDescriptionsIngress;

/// The action.
pub(crate) struct UpdateSecurityGroupRuleDescriptionsEgress;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    group_id: Option<String>,
    group_name: Option<String>,
    #[serde(default)]
    ip_permissions: Vec<Input>,
    #[serde(default, rename = "SecurityGroupRuleDescription")]
    by_id: Vec<ById>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ById {
    security_group_rule_id: Option<String>,
    description: Option<String>,
}

impl Request {
    fn group(&self) -> (Option<&str>, Option<&str>) {
        (self.group_id.as_deref(), self.group_name.as_deref())
    }
}

async fn update(ctx: &Ctx, direction: Direction, request: Request) -> Result<Done, ApiError> {
    match (request.ip_permissions.is_empty(), request.by_id.is_empty()) {
        (true, true) => {
            return Err(ApiError::missing(
                "IpPermissions or SecurityGroupRuleDescriptions",
            ));
        }
        (false, false) => {
            return Err(ApiError::combination(
                "IpPermissions can't be combined with SecurityGroupRuleDescriptions",
            ));
        }
        _ => {}
    }
    let mut by_id = Vec::new();
    for one in &request.by_id {
        let id = one.security_group_rule_id.as_deref();
        let id = id.ok_or_else(|| ApiError::missing("SecurityGroupRuleId"))?;
        by_id.push((parse_id::<RuleId>(id)?, noted(one.description.as_deref())?));
    }
    ctx.transact(|view, change| {
        let (id, name) = request.group();
        let there = find(view, id, name)?;
        let mut group = there.clone();
        for (id, description) in &by_id {
            let mut rules = group.rules.iter_mut();
            let rule = rules.find(|rule| rule.direction == direction && rule.id == *id);
            rule.ok_or_else(|| not_found::<RuleId>(id))?.description = description.clone();
        }
        for wanted in expand(view, there, &request.ip_permissions)? {
            let mut rules = group.rules.iter_mut();
            let rule = rules.find(|rule| wanted.is(rule, direction));
            rule.ok_or_else(no_such_rule)?.description = wanted.description;
        }
        change.update(there, &group);
        Ok(Done::OK)
    })
    .await
}

impl Action for UpdateSecurityGroupRuleDescriptionsIngress {
    const NAME: &'static str = "UpdateSecurityGroupRuleDescriptionsIngress";
    const UNSUPPORTED: &'static [&'static str] = UNSUPPORTED;
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let (id, name) = request.group();
        target(to, id, name);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        update(ctx, Direction::Ingress, request).await
    }
}

impl Action for UpdateSecurityGroupRuleDescriptionsEgress {
    const NAME: &'static str = "UpdateSecurityGroupRuleDescriptionsEgress";
    const UNSUPPORTED: &'static [&'static str] = UNSUPPORTED;
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let (id, name) = request.group();
        target(to, id, name);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        update(ctx, Direction::Egress, request).await
    }
}
