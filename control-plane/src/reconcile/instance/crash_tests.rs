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
use tokio::sync::{broadcast, watch};

use crate::{
    compute::{ComputeError, ComputeHost, LaunchSpec, Observed, simulated::SimulatedCompute},
    config::Config,
    model::*,
    network::{self, HostNet, NetworkHost, Topology, VpcNet, simulated::SimulatedNetwork},
    reconcile::{
        Clock, Controller, Controllers, Requeue, Slots,
        controllers::Visitor,
        testing::{self, Pass, Stepper},
    },
    storage::{StorageError, StorageHost, VolumeSpec, simulated::SimulatedStorage},
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
    compute: SimulatedCompute,
    storage: SimulatedStorage,
    network: SimulatedNetwork,
    fuse: Mutex<Fuse>,
    hangs: Mutex<Option<Hang>>,
}

/// What never comes back, or always fails.
#[derive(Debug, PartialEq)]
enum Hang {
    Volume(VolumeId),
    Vmm(InstanceId),
    Vpc(VpcId),
    BrokenVpc(VpcId),
}

impl Host {
    fn hang(&self, what: Hang) {
        *self.hangs.lock().unwrap() = Some(what);
    }

    /// Never comes back if that is what hangs.
    async fn pass_by(&self, what: Hang) {
        let hangs = *self.hangs.lock().unwrap() == Some(what);
        if hangs {
            std::future::pending().await
        }
    }

    /// Wraps one changing call. A dead process does nothing more, ever.
    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        let last = {
            let mut fuse = self.fuse.lock().unwrap();
            fuse.calls += 1;
            match fuse.die_at {
                // What was done beside the last call.
                _ if fuse.dead => Some(false),
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
    async fn known(&self) -> Result<std::collections::BTreeSet<InstanceId>, ComputeError> {
        self.compute.known().await
    }
    async fn look(&self, id: &InstanceId) -> Result<Option<Observed>, ComputeError> {
        self.compute.look(id).await
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
        self.pass_by(Hang::Vmm(id.clone())).await;
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
    fn exits(&self) -> broadcast::Receiver<InstanceId> {
        self.compute.exits()
    }
}

#[async_trait]
impl StorageHost for Host {
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<std::path::PathBuf, StorageError> {
        self.pass_by(Hang::Volume(volume.id.clone())).await;
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
    async fn known(&self) -> network::Result<std::collections::BTreeSet<VpcId>> {
        self.network.known().await
    }
    async fn apply_vpc(
        &self,
        id: &VpcId,
        desired: Option<&VpcNet>,
    ) -> network::Result<network::Failed> {
        self.pass_by(Hang::Vpc(id.clone())).await;
        if *self.hangs.lock().unwrap() == Some(Hang::BrokenVpc(id.clone())) {
            return Err(network::Error::host("shaping it", "it is broken"));
        }
        self.call(self.network.apply_vpc(id, desired)).await
    }
    async fn apply_host(&self, desired: &HostNet) -> network::Result<()> {
        self.call(self.network.apply_host(desired)).await
    }
    async fn apply(&self, desired: &Topology) -> network::Result<()> {
        self.call(self.network.apply(desired)).await
    }
    async fn open_tap(&self, eni: &Eni) -> network::Result<std::os::fd::OwnedFd> {
        self.network.open_tap(eni).await
    }
    async fn answering(&self, vpc: &VpcId) -> network::Result<network::Answering> {
        self.network.answering(vpc).await
    }
    async fn purge(&self) -> network::Result<()> {
        self.network.purge().await
    }
}

/// Each controller, to be stepped by the test.
struct Steppers(Vec<Box<dyn Pass>>);

impl Visitor for Steppers {
    fn visit<C: Controller>(&mut self, controller: Arc<C>) {
        self.0.push(Box::new(Stepper::new(controller)));
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
        Self::with(&[1]).await
    }

    async fn with(instances: &[u8]) -> Self {
        let db = Db::in_memory().await;
        testing::cloud(&db, instances, 4).await;
        let now = Arc::new(Mutex::new(samples::time()));
        Self {
            db,
            host: Arc::default(),
            now,
        }
    }

    fn clock(&self) -> Clock {
        let now = Arc::clone(&self.now);
        Arc::new(move || *now.lock().unwrap())
    }

    fn wired(&self, slots: Slots) -> Controllers {
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
    fn controllers(&self) -> Vec<Box<dyn Pass>> {
        let wired = self.wired(Slots::wide(8));
        let mut steppers = Steppers(Vec::new());
        wired.of_cluster(&mut steppers);
        wired.of_hosts(&mut steppers);
        steppers.0
    }

    /// Passes until nothing more is to do, letting time pass where that is all
    /// that is waited for; whether the process lived to see it.
    async fn run(&self) -> bool {
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
                change.overwrite(&instance);
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
    /// Another volume, that no instance has.
    DeleteVolume,
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
async fn a_volumes_deletion() {
    crash_everywhere(&[Act::Run, Act::DeleteVolume], InstanceState::Running).await;
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
        crate::compute::simulated::Call::Launch(_) => {
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
        crate::compute::simulated::Call::Launch(_) if left > 0 => {
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
    let waited = cloud.instance().state_since - began;
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
async fn a_start_needs_no_image() {
    let cloud = Cloud::new().await;
    assert!(cloud.run().await);
    cloud.act(Act::Stop).await;
    assert!(cloud.run().await);
    // The file is gone, and with it the record.
    cloud
        .db
        .transact(|_, change| {
            change.delete(&samples::image());
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
    cloud.act(Act::Start).await;
    assert!(cloud.run().await);
    cloud.check("no image").await;
    let instance = cloud.instance();
    assert_eq!(
        (instance.state, instance.boots),
        (InstanceState::Running, 2)
    );
    let calls = cloud.host.storage.calls();
    let last = calls.iter().rev().find_map(|call| match call {
        crate::storage::simulated::Call::Ensure(spec) => Some(spec.source.clone()),
        crate::storage::simulated::Call::Remove(_) => None,
    });
    assert_eq!(last, Some(None), "nothing was cloned");
    // A first boot without an image is no boot.
    let cloud = Cloud::new().await;
    cloud
        .db
        .transact(|_, change| {
            change.delete(&samples::image());
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
    assert!(cloud.run().await);
    assert_eq!(cloud.instance().state, InstanceState::Terminated);
}

#[tokio::test]
async fn what_went_down_with_its_host_comes_up_with_its_addresses() {
    for n in 0.. {
        let cloud = Cloud::new().await;
        assert!(cloud.run().await);
        let before = cloud.instance();
        let address = |cloud: &Cloud| {
            let view = cloud.db.view();
            let eni = view.find::<Eni>(&before.enis[0]).unwrap();
            (eni.private_ip, eni.public_ip)
        };
        let addresses = address(&cloud);
        assert!(addresses.1.is_some());
        // Power is cut, and the host is there again; and once more while it
        // starts what it lost.
        let lost = Observed::HostLost { boot: 1 };
        cloud.host.compute.place(before.id.clone(), lost);
        cloud.host.network.purge().await.unwrap();
        cloud.arm((n > 0).then_some((n, true)));
        let lived = cloud.run().await;
        cloud.arm(None);
        assert!(cloud.run().await);
        cloud
            .check(&format!("lost with its host, again at {n}"))
            .await;
        let after = cloud.instance();
        assert_eq!((after.state, after.boots), (InstanceState::Running, 2));
        assert_eq!(address(&cloud), addresses);
        if n > 0 && lived {
            break;
        }
    }
}

/// The queues, as `hearth serve` runs them.
struct Served {
    _shutdown: watch::Sender<bool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Cloud {
    fn serve(&self, slots: Slots) -> Served {
        let (shutdown, receiver) = watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        self.wired(slots).start(&mut tasks, &receiver);
        Served {
            _shutdown: shutdown,
            tasks,
        }
    }

    fn state(&self, n: u8) -> InstanceState {
        let view = self.db.view();
        let id = InstanceId::from_random(n.into());
        view.find::<Instance>(&id).unwrap().state
    }

    /// Waits until instance `n` is in this state.
    async fn reach(&self, n: u8, state: InstanceState) {
        let mut view = self.db.changed();
        let deadline = Duration::from_secs(20);
        let reached = view.wait_for(|view| {
            let id = InstanceId::from_random(n.into());
            view.find::<Instance>(&id).is_some_and(|i| i.state == state)
        });
        let reached = tokio::time::timeout(deadline, reached).await.is_ok();
        assert!(
            reached,
            "instance {n} is {:?}, not {state:?}",
            self.state(n)
        );
    }

    async fn stop(&self, n: u8) {
        self.db
            .transact(|view, change| {
                let id = InstanceId::from_random(n.into());
                let mut instance = view.find::<Instance>(&id).unwrap().clone();
                instance.intent = Intent::ForceStop;
                instance.state = InstanceState::Stopping;
                change.overwrite(&instance);
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn storage_that_hangs_for_one_holds_up_no_other() {
    let cloud = Cloud::with(&[1, 2, 3]).await;
    let stuck = VolumeId::from_random(2);
    cloud.host.hang(Hang::Volume(stuck));
    let served = cloud.serve(Slots::wide(2));
    cloud.reach(1, InstanceState::Running).await;
    cloud.reach(3, InstanceState::Running).await;
    cloud.stop(1).await;
    cloud.reach(1, InstanceState::Stopped).await;
    assert_eq!(cloud.state(2), InstanceState::Pending);
    drop(served.tasks);
}

#[tokio::test(start_paused = true)]
async fn a_control_socket_that_hangs_holds_up_no_other() {
    let cloud = Cloud::with(&[1, 2, 3]).await;
    let mut served = cloud.serve(Slots::wide(2));
    for n in 1..=3 {
        cloud.reach(n, InstanceState::Running).await;
    }
    cloud.host.hang(Hang::Vmm(InstanceId::from_random(2)));
    cloud.stop(2).await;
    tokio::task::yield_now().await;
    cloud.stop(1).await;
    cloud.stop(3).await;
    cloud.reach(1, InstanceState::Stopped).await;
    cloud.reach(3, InstanceState::Stopped).await;
    assert_eq!(cloud.state(2), InstanceState::Stopping);
    // When it no longer hangs, its next try comes without anybody's help.
    *cloud.host.hangs.lock().unwrap() = None;
    tokio::time::sleep(Duration::from_secs(60)).await;
    cloud.reach(2, InstanceState::Stopped).await;
    assert!(served.tasks.try_join_next().is_none(), "all queues run");
}

#[tokio::test(start_paused = true)]
async fn a_broken_vpc_is_no_matter_of_a_healthy_one() {
    for hangs in [false, true] {
        let cloud = Cloud::with(&[1, 2, 3]).await;
        // Instance 2 is in a VPC of its own.
        let other = VpcId::from_random(2);
        cloud
            .db
            .transact(|view, change| {
                let vpc = view.find::<Vpc>(&VpcId::from_random(1)).unwrap();
                change.overwrite(&Vpc {
                    id: other.clone(),
                    ..vpc.clone()
                });
                let id = InstanceId::from_random(2);
                let instance = view.find::<Instance>(&id).unwrap();
                change.overwrite(&Instance {
                    vpc: other.clone(),
                    ..instance.clone()
                });
                let eni = view.find::<Eni>(&EniId::from_random(2)).unwrap();
                change.overwrite(&Eni {
                    vpc: other.clone(),
                    ..eni.clone()
                });
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
        cloud.host.hang(if hangs {
            Hang::Vpc(other)
        } else {
            Hang::BrokenVpc(other)
        });
        let served = cloud.serve(Slots::wide(2));
        cloud.reach(1, InstanceState::Running).await;
        cloud.reach(3, InstanceState::Running).await;
        if hangs {
            assert_eq!(cloud.state(2), InstanceState::Pending);
        } else {
            // It fails for good, and alone.
            let mut views = cloud.db.changed();
            let ended = tokio::time::timeout(
                Duration::from_secs(600),
                views.wait_for(|view| {
                    let id = InstanceId::from_random(2);
                    view.find::<Instance>(&id).unwrap().state == InstanceState::Terminated
                }),
            );
            ended.await.unwrap().unwrap();
            let states = [cloud.state(1), cloud.state(3)];
            assert_eq!(states, [InstanceState::Running; 2]);
        }
        drop(served.tasks);
    }
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

#[tokio::test]
async fn a_vmm_whose_record_may_be_unreadable_stays() {
    let cloud = Cloud::new().await;
    assert!(cloud.run().await);
    let stray = InstanceId::from_random(99);
    let up = Observed::Running { pid: 5, boot: 1 };
    let put = crate::store::Op::Put {
        key: samples::instance(99).key(),
        value: b"{}".to_vec(),
        lease: None,
    };
    let txn = crate::store::Txn {
        compares: vec![],
        ops: vec![put],
        ..Default::default()
    };
    cloud.db.store().commit(txn).await.unwrap();
    let mut views = cloud.db.changed();
    let unreadable = views.wait_for(|view| view.has_unreadable::<Instance>());
    drop(unreadable.await.unwrap());
    cloud.host.compute.place(stray.clone(), up.clone());
    assert!(cloud.run().await);
    assert_eq!(cloud.host.compute.look(&stray).await.unwrap(), Some(up));
}
