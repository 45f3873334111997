//! Which controllers there are, wired together.

use std::{path::PathBuf, sync::Arc};

use tokio::{sync::watch, task::JoinSet};

use super::{
    Clock, Controller, Slots,
    cluster::{GarbageController, PlacementController},
    host::{ImageController, NetworkController, ReachabilityController, VolumeController},
    instance::InstanceController,
    leader::{Candidate, Holder},
    run,
};
use crate::{
    compute::ComputeHost, config::Config, model::Hosts, network::NetworkHost, storage::StorageHost,
    store::Db,
};

/// What the controllers work with: desired state, and the hosts that they act for.
#[derive(Clone)]
pub struct Controllers {
    /// Desired state.
    pub db: Db,
    /// The configuration.
    pub config: Arc<Config>,
    /// Those whose instances, volumes and networks these are.
    pub hosts: Hosts,
    /// Their VMMs.
    pub compute: Arc<dyn ComputeHost>,
    /// Their volumes.
    pub storage: Arc<dyn StorageHost>,
    /// Their networks.
    pub network: Arc<dyn NetworkHost>,
    /// The folder of this machine's images, if the host is this machine.
    pub images: Option<PathBuf>,
    /// What the work on them is bounded by.
    pub slots: Slots,
    /// The time.
    pub clock: Clock,
}

/// Takes each controller, whatever it is keyed by.
pub(super) trait Visitor {
    /// Takes the next one.
    fn visit<C: Controller>(&mut self, controller: Arc<C>);
}

/// Starts each as a task that runs until `shutdown` is true.
struct Starter<'a> {
    db: &'a Db,
    tasks: &'a mut JoinSet<()>,
    shutdown: &'a watch::Receiver<bool>,
}

impl Visitor for Starter<'_> {
    fn visit<C: Controller>(&mut self, controller: Arc<C>) {
        let run = run(controller, self.db.clone(), self.shutdown.clone());
        self.tasks.spawn(run);
    }
}

impl Controllers {
    /// Starts all of them, as tasks that run until `shutdown` is true: those of the
    /// hosts at once, those of the cluster for as long as this process leads.
    pub fn start(&self, tasks: &mut JoinSet<()>, shutdown: &watch::Receiver<bool>) {
        let db = &self.db;
        self.of_hosts(&mut Starter {
            db,
            tasks,
            shutdown,
        });
        let me = Holder::new(self.config.host_id.clone());
        let candidate = Candidate::new(db.store().clone(), me);
        let this = self.clone();
        let start = move |tasks: &mut JoinSet<()>, shutdown: &watch::Receiver<bool>| {
            let db = &this.db;
            this.of_cluster(&mut Starter {
                db,
                tasks,
                shutdown,
            });
        };
        tasks.spawn(candidate.run(start, shutdown.clone()));
    }

    /// Those of which the cloud has one. With [`of_hosts`](Self::of_hosts) the one list
    /// of all controllers, for who starts them and for who kills them between steps.
    pub(super) fn of_cluster(&self, visitor: &mut impl Visitor) {
        visitor.visit(Arc::new(PlacementController {
            db: self.db.clone(),
            clock: self.clock.clone(),
        }));
        visitor.visit(Arc::new(GarbageController {
            db: self.db.clone(),
            pool: self.config.public_addresses(),
            clock: self.clock.clone(),
        }));
    }

    /// Those that each host has.
    pub(super) fn of_hosts(&self, visitor: &mut impl Visitor) {
        let network = Arc::new(NetworkController::new(
            self.db.clone(),
            self.hosts.clone(),
            self.network.clone(),
            self.slots.clone(),
        ));
        if let Some(folder) = &self.images {
            visitor.visit(Arc::new(ImageController::new(
                self.db.clone(),
                folder.clone(),
                self.config.image_scopes(),
            )));
        }
        visitor.visit(Arc::new(VolumeController {
            db: self.db.clone(),
            hosts: self.hosts.clone(),
            storage: self.storage.clone(),
            slots: self.slots.clone(),
        }));
        visitor.visit(Arc::new(ReachabilityController::new(
            self.db.clone(),
            self.hosts.clone(),
            self.network.clone(),
            self.clock.clone(),
        )));
        visitor.visit(Arc::new(InstanceController::new(self, network.clone())));
        visitor.visit(network);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        conditions::Conditions,
        model::{HostId, Instance, InstanceId},
        reconcile::testing,
        simulation,
    };

    fn placed(view: &crate::store::View) -> bool {
        let instance = view.find::<Instance>(&InstanceId::from_random(1));
        instance.is_some_and(|i| i.host.is_some())
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_leader_places() {
        let db = Db::in_memory().await;
        testing::cloud(&db, &[1], 4).await;
        // Another process leads.
        let there = Holder::new(HostId("there".into()));
        let (shut_down, receiver) = watch::channel(false);
        let leader = Candidate::new(db.store().clone(), there);
        let leads = tokio::spawn(leader.run(
            |tasks, shutdown| {
                let mut shutdown = shutdown.clone();
                tasks.spawn(async move {
                    let _ = shutdown.wait_for(|s| *s).await;
                });
            },
            receiver,
        ));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let config = Arc::new(Config::for_tests());
        let hosts = Hosts::one(config.host_id.clone());
        let controllers = simulation::controllers(&db, &config, hosts, Conditions::default());
        let (_running, shutdown) = watch::channel(false);
        let mut tasks = JoinSet::new();
        controllers.start(&mut tasks, &shutdown);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(!placed(&db.view()));
        shut_down.send_replace(true);
        leads.await.unwrap();
        let mut views = db.changed();
        let waited =
            tokio::time::timeout(Duration::from_secs(10), views.wait_for(|view| placed(view)));
        drop(waited.await.unwrap().unwrap());
        assert!(tasks.try_join_next().is_none(), "all go on");
    }
}
