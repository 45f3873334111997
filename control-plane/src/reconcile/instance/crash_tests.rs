//! Crashes between the steps: at each call that changes the host, `hearth` dies
//! before the call took effect, and again after it, but before the next thing
//! was done. A new one starts with nothing but the store and the host, and
//! passes until nothing more is to do: nothing may be leaked, and the API's
//! state must be the host's.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use hearth_vmm_api::Exit;
use tokio::sync::watch;

use crate::{
    compute::{ComputeError, ComputeHost, LaunchSpec, Observed, fake::FakeCompute},
    config::Config,
    model::*,
    network::{self, NetworkHost, Topology, fake::FakeNetwork},
    reconcile::{
        Again, Clock, Controller, cluster::PlacementController, host::NetworkController,
        instance::InstanceController, testing,
    },
    storage::{StorageError, StorageHost, VolumeSpec, fake::FakeStorage},
    store::Db,
};

/// Dies at the chosen one of the calls that change the host.
#[derive(Default)]
struct Fuse {
    calls: usize,
    /// The call to die at, and whether its effect is there by then.
    die_at: Option<(usize, bool)>,
    dead: bool,
}

/// A host whose calls can be the last that a `hearth` makes. It outlives it.
#[derive(Default)]
struct Host {
    compute: FakeCompute,
    storage: FakeStorage,
    network: FakeNetwork,
    fuse: Mutex<Fuse>,
}

impl Host {
    /// Wraps one changing call. A dead process does nothing more, ever.
    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        let last = {
            let mut fuse = self.fuse.lock().unwrap();
            fuse.calls += 1;
            match fuse.die_at {
                Some((n, after)) if n == fuse.calls => {
                    fuse.dead = true;
                    Some(after)
                }
                _ => None,
            }
        };
        match last {
            None => call.await,
            Some(after) => {
                if after {
                    call.await;
                }
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl ComputeHost for Host {
    async fn observe(
        &self,
    ) -> Result<std::collections::BTreeMap<InstanceId, Observed>, ComputeError> {
        self.compute.observe().await
    }
    async fn launch(
        &self,
        spec: &LaunchSpec,
        taps: Vec<std::os::fd::OwnedFd>,
    ) -> Result<(), ComputeError> {
        self.call(self.compute.launch(spec, taps)).await
    }
    async fn power_button(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.power_button(id)).await
    }
    async fn reboot(&self, id: &InstanceId, resets: u64) -> Result<(), ComputeError> {
        self.call(self.compute.reboot(id, resets)).await
    }
    async fn resets(&self, id: &InstanceId) -> Result<u64, ComputeError> {
        self.compute.resets(id).await
    }
    async fn reset(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.reset(id)).await
    }
    async fn kill(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.kill(id)).await
    }
    async fn console(&self, id: &InstanceId) -> Result<Vec<u8>, ComputeError> {
        self.compute.console(id).await
    }
    async fn forget(&self, id: &InstanceId) -> Result<(), ComputeError> {
        self.call(self.compute.forget(id)).await
    }
    async fn purge(&self) -> Result<(), ComputeError> {
        self.compute.purge().await
    }
    fn exits(&self) -> watch::Receiver<u64> {
        self.compute.exits()
    }
}

#[async_trait]
impl StorageHost for Host {
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<std::path::PathBuf, StorageError> {
        self.call(self.storage.ensure_volume(volume)).await
    }
    async fn remove_volume(&self, id: &VolumeId) -> Result<(), StorageError> {
        self.call(self.storage.remove_volume(id)).await
    }
    async fn observe(&self) -> Result<std::collections::BTreeSet<VolumeId>, StorageError> {
        self.storage.observe().await
    }
    fn volume_path(&self, id: &VolumeId) -> std::path::PathBuf {
        self.storage.volume_path(id)
    }
    async fn purge(&self) -> Result<(), StorageError> {
        self.storage.purge().await
    }
}

#[async_trait]
impl NetworkHost for Host {
    async fn apply(&self, desired: &Topology) -> network::Result<()> {
        self.call(self.network.apply(desired)).await
    }
    async fn open_tap(&self, eni: &Eni) -> network::Result<std::os::fd::OwnedFd> {
        self.network.open_tap(eni).await
    }
    async fn answering(&self) -> network::Result<std::collections::BTreeSet<EniId>> {
        self.network.answering().await
    }
    async fn purge(&self) -> network::Result<()> {
        self.network.purge().await
    }
}

/// One `hearth` after the other, on one host and one store.
struct Cloud {
    db: Db,
    host: Arc<Host>,
    now: Arc<Mutex<jiff::Timestamp>>,
}

impl Cloud {
    async fn new() -> Self {
        let db = Db::in_memory().await;
        testing::cloud(&db, &[1], 4).await;
        let now = Arc::new(Mutex::new(samples::time()));
        Self {
            db,
            host: Arc::default(),
            now,
        }
    }

    /// A new process: its controllers know nothing.
    fn controllers(&self) -> Vec<Box<dyn Controller>> {
        let now = Arc::clone(&self.now);
        let clock: Clock = Arc::new(move || *now.lock().unwrap());
        let config = Arc::new(Config::for_tests());
        let network = Arc::new(NetworkController::new(
            self.db.clone(),
            config.host_id.clone(),
            self.host.clone(),
        ));
        let shared =
            NetworkController::new(self.db.clone(), config.host_id.clone(), self.host.clone());
        vec![
            Box::new(PlacementController {
                db: self.db.clone(),
                clock: clock.clone(),
            }),
            Box::new(InstanceController::new(
                self.db.clone(),
                config,
                self.host.clone(),
                self.host.clone(),
                self.host.clone(),
                network,
                clock,
            )),
            Box::new(shared),
        ]
    }

    /// Passes until nothing more is to do, letting time pass where that is all
    /// that is waited for; whether the process lived to see it.
    async fn run(&self) -> bool {
        let controllers = self.controllers();
        for _ in 0..1000 {
            let mut next = Again::Idle;
            for controller in &controllers {
                let mut pass = controller.pass();
                let again = std::future::poll_fn(|cx| {
                    let poll = pass.as_mut().poll(cx);
                    match poll {
                        std::task::Poll::Pending if self.host.fuse.lock().unwrap().dead => {
                            std::task::Poll::Ready(None)
                        }
                        poll => poll.map(Some),
                    }
                })
                .await;
                match again {
                    None => return false,
                    Some(again) => next = next.min(again.unwrap()),
                }
            }
            match next {
                Again::Idle => return true,
                Again::Now => {}
                Again::After(pause) => {
                    let mut now = self.now.lock().unwrap();
                    *now = now.checked_add(pause).unwrap();
                }
            }
        }
        panic!("the passes never end");
    }

    fn arm(&self, die_at: Option<(usize, bool)>) {
        *self.host.fuse.lock().unwrap() = Fuse {
            calls: 0,
            die_at,
            dead: false,
        };
    }

    fn instance(&self) -> Instance {
        self.db
            .view()
            .find::<Instance>(&InstanceId::from_random(1))
            .unwrap()
            .clone()
    }

    async fn change(&self, change_it: impl Fn(&mut Instance)) {
        let now = *self.now.lock().unwrap();
        self.db
            .transact(|view, change| {
                let mut instance = view
                    .find::<Instance>(&InstanceId::from_random(1))
                    .unwrap()
                    .clone();
                change_it(&mut instance);
                instance.state_since = now;
                change.put(&instance);
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
    }

    async fn act(&self, act: Act) {
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
            Act::Reboot => self.change(|i| i.reboots_asked += 1).await,
            Act::Terminate => {
                self.change(|i| {
                    i.intent = Intent::Terminate;
                    i.state = InstanceState::ShuttingDown;
                })
                .await;
            }
            Act::Deaf => self.host.compute.set_deaf(true),
            Act::PowerOff => {
                self.host
                    .compute
                    .exit(&InstanceId::from_random(1), Exit::GuestPowerOff);
            }
            Act::TerminateAtPowerOff => {
                self.change(|i| i.on_shutdown = ShutdownBehavior::Terminate)
                    .await;
            }
        }
    }

    /// Host and API say the same, and there is nothing beside.
    async fn check(&self, at: &str) {
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
        assert!(observed.keys().all(|i| i == id), "{at}: a stray VMM");
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
enum Act {
    Run,
    Stop,
    Start,
    Reboot,
    Terminate,
    /// The guest no longer hears the power button.
    Deaf,
    /// The guest powers itself off.
    PowerOff,
    TerminateAtPowerOff,
}

/// Runs the acts one after the other, each to its end; dies at every call of
/// the last one, before it and after it.
async fn crash_everywhere(acts: &[Act], end: InstanceState) {
    let (last, before) = acts.split_last().unwrap();
    let mut points = 0;
    for after in [false, true] {
        for n in 1.. {
            let cloud = Cloud::new().await;
            for act in before {
                cloud.act(*act).await;
                assert!(cloud.run().await);
            }
            cloud.act(*last).await;
            cloud.arm(Some((n, after)));
            let lived = cloud.run().await;
            let at = format!("{acts:?}, died at call {n}, after: {after}, lived: {lived}");
            cloud.arm(None);
            assert!(cloud.run().await, "{at}");
            cloud.check(&at).await;
            assert_eq!(cloud.instance().state, end, "{at}");
            // And once more changes nothing.
            let revision = cloud.db.view().revision();
            assert!(cloud.run().await);
            assert_eq!(cloud.db.view().revision(), revision, "{at}");
            if lived {
                break;
            }
            points += 1;
        }
    }
    assert!(points >= 2, "{acts:?}: nothing was ever killed");
}

#[tokio::test]
async fn a_launch() {
    crash_everywhere(&[Act::Run], InstanceState::Running).await;
}

#[tokio::test]
async fn a_stop() {
    crash_everywhere(&[Act::Run, Act::Stop], InstanceState::Stopped).await;
    crash_everywhere(&[Act::Run, Act::Deaf, Act::Stop], InstanceState::Stopped).await;
}

#[tokio::test]
async fn a_start() {
    crash_everywhere(&[Act::Run, Act::Stop, Act::Start], InstanceState::Running).await;
}

#[tokio::test]
async fn a_reboot() {
    crash_everywhere(&[Act::Run, Act::Reboot], InstanceState::Running).await;
    let acts = [Act::Run, Act::Deaf, Act::Reboot];
    crash_everywhere(&acts, InstanceState::Running).await;
}

#[tokio::test]
async fn a_termination() {
    crash_everywhere(&[Act::Run, Act::Terminate], InstanceState::Terminated).await;
    crash_everywhere(
        &[Act::Run, Act::Deaf, Act::Terminate],
        InstanceState::Terminated,
    )
    .await;
    crash_everywhere(
        &[Act::Run, Act::Stop, Act::Terminate],
        InstanceState::Terminated,
    )
    .await;
}

#[tokio::test]
async fn a_guests_own_power_off() {
    crash_everywhere(&[Act::Run, Act::PowerOff], InstanceState::Stopped).await;
    let acts = [Act::Run, Act::TerminateAtPowerOff, Act::PowerOff];
    crash_everywhere(&acts, InstanceState::Terminated).await;
}

#[tokio::test]
async fn a_termination_that_comes_while_it_launches() {
    for n in 1.. {
        let cloud = Cloud::new().await;
        cloud.arm(Some((n, true)));
        let lived = cloud.run().await;
        cloud.act(Act::Terminate).await;
        cloud.arm(None);
        assert!(cloud.run().await);
        cloud.check(&format!("terminated after call {n}")).await;
        assert_eq!(cloud.instance().state, InstanceState::Terminated);
        if lived {
            break;
        }
    }
}

#[tokio::test]
async fn a_launch_that_can_never_work_ends_by_the_ordinary_path() {
    let cloud = Cloud::new().await;
    cloud.host.compute.set_hook(|call| match call {
        crate::compute::fake::Call::Launch(_) => {
            Err(ComputeError::Unbootable("there is no /vmlinuz".into()))
        }
        _ => Ok(()),
    });
    assert!(cloud.run().await);
    cloud.check("unbootable").await;
    let instance = cloud.instance();
    assert_eq!(instance.state, InstanceState::Terminated);
    assert_eq!(
        instance.state_reason.unwrap().message,
        "Client.InternalError: there is no /vmlinuz"
    );
}

#[tokio::test]
async fn a_host_that_fails_for_a_while_is_waited_for() {
    let cloud = Cloud::new().await;
    let began = samples::time();
    let mut left = 3;
    cloud.host.compute.set_hook(move |call| match call {
        crate::compute::fake::Call::Launch(_) if left > 0 => {
            left -= 1;
            Err(ComputeError::Host {
                doing: "starting the VMM".into(),
                source: std::io::Error::other("busy"),
            })
        }
        _ => Ok(()),
    });
    assert!(cloud.run().await);
    cloud.check("busy host").await;
    assert_eq!(cloud.instance().state, InstanceState::Running);
    let waited = *cloud.now.lock().unwrap() - began;
    assert_eq!(
        Duration::try_from(waited).unwrap(),
        Duration::from_secs(1 + 2 + 4)
    );
}

#[tokio::test]
async fn a_start_whose_volume_is_lost_makes_no_new_one() {
    let cloud = Cloud::new().await;
    assert!(cloud.run().await);
    cloud.act(Act::Stop).await;
    assert!(cloud.run().await);
    cloud.host.storage.purge().await.unwrap();
    cloud.act(Act::Start).await;
    assert!(cloud.run().await);
    let instance = cloud.instance();
    assert_eq!(instance.state, InstanceState::Stopped);
    assert_eq!(
        instance.state_reason.unwrap().message,
        "Server.InternalError: Its root volume is lost"
    );
    assert!(cloud.host.storage.observe().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stray_vmm_is_removed() {
    let cloud = Cloud::new().await;
    assert!(cloud.run().await);
    let stray = InstanceId::from_random(99);
    cloud
        .host
        .compute
        .place(stray, Observed::Running { pid: 5, boot: 1 });
    assert!(cloud.run().await);
    cloud.check("stray").await;
}
