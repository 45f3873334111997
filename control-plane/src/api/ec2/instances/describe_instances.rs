//! `DescribeInstances`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html>

use serde::{Deserialize, Serialize};

use super::answer::{self, Reservation};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{Filter, Listing},
    },
    model::Instance,
};

/// The action.
pub struct DescribeInstances;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// Only these.
    #[serde(default, rename = "InstanceId")]
    pub ids: Vec<String>,
    /// Only what these match.
    #[serde(default, rename = "Filter")]
    pub filters: Vec<Filter>,
    /// How many instances at most, 5 to 1000.
    pub max_results: Option<i64>,
    /// Where the last page ended.
    pub next_token: Option<String>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The instances, by the calls that made them.
    pub reservation_set: Vec<Reservation>,
    /// Where the next page begins.
    pub next_token: Option<String>,
}

impl Action for DescribeInstances {
    const NAME: &'static str = "DescribeInstances";
    const UNSUPPORTED: &'static [&'static str] = &["IncludeManagedResources"];
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        if !request.ids.is_empty() && request.max_results.is_some() {
            return Err(ApiError::combination(
                "The parameter instancesSet cannot be used with the parameter maxResults",
            ));
        }
        let view = ctx.view();
        let (found, next_token) = Listing::new(
            request.filters,
            request.max_results,
            request.next_token,
        )
        .rows(view.view(), &request.ids, (5, 1000), |_: &Instance| true)?;
        Ok(Response {
            reservation_set: answer::reservations(&found),
            next_token,
        })
    }
}
