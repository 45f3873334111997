//! A VMM gives way to another once, whoever dies when.

use super::{
    cloud::{Act, Cloud},
    crash_everywhere,
};
use crate::{
    compute::{ComputeHost as _, Observed},
    model::*,
};

#[tokio::test]
async fn an_update() {
    crash_everywhere(&[Act::Run, Act::Update], InstanceState::Running).await;
}

#[tokio::test]
async fn what_is_asked_for_once_is_done_once() {
    let cloud = Cloud::new().await;
    let id = InstanceId::from_random(1);
    let pid = async || match cloud.host.compute.look(&id).await {
        Ok(Some(Observed::Running { pid, .. })) => pid,
        other => panic!("it is {other:?}"),
    };
    assert!(cloud.run().await);
    let first = pid().await;
    cloud.act(Act::Update).await;
    assert!(cloud.run().await);
    let second = pid().await;
    assert_ne!(second, first);
    assert!(cloud.run().await);
    assert_eq!(pid().await, second);
    // What stops is not updated, nor what is started later.
    cloud.act(Act::Deaf).await;
    for act in [Act::Stop, Act::Update] {
        cloud.act(act).await;
    }
    assert!(cloud.run().await);
    assert_eq!(cloud.instance().state, InstanceState::Stopped);
    cloud.act(Act::Start).await;
    assert!(cloud.run().await);
    assert!(!cloud.host.compute.wants_update(&id).await.unwrap());
}
