//! A small cloud for the reconcilers' tests.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Controller, Requeue, queue::backoff};
use crate::{
    config::Config,
    model::{AddressHolder, Host, PrivateAddress, PublicAddress, overhead_mib, samples},
    store::Db,
};

/// Puts these instances there as RunInstances does, on a network with an image
/// and a host with room for `room` of them.
pub(crate) async fn cloud(db: &Db, instances: &[u8], room: u32) {
    db.transact_infallible(|_, change| {
        change.create(&samples::vpc());
        change.create(&samples::subnet());
        change.create(&samples::image());
        change.create(&Host {
            id: Config::for_tests().host_id,
            zone: "us-east-1a".into(),
            vcpus: room,
            memory_mib: u64::from(room) * (1024 + overhead_mib(1024)),
            disk_gib: u64::from(room) * 8,
        });
        for &n in instances {
            let mut instance = samples::instance(n);
            instance.launch_index = n.into();
            let eni = samples::eni(n);
            change.create(&PrivateAddress::new(
                &eni.scope,
                &eni.subnet,
                eni.private_ip,
                eni.id.clone(),
            ));
            change.create(&PublicAddress {
                address: Ipv4Addr::new(203, 0, 113, n).to_string(),
                holder: AddressHolder::Interface(eni.id.clone()),
                owner: Some(eni.scope.clone()),
            });
            let tags = || [("Name".to_owned(), n.to_string())].into();
            change.put_tags(&instance, tags());
            change.put_tags(&eni, tags());
            change.put_tags(&samples::volume(n), tags());
            change.create(&instance);
            change.create(&eni);
            change.create(&samples::volume(n));
        }
    })
    .await
    .unwrap();
}

/// All keys of a controller, one step each, one after the other, as the queue
/// would take them, with a clock that the test sets.
#[async_trait]
pub(crate) trait Pass: Send + Sync {
    /// The controller's name.
    fn name(&self) -> &'static str;
    /// When the first of the keys wants its next step.
    async fn pass(&self, now: Timestamp) -> Requeue;
}

/// A controller with what the queue would remember of its keys.
pub(crate) struct Stepper<C: Controller> {
    controller: Arc<C>,
    /// How often each has failed in a row, and until when it waits.
    failures: Mutex<BTreeMap<C::Key, (u32, Timestamp)>>,
}

impl<C: Controller> Stepper<C> {
    pub(crate) fn new(controller: Arc<C>) -> Self {
        Self {
            controller,
            failures: Mutex::default(),
        }
    }

    async fn step(&self, key: &C::Key, now: Timestamp) -> Requeue {
        let failed = self.failures.lock().unwrap().get(key).copied();
        if let Some((_, until)) = failed
            && let Ok(pause) = Duration::try_from(until - now)
            && !pause.is_zero()
        {
            return Requeue::After(pause);
        }
        match self.controller.step(key).await {
            Ok(requeue) => {
                self.failures.lock().unwrap().remove(key);
                requeue
            }
            Err(_) => {
                let failures = failed.map_or(1, |(failures, _)| failures + 1);
                let pause = backoff(failures);
                let until = now.checked_add(pause).unwrap();
                let mut all = self.failures.lock().unwrap();
                all.insert(key.clone(), (failures, until));
                Requeue::After(pause)
            }
        }
    }
}

#[async_trait]
impl<C: Controller> Pass for Stepper<C> {
    fn name(&self) -> &'static str {
        self.controller.name()
    }

    async fn pass(&self, now: Timestamp) -> Requeue {
        let mut next = Requeue::Idle;
        for key in self.controller.all().await.unwrap() {
            next = next.min(self.step(&key, now).await);
        }
        next
    }
}
