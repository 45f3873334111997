//! From one state to the next, by the calls that ask for it.

use super::*;

#[tokio::test]
async fn a_life() {
    let ctx = cloud().await;
    let id = run(&ctx, "").await.instances_set[0].instance_id.clone();
    let one = format!("InstanceId.1={id}");
    let name = |changes: StateChanges| changes.instances_set[0].current_state.name.clone();

    assert_eq!(
        code::<StopInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
    assert_eq!(
        code::<RebootInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
    becomes(&ctx, &id, InstanceState::Running).await;
    let public = described(&ctx, &id).await.ip_address;
    assert!(call::<RebootInstances>(&ctx, &one).await.is_ok());
    assert_eq!(
        ctx.view()
            .view()
            .get::<Instance>(&id)
            .unwrap()
            .reboots_asked,
        1
    );

    assert_eq!(
        name(call::<StopInstances>(&ctx, &one).await.unwrap()),
        "stopping"
    );
    assert_eq!(
        code::<StartInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
    call::<StopInstances>(&ctx, &format!("{one}&Force=true"))
        .await
        .unwrap();
    assert_eq!(
        ctx.view().view().get::<Instance>(&id).unwrap().intent,
        Intent::ForceStop
    );
    becomes(&ctx, &id, InstanceState::Stopped).await;
    let stopped = described(&ctx, &id).await;
    assert_eq!(
        (stopped.ip_address, stopped.dns_name),
        (None, String::new())
    );
    assert_eq!(
        stopped.state_reason.unwrap().code,
        "Client.UserInitiatedShutdown"
    );
    assert!(stopped.reason.starts_with("User initiated ("));
    let private = stopped.private_ip_address;

    assert_eq!(
        name(call::<StartInstances>(&ctx, &one).await.unwrap()),
        "pending"
    );
    let started = described(&ctx, &id).await;
    // Another public address, the same private one.
    assert_ne!(started.ip_address, public);
    assert!(started.ip_address.is_some());
    assert_eq!(started.private_ip_address, private);
    assert_eq!(ctx.view().view().get::<Instance>(&id).unwrap().boots, 2);
    becomes(&ctx, &id, InstanceState::Running).await;

    assert_eq!(
        name(call::<TerminateInstances>(&ctx, &one).await.unwrap()),
        "shutting-down"
    );
    becomes(&ctx, &id, InstanceState::Terminated).await;
    assert_eq!(
        name(call::<TerminateInstances>(&ctx, &one).await.unwrap()),
        "terminated"
    );
    assert_eq!(
        code::<StartInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
}

#[tokio::test]
async fn one_that_may_hibernate_does_and_goes_on() {
    let ctx = cloud().await;
    let plain = run(&ctx, "&HibernationOptions.Configured=false").await;
    let plain = plain.instances_set[0].instance_id.clone();
    let made = run(&ctx, "&HibernationOptions.Configured=true").await;
    assert!(made.instances_set[0].hibernation_options.configured);
    let id = made.instances_set[0].instance_id.clone();
    for id in [&plain, &id] {
        becomes(&ctx, id, InstanceState::Running).await;
    }
    let configured = "Filter.1.Name=hibernation-options.configured&Filter.1.Value.1=true";
    let found = call::<DescribeInstances>(&ctx, configured).await.unwrap();
    let found: Vec<_> = found
        .reservation_set
        .iter()
        .flat_map(|r| &r.instances_set)
        .collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].instance_id, id);

    let instance = || ctx.view().view().get::<Instance>(&id).unwrap().clone();
    let one = format!("InstanceId.1={id}");
    let hibernate = format!("{one}&Hibernate=true");
    // It is not configured for it, and no other goes down along with it.
    let refused = call::<StopInstances>(&ctx, &format!("{hibernate}&InstanceId.2={plain}")).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, "UnsupportedHibernationConfiguration");
    assert!(refused.message.ends_with(&plain), "{refused}");
    assert_eq!(
        code::<StopInstances>(&ctx, &format!("{hibernate}&Force=true")).await,
        "InvalidParameterCombination"
    );
    assert_eq!(instance().state, InstanceState::Running);

    call::<StopInstances>(&ctx, &hibernate).await.unwrap();
    let stopping = described(&ctx, &id).await;
    assert_eq!(stopping.instance_state.name, "stopping");
    assert_eq!(
        stopping.state_reason.unwrap().message,
        "Client.UserInitiatedHibernate: User initiated hibernate"
    );
    assert!(stopping.reason.starts_with("User initiated ("));
    assert_eq!(instance().intent, Intent::Hibernate);
    // Asking again, in whichever way, changes nothing; force does.
    for again in [&one, &hibernate] {
        call::<StopInstances>(&ctx, again).await.unwrap();
        assert_eq!(instance().intent, Intent::Hibernate);
    }
    becomes(&ctx, &id, InstanceState::Stopped).await;
    assert_eq!(
        code::<RebootInstances>(&ctx, &one).await,
        "IncorrectInstanceState"
    );
    call::<StopInstances>(&ctx, &hibernate).await.unwrap();
    call::<StartInstances>(&ctx, &one).await.unwrap();
    becomes(&ctx, &id, InstanceState::Running).await;
    call::<StopInstances>(&ctx, &hibernate).await.unwrap();
    call::<StopInstances>(&ctx, &format!("{one}&Force=true"))
        .await
        .unwrap();
    let forced = instance();
    assert_eq!(forced.intent, Intent::ForceStop);
    assert_eq!(forced.state_reason, Some(StateReason::user_initiated()));
}

#[tokio::test]
async fn one_that_is_protected_stays_and_so_do_those_with_it() {
    let ctx = cloud().await;
    let plain = run(&ctx, "").await.instances_set[0].instance_id.clone();
    let kept = run(&ctx, "&DisableApiTermination=true").await.instances_set[0]
        .instance_id
        .clone();
    let both = format!("InstanceId.1={plain}&InstanceId.2={kept}");
    assert_eq!(
        code::<TerminateInstances>(&ctx, &both).await,
        "OperationNotPermitted"
    );
    assert_eq!(described(&ctx, &plain).await.instance_state.name, "pending");
}

#[tokio::test]
async fn many_are_several_transactions_and_one_that_is_refused_keeps_all() {
    let ctx = cloud_of(100).await;
    let text = RUN.replace("MaxCount=1", "MaxCount=60");
    let made = call::<RunInstances>(&ctx, &text).await.unwrap();
    let ids: Vec<String> = made
        .instances_set
        .into_iter()
        .map(|i| i.instance_id)
        .collect();
    let all: Vec<String> = (1..)
        .zip(&ids)
        .map(|(n, id)| format!("InstanceId.{n}={id}"))
        .collect();
    let all = all.join("&");
    let last = format!("InstanceId={}&DisableApiTermination.Value", ids[59]);
    let protect = format!("{last}=true");
    call::<ModifyInstanceAttribute>(&ctx, &protect)
        .await
        .unwrap();
    assert_eq!(
        code::<TerminateInstances>(&ctx, &all).await,
        "OperationNotPermitted"
    );
    let pending = || -> usize {
        let picture = ctx.view();
        picture
            .view()
            .by(Instance::BY_STATE, "pending")
            .map(|_| 1)
            .sum()
    };
    assert_eq!(pending(), 60);
    let free = format!("{last}=false");
    call::<ModifyInstanceAttribute>(&ctx, &free).await.unwrap();
    let ended = call::<TerminateInstances>(&ctx, &all).await.unwrap();
    let ended = ended.instances_set.iter().map(|c| &c.instance_id);
    assert!(ended.eq(&ids));
    assert_eq!(pending(), 0);
}
