//! What every store must do, run against each of them.

use std::{sync::Arc, time::Duration};

use super::*;

fn put(key: &str, value: &str) -> Op {
    Op::Put {
        key: key.into(),
        value: value.into(),
        lease: None,
    }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

fn txn(compares: Vec<Compare>, ops: Vec<Op>) -> Txn {
    Txn {
        compares,
        ops,
        ..Txn::default()
    }
}

async fn done(store: &dyn Store, ops: Vec<Op>) -> Revision {
    match store.commit(txn(vec![], ops)).await.unwrap() {
        Outcome::Committed(revision) => revision,
        conflict => panic!("{conflict:?}"),
    }
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store
        .range(prefix)
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|e| e.key)
        .collect()
}

async fn revisions_tell_made_from_written(store: Arc<dyn Store>) {
    assert_eq!(store.get("/a").await.unwrap(), None);
    let first = done(&*store, vec![put("/a", "1"), put("/b", "1")]).await;
    let second = done(&*store, vec![put("/a", "2")]).await;
    assert_eq!(second.0, first.0 + 1);
    let a = store.get("/a").await.unwrap().unwrap();
    assert_eq!(
        (a.value.as_slice(), a.created, a.modified),
        (&b"2"[..], first, second)
    );
    let third = done(&*store, vec![delete("/a")]).await;
    assert_eq!(store.get("/a").await.unwrap(), None);
    let fourth = done(&*store, vec![put("/a", "3")]).await;
    assert_eq!(
        (third.0, store.get("/a").await.unwrap().unwrap().created),
        (fourth.0 - 1, fourth)
    );
}

async fn ranges_are_by_prefix_and_in_order(store: Arc<dyn Store>) {
    let keys_of = ["/x/b", "/x/a", "/x", "/y/a", "/x/a/c", "/xa", "/é/ü"];
    let revision = done(&*store, keys_of.iter().map(|k| put(k, "")).collect()).await;
    assert_eq!(keys(&*store, "/x/").await, ["/x/a", "/x/a/c", "/x/b"]);
    assert_eq!(keys(&*store, "/é").await, ["/é/ü"]);
    assert_eq!(keys(&*store, "").await.len(), keys_of.len());
    assert_eq!(keys(&*store, "/none").await, [""; 0]);
    assert_eq!(store.range("/none").await.unwrap().revision, revision);
}

async fn a_failed_compare_changes_nothing(store: Arc<dyn Store>) {
    let first = done(&*store, vec![put("/a", "1")]).await;
    let absent = |k: &str| Compare::Absent(k.into());
    let same = |k: &str, r| Compare::Unchanged(k.into(), r);
    for compares in [
        vec![absent("/a")],
        vec![same("/a", Revision(first.0 + 1))],
        vec![same("/none", first)],
        vec![same("/a", first), absent("/a")],
    ] {
        let outcome = store
            .commit(txn(compares, vec![put("/a", "2"), put("/c", "1")]))
            .await;
        assert_eq!(outcome.unwrap(), Outcome::Conflict(first));
    }
    assert_eq!(keys(&*store, "").await, ["/a"]);
    let compares = vec![same("/a", first), absent("/b")];
    let outcome = store
        .commit(txn(compares, vec![put("/b", "1")]))
        .await
        .unwrap();
    assert_eq!(outcome, Outcome::Committed(Revision(first.0 + 1)));
}

async fn nothing_changed_is_no_revision(store: Arc<dyn Store>) {
    let first = done(&*store, vec![put("/a", "1")]).await;
    assert_eq!(done(&*store, vec![]).await, first);
    assert_eq!(done(&*store, vec![delete("/none")]).await, first);
}

async fn a_key_changed_twice_is_invalid(store: Arc<dyn Store>) {
    let twice = store
        .commit(txn(vec![], vec![put("/a", "1"), delete("/a")]))
        .await;
    assert!(matches!(twice, Err(StoreError::Invalid(_))));
    assert_eq!(keys(&*store, "").await, [""; 0]);
}

async fn a_watch_has_every_commit_once_in_order(store: Arc<dyn Store>) {
    let first = done(&*store, vec![put("/a", "1")]).await;
    let second = done(&*store, vec![put("/b", "1")]).await;
    let mut late = store.watch(first).await.unwrap();
    let mut new = store.watch(second).await.unwrap();
    let third = done(&*store, vec![delete("/a"), put("/c", "1")]).await;
    let batch = late.recv().await.unwrap();
    assert_eq!(batch.revision, second);
    for watch in [&mut late, &mut new] {
        let batch = watch.recv().await.unwrap();
        assert_eq!(batch.revision, third);
        assert_eq!(batch.events.len(), 2);
        assert!(batch.events.contains(&Event::Delete { key: "/a".into() }));
    }
    assert!(late.try_recv().is_err() && new.try_recv().is_err());
    // From the beginning, all of it.
    let mut all = store.watch(Revision(0)).await.unwrap();
    for revision in [first, second, third] {
        assert_eq!(all.recv().await.unwrap().revision, revision);
    }
}

async fn a_watcher_that_falls_behind_is_told(store: Arc<dyn Store>) {
    let mut watch = store.watch(Revision(0)).await.unwrap();
    let mut last = Revision(0);
    for _ in 0..1100 {
        last = done(&*store, vec![put("/a", "1")]).await;
    }
    let mut seen = Revision(0);
    while let Some(batch) = watch.recv().await {
        assert_eq!(batch.revision.0, seen.0 + 1);
        seen = batch.revision;
    }
    assert!(seen < last);
    assert!(matches!(
        store.watch(Revision(0)).await,
        Err(StoreError::Compacted(_))
    ));
}

async fn a_lease_takes_its_keys_with_it(store: Arc<dyn Store>) {
    let long = store.grant(Duration::from_secs(3600)).await.unwrap();
    let under = |key: &str, lease| Op::Put {
        key: key.into(),
        value: vec![],
        lease: Some(lease),
    };
    done(
        &*store,
        vec![under("/a", long), under("/b", long), under("/c", long)],
    )
    .await;
    // Written without the lease, it is the lease's no more.
    done(&*store, vec![put("/c", "mine")]).await;
    store.keep_alive(long).await.unwrap();
    let revision = store.range("").await.unwrap().revision;
    let mut watch = store.watch(revision).await.unwrap();
    store.revoke(long).await.unwrap();
    assert_eq!(keys(&*store, "").await, ["/c"]);
    assert_eq!(watch.recv().await.unwrap().events.len(), 2);
    assert!(matches!(
        store.keep_alive(long).await,
        Err(StoreError::NoLease(_))
    ));
    let late = store.commit(txn(vec![], vec![under("/d", long)])).await;
    assert!(matches!(late, Err(StoreError::NoLease(_))));

    // One that nobody keeps alive ends by itself; the watch tells when.
    let short = store.grant(Duration::from_millis(10)).await.unwrap();
    assert_ne!(short, long);
    let revision = match store.commit(txn(vec![], vec![under("/e", short)])).await {
        Ok(Outcome::Committed(revision)) => revision,
        // On a slow machine it may be over before its first key.
        Err(StoreError::NoLease(_)) => return,
        other => panic!("{other:?}"),
    };
    let mut watch = store.watch(revision).await.unwrap();
    let batch = watch.recv().await.unwrap();
    assert_eq!(batch.events, [Event::Delete { key: "/e".into() }]);
}

macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $case() {
                super::$case(super::Arc::new(super::MemoryStore::new())).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test]
            async fn $case() {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("hearth.db");
                let store = super::SqliteStore::open(&path).await.unwrap();
                super::$case(super::Arc::new(store)).await;
            })*
        }
    };
}

suite![
    revisions_tell_made_from_written,
    ranges_are_by_prefix_and_in_order,
    a_failed_compare_changes_nothing,
    nothing_changed_is_no_revision,
    a_key_changed_twice_is_invalid,
    a_watch_has_every_commit_once_in_order,
    a_watcher_that_falls_behind_is_told,
    a_lease_takes_its_keys_with_it,
];
