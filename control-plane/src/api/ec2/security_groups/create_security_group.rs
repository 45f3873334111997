//! `CreateSecurityGroup`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSecurityGroup.html>

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{default_vpc, plain_text};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{Tag, TagSpecification, found, quota, tag},
    },
    model::{Direction, GroupId, GroupName, Peer, Protocol, Rule, RuleId, SecurityGroup, Vpc},
};

/// EC2's default quota in a region.
pub(in crate::api::ec2) const MAX_GROUPS: usize = 2500;

/// The action.
pub(crate) struct CreateSecurityGroup;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    group_name: String,
    #[serde(rename = "GroupDescription")]
    description: String,
    vpc_id: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tag_specifications: Vec<TagSpecification>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    group_id: String,
    security_group_arn: String,
    tag_set: Option<Vec<Tag>>,
}

impl Action for CreateSecurityGroup {
    const NAME: &'static str = "CreateSecurityGroup";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let vpc = match &request.vpc_id {
            Some(id) => Some(id.clone()),
            None => default_vpc(to.view()).ok().map(|vpc| vpc.id.to_string()),
        };
        to.named::<Vpc>(vpc);
        to.made::<SecurityGroup>([], &request.tag_specifications);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let name = &request.group_name;
        if name == SecurityGroup::DEFAULT {
            return Err(ApiError::new(
                "InvalidGroup.Reserved",
                "The security group 'default' is reserved",
            ));
        }
        if name.is_empty() || !plain_text(name) || name.starts_with("sg-") {
            let why = "It must be 1 to 255 characters of a-zA-Z0-9. _-:/()#,@[]+=&;{}!$* and not start with sg-.";
            return Err(ApiError::invalid_value("GroupName", name, why));
        }
        if request.description.is_empty() || !plain_text(&request.description) {
            let why = "It must be 1 to 255 characters of a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*.";
            return Err(ApiError::invalid_value(
                "GroupDescription",
                &request.description,
                why,
            ));
        }
        let tags = tag::specified_for(&request.tag_specifications, "security-group")?;
        let id = ctx.fresh_id(GroupId::from_random);
        let everywhere = Rule {
            id: ctx.fresh_id(RuleId::from_random),
            direction: Direction::Egress,
            matcher: Protocol::All,
            peer: Peer::Ipv4(Ipv4Net::default()),
            description: None,
        };
        ctx.transact(|view, change| {
            let vpc = match &request.vpc_id {
                Some(id) => found::<Vpc>(view, id)?,
                None => default_vpc(view)?,
            };
            quota::one_more::<SecurityGroup>(view, change, MAX_GROUPS, || {
                ApiError::new(
                    "SecurityGroupLimitExceeded",
                    "The maximum number of security groups has been reached.",
                )
            })?;
            let key = SecurityGroup::named(&vpc.id, name);
            if view.by(SecurityGroup::BY_NAME, &key).next().is_some() {
                return Err(ApiError::new(
                    "InvalidGroup.Duplicate",
                    format!(
                        "The security group '{name}' already exists for VPC '{}'",
                        vpc.id
                    ),
                ));
            }
            change.refer_to(vpc);
            let group = SecurityGroup {
                id: id.clone(),
                scope: ctx.scope().clone(),
                vpc: vpc.id.clone(),
                name: name.clone(),
                description: request.description.clone(),
                rules: vec![everywhere.clone()],
                deleting: false,
            };
            change.create(&GroupName::of(&group));
            change.create(&group);
            if !tags.is_empty() {
                change.put_tags(&group, tags.clone());
            }
            Ok(())
        })
        .await?;
        Ok(Response {
            security_group_arn: ctx.arn_of::<SecurityGroup>(&id).to_string(),
            group_id: id.to_string(),
            tag_set: Tag::set(&tags),
        })
    }
}
