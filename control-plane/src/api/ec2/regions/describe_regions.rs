//! `DescribeRegions`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeRegions.html>

use serde::{Deserialize, Serialize};

use crate::api::{
    Action, ApiError, Ctx,
    ec2::shared::{Filter, Filterable, Filters},
};

/// The action.
pub struct DescribeRegions;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// Only these.
    #[serde(default, rename = "RegionName")]
    pub names: Vec<String>,
    /// Also those that are not enabled: there are none.
    pub all_regions: Option<bool>,
    /// Only what these match.
    #[serde(default, rename = "Filter")]
    pub filters: Vec<Filter>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The regions.
    pub region_info: Vec<Region>,
}

/// A region.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Region {
    /// Its name.
    pub region_name: String,
    /// Where its API is.
    pub region_endpoint: String,
    /// Whether one has to ask for it.
    pub opt_in_status: String,
}

impl Filterable for Region {
    const TAGGED: bool = false;
    const FILTERS: &'static [&'static str] = &["endpoint", "opt-in-status", "region-name"];

    fn values(&self, filter: &str) -> Vec<String> {
        vec![match filter {
            "endpoint" => self.region_endpoint.clone(),
            "opt-in-status" => self.opt_in_status.clone(),
            _ => self.region_name.clone(),
        }]
    }
}

impl Action for DescribeRegions {
    const NAME: &'static str = "DescribeRegions";
    const IAM: &'static str = "ec2:DescribeRegions";
    type Request = Request;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let filters = Filters::new::<Region>(request.filters)?;
        let here = Region {
            region_name: ctx.config.region.clone(),
            region_endpoint: ctx.config.listen.to_string(),
            opt_in_status: "opt-in-not-required".into(),
        };
        if let Some(other) = request.names.iter().find(|n| **n != here.region_name) {
            return Err(ApiError::invalid_value(
                "RegionName",
                other,
                "It is no region of this cloud.",
            ));
        }
        let region_info = Some(here)
            .filter(|r| filters.matches(r))
            .into_iter()
            .collect();
        Ok(Response { region_info })
    }
}
