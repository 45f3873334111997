//! `GetCallerIdentity`.
//!
//! <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html>

use serde::{Deserialize, Serialize};

use crate::api::{Action, ApiError, Ctx, Targets};

/// The action.
pub struct GetCallerIdentity;

/// Its parameters: none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    /// The caller's ARN.
    pub arn: String,
    /// The caller's unique id.
    pub user_id: String,
    /// The account's number.
    pub account: String,
}

impl Action for GetCallerIdentity {
    const NAME: &'static str = "GetCallerIdentity";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, _: Request) -> Result<Response, ApiError> {
        Ok(Response {
            arn: ctx.caller.arn.to_string(),
            user_id: ctx.caller.user_id.clone(),
            account: ctx.caller.account.clone(),
        })
    }
}
