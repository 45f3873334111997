//! `DescribeSubnets`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSubnets.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Action, ApiError, Ctx,
        ec2::{
            regions::zone_id,
            shared::{Filter, Filterable, Listing, Tag, named_or_all},
        },
    },
    model::{Eni, Subnet, SubnetId},
    store::View,
};

/// The action.
pub(crate) struct DescribeSubnets;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "SubnetId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    subnet_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    subnet_id: String,
    subnet_arn: String,
    owner_id: String,
    state: String,
    vpc_id: String,
    cidr_block: String,
    available_ip_address_count: usize,
    availability_zone: String,
    availability_zone_id: String,
    default_for_az: bool,
    map_public_ip_on_launch: bool,
    assign_ipv6_address_on_creation: bool,
    ipv6_native: bool,
    tag_set: Option<Vec<Tag>>,
}

struct Candidate<'v> {
    subnet: &'v Subnet,
    arn: String,
    available: usize,
    tags: &'v BTreeMap<String, String>,
}

impl<'v> Candidate<'v> {
    fn new(ctx: &Ctx, view: &'v View, subnet: &'v Subnet) -> Self {
        let taken = view.all::<Eni>().filter(|eni| eni.subnet == subnet.id);
        Self {
            subnet,
            arn: ctx.arn(&format!("subnet/{}", subnet.id)),
            available: subnet.usable().count().saturating_sub(taken.count()),
            tags: view.tags(&subnet.id),
        }
    }
}

impl Filterable for Candidate<'_> {
    const FILTERS: &'static [&'static str] = &[
        "availability-zone",
        "availability-zone-id",
        "availabilityZone",
        "availabilityZoneId",
        "available-ip-address-count",
        "cidr",
        "cidr-block",
        "cidrBlock",
        "default-for-az",
        "defaultForAz",
        "ipv6-native",
        "map-public-ip-on-launch",
        "owner-id",
        "state",
        "subnet-arn",
        "subnet-id",
        "vpc-id",
    ];

    fn values(&self, filter: &str) -> Vec<String> {
        let subnet = self.subnet;
        vec![match filter {
            "availability-zone" | "availabilityZone" => subnet.zone.clone(),
            "availability-zone-id" | "availabilityZoneId" => zone_id(&subnet.zone),
            "available-ip-address-count" => self.available.to_string(),
            "cidr" | "cidr-block" | "cidrBlock" => subnet.cidr.to_string(),
            "default-for-az" | "defaultForAz" => subnet.is_default.to_string(),
            "ipv6-native" => "false".into(),
            "map-public-ip-on-launch" => subnet.map_public_ip.to_string(),
            "owner-id" => subnet.owner.clone(),
            "state" => "available".into(),
            "subnet-arn" => self.arn.clone(),
            "subnet-id" => subnet.id.to_string(),
            _ => subnet.vpc.to_string(),
        }]
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        Some(self.tags)
    }
}

impl Action for DescribeSubnets {
    const NAME: &'static str = "DescribeSubnets";
    const IAM: &'static str = "ec2:DescribeSubnets";
    type Request = Request;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.db.view();
        let candidate = |subnet| Candidate::new(ctx, &view, subnet);
        let subnets = named_or_all::<SubnetId, Subnet>(&view, &request.ids)?;
        let (found, next_token) =
            Listing::new(request.filters, request.max_results, request.next_token).page_of(
                subnets.into_iter().map(candidate),
                |candidate| candidate.subnet.id.to_string(),
                (5, 1000),
            )?;
        let item = |t: Candidate<'_>| Item {
            subnet_id: t.subnet.id.to_string(),
            owner_id: t.subnet.owner.clone(),
            state: "available".into(),
            vpc_id: t.subnet.vpc.to_string(),
            cidr_block: t.subnet.cidr.to_string(),
            available_ip_address_count: t.available,
            availability_zone: t.subnet.zone.clone(),
            availability_zone_id: zone_id(&t.subnet.zone),
            default_for_az: t.subnet.is_default,
            map_public_ip_on_launch: t.subnet.map_public_ip,
            assign_ipv6_address_on_creation: false,
            ipv6_native: false,
            tag_set: Tag::set(t.tags),
            subnet_arn: t.arn,
        };
        Ok(Response {
            subnet_set: found.into_iter().map(item).collect(),
            next_token,
        })
    }
}
