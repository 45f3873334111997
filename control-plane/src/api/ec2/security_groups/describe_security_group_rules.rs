//! `DescribeSecurityGroupRules`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSecurityGroupRules.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::permission::{PeerText, ports, protocol_name};
use crate::{
    api::{
        ApiError,
        ec2::listing::{Filterable, Table, TagsOf, describe},
        shared::{Tag, all_found_by},
    },
    model::{Direction, Part as _, Rule, RuleId, SecurityGroup},
    store::Scoped,
};

describe! {
    DescribeSecurityGroupRules {
        ids: "SecurityGroupRuleId",
        set: security_group_rule_set of RuleItem,
        pages: 5..=1000,
        page: |asked, _| {
            let rules = Placed::asked_for(asked.view, &asked.ids)?;
            let (rules, next_token) = asked.page_of(rules, |p| p.rule.id.to_string())?;
            let item = |p: &Placed<'_>| RuleItem::new(p.group, p.rule, p.tags);
            Ok((rules.iter().map(item).collect(), next_token))
        },
    }
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
    pub(super) fn new(group: &SecurityGroup, rule: &Rule, tags: &BTreeMap<String, String>) -> Self {
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
            security_group_rule_arn: RuleId::arn_at(&group.scope, rule.id.as_str()).to_string(),
        }
    }
}

struct Placed<'v> {
    group: &'v SecurityGroup,
    rule: &'v Rule,
    tags: &'v BTreeMap<String, String>,
}

impl<'v> Placed<'v> {
    /// The rules with these ids, or all, in the order of their ids.
    fn asked_for(view: Scoped<'v>, ids: &[String]) -> Result<Vec<Self>, ApiError> {
        let of = |group: &'v SecurityGroup| group.rules.iter().map(move |rule| (group, rule));
        let mut found: Vec<_> = if ids.is_empty() {
            view.all().flat_map(of).collect()
        } else {
            all_found_by(ids, |id: &RuleId| {
                let groups = view.by(SecurityGroup::BY_RULE, id.as_str());
                groups.flat_map(of).find(|(_, rule)| rule.id == *id)
            })?
        };
        found.sort_by_key(|(_, rule)| &rule.id);
        found.dedup_by_key(|(_, rule)| &rule.id);
        let placed = |(group, rule): (_, &'v Rule)| Self {
            group,
            rule,
            tags: view.tags(&rule.id),
        };
        Ok(found.into_iter().map(placed).collect())
    }
}

impl Filterable for Placed<'_> {
    const TAGS: Option<TagsOf<Self>> = Some(|placed| placed.tags);

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on("group-id", |p, out| out.add(&p.group.id))
            .on("security-group-rule-id", |p, out| out.add(&p.rule.id))
    }
}
