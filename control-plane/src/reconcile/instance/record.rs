//! What becomes of the records when a step of an instance's life is done. Each
//! of these is one transaction's worth, and pure.

use std::net::Ipv4Addr;

use jiff::Timestamp;

use super::plan::Transition;
use crate::{
    model::{
        AddressHolder, ElasticIp, Eni, Image, Instance, InstanceState, Intent, PrivateAddress,
        PublicAddress, Reachability, Reboot, StateReason, Volume,
    },
    records::elastic_ip,
    store::{Change, View},
};

/// Writes down what became of the instance.
pub fn apply(
    view: &View,
    change: &mut Change<'_>,
    instance: &Instance,
    transition: &Transition,
    now: Timestamp,
) {
    match transition {
        Transition::Running => running(view, change, instance, now),
        Transition::Rebooting { resets } => change.update(
            instance,
            &Instance {
                reboot: Some(Reboot {
                    since: now,
                    resets: *resets,
                }),
                ..instance.clone()
            },
        ),
        Transition::Rebooted => change.update(
            instance,
            &Instance {
                reboots_done: instance.reboots_asked,
                reboot: None,
                ..instance.clone()
            },
        ),
        Transition::Hibernated => {
            let hibernated = Instance {
                hibernated: Some(instance.boots),
                ..instance.clone()
            };
            stopped(view, change, instance, hibernated, None, now);
        }
        // Its guest has as long as any to power down.
        Transition::NotHibernated(reason) => change.update(
            instance,
            &Instance {
                intent: Intent::Stop,
                state_reason: Some(reason.clone()),
                ..enter(instance, InstanceState::Stopping, now)
            },
        ),
        // As StartInstances does, but that it never lost its public address.
        Transition::Lost => change.update(
            instance,
            &Instance {
                boots: instance.boots.saturating_add(1),
                ..enter(instance, InstanceState::Pending, now)
            },
        ),
        Transition::Stopped(reason) => {
            stopped(
                view,
                change,
                instance,
                instance.clone(),
                reason.as_ref(),
                now,
            );
        }
        Transition::ShuttingDown(reason) => shutting_down(change, instance, reason, now),
        Transition::Terminated => terminated(view, change, instance, now),
    }
}

fn enter(instance: &Instance, state: InstanceState, now: Timestamp) -> Instance {
    Instance {
        state,
        state_since: now,
        // It is over with any other change.
        reboot: None,
        ..instance.clone()
    }
}

fn running(view: &View, change: &mut Change<'_>, instance: &Instance, now: Timestamp) {
    let mut after = enter(instance, InstanceState::Running, now);
    // Its image may be gone when it is started again.
    let own = view.at(&instance.scope);
    let image = || own.visible::<Image>(&instance.image);
    after.boot = after
        .boot
        .or_else(|| image().map(|i| i.manifest.boot.clone()));
    after.state_reason = None;
    after.transition_reason = String::new();
    // It has gone on from its memory, or lost it.
    after.hibernated = None;
    // A cold boot is as good as any reboot asked for before it.
    after.reboots_done = after.reboots_asked;
    change.update(instance, &after);
}

/// Its public address goes back to the pool in the same transaction. `then` is the
/// instance but for that it is stopped.
fn stopped(
    view: &View,
    change: &mut Change<'_>,
    instance: &Instance,
    then: Instance,
    reason: Option<&StateReason>,
    now: Timestamp,
) {
    let mut after = enter(&then, InstanceState::Stopped, now);
    after.intent = Intent::Stop;
    if let Some(reason) = reason {
        after.transition_reason = reason.message.clone();
        after.state_reason = Some(reason.clone());
    }
    change.update(instance, &after);
    for eni in interfaces(view, instance) {
        if let Some(address) = release(view, change, eni) {
            change.update(
                eni,
                &Eni {
                    public_ip: None,
                    last_public_ip: Some(address),
                    ..eni.clone()
                },
            );
        }
    }
}

/// From here on it goes the way of TerminateInstances.
pub fn shutting_down(
    change: &mut Change<'_>,
    instance: &Instance,
    reason: &StateReason,
    now: Timestamp,
) {
    let mut after = enter(instance, InstanceState::ShuttingDown, now);
    after.intent = Intent::Terminate;
    after.transition_reason = reason.message.clone();
    after.state_reason = Some(reason.clone());
    change.update(instance, &after);
}

/// Takes from an interface the public address that it drew from the pool, and gives it
/// back there, if it is the interface's; the address. An Elastic IP address stays.
fn release(view: &View, change: &mut Change<'_>, eni: &Eni) -> Option<Ipv4Addr> {
    let address = eni.public_ip?;
    if let Some(taken) = view.shared::<PublicAddress>(address.to_string()) {
        match &taken.holder {
            AddressHolder::Allocation(_) => return None,
            AddressHolder::Interface(id) if *id == eni.id => change.delete(taken),
            AddressHolder::Interface(_) => {}
        }
    }
    Some(address)
}

/// Everything that the instance had is free again; only its own record and tags
/// stay for a while.
pub fn terminated(view: &View, change: &mut Change<'_>, instance: &Instance, now: Timestamp) {
    let mut after = enter(instance, InstanceState::Terminated, now);
    after.hibernated = None;
    for eni in interfaces(view, instance) {
        release(view, change, eni);
        let own = view.at(&eni.scope);
        for elastic in own.by(ElasticIp::BY_ENI, eni.id.as_str()) {
            change.update(elastic, &elastic_ip::free(elastic));
        }
        change.delete(&PrivateAddress::new(
            &eni.scope,
            &eni.subnet,
            eni.private_ip,
            eni.id.clone(),
        ));
        change.delete_tagged(eni);
    }
    after.enis.clear();
    if let Some(seen) = view.at(&instance.scope).get::<Reachability>(&instance.id) {
        change.delete(seen);
    }
    for volume in volumes(view, instance) {
        if goes_with(volume) {
            change.delete_tagged(volume);
        } else {
            change.update(
                volume,
                &Volume {
                    attachment: None,
                    ..volume.clone()
                },
            );
        }
    }
    change.update(instance, &after);
}

/// Whether interfaces or volumes of the instance may be there and can't be read.
pub fn is_incomplete(view: &View, instance: &Instance) -> bool {
    let own = view.at(&instance.scope);
    let volume = own.get::<Volume>(&instance.root_volume);
    let enis = instance
        .enis
        .iter()
        .filter(|id| own.get::<Eni>(id).is_none());
    (enis.count() > 0 && own.has_unreadable::<Eni>())
        || (volume.is_none() && own.has_unreadable::<Volume>())
}

/// The instance's interfaces, the primary first.
pub fn interfaces<'v>(view: &'v View, instance: &'v Instance) -> impl Iterator<Item = &'v Eni> {
    let scope = &instance.scope;
    let own = instance.enis.iter();
    own.filter_map(move |id| view.find::<Eni>(id).filter(|eni| eni.scope == *scope))
}

/// The volumes at the instance.
pub fn volumes<'v>(view: &'v View, instance: &Instance) -> impl Iterator<Item = &'v Volume> {
    view.by(Volume::BY_INSTANCE, instance.id.as_str())
}

/// Whether the volume goes with its instance.
pub fn goes_with(volume: &Volume) -> bool {
    volume
        .attachment
        .as_ref()
        .is_some_and(|a| a.delete_on_termination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{AllocationId, EniId, InstanceId, samples},
        reconcile::testing,
        store::Db,
    };

    #[tokio::test]
    async fn only_its_own_public_address_goes_back_to_the_pool() {
        use AddressHolder::{Allocation, Interface};
        // The interface's own, another's, and an Elastic IP address.
        for (holder, left, kept) in [
            (Interface(EniId::from_random(1)), 0, false),
            (Interface(EniId::from_random(2)), 1, false),
            (Allocation(AllocationId::from_random(1)), 1, true),
        ] {
            let db = Db::in_memory().await;
            testing::cloud(&db, &[1], 4).await;
            let held = db.transact_infallible(|view, change| {
                let taken = view.all::<PublicAddress>().next().unwrap();
                let holder = holder.clone();
                change.update(
                    taken,
                    &PublicAddress {
                        holder,
                        ..taken.clone()
                    },
                );
            });
            held.await.unwrap();
            let stop = db.transact_infallible(|view, change| {
                let instance = view.find::<Instance>(&InstanceId::from_random(1));
                let (instance, now) = (instance.unwrap(), samples::time());
                stopped(view, change, instance, instance.clone(), None, now);
            });
            stop.await.unwrap();
            let view = db.view();
            assert_eq!(view.count::<PublicAddress>(), left);
            let eni = view.all::<Eni>().next().unwrap();
            assert_eq!(eni.public_ip.is_some(), kept);
        }
    }
}
