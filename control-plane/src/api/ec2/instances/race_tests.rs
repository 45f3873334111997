//! Two calls at once, one of which takes away what the other begins to use: the
//! second is decided before the first commits, and commits after it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    RunInstances,
    tests::{RUN, call, with_machine},
};
use crate::{
    api::{
        Ctx,
        ec2::{
            key_pairs::{CreateKeyPair, MAX_KEY_PAIRS},
            security_groups::{
                AuthorizeSecurityGroupIngress, CreateSecurityGroup, DeleteSecurityGroup, MAX_GROUPS,
            },
        },
    },
    model::{
        Eni, GroupId, Image, Instance, KeyPair, KeyPairId, Reservation, ReservationId, Resource,
        SecurityGroup, StateReason, Subnet, samples,
    },
    records::launch::{expand, refuse},
    store::{
        Db, Entry, LeaseId, MemoryStore, Outcome, Range, Revision, Store, StoreError, Txn, Watch,
    },
};

type Meanwhile = Pin<Box<dyn Future<Output = ()> + Send>>;

type Fails = Arc<Mutex<Option<fn() -> StoreError>>>;

/// A store in which something happens just before the next commit, or none succeeds.
#[derive(Clone)]
struct Meddler {
    inner: Arc<MemoryStore>,
    before: Arc<Mutex<Option<Meanwhile>>>,
    fails: Fails,
}

impl Meddler {
    /// From the second commit on none succeeds.
    fn fails_after_one(&self, error: fn() -> StoreError) {
        let fails = self.fails.clone();
        let fail: Meanwhile = Box::pin(async move { *fails.lock().unwrap() = Some(error) });
        let before = self.before.clone();
        let next: Meanwhile = Box::pin(async move { *before.lock().unwrap() = Some(fail) });
        *self.before.lock().unwrap() = Some(next);
    }
}

#[async_trait]
impl Store for Meddler {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        self.inner.range(prefix).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let before = self.before.lock().unwrap().take();
        if let Some(before) = before {
            before.await;
        }
        if let Some(error) = *self.fails.lock().unwrap() {
            return Err(error());
        }
        self.inner.commit(txn).await
    }
    async fn watch(&self, after: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(after).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(lease).await
    }
}

/// A cloud, a group `web` in it, and another handle on the same cloud.
async fn two() -> (Meddler, Ctx, Ctx, String) {
    two_on(2).await
}

/// The same, on a machine of so many CPUs.
async fn two_on(cpus: u32) -> (Meddler, Ctx, Ctx, String) {
    let store = Meddler {
        inner: Arc::new(MemoryStore::new()),
        before: Arc::default(),
        fails: Arc::default(),
    };
    let ctx = with_machine(Db::open(Arc::new(store.clone())).await.unwrap(), cpus).await;
    let text = "GroupName=web&GroupDescription=d";
    call::<CreateSecurityGroup>(&ctx, text).await.unwrap();
    let view = ctx.view();
    let group = view.view().all::<SecurityGroup>().find(|g| g.name == "web");
    let group = group.unwrap().id.to_string();
    let other = Ctx::for_tests(Db::open(store.inner.clone()).await.unwrap());
    (store, ctx, other, group)
}

#[tokio::test]
async fn a_group_goes_while_an_instance_is_launched_in_it() {
    let (store, ctx, other, group) = two().await;
    let delete = format!("GroupId={group}");
    *store.before.lock().unwrap() = Some(Box::pin(async move {
        call::<DeleteSecurityGroup>(&other, &delete).await.unwrap();
    }));
    let run = format!("{RUN}&SecurityGroupId.1={group}");
    let refused = call::<RunInstances>(&ctx, &run).await.err().unwrap();
    assert_eq!(refused.code, "InvalidGroup.NotFound");
    assert_eq!(ctx.view().view().all::<Eni>().count(), 0);
}

#[tokio::test]
async fn an_instance_is_launched_while_its_group_goes() {
    let (store, ctx, other, group) = two().await;
    let run = format!("{RUN}&SecurityGroupId.1={group}");
    *store.before.lock().unwrap() = Some(Box::pin(async move {
        call::<RunInstances>(&other, &run).await.unwrap();
    }));
    let delete = format!("GroupId={group}");
    let refused = call::<DeleteSecurityGroup>(&ctx, &delete).await;
    assert_eq!(refused.err().unwrap().code, "DependencyViolation");
    assert!(ctx.view().view().get::<SecurityGroup>(&group).is_some());
}

#[tokio::test]
async fn a_rule_names_a_group_while_it_goes() {
    let (store, ctx, other, group) = two().await;
    let view = ctx.view();
    let default = view
        .view()
        .all::<SecurityGroup>()
        .find(|g| g.name == "default");
    let rule = |group: &str, peer: &str| {
        format!(
            "GroupId={group}&IpPermissions.1.IpProtocol=-1&IpPermissions.1.Groups.1.GroupId={peer}"
        )
    };
    let named = rule(default.unwrap().id.as_str(), &group);
    *store.before.lock().unwrap() = Some(Box::pin(async move {
        let named = call::<AuthorizeSecurityGroupIngress>(&other, &named).await;
        named.unwrap();
    }));
    let delete = format!("GroupId={group}");
    let refused = call::<DeleteSecurityGroup>(&ctx, &delete).await;
    assert_eq!(refused.err().unwrap().code, "DependencyViolation");
    // A group's own name is no second change of it.
    let own = rule(&group, &group);
    call::<AuthorizeSecurityGroupIngress>(&ctx, &own)
        .await
        .unwrap();
    let view = ctx.view();
    assert_eq!(
        view.view()
            .get::<SecurityGroup>(&group)
            .unwrap()
            .rules
            .len(),
        2
    );
}

#[tokio::test]
async fn a_launch_is_refused_while_its_instances_are_made() {
    let (store, ctx, other, group) = two().await;
    let view = ctx.view();
    let subnet = view.view().all::<Subnet>().next().unwrap();
    let group: GroupId = group.parse().unwrap();
    let made = Reservation {
        id: ReservationId::from_random(1),
        scope: subnet.scope.clone(),
        created: ctx.now(),
        user_data: None,
        pending: Some(Box::new(samples::launch(40, subnet, &group))),
    };
    let put = ctx.transact(|_, change| {
        change.create(&made);
        Ok(())
    });
    put.await.unwrap();
    let (id, pool) = (made.id.clone(), ctx.config.public_addresses());
    *store.before.lock().unwrap() = Some(Box::pin(async move {
        let refused = other.transact(|view, change| {
            let made = view.get::<Reservation>(&id).unwrap();
            Ok(refuse(view, change, made))
        });
        assert!(refused.await.unwrap());
    }));
    let expanded = ctx.transact(|view, change| {
        let made = view.get::<Reservation>(&made.id).unwrap();
        Ok(expand(view, change, made, pool))
    });
    assert!(expanded.await.unwrap());
    assert_eq!(ctx.view().view().all::<Instance>().count(), 0);
}

#[tokio::test]
async fn a_launch_that_was_taken_back_is_no_success_for_another_call() {
    let (store, ctx, other, _) = two_on(20).await;
    // What another call with its token and the garbage controller leave.
    let end = async move {
        let ended = other.transact(|view, change| {
            for instance in view.all::<Instance>() {
                let over = Instance {
                    state_reason: Some(StateReason::launch_refused()),
                    ..instance.clone()
                };
                change.update(instance, &over);
            }
            let made = view.all::<Reservation>().next().unwrap();
            let whole = Reservation {
                pending: None,
                ..made.clone()
            };
            change.update(made, &whole);
            Ok(())
        });
        ended.await.unwrap();
    };
    // Before the second of the transactions that make its instances.
    let mut next: Meanwhile = Box::pin(end);
    for _ in 0..2 {
        let (before, then) = (store.before.clone(), next);
        next = Box::pin(async move { *before.lock().unwrap() = Some(then) });
    }
    *store.before.lock().unwrap() = Some(next);
    let run = RUN.replace("Count=1", "Count=40");
    let refused = call::<RunInstances>(&ctx, &run).await.err().unwrap();
    assert_eq!(refused.code, "Unavailable");
    assert!(ctx.view().view().all::<Instance>().count() < 40);
}

/// What a launch is answered that can't be taken back for two and a half seconds,
/// after how many, and whether it is taken back then.
async fn launched_while_failing(error: fn() -> StoreError) -> (String, u64, bool) {
    let (store, ctx, ..) = two_on(20).await;
    store.fails_after_one(error);
    let fails = store.fails.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        *fails.lock().unwrap() = None;
    });
    let began = tokio::time::Instant::now();
    let refused = call::<RunInstances>(&ctx, RUN).await.err().unwrap();
    let view = ctx.view();
    let made = view.view().all::<Reservation>().next().unwrap();
    let refused_after = began.elapsed().as_secs();
    let launch = made.pending.as_ref().unwrap();
    (refused.code.into_owned(), refused_after, launch.refused)
}

#[tokio::test(start_paused = true)]
async fn a_launch_is_taken_back_as_soon_as_it_can_be_and_what_never_can_is_answered() {
    let stalled = || StoreError::Stalled(Duration::from_secs(20));
    let waited = launched_while_failing(stalled).await;
    assert_eq!(waited, ("Unavailable".into(), 3, true));
    let broken = || StoreError::Invalid("it".into());
    let at_once = launched_while_failing(broken).await;
    assert_eq!(at_once, ("InternalError".into(), 0, false));
}

/// Puts so many more there.
async fn fill<T: Resource>(db: &Db, count: usize, one: impl Fn(usize) -> T) {
    let all: Vec<usize> = (0..count).collect();
    for some in all.chunks(100) {
        let put = db.transact(|_, change| {
            some.iter().for_each(|n| change.create(&one(*n)));
            Ok::<_, ()>(())
        });
        put.await.unwrap();
    }
}

#[tokio::test]
async fn two_groups_do_not_take_the_last_place() {
    let (store, ctx, other, group) = two().await;
    let view = ctx.view();
    let web = view.view().get::<SecurityGroup>(&group).unwrap().clone();
    let there = view.view().all::<SecurityGroup>().count();
    let db = Db::open(store.inner.clone()).await.unwrap();
    fill(&db, MAX_GROUPS - there - 1, |n| SecurityGroup {
        id: GroupId::from_random(1000 + n as u128),
        name: format!("full-{n}"),
        ..web.clone()
    })
    .await;
    let create = |name: &str| format!("GroupName={name}&GroupDescription=d");
    let (last, late) = (create("last"), create("late"));
    *store.before.lock().unwrap() = Some(Box::pin(async move {
        call::<CreateSecurityGroup>(&other, &last).await.unwrap();
    }));
    let refused = call::<CreateSecurityGroup>(&ctx, &late)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code, "SecurityGroupLimitExceeded");
    let view = ctx.view();
    assert_eq!(view.view().all::<SecurityGroup>().count(), MAX_GROUPS);
}

#[tokio::test]
async fn two_key_pairs_do_not_take_the_last_place() {
    let (store, ctx, other, _) = two().await;
    let create = |name: &str| format!("KeyName={name}&KeyType=ed25519");
    call::<CreateKeyPair>(&ctx, &create("first")).await.unwrap();
    let first = ctx.view().view().get::<KeyPair>("first").unwrap().clone();
    let db = Db::open(store.inner.clone()).await.unwrap();
    fill(&db, MAX_KEY_PAIRS - 2, |n| KeyPair {
        id: KeyPairId::from_random(1000 + n as u128),
        name: format!("full-{n}"),
        ..first.clone()
    })
    .await;
    let (last, late) = (create("last"), create("late"));
    *store.before.lock().unwrap() = Some(Box::pin(async move {
        call::<CreateKeyPair>(&other, &last).await.unwrap();
    }));
    let refused = call::<CreateKeyPair>(&ctx, &late).await.err().unwrap();
    assert_eq!(refused.code, "KeyPairLimitExceeded");
    assert_eq!(ctx.view().view().all::<KeyPair>().count(), MAX_KEY_PAIRS);
}

/// What a launch is answered when records of a kind go just before it commits.
async fn launched_while_gone<T: Resource>(more: &str) -> String {
    let (store, ctx, _, _) = two().await;
    call::<CreateKeyPair>(&ctx, "KeyName=k").await.unwrap();
    let db = Db::open(store.inner.clone()).await.unwrap();
    *store.before.lock().unwrap() = Some(Box::pin(async move {
        let gone = db.transact_infallible(|view, change| {
            view.all::<T>().for_each(|gone| change.delete(gone));
        });
        gone.await.unwrap();
    }));
    let refused = call::<RunInstances>(&ctx, &format!("{RUN}{more}")).await;
    assert_eq!(ctx.view().view().all::<Eni>().count(), 0);
    refused.err().unwrap().code.into_owned()
}

#[tokio::test]
async fn what_a_launch_takes_goes_while_it_is_launched() {
    let key = launched_while_gone::<KeyPair>("&KeyName=k");
    assert_eq!(key.await, "InvalidKeyPair.NotFound");
    let image = launched_while_gone::<Image>("");
    assert_eq!(image.await, "InvalidAMIID.NotFound");
    let subnet = launched_while_gone::<Subnet>("");
    assert_eq!(subnet.await, "MissingInput");
}
