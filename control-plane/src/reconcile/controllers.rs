//! Which controllers there are, wired together.

use std::sync::Arc;

use tokio::{sync::watch, task::JoinSet};

use super::{
    Clock, Controller, Slots,
    cluster::{GarbageController, PlacementController},
    host::{NetworkController, ReachabilityController, VolumeController},
    instance::InstanceController,
    run,
};
use crate::{
    compute::ComputeHost, config::Config, model::Hosts, network::NetworkHost, storage::StorageHost,
    store::Db,
};

/// What the controllers work with: desired state, and the hosts that they act for.
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
    /// What the work on them is bounded by.
    pub slots: Slots,
    /// The time.
    pub clock: Clock,
}

impl Controllers {
    /// Starts all of them, each a task that runs until `shutdown` is true.
    pub fn start(&self, tasks: &mut JoinSet<()>, shutdown: &watch::Receiver<bool>) {
        let network = Arc::new(NetworkController::new(
            self.db.clone(),
            self.hosts.clone(),
            self.network.clone(),
            self.slots.clone(),
        ));
        let placement = PlacementController {
            db: self.db.clone(),
            clock: self.clock.clone(),
        };
        let garbage = GarbageController {
            db: self.db.clone(),
            pool: self.config.public_addresses().collect(),
            clock: self.clock.clone(),
        };
        let volumes = VolumeController {
            db: self.db.clone(),
            hosts: self.hosts.clone(),
            storage: self.storage.clone(),
            slots: self.slots.clone(),
        };
        let reachability = ReachabilityController::new(
            self.db.clone(),
            self.hosts.clone(),
            self.network.clone(),
            self.clock.clone(),
        );
        let instances = InstanceController::new(self, network.clone());
        self.run(tasks, Arc::new(placement), shutdown);
        self.run(tasks, Arc::new(garbage), shutdown);
        self.run(tasks, Arc::new(volumes), shutdown);
        self.run(tasks, Arc::new(reachability), shutdown);
        self.run(tasks, Arc::new(instances), shutdown);
        self.run(tasks, network, shutdown);
    }

    fn run<C: Controller>(
        &self,
        tasks: &mut JoinSet<()>,
        controller: Arc<C>,
        shutdown: &watch::Receiver<bool>,
    ) {
        tasks.spawn(run(controller, self.db.clone(), shutdown.clone()));
    }
}
