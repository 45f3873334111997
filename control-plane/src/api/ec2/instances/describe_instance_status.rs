//! `DescribeInstanceStatus`.
//!
//! The system's status is what Hearth knows: the VMM runs, or `running` would
//! not be the state. The instance's is whether its guest answers ARP, as on EC2.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceStatus.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{State, named};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        ec2::regions::zone_id,
        shared::{Filter, Filterable, Listing, Table, TagsOf},
        wire::Time,
    },
    model::{Instance, InstanceState, Reachability},
    store::Scoped,
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
struct Seen {
    zone: String,
    state: InstanceState,
    status: Status,
}

impl Seen {
    fn new(view: Scoped<'_>, instance: &Instance) -> Self {
        Self {
            zone: instance.zone.clone(),
            state: instance.state,
            status: Status::of(instance, view.get(&instance.id)),
        }
    }
}

impl Summary {
    fn checks(&self) -> impl Iterator<Item = &String> {
        self.details.iter().flatten().map(|detail| &detail.status)
    }
}

impl Filterable for Seen {
    const TAGS: Option<TagsOf<Self>> = None;

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on("availability-zone", |s, out| out.add(&s.zone))
            .on("instance-state-code", |s, out| out.add(s.state.code()))
            .on("instance-state-name", |s, out| out.add(s.state.name()))
            .on("instance-status.reachability", |s, out| {
                out.extend(s.status.instance_status.checks());
            })
            .on("instance-status.status", |s, out| {
                out.add(&s.status.instance_status.status);
            })
            .on("system-status.reachability", |s, out| {
                out.extend(s.status.system_status.checks());
            })
            .on("system-status.status", |s, out| {
                out.add(&s.status.system_status.status);
            })
    }
}

impl Action for DescribeInstanceStatus {
    const NAME: &'static str = "DescribeInstanceStatus";
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
        let view = view.view();
        let all = request.include_all_instances.unwrap_or(false);
        let asked = |i: &Instance| all || i.state == InstanceState::Running;
        let listing = Listing::new(request.filters, request.max_results, request.next_token);
        let key = |seen: &Seen| seen.status.instance_id.clone();
        let range = (5, 1000);
        let seen = |instance| Seen::new(view, instance);
        let (found, next_token) = if request.ids.is_empty() {
            let after = listing.after()?.unwrap_or_default();
            let instances = view.after(&after);
            listing.page_of(instances.filter(|i| asked(i)).map(seen), key, range)?
        } else {
            let named: BTreeMap<_, _> = named(view, &request.ids)?
                .into_iter()
                .map(|i| (&i.id, i))
                .collect();
            let named = named.into_values().filter(|i| asked(i)).map(seen);
            listing.page_of(named, key, range)?
        };
        Ok(Response {
            instance_status_set: found.into_iter().map(|seen| seen.status).collect(),
            next_token,
        })
    }
}
