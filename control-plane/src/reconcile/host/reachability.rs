//! Finds out which guests of this host answer on the network, for
//! DescribeInstanceStatus, and writes down what has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    model::{EniId, HostId, Instance, InstanceId, InstanceState, Reachability},
    network::NetworkHost,
    reconcile::{Again, Clock, Controller},
    store::{Db, TransactError, View},
};

/// How often is asked while somebody has not answered yet.
const SOON: Duration = Duration::from_secs(5);
/// How often else: EC2's checks run every minute.
const LATER: Duration = Duration::from_secs(30);
/// How long a guest may be silent, so that a long boot is no failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// A boot of an instance: [`Instance::boots`] and [`Instance::reboots_done`].
type Boot = (InstanceId, u64, u64);

/// What is remembered between passes; losing it only makes patience longer.
#[derive(Default)]
struct Memory {
    /// When was asked last, and for whom, in which boot.
    asked: Option<(Timestamp, BTreeSet<Boot>)>,
    /// In which boot each of the silent has been so, since when.
    silent: BTreeMap<InstanceId, (u64, u64, Timestamp)>,
}

/// Reachability.
pub struct ReachabilityController {
    db: Db,
    host: HostId,
    network: Arc<dyn NetworkHost>,
    clock: Clock,
    memory: Mutex<Memory>,
}

impl ReachabilityController {
    /// A controller that has asked nobody yet.
    pub fn new(db: Db, host: HostId, network: Arc<dyn NetworkHost>, clock: Clock) -> Self {
        Self {
            db,
            host,
            network,
            clock,
            memory: Mutex::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // It holds nothing that a panic could leave half-done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instances whose guests should answer.
    fn targets<'v>(&self, view: &'v View) -> Vec<&'v Instance> {
        view.by(Instance::BY_HOST, &self.host.0)
            .filter(|i| i.state == InstanceState::Running)
            .collect()
    }

    /// Takes in who answered; returns what is to be written down.
    fn judge(&self, view: &View, answering: &BTreeSet<EniId>, now: Timestamp) -> Vec<Reachability> {
        let targets = self.targets(view);
        let mut memory = self.memory();
        memory
            .silent
            .retain(|id, _| targets.iter().any(|i| i.id == *id));
        targets
            .into_iter()
            .filter_map(|instance| {
                let answered = instance
                    .enis
                    .first()
                    .is_some_and(|eni| answering.contains(eni));
                let silence = if answered {
                    memory.silent.remove(&instance.id);
                    None
                } else {
                    let boot = (instance.boots, instance.reboots_done);
                    let began = memory
                        .silent
                        .entry(instance.id.clone())
                        .or_insert((boot.0, boot.1, now));
                    if (began.0, began.1) != boot {
                        *began = (boot.0, boot.1, now);
                    }
                    Some(began.2)
                };
                let known = view.at(&instance.scope).get(&instance.id);
                change(instance, known, silence, now)
            })
            .collect()
    }

    /// Writes it down, unless the instance has gone on to something else.
    async fn write(&self, seen: &Reachability) -> anyhow::Result<()> {
        let id = &seen.instance;
        self.db
            .transact(|view, change| {
                if let Some(instance) = view.find::<Instance>(id)
                    && instance.state == InstanceState::Running
                    && seen.is_of(instance)
                {
                    change.expect_unchanged(instance);
                    change.put(seen);
                }
                Ok::<_, Infallible>(())
            })
            .await
            .map_err(|error| match error {
                TransactError::Refused(never) => match never {},
                TransactError::Contended => anyhow::anyhow!("too many conflicting changes"),
                TransactError::Store(error) => error.into(),
            })
    }
}

/// What has changed, if anything has; `silence`: since when it has not answered,
/// if it doesn't.
fn change(
    instance: &Instance,
    known: Option<&Reachability>,
    silence: Option<Timestamp>,
    now: Timestamp,
) -> Option<Reachability> {
    let known = known.filter(|known| known.is_of(instance));
    let (answers, since) = match silence {
        None => (true, now),
        Some(began) if began.checked_add(PATIENCE).is_ok_and(|end| end <= now) => (false, began),
        // Neither: what is known still holds, and else it is still coming up.
        Some(_) => return None,
    };
    if known.is_some_and(|known| known.answers == answers) {
        return None;
    }
    Some(Reachability {
        scope: instance.scope.clone(),
        instance: instance.id.clone(),
        boot: instance.boots,
        reboots: instance.reboots_done,
        answers,
        since,
    })
}

#[async_trait]
impl Controller for ReachabilityController {
    fn name(&self) -> &'static str {
        "reachability"
    }

    async fn pass(&self) -> anyhow::Result<Again> {
        let view = self.db.view();
        let running: BTreeSet<Boot> = self
            .targets(&view)
            .iter()
            .map(|i| (i.id.clone(), i.boots, i.reboots_done))
            .collect();
        if running.is_empty() {
            return Ok(Again::Idle);
        }
        let calm = self.targets(&view).iter().all(|instance| {
            view.at(&instance.scope)
                .get::<Reachability>(&instance.id)
                .is_some_and(|known| known.answers && known.is_of(instance))
        });
        let pause = if calm { LATER } else { SOON };
        let now = (self.clock)();
        if let Some((at, whom)) = &self.memory().asked
            && running.is_subset(whom)
            && let Ok(ago) = Duration::try_from(now.duration_since(*at))
            && ago < pause
        {
            return Ok(Again::After(pause - ago));
        }
        self.memory().asked = Some((now, running));
        let answering = self.network.answering().await?;
        // Who answered is judged by what they are by now: one that was stopped
        // while it was asked has not failed.
        for seen in self.judge(&self.db.view(), &answering, (self.clock)()) {
            tracing::info!(instance = %seen.instance, answers = seen.answers, "reachability");
            self.write(&seen).await?;
        }
        Ok(Again::After(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::samples,
        network::{fake::FakeNetwork, plan::topology},
        reconcile::testing,
    };

    fn at(seconds: i64) -> Timestamp {
        samples::time() + jiff::SignedDuration::from_secs(seconds)
    }

    #[test]
    fn what_is_written_down() {
        let instance = Instance {
            state: InstanceState::Running,
            ..samples::instance(1)
        };
        let seen = |answers, since| Reachability {
            scope: samples::scope(),
            instance: instance.id.clone(),
            boot: 1,
            reboots: 0,
            answers,
            since: at(since),
        };
        let (good, bad) = (seen(true, 0), seen(false, 0));
        let earlier = Reachability {
            boot: 0,
            ..good.clone()
        };
        // Known, silent since, now; what changes.
        for (known, silence, now, expected) in [
            (None, None, 9, Some(seen(true, 9))),
            (Some(&good), None, 9, None),
            (Some(&earlier), None, 9, Some(seen(true, 9))),
            (Some(&bad), None, 9, Some(seen(true, 9))),
            (None, Some(5), 300, None),
            (Some(&good), Some(5), 300, None),
            (None, Some(5), 305, Some(seen(false, 5))),
            (Some(&good), Some(5), 305, Some(seen(false, 5))),
            (Some(&earlier), Some(5), 305, Some(seen(false, 5))),
            (Some(&bad), Some(5), 305, None),
        ] {
            let got = change(&instance, known, silence.map(at), at(now));
            assert_eq!(got, expected, "{known:?} {silence:?} {now}");
        }
    }

    #[tokio::test]
    async fn a_guest_comes_up_falls_silent_and_is_rebooted() {
        let db = Db::in_memory().await;
        testing::cloud(&db, &[1], 4).await;
        let id = InstanceId::from_random(1);
        let host = HostId("test-host".into());
        let edit = async |edit: &dyn Fn(&mut Instance)| {
            db.transact(|view, change| {
                let mut instance = view.find::<Instance>(&id).unwrap().clone();
                edit(&mut instance);
                change.put(&instance);
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
        };
        edit(&|i| {
            i.state = InstanceState::Running;
            i.host = Some(HostId("test-host".into()));
        })
        .await;
        let network = Arc::new(FakeNetwork::default());
        let now = Arc::new(Mutex::new(at(0)));
        let clock: Clock = {
            let now = Arc::clone(&now);
            Arc::new(move || *now.lock().unwrap())
        };
        let controller =
            ReachabilityController::new(db.clone(), host.clone(), network.clone(), clock);
        let pass = async |seconds| {
            *now.lock().unwrap() = at(seconds);
            controller.pass().await.unwrap()
        };
        let known = || {
            let view = db.view();
            let instance = view.find::<Instance>(&id).unwrap();
            view.at(&instance.scope)
                .get::<Reachability>(&id)
                .filter(|known| known.is_of(instance))
                .map(|known| (known.answers, known.since))
        };

        // No tap yet, so no answer: it is still coming up.
        assert_eq!(pass(0).await, Again::After(SOON));
        assert_eq!(known(), None);
        let there = topology(&db.view(), &host);
        assert_eq!(
            there
                .vpcs
                .values()
                .map(|v| v.interfaces.len())
                .sum::<usize>(),
            1
        );
        network.apply(&there).await.unwrap();
        // Woken early, nobody is asked again.
        assert_eq!(pass(2).await, Again::After(Duration::from_secs(3)));
        assert_eq!(known(), None);
        pass(5).await;
        assert_eq!(known(), Some((true, at(5))));
        let revision = db.view().revision();
        assert_eq!(pass(20).await, Again::After(Duration::from_secs(15)));
        pass(35).await;
        assert_eq!(
            db.view().revision(),
            revision,
            "nothing new, nothing written"
        );

        network.set_silent(true);
        pass(65).await;
        assert_eq!(known(), Some((true, at(5))), "patience");
        pass(365).await;
        assert_eq!(known(), Some((false, at(65))));

        // A new boot begins anew.
        edit(&|i| i.reboots_done += 1).await;
        pass(400).await;
        assert_eq!(known(), None);
        network.set_silent(false);
        pass(405).await;
        assert_eq!(known(), Some((true, at(405))));
    }
}
