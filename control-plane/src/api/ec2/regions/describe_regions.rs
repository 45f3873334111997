//! `DescribeRegions`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeRegions.html>

use serde::{Deserialize, Serialize};

use crate::api::{
    ApiError,
    ec2::listing::{Filterable, Table, TagsOf, describe},
};

describe! {
    DescribeRegions {
        set: region_info of Region,
        more: {
            #[serde(default, rename = "RegionName")]
            names: Vec<String>,
            /// Also those that are not enabled: there are none.
            #[serde(rename = "AllRegions")]
            _all_regions: Option<bool>,
        },
        pages: none,
        page: |asked, more| {
            let (names, config) = (&more.names, &asked.ctx.config);
            let known = config.region_names();
            if let Some(other) = names.iter().find(|n| !known.contains(&n.as_str())) {
                let why = "It is no region of this cloud.";
                return Err(ApiError::invalid_value("RegionName", other, why));
            }
            let regions = known
                .into_iter()
                .filter(|name| names.is_empty() || names.iter().any(|n| n == name))
                .map(|name| Region {
                    region_name: name.to_owned(),
                    region_endpoint: config.listen.to_string(),
                    opt_in_status: "opt-in-not-required".into(),
                });
            asked.page_of(regions, |region| region.region_name.clone())
        },
    }
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
