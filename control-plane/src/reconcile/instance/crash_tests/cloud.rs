//! One `hearth` after the other, on one host and one store, and what is done to it.

use std::sync::{Arc, Mutex};

use hearth_vmm_api::Exit;

use super::host::{Fuse, Host};
use crate::{
    compute::{ComputeError, ComputeHost as _, Kept, Observed, simulated::Call},
    config::Config,
    model::*,
    reconcile::{
        Clock, Controller, Controllers, Requeue, Slots,
        controllers::Visitor,
        testing::{self, Pass, Stepper},
    },
    storage::{StorageHost as _, VolumeSpec},
    store::Db,
};

/// Each controller, to be stepped by the test.
pub(super) struct Steppers(pub(super) Vec<Box<dyn Pass>>);

impl Visitor for Steppers {
    fn visit<C: Controller>(&mut self, controller: Arc<C>) {
        self.0.push(Box::new(Stepper::new(controller)));
    }
}

/// One `hearth` after the other, on one host and one store.
pub(super) struct Cloud {
    pub(super) db: Db,
    pub(super) host: Arc<Host>,
    pub(super) now: Arc<Mutex<jiff::Timestamp>>,
}

impl Cloud {
    pub(super) async fn new() -> Self {
        Self::with(&[1]).await
    }

    pub(super) async fn with(instances: &[u8]) -> Self {
        let db = Db::in_memory().await;
        testing::cloud(&db, instances, 4).await;
        let now = Arc::new(Mutex::new(samples::time()));
        Self {
            db,
            host: Arc::default(),
            now,
        }
    }

    pub(super) fn clock(&self) -> Clock {
        let now = Arc::clone(&self.now);
        Arc::new(move || *now.lock().unwrap())
    }

    pub(super) fn wired(&self, slots: Slots) -> Controllers {
        Controllers {
            db: self.db.clone(),
            config: Arc::new(Config::for_tests()),
            hosts: Hosts::one(Config::for_tests().host_id),
            compute: self.host.clone(),
            storage: self.host.clone(),
            network: self.host.clone(),
            // They change nothing on the host.
            images: None,
            slots,
            clock: self.clock(),
        }
    }

    /// A new process: its controllers know nothing.
    pub(super) fn controllers(&self) -> Vec<Box<dyn Pass>> {
        let wired = self.wired(Slots::wide(8));
        let mut steppers = Steppers(Vec::new());
        wired.of_cluster(&mut steppers);
        wired.of_hosts(&mut steppers);
        steppers.0
    }

    /// Passes until nothing more is to do, letting time pass where that is all
    /// that is waited for; whether the process lived to see it.
    pub(super) async fn run(&self) -> bool {
        let controllers = self.controllers();
        let mut asked = None;
        for _ in 0..1000 {
            let mut next = Requeue::Idle;
            let mut ask = None;
            for controller in &controllers {
                let now = *self.now.lock().unwrap();
                let mut pass = controller.pass(now);
                let requeue = std::future::poll_fn(|cx| {
                    let poll = pass.as_mut().poll(cx);
                    match poll {
                        std::task::Poll::Pending if self.host.fuse.lock().unwrap().dead => {
                            std::task::Poll::Ready(None)
                        }
                        poll => poll.map(Some),
                    }
                })
                .await;
                match requeue {
                    None => return false,
                    Some(Requeue::After(pause)) if controller.name() == "reachability" => {
                        ask = Some(pause);
                    }
                    Some(requeue) => next = next.min(requeue),
                }
            }
            // Who answers is asked for ever: here until nothing is new since the last time.
            let revision = self.db.view().revision();
            if next == Requeue::Idle
                && let Some(pause) = ask
                && asked.replace(revision) != Some(revision)
            {
                next = Requeue::After(pause);
            }
            match next {
                Requeue::Idle => return true,
                Requeue::Now => {}
                Requeue::After(pause) => {
                    let mut now = self.now.lock().unwrap();
                    *now = now.checked_add(pause).unwrap();
                }
            }
        }
        panic!("the passes never end");
    }

    pub(super) fn arm(&self, die_at: Option<(usize, bool)>) {
        *self.host.fuse.lock().unwrap() = Fuse {
            calls: 0,
            die_at,
            dead: false,
        };
    }

    pub(super) fn instance(&self) -> Instance {
        self.db
            .view()
            .find::<Instance>(&InstanceId::from_random(1))
            .unwrap()
            .clone()
    }

    pub(super) async fn change(&self, change_it: impl Fn(&mut Instance)) {
        let now = *self.now.lock().unwrap();
        self.db
            .transact(|view, change| {
                let mut instance = view
                    .find::<Instance>(&InstanceId::from_random(1))
                    .unwrap()
                    .clone();
                change_it(&mut instance);
                instance.state_since = now;
                change.overwrite(&instance);
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
    }

    pub(super) async fn act(&self, act: Act) {
        match act {
            Act::Run => {}
            Act::Stop => {
                self.change(|i| {
                    i.intent = Intent::Stop;
                    i.state = InstanceState::Stopping;
                })
                .await;
            }
            Act::Start => {
                self.change(|i| {
                    i.intent = Intent::Run;
                    i.state = InstanceState::Pending;
                    i.boots += 1;
                })
                .await;
            }
            Act::Hibernate => {
                self.change(|i| {
                    i.settings.may_hibernate = true;
                    i.intent = Intent::Hibernate;
                    i.state = InstanceState::Stopping;
                })
                .await;
            }
            Act::ForceStop => {
                self.change(|i| {
                    i.intent = Intent::ForceStop;
                    i.state = InstanceState::Stopping;
                })
                .await;
            }
            Act::CantSave => self.host.compute.set_hook(|call| match call {
                Call::Hibernate(_) => Err(ComputeError::Host {
                    doing: "saving".into(),
                    source: std::io::ErrorKind::StorageFull.into(),
                }),
                _ => Ok(()),
            }),
            Act::Reboot => self.change(|i| i.reboots_asked += 1).await,
            Act::Terminate => {
                self.change(|i| {
                    i.intent = Intent::Terminate;
                    i.state = InstanceState::ShuttingDown;
                })
                .await;
            }
            Act::Update => {
                let id = InstanceId::from_random(1);
                self.host.compute.ask_for_update(&id);
            }
            Act::Deaf => self.host.compute.set_deaf(true),
            Act::PowerOff => {
                self.host
                    .compute
                    .exit(&InstanceId::from_random(1), Exit::GuestPowerOff);
            }
            Act::DeleteVolume => {
                let volume = Volume {
                    host: Some(Config::for_tests().host_id),
                    attachment: None,
                    deleting: true,
                    ..samples::volume(2)
                };
                let spec = VolumeSpec {
                    id: volume.id.clone(),
                    size_bytes: 1,
                    source: None,
                };
                self.host.storage.ensure_volume(&spec).await.unwrap();
                let put = self
                    .db
                    .transact_infallible(|_, change| change.overwrite(&volume));
                put.await.unwrap();
            }
            Act::TerminateAtPowerOff => {
                self.change(|i| i.settings.on_shutdown = ShutdownBehavior::Terminate)
                    .await;
            }
        }
    }

    /// Host and API say the same, and there is nothing beside.
    pub(super) async fn check(&self, at: &str) {
        let instance = self.instance();
        let id = &instance.id;
        let observed = self.host.compute.observe().await.unwrap();
        let volumes = self.host.storage.observe().await.unwrap();
        let taps: Vec<EniId> = self
            .host
            .network
            .applied()
            .vpcs
            .values()
            .flat_map(|v| v.interfaces.keys().cloned())
            .collect();
        let view = self.db.view();
        let publics = view.all::<PublicAddress>().count();
        let kept = self.host.compute.kept_memory(id).await.unwrap();
        let whole = instance.hibernated.map(|boot| Kept::Whole { boot });
        assert_eq!(kept, whole, "{at}: memory");
        assert!(!self.host.compute.ruined(), "{at}: a ruined file system");
        assert!(observed.keys().all(|i| i == id), "{at}: a stray VMM");
        let deleting = view.by(Volume::DELETING, "").count();
        assert_eq!(deleting, 0, "{at}: a volume that was deleted");
        match instance.state {
            InstanceState::Running => {
                let boot = match observed.get(id) {
                    Some(Observed::Running { boot, .. }) => *boot,
                    other => panic!("{at}: running, but {other:?}"),
                };
                assert_eq!(boot, instance.boots, "{at}");
                assert_eq!(instance.reboots_done, instance.reboots_asked, "{at}");
                let resets = self.host.compute.resets(id).await.unwrap();
                assert_eq!(resets, instance.reboots_asked, "{at}: not once");
                assert_eq!((volumes.len(), taps.len()), (1, 1), "{at}");
            }
            InstanceState::Stopped => {
                assert!(
                    !matches!(observed.get(id), Some(Observed::Running { .. })),
                    "{at}"
                );
                assert_eq!((volumes.len(), taps.len(), publics), (1, 0, 0), "{at}");
                assert_eq!(view.all::<PrivateAddress>().count(), 1, "{at}");
                assert!(view.all::<Eni>().all(|e| e.public_ip.is_none()), "{at}");
            }
            InstanceState::Terminated => {
                assert!(observed.is_empty(), "{at}: {observed:?}");
                assert_eq!((volumes.len(), taps.len(), publics), (0, 0, 0), "{at}");
                assert_eq!(view.all::<PrivateAddress>().count(), 0, "{at}");
                assert_eq!(view.all::<Eni>().count(), 0, "{at}");
                assert_eq!(view.all::<Volume>().count(), 0, "{at}");
                assert_eq!(view.all::<Tags>().count(), 1, "{at}: only the instance's");
            }
            state => panic!("{at}: still {state:?}"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Run,
    Stop,
    Start,
    Reboot,
    Terminate,
    Hibernate,
    ForceStop,
    /// An operator has its VMM replaced.
    Update,
    /// The host has no room for memory.
    CantSave,
    /// The guest no longer hears the power button.
    Deaf,
    /// The guest powers itself off.
    PowerOff,
    TerminateAtPowerOff,
    /// Another volume, that no instance has.
    DeleteVolume,
}
