//! `DescribeRegions`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeRegions.html>

use serde::{Deserialize, Serialize};

use crate::api::{
    Action, ApiError, Ctx, Targets,
    shared::{Filter, Filterable, Filters, Table, TagsOf},
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
    const TAGS: Option<TagsOf<Self>> = None;

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on("endpoint", |r, out| out.add(&r.region_endpoint))
            .on("opt-in-status", |r, out| out.add(&r.opt_in_status))
            .on("region-name", |r, out| out.add(&r.region_name))
    }
}

impl Action for DescribeRegions {
    const NAME: &'static str = "DescribeRegions";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let filters = Filters::new(request.filters)?;
        let known = ctx.config.region_names();
        if let Some(other) = request.names.iter().find(|n| !known.contains(&n.as_str())) {
            return Err(ApiError::invalid_value(
                "RegionName",
                other,
                "It is no region of this cloud.",
            ));
        }
        let asked =
            |name: &&str| request.names.is_empty() || request.names.iter().any(|n| n == name);
        let region_info = known
            .into_iter()
            .filter(asked)
            .map(|name| Region {
                region_name: name.to_owned(),
                region_endpoint: ctx.config.listen.to_string(),
                opt_in_status: "opt-in-not-required".into(),
            })
            .filter(|region| filters.matches(region))
            .collect();
        Ok(Response { region_info })
    }
}
