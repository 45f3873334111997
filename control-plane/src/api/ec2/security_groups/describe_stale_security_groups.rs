//! `DescribeStaleSecurityGroups`: the groups whose rules name what was on the other
//! side of a peering connection that is gone. There are none of those yet, and so none.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeStaleSecurityGroups.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{Action, ApiError, Ctx, Targets, ec2::listing::Page, shared::found},
    model::Vpc,
};

/// The action.
pub(crate) struct DescribeStaleSecurityGroups;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    vpc_id: String,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    stale_security_group_set: Vec<Stale>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stale {
    description: Option<String>,
    group_id: String,
    group_name: Option<String>,
    vpc_id: Option<String>,
}

impl Action for DescribeStaleSecurityGroups {
    const NAME: &'static str = "DescribeStaleSecurityGroups";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.view();
        found::<Vpc>(view.view(), &request.vpc_id)?;
        Page::new(request.max_results, request.next_token.as_deref(), 5..=255)?;
        Ok(Response {
            stale_security_group_set: Vec::new(),
            next_token: None,
        })
    }
}
