//! `DescribeSecurityGroupRules`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSecurityGroupRules.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::permission::{PeerText, ports, protocol_name};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{Filter, Filterable, Listing, Table, Tag, TagsOf, all_found_by},
    },
    model::{Direction, Rule, RuleId, SecurityGroup},
};

/// The action.
pub(crate) struct DescribeSecurityGroupRules;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "SecurityGroupRuleId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    security_group_rule_set: Vec<RuleItem>,
    next_token: Option<String>,
}

/// A rule as EC2's newer calls show it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RuleItem {
    security_group_rule_id: String,
    group_id: String,
    group_owner_id: String,
    is_egress: bool,
    ip_protocol: String,
    from_port: i32,
    to_port: i32,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    referenced_group_info: Option<Referenced>,
    description: Option<String>,
    tag_set: Vec<Tag>,
    security_group_rule_arn: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referenced {
    group_id: String,
    user_id: String,
}

impl RuleItem {
    pub(super) fn new(
        ctx: &Ctx,
        group: &SecurityGroup,
        rule: &Rule,
        tags: &BTreeMap<String, String>,
    ) -> Self {
        let (from, to) = ports(rule.matcher);
        let peer = PeerText::new(&rule.peer);
        Self {
            security_group_rule_id: rule.id.to_string(),
            group_id: group.id.to_string(),
            group_owner_id: group.scope.account.clone(),
            is_egress: rule.direction == Direction::Egress,
            ip_protocol: protocol_name(rule.matcher),
            from_port: from.unwrap_or(-1),
            to_port: to.unwrap_or(-1),
            cidr_ipv4: peer.cidr_ipv4,
            cidr_ipv6: peer.cidr_ipv6,
            referenced_group_info: peer.group.map(|group_id| Referenced {
                group_id,
                user_id: group.scope.account.clone(),
            }),
            description: rule.description.clone(),
            tag_set: Tag::set(tags).unwrap_or_default(),
            security_group_rule_arn: ctx.arn_of_part(&rule.id).to_string(),
        }
    }
}

struct Placed<'v> {
    group: &'v SecurityGroup,
    rule: &'v Rule,
    tags: &'v BTreeMap<String, String>,
}

impl Filterable for Placed<'_> {
    const TAGS: Option<TagsOf<Self>> = Some(|placed| placed.tags);

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on("group-id", |p, out| out.add(&p.group.id))
            .on("security-group-rule-id", |p, out| out.add(&p.rule.id))
    }
}

impl Action for DescribeSecurityGroupRules {
    const NAME: &'static str = "DescribeSecurityGroupRules";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.view();
        let view = view.view();
        let mut all: Vec<Placed<'_>> = view
            .all::<SecurityGroup>()
            .flat_map(|group| group.rules.iter().map(move |rule| (group, rule)))
            .map(|(group, rule)| Placed {
                group,
                rule,
                tags: view.tags(&rule.id),
            })
            .collect();
        all_found_by(&request.ids, |id: &RuleId| {
            all.iter().find(|p| p.rule.id == *id).map(|_| ())
        })?;
        all.retain(|p| {
            request.ids.is_empty() || request.ids.iter().any(|i| i == p.rule.id.as_str())
        });
        all.sort_by(|a, b| a.rule.id.cmp(&b.rule.id));
        let (all, next_token) = Listing::new(
            request.filters,
            request.max_results,
            request.next_token,
        )
        .page_of(all, |p| p.rule.id.to_string(), (5, 1000))?;
        let item = |p: &Placed<'_>| RuleItem::new(ctx, p.group, p.rule, p.tags);
        Ok(Response {
            security_group_rule_set: all.iter().map(item).collect(),
            next_token,
        })
    }
}
