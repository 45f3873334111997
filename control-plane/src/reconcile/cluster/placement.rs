//! Gives pending instances their host.
//!
//! A call that asks for more than there is was refused already; what is left
//! without a place here has lost a race, or its host has shrunk, and ends as
//! EC2 ends it: terminated, with a StateReason.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    model::{Host, HostId, Instance, InstanceId, InstanceState, StateReason, Volume},
    reconcile::{
        Clock, Controller, Requeue,
        instance::record,
        queue::{Singleton, Wake},
    },
    scheduler::{Demand, Ledger, Shortfall},
    store::{Change, Changed, Db, View},
};

/// Placement.
pub struct PlacementController {
    /// Desired state.
    pub db: Db,
    /// The time.
    pub clock: Clock,
}

#[async_trait]
impl Controller for PlacementController {
    type Key = Singleton;

    fn name(&self) -> &'static str {
        "placement"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn all(&self) -> anyhow::Result<BTreeSet<Singleton>> {
        Ok([Singleton].into())
    }

    fn concerned(&self, view: &View, changed: &Changed) -> Vec<Wake<Singleton>> {
        let news =
            changed.there::<Instance>(view).any(waits) || changed.of::<Host>(view).next().is_some();
        news.then_some(Wake::Changed(Singleton))
            .into_iter()
            .collect()
    }

    async fn step(&self, _: &Singleton) -> anyhow::Result<Requeue> {
        if unplaced(&self.db.view()).next().is_none() {
            return Ok(Requeue::Idle);
        }
        let now = (self.clock)();
        self.db
            .transact_infallible(|view, change| carry_out(view, change, now))
            .await?;
        Ok(Requeue::Now)
    }
}

/// How many instances are looked at for one transaction, if it has room for as many.
const PLACED: usize = 48;

/// Whether it is on no host and not yet terminated.
fn waits(instance: &Instance) -> bool {
    instance.host.is_none() && instance.state != InstanceState::Terminated
}

/// The instances that are on no host and not yet terminated, in the order that they
/// came.
fn unplaced(view: &View) -> impl Iterator<Item = &Instance> {
    view.in_order(Instance::UNPLACED)
}

/// What becomes of the next instances without a host: a host, or none. First
/// come, first served.
fn plan(view: &View) -> Vec<(InstanceId, Result<HostId, Shortfall>)> {
    let mut ledger = Ledger::of(view);
    unplaced(view)
        .filter(|i| i.state == InstanceState::Pending)
        .take(PLACED)
        .map(|i| (i.id.clone(), ledger.place(&Demand::of_instance(view, i))))
        .collect()
}

fn carry_out(view: &View, change: &mut Change<'_>, now: Timestamp) {
    for (id, host) in plan(view) {
        let Some(instance) = view.find::<Instance>(&id) else {
            continue;
        };
        let placed = host.as_ref().ok();
        let placed = placed.and_then(|id| view.shared::<Host>(&id.0));
        let decided = change.attempt(|change| match placed {
            Some(host) => place(view, change, instance, host),
            None => {
                let reason = StateReason::insufficient_capacity();
                record::shutting_down(change, instance, &reason, now);
            }
        });
        if decided.is_none() {
            return;
        }
        if let Err(missing) = &host {
            tracing::warn!(instance = %id, %missing, "no host has room");
        }
    }
    // What never had a host has nothing on one.
    let ending = unplaced(view).filter(|i| i.state != InstanceState::Pending);
    for instance in ending {
        let ended = change.attempt(|change| record::terminated(view, change, instance, now));
        if ended.is_none() {
            return;
        }
    }
}

/// Gives an instance its host, and with it its volumes.
fn place(view: &View, change: &mut Change<'_>, instance: &Instance, host: &Host) {
    // Two placements on one host can't both commit.
    change.touch::<Host>(&host.id.0);
    change.update(
        instance,
        &Instance {
            host: Some(host.id.clone()),
            ..instance.clone()
        },
    );
    for volume in record::volumes(view, instance) {
        change.update(
            volume,
            &Volume {
                host: Some(host.id.clone()),
                ..volume.clone()
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        model::{Eni, PrivateAddress, PublicAddress, Tags, samples},
        reconcile::testing,
    };

    #[tokio::test]
    async fn first_come_first_served_and_the_rest_ends() {
        let db = Db::in_memory().await;
        // Room for two t2.micro of the three.
        testing::cloud(&db, &[1, 2, 3], 2).await;
        let clock: Clock = Arc::new(samples::time);
        let controller = PlacementController {
            db: db.clone(),
            clock,
        };
        while controller.step(&Singleton).await.unwrap() == Requeue::Now {}
        let view = db.view();
        let placed = |n| {
            let i = view.find::<Instance>(&InstanceId::from_random(n)).unwrap();
            (i.host.clone().map(|h| h.0), i.state)
        };
        let host = Some("test-host".to_owned());
        assert_eq!(placed(1), (host.clone(), InstanceState::Pending));
        assert_eq!(placed(2), (host, InstanceState::Pending));
        assert_eq!(placed(3), (None, InstanceState::Terminated));
        // All that the third had allocated is free again.
        assert_eq!(view.all::<Eni>().count(), 2);
        assert_eq!(view.all::<Volume>().count(), 2);
        // The volumes are where their instances are.
        assert!(
            view.all::<Volume>()
                .all(|v| v.host.as_ref().is_some_and(|h| h.0 == "test-host"))
        );
        assert_eq!(view.all::<PublicAddress>().count(), 2);
        assert_eq!(view.all::<PrivateAddress>().count(), 2);
        assert!(
            view.all::<Tags>()
                .all(|t| !t.resource.ends_with('3') || t.resource.starts_with("i-"))
        );
        let third = view.find::<Instance>(&InstanceId::from_random(3)).unwrap();
        let reason = third.state_reason.as_ref().unwrap();
        assert_eq!(reason.code, "Server.InsufficientInstanceCapacity");
    }
}
