//! The calls of the years when identifiers became longer. All have the long form, and
//! none has had another: who asks for that gets what there is, and who asks for the short
//! one is refused.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{Action, ApiError, Ctx, Done, Targets},
    model::Arn,
};

/// The kinds that were asked about so.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeIdFormat.html>
const KINDS: [&str; 31] = [
    "bundle",
    "conversion-task",
    "customer-gateway",
    "dhcp-options",
    "elastic-ip-allocation",
    "elastic-ip-association",
    "export-task",
    "flow-log",
    "image",
    "import-task",
    "instance",
    "internet-gateway",
    "network-acl",
    "network-acl-association",
    "network-interface",
    "network-interface-attachment",
    "prefix-list",
    "reservation",
    "route-table",
    "route-table-association",
    "security-group",
    "snapshot",
    "subnet",
    "subnet-cidr-block-association",
    "volume",
    "vpc",
    "vpc-cidr-block-association",
    "vpc-endpoint",
    "vpc-peering-connection",
    "vpn-connection",
    "vpn-gateway",
];

/// What stands for all kinds where something is changed.
const ALL_CURRENT: &str = "all-current";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    resource: String,
    use_long_ids: bool,
}

fn known(resource: &str) -> Result<(), ApiError> {
    if KINDS.contains(&resource) {
        return Ok(());
    }
    let why = "It is no kind of resource whose IDs had another format.";
    Err(ApiError::invalid_value("resource", resource, why))
}

/// Of this kind, or of all.
fn statuses(resource: Option<&String>) -> Result<Vec<Status>, ApiError> {
    if let Some(resource) = resource {
        known(resource)?;
    }
    let asked = KINDS
        .iter()
        .filter(|kind| resource.is_none_or(|r| r == *kind));
    let statuses = asked.map(|kind| Status {
        resource: (*kind).to_owned(),
        use_long_ids: true,
    });
    Ok(statuses.collect())
}

/// Long identifiers there are; others there won't be.
fn modify(resource: &str, use_long_ids: bool) -> Result<Done, ApiError> {
    if resource != ALL_CURRENT {
        known(resource)?;
    }
    if use_long_ids {
        return Ok(Done::OK);
    }
    let why = "All IDs have the longer format.";
    Err(ApiError::invalid_value("useLongIds", "false", why))
}

/// Callers are their account's root so far: there is no other principal.
fn principal(ctx: &Ctx, arn: &str) -> Result<(), ApiError> {
    let root = Arn::root(&ctx.scope().account).to_string();
    if [&*root, "all"].contains(&arn) {
        return Ok(());
    }
    let why = "There is no such principal.";
    Err(ApiError::invalid_value("principalArn", arn, why))
}

/// The answer of those that only show the kinds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Statuses {
    status_set: Vec<Status>,
}

/// `DescribeIdFormat`.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeIdFormat.html>
pub(crate) struct DescribeIdFormat;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct OfKind {
    resource: Option<String>,
}

impl Action for DescribeIdFormat {
    const NAME: &'static str = "DescribeIdFormat";
    const DRY_RUN: bool = false;
    type Request = OfKind;
    type Response = Statuses;

    fn targets(_: &OfKind, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(_: &Ctx, request: OfKind) -> Result<Statuses, ApiError> {
        let status_set = statuses(request.resource.as_ref())?;
        Ok(Statuses { status_set })
    }
}

/// `ModifyIdFormat`.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyIdFormat.html>
pub(crate) struct ModifyIdFormat;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Format {
    resource: String,
    use_long_ids: bool,
}

impl Action for ModifyIdFormat {
    const NAME: &'static str = "ModifyIdFormat";
    const DRY_RUN: bool = false;
    type Request = Format;
    type Response = Done;

    fn targets(_: &Format, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(_: &Ctx, request: Format) -> Result<Done, ApiError> {
        modify(&request.resource, request.use_long_ids)
    }
}

/// `DescribeIdentityIdFormat`.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeIdentityIdFormat.html>
pub(crate) struct DescribeIdentityIdFormat;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct OfPrincipal {
    principal_arn: String,
    resource: Option<String>,
}

impl Action for DescribeIdentityIdFormat {
    const NAME: &'static str = "DescribeIdentityIdFormat";
    const DRY_RUN: bool = false;
    type Request = OfPrincipal;
    type Response = Statuses;

    fn targets(_: &OfPrincipal, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: OfPrincipal) -> Result<Statuses, ApiError> {
        principal(ctx, &request.principal_arn)?;
        let status_set = statuses(request.resource.as_ref())?;
        Ok(Statuses { status_set })
    }
}

/// `ModifyIdentityIdFormat`.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyIdentityIdFormat.html>
pub(crate) struct ModifyIdentityIdFormat;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct PrincipalsFormat {
    principal_arn: String,
    resource: String,
    use_long_ids: bool,
}

impl Action for ModifyIdentityIdFormat {
    const NAME: &'static str = "ModifyIdentityIdFormat";
    const DRY_RUN: bool = false;
    type Request = PrincipalsFormat;
    type Response = Done;

    fn targets(_: &PrincipalsFormat, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: PrincipalsFormat) -> Result<Done, ApiError> {
        principal(ctx, &request.principal_arn)?;
        modify(&request.resource, request.use_long_ids)
    }
}

/// `DescribeAggregateIdFormat`.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeAggregateIdFormat.html>
pub(crate) struct DescribeAggregateIdFormat;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfAll {}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Aggregate {
    use_long_ids_aggregated: bool,
    status_set: Vec<Status>,
}

impl Action for DescribeAggregateIdFormat {
    const NAME: &'static str = "DescribeAggregateIdFormat";
    type Request = OfAll;
    type Response = Aggregate;

    fn targets(_: &OfAll, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(_: &Ctx, _: OfAll) -> Result<Aggregate, ApiError> {
        Ok(Aggregate {
            use_long_ids_aggregated: true,
            status_set: statuses(None)?,
        })
    }
}

/// `DescribePrincipalIdFormat`: one page, for there is one principal.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribePrincipalIdFormat.html>
pub(crate) struct DescribePrincipalIdFormat;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct OfKinds {
    #[serde(default, rename = "Resource")]
    resources: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Principals {
    principal_set: Vec<Principal>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Principal {
    arn: String,
    status_set: Vec<Status>,
}

impl Action for DescribePrincipalIdFormat {
    const NAME: &'static str = "DescribePrincipalIdFormat";
    type Request = OfKinds;
    type Response = Principals;

    fn targets(_: &OfKinds, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: OfKinds) -> Result<Principals, ApiError> {
        if let Some(size) = request
            .max_results
            .filter(|size| !(1..=1000).contains(size))
        {
            let why = "It must be from 1 to 1000.";
            return Err(ApiError::invalid_value(
                "maxResults",
                &size.to_string(),
                why,
            ));
        }
        if request.next_token.is_some() {
            let message = "The token is none that was given.";
            return Err(ApiError::new("InvalidNextToken", message));
        }
        let mut status_set = Vec::new();
        for resource in &request.resources {
            status_set.extend(statuses(Some(resource))?);
        }
        if request.resources.is_empty() {
            status_set = statuses(None)?;
        }
        Ok(Principals {
            principal_set: vec![Principal {
                arn: Arn::root(&ctx.scope().account).to_string(),
                status_set,
            }],
        })
    }
}
