//! `DescribeInstanceStatus`.
//!
//! The system's status is what Hearth knows: the VMM runs, or `running` would
//! not be the state. The instance's is whether its guest answers ARP, as on EC2.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceStatus.html>

use serde::{Deserialize, Serialize};

use super::{State, filters::Candidate};
use crate::{
    api::{
        Action, ApiError, Ctx,
        ec2::{
            regions::zone_id,
            shared::{Filter, Filterable, Listing, named_or_all},
        },
        wire::Time,
    },
    model::{Instance, InstanceId, InstanceState, Reachability},
    store::View,
};

/// The action.
pub struct DescribeInstanceStatus;

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
    /// Those that don't run, too.
    pub include_all_instances: Option<bool>,
    /// How many at most, 5 to 1000.
    pub max_results: Option<i64>,
    /// Where the last page ended.
    pub next_token: Option<String>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The instances.
    pub instance_status_set: Vec<Status>,
    /// Where the next page begins.
    pub next_token: Option<String>,
}

/// How one instance fares.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The instance.
    pub instance_id: String,
    /// Its zone.
    pub availability_zone: String,
    /// The same, by id.
    pub availability_zone_id: String,
    /// Its state.
    pub instance_state: State,
    /// How its host fares.
    pub system_status: Summary,
    /// How its guest fares.
    pub instance_status: Summary,
}

/// The result of checks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// All in all.
    pub status: String,
    /// One by one.
    pub details: Option<Vec<Detail>>,
}

/// The result of one check.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Detail {
    /// The check.
    pub name: String,
    /// Its result.
    pub status: String,
    /// Since when it fails.
    pub impaired_since: Option<Time>,
}

impl Summary {
    fn checked(all: &str, reachability: &str) -> Self {
        let detail = Detail {
            name: "reachability".into(),
            status: reachability.into(),
            impaired_since: None,
        };
        Self {
            status: all.into(),
            details: Some(vec![detail]),
        }
    }
}

/// How the guest of a running instance fares.
fn guest(instance: &Instance, seen: Option<&Reachability>) -> Summary {
    match seen.filter(|seen| seen.is_of(instance)) {
        None => Summary::checked("initializing", "initializing"),
        Some(seen) if seen.answers => Summary::checked("ok", "passed"),
        Some(seen) => {
            let mut failed = Summary::checked("impaired", "failed");
            for detail in failed.details.iter_mut().flatten() {
                detail.impaired_since = Some(seen.since.into());
            }
            failed
        }
    }
}

impl Status {
    fn of(instance: &Instance, seen: Option<&Reachability>) -> Self {
        let (system_status, instance_status) = match instance.state {
            InstanceState::Running => (Summary::checked("ok", "passed"), guest(instance, seen)),
            _ => {
                let none = Summary {
                    status: "not-applicable".into(),
                    details: None,
                };
                (none.clone(), none)
            }
        };
        Self {
            instance_id: instance.id.to_string(),
            availability_zone: instance.zone.clone(),
            availability_zone_id: zone_id(&instance.zone),
            instance_state: instance.state.into(),
            system_status,
            instance_status,
        }
    }
}

/// What this action's filters look at.
struct StatusCandidate<'v> {
    instance: Candidate<'v>,
    status: Status,
}

impl<'v> StatusCandidate<'v> {
    fn new(view: &'v View, region: &str, instance: &'v Instance) -> Self {
        let status = Status::of(instance, view.get(&instance.id));
        Self {
            instance: Candidate::new(view, region, instance),
            status,
        }
    }
}

impl Filterable for StatusCandidate<'_> {
    const TAGGED: bool = false;
    const FILTERS: &'static [&'static str] = &[
        "availability-zone",
        "instance-state-code",
        "instance-state-name",
        "instance-status.reachability",
        "instance-status.status",
        "system-status.reachability",
        "system-status.status",
    ];

    fn values(&self, filter: &str) -> Vec<String> {
        let details = |summary: &Summary| {
            summary
                .details
                .iter()
                .flatten()
                .map(|d| d.status.clone())
                .collect::<Vec<_>>()
        };
        match filter {
            "instance-status.reachability" => details(&self.status.instance_status),
            "instance-status.status" => vec![self.status.instance_status.status.clone()],
            "system-status.reachability" => details(&self.status.system_status),
            "system-status.status" => vec![self.status.system_status.status.clone()],
            other => self.instance.values(other),
        }
    }
}

impl Action for DescribeInstanceStatus {
    const NAME: &'static str = "DescribeInstanceStatus";
    const IAM: &'static str = "ec2:DescribeInstanceStatus";
    const UNSUPPORTED: &'static [&'static str] = &["IncludeManagedResources"];
    type Request = Request;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        if !request.ids.is_empty() && request.max_results.is_some() {
            return Err(ApiError::combination(
                "The parameter instancesSet cannot be used with the parameter maxResults",
            ));
        }
        let view = ctx.db.view();
        let region = &ctx.config.region;
        let all = request.include_all_instances.unwrap_or(false);
        let instances = named_or_all::<InstanceId, Instance>(&view, &request.ids)?.into_iter();
        let instances = instances.filter(|i| all || i.state == InstanceState::Running);
        let (found, next_token) =
            Listing::new(request.filters, request.max_results, request.next_token).page_of(
                instances.map(|instance| StatusCandidate::new(&view, region, instance)),
                |candidate| candidate.status.instance_id.clone(),
                (5, 1000),
            )?;
        Ok(Response {
            instance_status_set: found.into_iter().map(|c| c.status).collect(),
            next_token,
        })
    }
}
