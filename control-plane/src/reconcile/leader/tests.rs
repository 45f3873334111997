use std::{
    future::pending,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use tokio::{task::JoinHandle, time::timeout};

use super::*;
use crate::store::{MemoryStore, Range, Watch};

/// A store whose leases can't be kept alive for a while.
#[derive(Default)]
struct Flaky {
    store: MemoryStore,
    broken: AtomicBool,
}

#[async_trait]
impl Store for Flaky {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        self.store.range(prefix).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.store.commit(txn).await
    }
    async fn watch(&self, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(after).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

/// Who runs, of whom there is one at most.
#[derive(Clone, Default)]
struct Stage(Arc<Mutex<Option<&'static str>>>, Arc<tokio::sync::Notify>);

struct OnStage(Stage);

impl Drop for OnStage {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap() = None;
        self.0.1.notify_waiters();
    }
}

impl Stage {
    fn enter(&self, name: &'static str) -> OnStage {
        let before = self.0.lock().unwrap().replace(name);
        assert_eq!(before, None, "while {name} begins");
        self.1.notify_waiters();
        OnStage(self.clone())
    }

    async fn reach(&self, who: Option<&'static str>) {
        let reached = async {
            loop {
                let news = self.1.notified();
                if *self.0.lock().unwrap() == who {
                    return;
                }
                news.await;
            }
        };
        let reached = timeout(4 * TTL, reached).await;
        assert!(reached.is_ok(), "{who:?} never came");
    }
}

struct Running {
    shutdown: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn end(self) {
        self.shutdown.send_replace(true);
        self.task.await.unwrap();
    }
}

/// A candidate whose one controller is seen on the stage. A `deaf` one doesn't
/// stop when it is asked to.
fn run(store: &Arc<Flaky>, stage: &Stage, host: &str, name: &'static str, deaf: bool) -> Running {
    let candidate = Candidate::new(store.clone(), Holder::new(HostId(host.into())));
    let (shutdown, receiver) = watch::channel(false);
    let stage = stage.clone();
    let start = move |tasks: &mut JoinSet<()>, stop: &watch::Receiver<bool>| {
        let (stage, mut stop) = (stage.clone(), stop.clone());
        tasks.spawn(async move {
            let _on_stage = stage.enter(name);
            let _ = stop.wait_for(|s| *s).await;
            if deaf {
                pending().await
            }
        });
    };
    Running {
        shutdown,
        task: tokio::spawn(candidate.run(start, receiver)),
    }
}

#[tokio::test(start_paused = true)]
async fn one_leads_at_once_and_its_end_lets_the_other_lead() {
    let (store, stage) = (Arc::new(Flaky::default()), Stage::default());
    let began = Instant::now();
    let a = run(&store, &stage, "a", "a", false);
    stage.reach(Some("a")).await;
    assert_eq!(Instant::now(), began, "nobody is waited for");
    let b = run(&store, &stage, "b", "b", false);
    // Longer than any lease that isn't kept alive.
    sleep(3 * TTL).await;
    stage.reach(Some("a")).await;
    let ended = Instant::now();
    a.end().await;
    stage.reach(Some("b")).await;
    assert!(ended.elapsed() <= RETRY);
    b.end().await;
    assert_eq!(store.get(KEY).await.unwrap(), None, "it was revoked");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_stops_its_leader() {
    let (store, stage) = (Arc::new(Flaky::default()), Stage::default());
    let a = run(&store, &stage, "a", "a", false);
    stage.reach(Some("a")).await;
    let taken = Op::Put {
        key: KEY.to_owned(),
        value: serde_json::to_vec(&Holder::new(HostId("c".into()))).unwrap(),
        lease: Some(store.grant(TTL).await.unwrap()),
    };
    let txn = Txn {
        compares: vec![],
        ops: vec![taken],
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
    let lost = Instant::now();
    stage.reach(None).await;
    assert!(lost.elapsed() <= RENEW);
    // Nobody keeps the other's alive.
    stage.reach(Some("a")).await;
    a.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_cant_keep_its_lease_alive_has_stopped_before_another_leads() {
    for deaf in [false, true] {
        let (store, stage) = (Arc::new(Flaky::default()), Stage::default());
        let a = run(&store, &stage, "a", "a", deaf);
        stage.reach(Some("a")).await;
        let b = run(&store, &stage, "b", "b", false);
        store.broken.store(true, Ordering::Relaxed);
        let began = Instant::now();
        stage.reach(None).await;
        let stopped = began.elapsed();
        assert!(
            TTL - LAST_STEPS - RETRY <= stopped && stopped <= TTL,
            "{stopped:?}"
        );
        store.broken.store(false, Ordering::Relaxed);
        // That the stage is free by then is asserted as either enters.
        tokio::select! {
            () = stage.reach(Some("a")) => {}
            () = stage.reach(Some("b")) => {}
        }
        if !deaf {
            a.end().await;
            b.end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_process_left_is_its_own_hosts_at_once_and_anothers_in_time() {
    for (host, at_once) in [("a", true), ("b", false)] {
        let (store, stage) = (Arc::new(Flaky::default()), Stage::default());
        let killed = run(&store, &stage, "a", "a", false);
        stage.reach(Some("a")).await;
        killed.task.abort();
        stage.reach(None).await;
        let began = Instant::now();
        let next = run(&store, &stage, host, "next", false);
        stage.reach(Some("next")).await;
        assert_eq!(began.elapsed().is_zero(), at_once);
        assert!(began.elapsed() <= TTL + RETRY);
        // The lease that the first had takes nothing with it.
        sleep(2 * TTL).await;
        stage.reach(Some("next")).await;
        next.end().await;
    }
}
