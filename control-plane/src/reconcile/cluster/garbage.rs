//! Removes records that have had their time.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    model::{
        ClientToken, GroupName, Instance, InstanceState, PublicPool, Reservation, SecurityGroup,
        Tags,
    },
    reconcile::{
        Clock, Controller, Requeue,
        queue::{Singleton, Wake},
    },
    records::{launch::expand, security_group::finish_deletion},
    store::{Change, Changed, Db, View},
};

/// How long a terminated instance can still be asked for: "visible for a short
/// while (usually less than one hour)".
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html>
const TERMINATED: Duration = Duration::from_secs(3600);
/// How long a client token is remembered.
const TOKEN: Duration = Duration::from_secs(24 * 3600);

/// After what time a launch that isn't whole has been left by whoever made it.
const ABANDONED: Duration = Duration::from_secs(10);
/// How many records of a kind are looked at for one transaction.
const AT_ONCE: usize = 25;

/// Garbage, and what a crash has left half-done.
pub struct GarbageController {
    /// Desired state.
    pub db: Db,
    /// The public addresses that there are.
    pub pool: PublicPool,
    /// The time.
    pub clock: Clock,
}

fn over(since: Timestamp, time: Duration, now: Timestamp) -> bool {
    since.checked_add(time).is_ok_and(|end| end <= now)
}

/// Whether something of its scope that goes with it can't be read: it stays.
fn is_kept_back(view: &View, instance: &Instance) -> bool {
    let own = view.at(&instance.scope);
    own.has_unreadable::<Tags>()
        || own.has_unreadable::<Instance>()
        || own.has_unreadable::<Reservation>()
}

/// The records whose time is over, as many as go at once.
fn plan(view: &View, now: Timestamp) -> (Vec<&Instance>, Vec<&ClientToken>) {
    let instances = view
        .by(Instance::BY_STATE, InstanceState::Terminated.name())
        .filter(|i| over(i.state_since, TERMINATED, now))
        .filter(|i| !is_kept_back(view, i))
        .take(AT_ONCE)
        .collect();
    let tokens = view
        .in_order(ClientToken::BY_AGE)
        .take_while(|t| over(t.created, TOKEN, now))
        .take(AT_ONCE)
        .collect();
    (instances, tokens)
}

/// Deletes an instance's record, and its reservation's, if all others of that are among
/// `going`.
fn delete(view: &View, change: &mut Change<'_>, instance: &Instance, going: &[&Instance]) {
    change.delete_tagged(instance);
    let own = view.at(&instance.scope);
    let mut all = own.by(Instance::BY_RESERVATION, instance.reservation.as_str());
    let last = all.all(|other| going.iter().any(|gone| gone.id == other.id));
    if last && let Some(reservation) = own.get::<Reservation>(&instance.reservation) {
        change.delete(reservation);
    }
}

/// Deletes what has had its time, as much as one transaction carries; whether there is
/// more.
fn collect(view: &View, change: &mut Change<'_>, now: Timestamp) -> bool {
    let (instances, tokens) = plan(view, now);
    for (n, instance) in instances.iter().enumerate() {
        // Those before it are gone as it goes: who comes last takes the reservation.
        let going = &instances[..=n];
        let gone = change.attempt(|change| delete(view, change, instance, going));
        if gone.is_none() {
            return true;
        }
    }
    for token in &tokens {
        if change.attempt(|change| change.delete(*token)).is_none() {
            return true;
        }
    }
    // Those whose deletion a crash has cut short.
    let groups = view.by(SecurityGroup::DELETING, "");
    let readable = |group: &&SecurityGroup| {
        !view.has_unreadable_at::<Tags>(&group.scope)
            && !view.has_unreadable_at::<GroupName>(&group.scope)
    };
    for group in groups.filter(readable) {
        let own = view.at(&group.scope);
        let done = change.attempt(|change| finish_deletion(own, change, group));
        if done.is_none() {
            return true;
        }
    }
    instances.len() == AT_ONCE || tokens.len() == AT_ONCE
}

#[async_trait]
impl Controller for GarbageController {
    type Key = Singleton;

    fn name(&self) -> &'static str {
        "garbage"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn all(&self) -> anyhow::Result<BTreeSet<Singleton>> {
        Ok([Singleton].into())
    }

    /// Time alone makes garbage: the resync is enough. What is pending is looked
    /// at when it may have been left.
    fn concerned(&self, view: &View, changed: &Changed) -> Vec<Wake<Singleton>> {
        let mut reservations = changed.there::<Reservation>(view);
        let news = reservations.any(|reservation| reservation.pending.is_some());
        news.then_some(Wake::News(Singleton)).into_iter().collect()
    }

    async fn step(&self, _: &Singleton) -> anyhow::Result<Requeue> {
        let now = (self.clock)();
        let more = self
            .db
            .transact_infallible(|view, change| collect(view, change, now))
            .await?;
        let abandoned = self
            .db
            .transact_infallible(|view, change| {
                let mut pending = view.by(Reservation::PENDING, "");
                let reservation = pending.find(|r| over(r.created, ABANDONED, now));
                reservation.map(|r| expand(view.at(&r.scope), change, r, self.pool))
            })
            .await;
        // What can't be made, as on a full disk, holds up no deletion.
        if more {
            return Ok(Requeue::Now);
        }
        if abandoned?.is_some() {
            return Ok(Requeue::Now);
        }
        let waiting = self.db.view().by(Reservation::PENDING, "").next().is_some();
        Ok(if waiting {
            Requeue::After(ABANDONED)
        } else {
            Requeue::Idle
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstanceId, samples};

    #[test]
    fn only_what_has_had_its_time_goes() {
        let at = |s: i64| samples::time() + jiff::SignedDuration::from_secs(s);
        let instance = |n, state, since| Instance {
            state,
            state_since: at(since),
            ..samples::instance(n)
        };
        let token = |key: &str, created| ClientToken {
            scope: samples::scope(),
            key: key.into(),
            digest: String::new(),
            made: "r-1".into(),
            created: at(created),
        };
        let view = View::default()
            .with(instance(1, InstanceState::Terminated, 0))
            .with(instance(2, InstanceState::Terminated, 1))
            .with(instance(3, InstanceState::Stopped, 0))
            .with(token("old", 3600 - 86400))
            .with(token("new", 0));
        let (instances, tokens) = plan(&view, at(3600));
        let ids: Vec<_> = instances.iter().map(|i| i.id.clone()).collect();
        assert_eq!(ids, [InstanceId::from_random(1)]);
        assert_eq!(tokens, [&token("old", 3600 - 86400)]);
    }
}
