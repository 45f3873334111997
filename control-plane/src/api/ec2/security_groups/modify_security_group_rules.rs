//! `ModifySecurityGroupRules`: other words for rules that keep their ids.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifySecurityGroupRules.html>

use std::{collections::BTreeSet, mem::discriminant};

use serde::Deserialize;

use super::{
    permission::{GroupInput, Wanted, cidr4, cidr6, duplicate, noted, peer_group, protocol},
    refer_to,
};
use crate::{
    api::{
        Action, ApiError, Ctx, Done, Targets,
        shared::{found, not_found, parse_id},
    },
    model::{Direction, GroupId, Peer, RuleId, SecurityGroup},
    store::Scoped,
};

/// The action.
pub(crate) struct ModifySecurityGroupRules;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    group_id: String,
    #[serde(default, rename = "SecurityGroupRule")]
    updates: Vec<Update>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Update {
    security_group_rule_id: String,
    security_group_rule: Option<RuleInput>,
}

/// All that a rule says: what is left out isn't kept.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RuleInput {
    ip_protocol: Option<String>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    referenced_group_id: Option<String>,
    description: Option<String>,
}

impl RuleInput {
    fn wanted(&self, view: Scoped<'_>, owner: &SecurityGroup) -> Result<Wanted, ApiError> {
        let peer = match (&self.cidr_ipv4, &self.cidr_ipv6, &self.referenced_group_id) {
            (Some(cidr), None, None) => Peer::Ipv4(cidr4(cidr)?),
            (None, Some(cidr), None) => Peer::Ipv6(cidr6(cidr)?),
            (None, None, Some(id)) => {
                let group = GroupInput {
                    group_id: Some(id.clone()),
                    ..GroupInput::default()
                };
                Peer::Group(peer_group(view, owner, &group)?)
            }
            (None, None, None) => {
                return Err(ApiError::missing(
                    "CidrIpv4, CidrIpv6 or ReferencedGroupId of the rule",
                ));
            }
            _ => {
                return Err(ApiError::combination(
                    "A rule has one of CidrIpv4, CidrIpv6 and ReferencedGroupId",
                ));
            }
        };
        Ok(Wanted {
            matcher: protocol(self.ip_protocol.as_deref(), self.from_port, self.to_port)?,
            peer,
            description: noted(self.description.as_deref())?,
        })
    }
}

/// Puts what is `wanted` of the rule with this id into its group.
fn put(group: &mut SecurityGroup, id: &RuleId, wanted: &Wanted) -> Result<(), ApiError> {
    let rule = group.rules.iter_mut().find(|rule| rule.id == *id);
    let rule = rule.ok_or_else(|| not_found::<RuleId>(id))?;
    if discriminant(&rule.peer) != discriminant(&wanted.peer) {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!(
                "The source or destination of {id} can't become one of another kind: \
                 revoke the rule, and authorize another"
            ),
        ));
    }
    rule.matcher = wanted.matcher;
    rule.peer = wanted.peer.clone();
    rule.description.clone_from(&wanted.description);
    Ok(())
}

impl Action for ModifySecurityGroupRules {
    const NAME: &'static str = "ModifySecurityGroupRules";
    const UNSUPPORTED: &'static [&'static str] =
        &["SecurityGroupRule.SecurityGroupRule.PrefixListId"];
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<SecurityGroup>([&request.group_id]);
        for update in &request.updates {
            to.part::<RuleId>(&update.security_group_rule_id);
        }
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        if request.updates.is_empty() {
            return Err(ApiError::missing("SecurityGroupRule"));
        }
        let mut updates = Vec::new();
        let mut ids = BTreeSet::new();
        for update in &request.updates {
            let id: RuleId = parse_id(&update.security_group_rule_id)?;
            if !ids.insert(id.clone()) {
                return Err(ApiError::invalid_value(
                    "SecurityGroupRuleId",
                    id.as_str(),
                    "It is named twice.",
                ));
            }
            let rule = update.security_group_rule.as_ref();
            updates.push((
                id,
                rule.ok_or_else(|| ApiError::missing("SecurityGroupRule"))?,
            ));
        }
        ctx.transact(|view, change| {
            let there = found::<SecurityGroup>(view, &request.group_id)?;
            if there.deleting {
                return Err(not_found::<GroupId>(&there.id));
            }
            let mut group = there.clone();
            let mut wanted = Vec::new();
            for (id, rule) in &updates {
                let new = rule.wanted(view, there)?;
                // A group that a rule names must still be there when this commits.
                if let Peer::Group(peer) = &new.peer
                    && *peer != there.id
                {
                    refer_to(view, change, peer)?;
                }
                put(&mut group, id, &new)?;
                wanted.push(new);
            }
            // Only now, with all of them changed: two rules may change places.
            for new in &wanted {
                let direction = |d| group.rules.iter().filter(|r| new.is(r, d)).count();
                if direction(Direction::Ingress) > 1 || direction(Direction::Egress) > 1 {
                    return Err(duplicate(new));
                }
            }
            change.update(there, &group);
            Ok(Done::OK)
        })
        .await
    }
}
