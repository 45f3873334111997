//! `DescribeAvailabilityZones`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeAvailabilityZones.html>

use serde::{Deserialize, Serialize};

use super::zone_id;
use crate::api::{
    ApiError, Ctx,
    ec2::listing::{Filterable, Table, TagsOf, describe},
};

describe! {
    DescribeAvailabilityZones {
        ids: "ZoneId",
        set: availability_zone_info of Zone,
        more: {
            #[serde(default, rename = "ZoneName")]
            names: Vec<String>,
            /// Also those that are not enabled: there are none.
            #[serde(rename = "AllAvailabilityZones")]
            _all_availability_zones: Option<bool>,
        },
        pages: none,
        page: |asked, more| {
            let zones = zones(asked.ctx);
            known("ZoneName", &more.names, zones.iter().map(|z| &z.zone_name))?;
            known("ZoneId", &asked.ids, zones.iter().map(|z| &z.zone_id))?;
            let (names, ids) = (more.names, asked.ids.clone());
            let zones = zones
                .into_iter()
                .filter(|z| names.is_empty() || names.contains(&z.zone_name))
                .filter(|z| ids.is_empty() || ids.contains(&z.zone_id));
            asked.page_of(zones, |zone| zone.zone_name.clone())
        },
    }
}

/// A zone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Zone {
    /// Its name.
    pub zone_name: String,
    /// Its id.
    pub zone_id: String,
    /// `available`.
    pub zone_state: String,
    /// Its region.
    pub region_name: String,
    /// `availability-zone`.
    pub zone_type: String,
    /// The group it belongs to: the region's.
    pub group_name: String,
    /// Where its public addresses are announced.
    pub network_border_group: String,
    /// Whether one has to ask for it.
    pub opt_in_status: String,
    /// What its operators have to say.
    pub message_set: Vec<Message>,
}

/// Something that operators have to say about a zone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message {
    /// In words.
    pub message: String,
}

impl Filterable for Zone {
    const TAGS: Option<TagsOf<Self>> = None;

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on("group-name", |z, out| out.add(&z.group_name))
            .on("opt-in-status", |z, out| out.add(&z.opt_in_status))
            .on("region-name", |z, out| out.add(&z.region_name))
            .on("state", |z, out| out.add(&z.zone_state))
            .on("zone-id", |z, out| out.add(&z.zone_id))
            .on("zone-name", |z, out| out.add(&z.zone_name))
            .on("zone-type", |z, out| out.add(&z.zone_type))
    }
}

/// The zones of the caller's region.
fn zones(ctx: &Ctx) -> Vec<Zone> {
    let region = &ctx.scope().region;
    let simulated = ctx.config.simulated.map(|simulated| Message {
        message: format!(
            "This zone is simulated: its {} hosts run nothing.",
            simulated.hosts
        ),
    });
    let names = ctx.config.zones_of(region).iter();
    let zone = |name: &String| Zone {
        zone_name: name.clone(),
        zone_id: zone_id(name),
        zone_state: "available".into(),
        region_name: region.clone(),
        zone_type: "availability-zone".into(),
        group_name: region.clone(),
        network_border_group: region.clone(),
        opt_in_status: "opt-in-not-required".into(),
        message_set: simulated.iter().cloned().collect(),
    };
    names.map(zone).collect()
}

/// Checks that each of those that a parameter names is there.
fn known<'z>(
    parameter: &str,
    asked: &[String],
    there: impl Iterator<Item = &'z String>,
) -> Result<(), ApiError> {
    let there: Vec<&String> = there.collect();
    match asked.iter().find(|name| !there.contains(name)) {
        Some(missing) => {
            let why = "It is no zone of this cloud.";
            Err(ApiError::invalid_value(parameter, missing, why))
        }
        None => Ok(()),
    }
}
