//! `DescribeInstanceStatus`.
//!
//! The system's status is what Hearth knows: the VMM runs, or `running` would
//! not be the state. The instance's is whether its guest answers ARP, as on EC2.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceStatus.html>

use serde::{Deserialize, Serialize};

use super::State;
use crate::{
    api::{
        ec2::listing::{Filterable, Table, TagsOf, describe},
        ec2::regions::zone_id,
        wire::Time,
    },
    model::{Instance, InstanceState, Reachability},
    store::Scoped,
};

describe! {
    DescribeInstanceStatus {
        ids: "InstanceId",
        set: pub(super) instance_status_set of Status,
        unsupported: ["IncludeManagedResources"],
        more: {
            /// Those that don't run, too.
            include_all_instances: Option<bool>,
        },
        pages: 5..=1000,
        page: |asked, more| {
            asked.ids_or_pages("instancesSet")?;
            let all = more.include_all_instances.unwrap_or(false);
            let view = asked.view;
            let seen = asked
                .resources(|i: &Instance| all || i.state == InstanceState::Running)?
                .map(|instance| Seen::new(view, instance));
            let (found, next_token) = asked.page_of(seen, |s| s.status.instance_id.clone())?;
            Ok((found.into_iter().map(|seen| seen.status).collect(), next_token))
        },
    }
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
