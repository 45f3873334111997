//! Memory is kept whole or not at all, and is gone on from once or not at all.

use super::{
    cloud::{Act, Cloud},
    crash_everywhere,
};
use crate::model::*;

#[tokio::test]
async fn a_hibernation() {
    let acts = [Act::Run, Act::Hibernate];
    crash_everywhere(&acts, InstanceState::Stopped).await;
    // A guest that hears no button has its memory saved all the same.
    let acts = [Act::Run, Act::Deaf, Act::Hibernate];
    crash_everywhere(&acts, InstanceState::Stopped).await;
}

#[tokio::test]
async fn a_start_from_memory() {
    let acts = [Act::Run, Act::Hibernate, Act::Start];
    crash_everywhere(&acts, InstanceState::Running).await;
    let acts = [&acts[..], &acts[1..]].concat();
    crash_everywhere(&acts, InstanceState::Running).await;
}

#[tokio::test]
async fn a_termination_of_what_is_hibernated() {
    let acts = [Act::Run, Act::Hibernate, Act::Terminate];
    crash_everywhere(&acts, InstanceState::Terminated).await;
}

#[tokio::test]
async fn a_host_that_cant_save_stops() {
    let acts = [Act::Run, Act::CantSave, Act::Hibernate];
    crash_everywhere(&acts, InstanceState::Stopped).await;
    let acts = [Act::Run, Act::CantSave, Act::Deaf, Act::Hibernate];
    crash_everywhere(&acts, InstanceState::Stopped).await;
}

/// Hibernates, dies at the `n`th call of that, and then does something else.
async fn cut_short_at(n: usize, after: bool, then: Act) -> (Cloud, bool) {
    let cloud = Cloud::new().await;
    assert!(cloud.run().await);
    cloud.act(Act::Hibernate).await;
    cloud.arm(Some((n, after)));
    let lived = cloud.run().await;
    cloud.act(then).await;
    cloud.arm(None);
    assert!(cloud.run().await);
    cloud
        .check(&format!("cut short at {n}, then {then:?}"))
        .await;
    (cloud, lived)
}

#[tokio::test]
async fn a_hibernation_that_is_forced_or_terminated_leaves_no_memory() {
    for (then, end) in [
        (Act::ForceStop, InstanceState::Stopped),
        (Act::Stop, InstanceState::Stopped),
        (Act::Terminate, InstanceState::Terminated),
    ] {
        for (n, after) in [(1, false), (1, true), (2, false), (2, true)] {
            let (cloud, lived) = cut_short_at(n, after, then).await;
            assert!(!lived);
            let instance = cloud.instance();
            assert_eq!((instance.state, instance.hibernated), (end, None));
        }
    }
}

#[tokio::test]
async fn memory_is_gone_on_from_once_and_what_it_says_is_written_down() {
    let cloud = Cloud::new().await;
    for act in [Act::Run, Act::Hibernate] {
        cloud.act(act).await;
        assert!(cloud.run().await);
    }
    assert_eq!(cloud.instance().hibernated, Some(1));
    cloud.act(Act::Start).await;
    assert!(cloud.run().await);
    cloud.check("started").await;
    let id = cloud.instance().id;
    let once = vec![id];
    assert_eq!(cloud.host.compute.resumed(), once);
    // An ordinary stop keeps none, and the start after it is one from cold.
    for act in [Act::Stop, Act::Start] {
        cloud.act(act).await;
        assert!(cloud.run().await);
        cloud.check(&format!("{act:?}")).await;
    }
    assert_eq!(cloud.host.compute.resumed(), once);
}

#[tokio::test]
async fn one_that_cant_be_hibernated_says_so_when_it_has_stopped() {
    let cloud = Cloud::new().await;
    for act in [Act::Run, Act::CantSave, Act::Hibernate] {
        cloud.act(act).await;
        assert!(cloud.run().await);
    }
    let instance = cloud.instance();
    assert_eq!(instance.state, InstanceState::Stopped);
    assert_eq!(instance.hibernated, None);
    let reason = instance.state_reason.unwrap().message;
    assert!(
        reason.contains("stopped and not hibernated: its memory could not be saved"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_start_that_its_host_fails_keeps_the_memory_for_the_next() {
    use crate::compute::{ComputeError, simulated::Call};
    let cloud = Cloud::new().await;
    for act in [Act::Run, Act::Hibernate] {
        cloud.act(act).await;
        assert!(cloud.run().await);
    }
    cloud.host.compute.set_hook(|call| match call {
        Call::Launch(_) => Err(ComputeError::Host {
            doing: "starting".into(),
            source: std::io::ErrorKind::OutOfMemory.into(),
        }),
        _ => Ok(()),
    });
    cloud.act(Act::Start).await;
    assert!(cloud.run().await);
    cloud.check("a host without memory").await;
    assert_eq!(cloud.instance().state, InstanceState::Stopped);
    cloud.host.compute.set_hook(|_| Ok(()));
    cloud.act(Act::Start).await;
    assert!(cloud.run().await);
    cloud.check("started").await;
    assert_eq!(cloud.host.compute.resumed(), [cloud.instance().id]);
}

#[tokio::test]
async fn memory_that_is_lost_is_a_start_from_cold() {
    use crate::compute::ComputeHost as _;
    let cloud = Cloud::new().await;
    for act in [Act::Run, Act::Hibernate] {
        cloud.act(act).await;
        assert!(cloud.run().await);
    }
    let id = cloud.instance().id;
    cloud.host.compute.discard_memory(&id).await.unwrap();
    cloud.act(Act::Start).await;
    assert!(cloud.run().await);
    cloud.check("lost").await;
    assert_eq!(cloud.instance().state, InstanceState::Running);
    assert!(cloud.host.compute.resumed().is_empty());
}
