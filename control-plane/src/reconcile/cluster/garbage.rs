//! Removes records that have had their time.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::transact;
use crate::{
    model::{ClientToken, Instance, InstanceId, InstanceState, SecurityGroup},
    reconcile::{Again, Clock, Controller},
    records::security_group::finish_deletion,
    store::{Db, View},
};

/// How long a terminated instance can still be asked for: "visible for a short
/// while (usually less than one hour)".
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html>
const TERMINATED: Duration = Duration::from_secs(3600);
/// How long a client token is remembered.
const TOKEN: Duration = Duration::from_secs(24 * 3600);

/// Garbage.
pub struct GarbageController {
    /// Desired state.
    pub db: Db,
    /// The time.
    pub clock: Clock,
}

fn over(since: Timestamp, time: Duration, now: Timestamp) -> bool {
    since.checked_add(time).is_ok_and(|end| end <= now)
}

/// The records whose time is over.
fn plan(view: &View, now: Timestamp) -> (Vec<InstanceId>, Vec<ClientToken>) {
    let instances = view
        .by(Instance::BY_STATE, InstanceState::Terminated.name())
        .filter(|i| over(i.state_since, TERMINATED, now))
        .map(|i| i.id.clone())
        .collect();
    let tokens = view
        .all::<ClientToken>()
        .filter(|t| over(t.created, TOKEN, now))
        .cloned()
        .collect();
    (instances, tokens)
}

#[async_trait]
impl Controller for GarbageController {
    fn name(&self) -> &'static str {
        "garbage"
    }

    async fn pass(&self) -> anyhow::Result<Again> {
        let now = (self.clock)();
        transact(&self.db, |view, change| {
            let (instances, tokens) = plan(view, now);
            for id in instances {
                if let Some(instance) = view.find::<Instance>(&id) {
                    change.delete_tagged(instance, &id);
                }
            }
            for token in tokens {
                change.delete(&token);
            }
            // Those whose deletion a crash has cut short.
            for group in view.by(SecurityGroup::DELETING, "") {
                finish_deletion(view.at(&group.scope), change, group);
            }
        })
        .await?;
        Ok(Again::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ReservationId, samples};

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
            reservation: ReservationId::from_random(1),
            created: at(created),
        };
        let view = View::default()
            .with(instance(1, InstanceState::Terminated, 0))
            .with(instance(2, InstanceState::Terminated, 1))
            .with(instance(3, InstanceState::Stopped, 0))
            .with(token("old", 3600 - 86400))
            .with(token("new", 0));
        let expected = (
            vec![InstanceId::from_random(1)],
            vec![token("old", 3600 - 86400)],
        );
        assert_eq!(plan(&view, at(3600)), expected);
    }
}
