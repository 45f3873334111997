//! Removes records that have had their time.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    model::{
        ClientToken, GroupName, Instance, InstanceState, Launch, LaunchTemplate,
        LaunchTemplateVersion, PublicPool, Reservation, SecurityGroup, StateReason, Tags, Volume,
        VolumeAttachment,
    },
    reconcile::{
        Clock, Controller, Requeue,
        instance::record::{self, goes_with},
        queue::{Singleton, Wake},
    },
    records::{launch::expand, launch_template::go_on_deleting, security_group::finish_deletion},
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
    for template in view.by(LaunchTemplate::DELETING, "") {
        let own = view.at(&template.scope);
        // What can't be read may be of a template that nobody would know then.
        if own.has_unreadable::<LaunchTemplateVersion>() || own.has_unreadable::<Tags>() {
            continue;
        }
        let went = change.attempt(|change| go_on_deleting(own, change, template));
        if went != Some(true) {
            return true;
        }
    }
    instances.len() == AT_ONCE || tokens.len() == AT_ONCE
}

/// The launch of a reservation that was taken back.
fn refused(reservation: &Reservation) -> Option<&Launch> {
    let launch = reservation.pending.as_deref();
    launch.filter(|launch| launch.refused)
}

/// Ends what there is of a launch that was taken back, as much as one transaction
/// carries: its instances with all of their volumes, and its own record when there are
/// none. Whoever called knows of none of them.
fn end(
    view: &View,
    change: &mut Change<'_>,
    reservation: &Reservation,
    launch: &Launch,
    now: Timestamp,
) {
    let own = view.at(&reservation.scope);
    let begun = launch.members.iter();
    let begun = begun.filter_map(|member| own.get::<Instance>(&member.instance));
    let mut none = true;
    for instance in begun {
        none = false;
        // Calls with the same token know by the reason what came of the launch.
        if instance.state_reason == Some(StateReason::launch_refused()) {
            continue;
        }
        let ended = change.attempt(|change| end_member(view, change, instance, now));
        if ended.is_none() {
            return;
        }
    }
    // What doesn't fit any more is the next transaction's.
    change.attempt(|change| {
        if none {
            change.delete(reservation);
        } else {
            let whole = Reservation {
                pending: None,
                ..reservation.clone()
            };
            change.update(reservation, &whole);
        }
    });
}

/// Ends an instance that nobody knows of, and its volumes with it whatever the call
/// asked for.
fn end_member(view: &View, change: &mut Change<'_>, instance: &Instance, now: Timestamp) {
    let refused = StateReason::launch_refused();
    match instance.state {
        // It ended by itself before.
        InstanceState::ShuttingDown | InstanceState::Terminated => change.update(
            instance,
            &Instance {
                state_reason: Some(refused),
                ..instance.clone()
            },
        ),
        _ => record::shutting_down(change, instance, &refused, now),
    }
    for volume in record::volumes(view, instance).filter(|v| !goes_with(v)) {
        let attachment = volume.attachment.clone();
        let going = Volume {
            attachment: attachment.map(|attachment| VolumeAttachment {
                delete_on_termination: true,
                ..attachment
            }),
            ..volume.clone()
        };
        change.update(volume, &going);
    }
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
        let pending = changed.there::<Reservation>(view);
        let pending = pending.filter(|reservation| reservation.pending.is_some());
        // What ends needn't wait until what can't be made is tried again.
        let wake = pending.map(|reservation| match refused(reservation) {
            Some(_) => Wake::Changed(Singleton),
            None => Wake::News(Singleton),
        });
        wake.max().into_iter().collect()
    }

    async fn step(&self, _: &Singleton) -> anyhow::Result<Requeue> {
        let now = (self.clock)();
        let more = self
            .db
            .transact_infallible(|view, change| collect(view, change, now))
            .await?;
        let ended = self
            .db
            .transact_infallible(|view, change| {
                let pending = view.by(Reservation::PENDING, "");
                // What can't be read may be one of its instances.
                let readable = |r: &&Reservation| !view.at(&r.scope).has_unreadable::<Instance>();
                let mut pending = pending.filter(readable);
                let ending = pending.find_map(|r| Some((r, refused(r)?)));
                ending.map(|(r, launch)| end(view, change, r, launch, now))
            })
            .await?;
        let more = more || ended.is_some();
        let abandoned = self
            .db
            .transact_infallible(|view, change| {
                let mut pending = view.by(Reservation::PENDING, "");
                let left =
                    |r: &&Reservation| refused(r).is_none() && over(r.created, ABANDONED, now);
                let reservation = pending.find(left);
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
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::Config,
        model::{GroupId, InstanceId, LaunchTemplateId, ReservationId, samples},
        reconcile::testing,
        records::launch::refuse,
        store::MemoryStore,
    };

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

    #[tokio::test]
    async fn a_template_whose_deletion_was_cut_short_goes_with_its_versions() {
        let db = Db::in_memory().await;
        let template = LaunchTemplate {
            id: LaunchTemplateId::from_random(1),
            scope: samples::scope(),
            name: "web".into(),
            created: samples::time(),
            created_by: String::new(),
            default_version: 1,
            latest_version: 120,
            numbered: 120,
            deleting: true,
        };
        let version = |number| LaunchTemplateVersion {
            key: LaunchTemplateVersion::key_of(&template.id, number),
            scope: samples::scope(),
            template: template.id.clone(),
            number,
            description: None,
            created: samples::time(),
            created_by: String::new(),
            data: serde_json::Map::new(),
        };
        for part in [1..=60, 61..=120] {
            db.transact_infallible(|_, change| {
                part.clone().for_each(|n| change.create(&version(n)));
            })
            .await
            .unwrap();
        }
        db.transact_infallible(|_, change| change.create(&template))
            .await
            .unwrap();
        steps(&garbage(&db)).await;
        assert_eq!(db.view().count::<LaunchTemplateVersion>(), 0);
        assert_eq!(db.view().count::<LaunchTemplate>(), 0);
    }

    const AT: i64 = 100_000;

    fn at(seconds: i64) -> Timestamp {
        samples::time() + jiff::SignedDuration::from_secs(seconds)
    }

    fn garbage(db: &Db) -> GarbageController {
        GarbageController {
            db: db.clone(),
            pool: Config::for_tests().public_addresses(),
            clock: Arc::new(|| at(AT)),
        }
    }

    /// A reservation of this launch, made when it would long have been left.
    fn reservation(launch: Launch) -> Reservation {
        Reservation {
            id: ReservationId::from_random(1000),
            scope: samples::scope(),
            created: at(0),
            user_data: None,
            pending: Some(Box::new(launch)),
        }
    }

    fn launch(count: u8) -> Launch {
        samples::launch(count, &samples::subnet(), &GroupId::from_random(1))
    }

    async fn steps(controller: &GarbageController) -> u32 {
        let mut steps = 0;
        while controller.step(&Singleton).await.unwrap() == Requeue::Now {
            steps += 1;
        }
        steps
    }

    #[tokio::test]
    async fn what_was_begun_of_a_refused_launch_ends_with_its_volumes() {
        let db = Db::in_memory().await;
        testing::cloud(&db, &[], 100).await;
        let mut launch = launch(60);
        launch.delete_on_termination = false;
        launch.settings.protected = true;
        let made = reservation(launch);
        db.transact_infallible(|_, change| change.create(&made))
            .await
            .unwrap();
        // Two of its four parts are made when it is refused.
        let pool = Config::for_tests().public_addresses();
        let current = |view: &View| view.all::<Reservation>().next().cloned();
        for _ in 0..2 {
            db.transact_infallible(|view, change| {
                let made = view.all::<Reservation>().next().unwrap();
                expand(view.at(&made.scope), change, made, pool)
            })
            .await
            .unwrap();
        }
        db.transact_infallible(|view, change| {
            let made = view.all::<Reservation>().next().unwrap();
            assert!(refuse(view.at(&made.scope), change, made));
        })
        .await
        .unwrap();
        let (view, mut changes) = (db.view(), db.changes());
        let begun = view.all::<Instance>().count();
        assert!((30..60).contains(&begun), "{begun}");
        assert_eq!(
            current(&view).unwrap().pending.unwrap().members.len(),
            begun
        );

        // It is news that can't wait.
        let controller = garbage(&db);
        db.transact_infallible(|view, change| change.overwrite(current(view).as_ref().unwrap()))
            .await
            .unwrap();
        let changed = changes.next().await.unwrap();
        let wakes = controller.concerned(&db.view(), &changed);
        assert_eq!(wakes, [Wake::Changed(Singleton)]);
        // One of them had ended by itself: it says what came of the launch, too.
        db.transact_infallible(|view, change| {
            let one = view.all::<Instance>().next().unwrap();
            let over = Instance {
                state: InstanceState::ShuttingDown,
                state_reason: Some(StateReason::no_public_address()),
                ..one.clone()
            };
            change.update(one, &over);
        })
        .await
        .unwrap();
        steps(&controller).await;
        let view = db.view();
        assert_eq!(view.all::<Instance>().count(), begun);
        assert!(view.all::<Instance>().all(|i| {
            i.state == InstanceState::ShuttingDown
                && i.state_reason == Some(StateReason::launch_refused())
        }));
        assert!(view.all::<Volume>().all(goes_with));
        assert_eq!(current(&view).unwrap().pending, None);
    }

    #[tokio::test]
    async fn a_refused_launch_of_which_nothing_was_begun_leaves_nothing() {
        let db = Db::in_memory().await;
        testing::cloud(&db, &[], 100).await;
        let made = reservation(Launch {
            refused: true,
            ..launch(0)
        });
        db.transact_infallible(|_, change| change.create(&made))
            .await
            .unwrap();
        steps(&garbage(&db)).await;
        assert_eq!(db.view().count::<Reservation>(), 0);
    }

    #[tokio::test]
    async fn a_launch_that_cant_be_made_holds_up_no_deletion() {
        let store = Arc::new(MemoryStore::new());
        let db = Db::open(store.clone()).await.unwrap();
        testing::cloud(&db, &[], 100).await;
        db.transact_infallible(|_, change| {
            change.create(&reservation(launch(5)));
            // More than go at once.
            for n in 1..=30 {
                change.create(&Instance {
                    state: InstanceState::Terminated,
                    ..samples::instance(n)
                });
            }
        })
        .await
        .unwrap();
        store.set_room(Some(0));
        let controller = garbage(&db);
        assert_eq!(controller.step(&Singleton).await.unwrap(), Requeue::Now);
        let left = || db.view().count::<Instance>();
        assert_eq!(left(), 30 - AT_ONCE);
        // With the last of them there is only the launch, which has its pause.
        controller.step(&Singleton).await.unwrap_err();
        assert_eq!(left(), 0);
        store.set_room(None);
        steps(&controller).await;
        assert_eq!(left(), 5);
    }
}
