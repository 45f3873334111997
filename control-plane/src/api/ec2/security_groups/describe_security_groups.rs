//! `DescribeSecurityGroups`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSecurityGroups.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    default_vpc, named,
    permission::{Permission, collect, ports, protocol_name},
};
use crate::{
    api::{
        Action, ApiError, Ctx,
        ec2::shared::{Filter, Filterable, Listing, Tag, found},
    },
    model::{Direction, GroupId, Peer, Rule, SecurityGroup},
    store::View,
};

/// The action.
pub(crate) struct DescribeSecurityGroups;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "GroupId")]
    ids: Vec<String>,
    #[serde(default, rename = "GroupName")]
    names: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    security_group_info: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    owner_id: String,
    group_id: String,
    group_name: String,
    group_description: String,
    vpc_id: String,
    security_group_arn: String,
    ip_permissions: Vec<Permission>,
    ip_permissions_egress: Vec<Permission>,
    tag_set: Option<Vec<Tag>>,
}

struct Group<'v> {
    group: &'v SecurityGroup,
    view: &'v View,
}

impl Filterable for Group<'_> {
    const FILTERS: &'static [&'static str] = &[
        "description",
        "egress.ip-permission.cidr",
        "egress.ip-permission.from-port",
        "egress.ip-permission.group-id",
        "egress.ip-permission.group-name",
        "egress.ip-permission.ipv6-cidr",
        "egress.ip-permission.protocol",
        "egress.ip-permission.to-port",
        "egress.ip-permission.user-id",
        "group-id",
        "group-name",
        "ip-permission.cidr",
        "ip-permission.from-port",
        "ip-permission.group-id",
        "ip-permission.group-name",
        "ip-permission.ipv6-cidr",
        "ip-permission.protocol",
        "ip-permission.to-port",
        "ip-permission.user-id",
        "owner-id",
        "vpc-id",
    ];

    fn values(&self, filter: &str) -> Vec<String> {
        if let Some(part) = filter.strip_prefix("egress.ip-permission.") {
            return self.of_rules(Direction::Egress, part);
        }
        if let Some(part) = filter.strip_prefix("ip-permission.") {
            return self.of_rules(Direction::Ingress, part);
        }
        vec![match filter {
            "description" => self.group.description.clone(),
            "group-id" => self.group.id.to_string(),
            "group-name" => self.group.name.clone(),
            "owner-id" => self.group.owner.clone(),
            _ => self.group.vpc.to_string(),
        }]
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(self.view.tags(&self.group.id))
    }
}

impl Group<'_> {
    fn of_rules(&self, direction: Direction, part: &str) -> Vec<String> {
        let rules = self.group.rules.iter();
        rules
            .filter(|rule| rule.direction == direction)
            .filter_map(|rule| self.of_rule(rule, part))
            .collect()
    }

    fn of_rule(&self, rule: &Rule, part: &str) -> Option<String> {
        let (from, to) = ports(rule.matcher);
        match (part, &rule.peer) {
            ("cidr", Peer::Ipv4(net)) => Some(net.to_string()),
            ("ipv6-cidr", Peer::Ipv6(net)) => Some(net.to_string()),
            ("group-id", Peer::Group(id)) => Some(id.to_string()),
            ("group-name", Peer::Group(id)) => {
                Some(self.view.get::<SecurityGroup>(id)?.name.clone())
            }
            ("user-id", Peer::Group(_)) => Some(self.group.owner.clone()),
            ("from-port", _) => from.map(|port| port.to_string()),
            ("to-port", _) => to.map(|port| port.to_string()),
            ("protocol", _) => Some(protocol_name(rule.matcher)),
            _ => None,
        }
    }
}

impl Action for DescribeSecurityGroups {
    const NAME: &'static str = "DescribeSecurityGroups";
    const IAM: &'static str = "ec2:DescribeSecurityGroups";
    type Request = Request;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.db.view();
        let mut wanted: Vec<&SecurityGroup> = Vec::new();
        for id in &request.ids {
            wanted.push(found::<GroupId, SecurityGroup>(&view, id)?);
        }
        for name in &request.names {
            wanted.push(named(&view, &default_vpc(&view)?.id, name)?);
        }
        let any = request.ids.is_empty() && request.names.is_empty();
        let groups = view
            .all::<SecurityGroup>()
            .filter(|group| any || wanted.iter().any(|wanted| wanted.id == group.id));
        let (found, next_token) =
            Listing::new(request.filters, request.max_results, request.next_token).page_of(
                groups.map(|group| Group { group, view: &view }),
                |found| found.group.id.to_string(),
                (5, 1000),
            )?;
        let item = |Group { group, .. }: Group<'_>| Item {
            owner_id: group.owner.clone(),
            group_id: group.id.to_string(),
            group_name: group.name.clone(),
            group_description: group.description.clone(),
            vpc_id: group.vpc.to_string(),
            security_group_arn: ctx.arn(&format!("security-group/{}", group.id)),
            ip_permissions: collect(group, Direction::Ingress),
            ip_permissions_egress: collect(group, Direction::Egress),
            tag_set: Tag::set(view.tags(&group.id)),
        };
        Ok(Response {
            security_group_info: found.into_iter().map(item).collect(),
            next_token,
        })
    }
}
