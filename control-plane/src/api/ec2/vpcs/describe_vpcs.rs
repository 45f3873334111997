//! `DescribeVpcs`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeVpcs.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Action, ApiError, Ctx,
        ec2::shared::{Filter, Filterable, Filters, Page, Tag, all_found, page},
    },
    model::{Vpc, VpcId},
};

/// The action.
pub(crate) struct DescribeVpcs;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "VpcId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    vpc_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    vpc_id: String,
    owner_id: String,
    state: String,
    cidr_block: String,
    cidr_block_association_set: Vec<Association>,
    dhcp_options_id: String,
    instance_tenancy: String,
    is_default: bool,
    tag_set: Option<Vec<Tag>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Association {
    association_id: String,
    cidr_block: String,
    cidr_block_state: AssociationState,
}

#[derive(Debug, Serialize, Deserialize)]
struct AssociationState {
    state: String,
}

struct Tagged<'v> {
    vpc: &'v Vpc,
    tags: &'v BTreeMap<String, String>,
}

impl Tagged<'_> {
    /// A VPC has the one block it was made with, so the association needs no
    /// identity beyond the VPC's.
    fn association(&self) -> String {
        self.vpc.id.as_str().replacen("vpc-", "vpc-cidr-assoc-", 1)
    }
}

impl Filterable for Tagged<'_> {
    const FILTERS: &'static [&'static str] = &[
        "cidr",
        "cidr-block-association.association-id",
        "cidr-block-association.cidr-block",
        "cidr-block-association.state",
        "dhcp-options-id",
        "is-default",
        "isDefault",
        "owner-id",
        "state",
        "vpc-id",
    ];

    fn values(&self, filter: &str) -> Vec<String> {
        vec![match filter {
            "cidr" | "cidr-block-association.cidr-block" => self.vpc.cidr.to_string(),
            "cidr-block-association.association-id" => self.association(),
            "cidr-block-association.state" => "associated".into(),
            "dhcp-options-id" => self.vpc.dhcp_options.to_string(),
            "is-default" | "isDefault" => self.vpc.is_default.to_string(),
            "owner-id" => self.vpc.owner.clone(),
            "state" => "available".into(),
            _ => self.vpc.id.to_string(),
        }]
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(self.tags)
    }
}

impl Action for DescribeVpcs {
    const NAME: &'static str = "DescribeVpcs";
    const IAM: &'static str = "ec2:DescribeVpcs";
    type Request = Request;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let filters = Filters::new::<Tagged<'_>>(request.filters, true)?;
        let view = ctx.db.view();
        let ids: Vec<VpcId> = all_found::<VpcId, Vpc>(&view, &request.ids)?;
        let found: Vec<Tagged<'_>> = view
            .all::<Vpc>()
            .filter(|vpc| ids.is_empty() || ids.contains(&vpc.id))
            .map(|vpc| Tagged {
                vpc,
                tags: view.tags(&vpc.id),
            })
            .filter(|tagged| filters.matches(tagged))
            .collect();
        let ask = Page {
            max_results: request.max_results,
            next_token: request.next_token.as_deref(),
            range: (5, 1000),
        };
        let (found, next_token) = page(found, |t| t.vpc.id.to_string(), ask)?;
        let item = |t: &Tagged<'_>| Item {
            vpc_id: t.vpc.id.to_string(),
            owner_id: t.vpc.owner.clone(),
            state: "available".into(),
            cidr_block: t.vpc.cidr.to_string(),
            cidr_block_association_set: vec![Association {
                association_id: t.association(),
                cidr_block: t.vpc.cidr.to_string(),
                cidr_block_state: AssociationState {
                    state: "associated".into(),
                },
            }],
            dhcp_options_id: t.vpc.dhcp_options.to_string(),
            instance_tenancy: "default".into(),
            is_default: t.vpc.is_default,
            tag_set: Tag::set(t.tags),
        };
        Ok(Response {
            vpc_set: found.iter().map(item).collect(),
            next_token,
        })
    }
}
