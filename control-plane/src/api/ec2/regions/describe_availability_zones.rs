//! `DescribeAvailabilityZones`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeAvailabilityZones.html>

use serde::{Deserialize, Serialize};

use super::zone_id;
use crate::api::{
    Action, ApiError, Ctx, Targets,
    shared::{Filter, Filterable, Filters, Table, TagsOf},
};

/// The action.
pub struct DescribeAvailabilityZones;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// Only these, by name.
    #[serde(default, rename = "ZoneName")]
    pub names: Vec<String>,
    /// Only these, by id.
    #[serde(default, rename = "ZoneId")]
    pub ids: Vec<String>,
    /// Also those that are not enabled: there are none.
    pub all_availability_zones: Option<bool>,
    /// Only what these match.
    #[serde(default, rename = "Filter")]
    pub filters: Vec<Filter>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The zones.
    pub availability_zone_info: Vec<Zone>,
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

impl Action for DescribeAvailabilityZones {
    const NAME: &'static str = "DescribeAvailabilityZones";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let filters = Filters::new(request.filters)?;
        let region = &ctx.scope().region;
        let simulated = ctx.config.simulated.map(|simulated| Message {
            message: format!(
                "This zone is simulated: its {} hosts run nothing.",
                simulated.hosts
            ),
        });
        let zones: Vec<Zone> = ctx
            .config
            .zones_of(region)
            .iter()
            .map(|name| Zone {
                zone_name: name.clone(),
                zone_id: zone_id(name),
                zone_state: "available".into(),
                region_name: region.clone(),
                zone_type: "availability-zone".into(),
                group_name: region.clone(),
                network_border_group: region.clone(),
                opt_in_status: "opt-in-not-required".into(),
                message_set: simulated.iter().cloned().collect(),
            })
            .collect();
        for (parameter, asked, has) in [
            (
                "ZoneName",
                &request.names,
                zones.iter().map(|z| &z.zone_name).collect::<Vec<_>>(),
            ),
            (
                "ZoneId",
                &request.ids,
                zones.iter().map(|z| &z.zone_id).collect(),
            ),
        ] {
            if let Some(missing) = asked.iter().find(|a| !has.contains(a)) {
                let why = "It is no zone of this cloud.";
                return Err(ApiError::invalid_value(parameter, missing, why));
            }
        }
        let availability_zone_info = zones
            .into_iter()
            .filter(|z| request.names.is_empty() || request.names.contains(&z.zone_name))
            .filter(|z| request.ids.is_empty() || request.ids.contains(&z.zone_id))
            .filter(|z| filters.matches(z))
            .collect();
        Ok(Response {
            availability_zone_info,
        })
    }
}
