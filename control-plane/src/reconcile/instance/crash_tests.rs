//! Crashes between the steps: at each call that changes the host, `hearth` dies
//! before the call took effect, and again after it, but before the next thing
//! was done. A new one starts with nothing but the store and the host, and
//! passes until nothing more is to do: nothing may be leaked, and the API's
//! state must be the host's.

mod cloud;
mod hibernation;
mod host;
mod update;

use std::time::Duration;

use tokio::sync::watch;

use self::{
    cloud::{Act, Cloud},
    host::Hang,
};
use crate::{
    compute::{ComputeError, ComputeHost as _, Observed},
    config::Config,
    model::*,
    network::NetworkHost as _,
    reconcile::Slots,
    storage::StorageHost as _,
};

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
async fn thousands_that_are_hibernated_hold_up_no_other() {
    // More than are stepped at once.
    const MANY: u32 = 4500;
    let cloud = Cloud::with(&[1]).await;
    let mut served = cloud.serve(Slots::wide(2));
    cloud.reach(1, InstanceState::Running).await;
    let host = Config::for_tests().host_id;
    let many = (1000..1000 + MANY).map(|n| Instance {
        id: InstanceId::from_random(n.into()),
        host: Some(host.clone()),
        state: InstanceState::Stopping,
        intent: Intent::Hibernate,
        settings: Settings {
            may_hibernate: true,
            ..Settings::default()
        },
        enis: Vec::new(),
        boots: 1,
        ..samples::instance(1)
    });
    let many: Vec<_> = many.collect();
    cloud.host.hang(Hang::Memory);
    for some in many.chunks(100) {
        for one in some {
            let up = Observed::Running { pid: 5, boot: 1 };
            cloud.host.compute.place(one.id.clone(), up);
        }
        let create = cloud
            .db
            .transact_infallible(|_, change| some.iter().for_each(|one| change.create(one)));
        create.await.unwrap();
    }
    // All of them are looked at.
    tokio::time::sleep(Duration::from_secs(60)).await;
    cloud.stop(1).await;
    cloud.reach(1, InstanceState::Stopped).await;
    let saved = |cloud: &Cloud| {
        let view = cloud.db.view();
        let saved = many.iter().filter_map(|one| view.find::<Instance>(&one.id));
        saved.filter(|one| one.hibernated == Some(1)).count()
    };
    assert_eq!(saved(&cloud), 0);
    // And each has its turn.
    *cloud.host.hangs.lock().unwrap() = None;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(3600);
    while saved(&cloud) < many.len() {
        assert!(tokio::time::Instant::now() < deadline, "{}", saved(&cloud));
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
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
