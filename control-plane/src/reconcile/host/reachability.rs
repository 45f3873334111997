//! Finds out which guests of this host answer on the network, for
//! DescribeInstanceStatus, and writes down what has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    model::{Hosts, Instance, InstanceId, InstanceState, Reachability, VpcId},
    network::{Answering, NetworkHost, plan},
    reconcile::{Clock, Controller, Requeue, queue::Wake},
    store::{Changed, Db, View},
};

/// How often is asked while somebody has not answered yet.
const SOON: Duration = Duration::from_secs(5);
/// How often else: EC2's checks run every minute.
const LATER: Duration = Duration::from_secs(30);
/// How long a guest may be silent, so that a long boot is no failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// A boot of an instance: [`Instance::boots`] and [`Instance::reboots_done`].
type Boot = (InstanceId, u64, u64);

/// How many are written down in one transaction.
const AT_ONCE: usize = 32;

/// What is remembered of a VPC between steps; losing it only makes patience
/// longer.
#[derive(Default)]
struct Memory {
    /// When was asked last, and for whom, in which boot.
    asked: Option<(Timestamp, BTreeSet<Boot>)>,
    /// In which boot each of the silent has been so, since when.
    silent: BTreeMap<InstanceId, (u64, u64, Timestamp)>,
}

/// Reachability, VPC by VPC.
pub struct ReachabilityController {
    db: Db,
    hosts: Hosts,
    network: Arc<dyn NetworkHost>,
    clock: Clock,
    memory: Mutex<BTreeMap<VpcId, Memory>>,
}

impl ReachabilityController {
    /// A controller that has asked nobody yet.
    pub fn new(db: Db, hosts: Hosts, network: Arc<dyn NetworkHost>, clock: Clock) -> Self {
        Self {
            db,
            hosts,
            network,
            clock,
            memory: Mutex::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<VpcId, Memory>> {
        // It holds nothing that a panic could leave half-done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its guest should answer.
    fn is_target(&self, instance: &Instance) -> bool {
        instance.state == InstanceState::Running && self.hosts.have(instance.host.as_ref())
    }

    /// The instances of a VPC whose guests should answer.
    fn targets<'v>(&self, view: &'v View, vpc: &VpcId) -> Vec<&'v Instance> {
        plan::instances(view, &self.hosts, vpc)
            .filter(|i| self.is_target(i))
            .collect()
    }

    /// Takes in who answered; returns what is to be written down.
    fn judge(
        &self,
        view: &View,
        vpc: &VpcId,
        answering: &Answering,
        now: Timestamp,
    ) -> Vec<Reachability> {
        let targets = self.targets(view, vpc);
        let ids: BTreeSet<&InstanceId> = targets.iter().map(|i| &i.id).collect();
        let mut all = self.memory();
        let memory = all.entry(vpc.clone()).or_default();
        memory.silent.retain(|id, _| ids.contains(id));
        targets
            .into_iter()
            .filter_map(|instance| {
                let answered = instance.enis.first().is_some_and(|eni| answering.has(eni));
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
    async fn write(&self, seen: &[Reachability]) -> anyhow::Result<()> {
        self.db
            .transact_infallible(|view, change| {
                for seen in seen {
                    let id = &seen.instance;
                    if let Some(instance) = view.find::<Instance>(id)
                        && instance.state == InstanceState::Running
                        && seen.is_of(instance)
                    {
                        change.expect_unchanged(instance);
                        change.overwrite(seen);
                    }
                }
            })
            .await?;
        Ok(())
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
    type Key = VpcId;

    fn name(&self) -> &'static str {
        "reachability"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn all(&self) -> anyhow::Result<BTreeSet<VpcId>> {
        let view = self.db.view();
        let hosts = self.hosts.iter();
        let here = hosts.flat_map(|host| view.by(Instance::BY_HOST, &host.0));
        let targets = here.filter(|i| self.is_target(i));
        Ok(targets.map(|i| i.vpc.clone()).collect())
    }

    fn concerned(&self, view: &View, changed: &Changed) -> Vec<Wake<VpcId>> {
        let instances = changed.there::<Instance>(view);
        let instances = instances.filter(|i| self.is_target(i));
        let vpcs: BTreeSet<&VpcId> = instances.map(|i| &i.vpc).collect();
        vpcs.into_iter().cloned().map(Wake::News).collect()
    }

    async fn step(&self, vpc: &VpcId) -> anyhow::Result<Requeue> {
        let now = (self.clock)();
        let ago = |at: Timestamp| Duration::try_from(now.duration_since(at)).ok();
        let asked = self.memory().get(vpc).and_then(|m| m.asked.clone());
        // Whatever the news, nobody is asked more often.
        if let Some(ago) = asked.as_ref().and_then(|(at, _)| ago(*at))
            && ago < SOON
        {
            return Ok(Requeue::After(SOON - ago));
        }
        let view = self.db.view();
        let targets = self.targets(&view, vpc);
        if targets.is_empty() {
            self.memory().remove(vpc);
            return Ok(Requeue::Idle);
        }
        let running: BTreeSet<Boot> = targets
            .iter()
            .map(|i| (i.id.clone(), i.boots, i.reboots_done))
            .collect();
        let calm = targets.iter().all(|instance| {
            view.at(&instance.scope)
                .get::<Reachability>(&instance.id)
                .is_some_and(|known| known.answers && known.is_of(instance))
        });
        let pause = if calm { LATER } else { SOON };
        if let Some((at, whom)) = &asked
            && running.is_subset(whom)
            && let Some(ago) = ago(*at)
            && ago < pause
        {
            return Ok(Requeue::After(pause - ago));
        }
        self.memory().entry(vpc.clone()).or_default().asked = Some((now, running));
        let answering = self.network.answering(vpc).await?;
        // Who answered is judged by what they are by now: one that was stopped
        // while it was asked has not failed.
        let seen = self.judge(&self.db.view(), vpc, &answering, (self.clock)());
        for some in seen.chunks(AT_ONCE) {
            for seen in some {
                tracing::info!(instance = %seen.instance, answers = seen.answers, "reachability");
            }
            self.write(some).await?;
        }
        Ok(Requeue::After(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{HostId, samples},
        network::{plan::topology, simulated::SimulatedNetwork},
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
        let host = Hosts::one(HostId("test-host".into()));
        let edit = async |edit: &dyn Fn(&mut Instance)| {
            db.transact(|view, change| {
                let mut instance = view.find::<Instance>(&id).unwrap().clone();
                edit(&mut instance);
                change.overwrite(&instance);
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
        let network = Arc::new(SimulatedNetwork::default());
        let now = Arc::new(Mutex::new(at(0)));
        let clock: Clock = {
            let now = Arc::clone(&now);
            Arc::new(move || *now.lock().unwrap())
        };
        let controller =
            ReachabilityController::new(db.clone(), host.clone(), network.clone(), clock);
        let pass = async |seconds| {
            *now.lock().unwrap() = at(seconds);
            controller.step(&VpcId::from_random(1)).await.unwrap()
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
        assert_eq!(pass(0).await, Requeue::After(SOON));
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
        assert_eq!(pass(2).await, Requeue::After(Duration::from_secs(3)));
        assert_eq!(known(), None);
        pass(5).await;
        assert_eq!(known(), Some((true, at(5))));
        let revision = db.view().revision();
        assert_eq!(pass(20).await, Requeue::After(Duration::from_secs(15)));
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
