//! `DescribeInstanceTypeOfferings`: every type, everywhere. Whether there is room for one is
//! told when it is asked for.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceTypeOfferings.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        ApiError,
        ec2::{
            listing::{Filterable, Table, TagsOf, describe},
            regions::zone_id,
        },
    },
    model::INSTANCE_TYPES,
};

describe! {
    DescribeInstanceTypeOfferings {
        set: instance_type_offering_set of Item,
        more: { location_type: Option<String> },
        pages: 5..=1000,
        page: |asked, more| {
            let kind = more.location_type.as_deref().unwrap_or("region");
            let (region, zones) = (
                &asked.ctx.scope().region,
                asked.ctx.config.zones_of(&asked.ctx.scope().region),
            );
            let locations: Vec<String> = match kind {
                "region" => vec![region.clone()],
                "availability-zone" => zones.to_vec(),
                "availability-zone-id" => zones.iter().map(|zone| zone_id(zone)).collect(),
                // There is none.
                "outpost" => Vec::new(),
                other => {
                    let why = "It must be region, availability-zone, availability-zone-id or outpost.";
                    return Err(ApiError::invalid_value("locationType", other, why));
                }
            };
            let items = INSTANCE_TYPES.iter().flat_map(|t| {
                locations.iter().map(|location| Item {
                    instance_type: t.name.to_owned(),
                    location_type: kind.to_owned(),
                    location: location.clone(),
                })
            });
            asked.page_of(items, |item| format!("{} {}", item.instance_type, item.location))
        },
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    instance_type: String,
    location_type: String,
    location: String,
}

impl Filterable for Item {
    const TAGS: Option<TagsOf<Self>> = None;

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on("instance-type", |i, out| out.add(&i.instance_type))
            .on("location", |i, out| out.add(&i.location))
    }
}
