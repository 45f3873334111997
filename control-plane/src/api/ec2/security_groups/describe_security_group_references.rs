//! `DescribeSecurityGroupReferences`: who names a group from the other side of a
//! peering connection. There are none of those yet, and so nobody.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSecurityGroupReferences.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::all_found},
    model::SecurityGroup,
};

/// The action.
pub(crate) struct DescribeSecurityGroupReferences;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(rename = "GroupId")]
    ids: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    security_group_reference_set: Vec<Reference>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    group_id: String,
    referencing_vpc_id: String,
    vpc_peering_connection_id: Option<String>,
}

impl Action for DescribeSecurityGroupReferences {
    const NAME: &'static str = "DescribeSecurityGroupReferences";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.view();
        all_found::<SecurityGroup>(view.view(), &request.ids)?;
        Ok(Response {
            security_group_reference_set: Vec::new(),
        })
    }
}
