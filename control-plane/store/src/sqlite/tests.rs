//! The store in a file: opened again, stalled, full and of another schema.

use std::{cell::Cell, os::unix::fs::PermissionsExt as _};

use rusqlite::Connection;
use tokio::task::JoinSet;

use super::{engine::REFILL, *};
use crate::{Compare, Op};

#[tokio::test]
async fn what_was_committed_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hearth.db");
    let put = |key: &str| Txn {
        compares: vec![],
        ops: vec![Op::Put {
            key: key.into(),
            value: b"v".to_vec(),
            lease: None,
        }],
        ..Txn::default()
    };
    let store = SqliteStore::open(&path).await.unwrap();
    store.commit(put("/a")).await.unwrap();
    store.commit(put("/b")).await.unwrap();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
    let before = store.range("").await.unwrap();
    drop(store);

    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(store.range("").await.unwrap(), before);
    assert_eq!(before.revision, Revision(2));
    // No history of another process: whoever watches from there reads anew.
    assert!(matches!(
        store.watch(Revision(1)).await,
        Err(StoreError::Compacted(Revision(1)))
    ));
    assert_eq!(
        store.commit(put("/c")).await.unwrap(),
        Outcome::Committed(Revision(3))
    );
}

#[tokio::test]
async fn a_disk_that_stalls_holds_up_who_commits_and_only_so_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hearth.db");
    let store = Arc::new(SqliteStore::open(&path).await.unwrap());
    let db = crate::Db::open(store.clone()).await.unwrap();
    let put = |name: &str| {
        let host = hearth_model::samples::host(name, 1);
        let db = db.clone();
        async move {
            let put = db.transact_infallible(|_, change| change.overwrite(&host));
            put.await
        }
    };
    let hosts = || db.view().count::<hearth_model::Host>();
    put("before").await.unwrap();

    // As one that waits for its fsync.
    let (go_on, stall) = mpsc::channel::<()>();
    let stalled = move |_: &mut Core<Sqlite>| {
        let _ = stall.recv();
    };
    let stalled = store.jobs.send(Job::Other(Box::new(stalled)));
    assert!(stalled.is_ok());
    // From here on the clock goes forward when all wait.
    tokio::time::pause();
    let asked = tokio::time::Instant::now();
    let mut many = JoinSet::new();
    for n in 0..3 * MAX_QUEUED {
        many.spawn(put(&format!("meanwhile-{n}")));
    }
    for outcome in many.join_all().await {
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, crate::TransactError::Store(StoreError::Stalled(_))),
            "{error:?}"
        );
    }
    assert_eq!(asked.elapsed().as_secs(), COMMIT_TIMEOUT.as_secs());
    // Who reads is no matter of the disk.
    assert_eq!(hosts(), 1);
    assert_eq!(store.places.available_permits(), 0);

    tokio::time::resume();
    go_on.send(()).unwrap();
    put("after").await.unwrap();
    // What nobody waits for any more is not carried out behind their backs.
    assert_eq!(hosts(), 2);
    // Every place is free again: the last is given back just after its caller was answered.
    let all = store
        .places
        .acquire_many(u32::try_from(MAX_QUEUED).unwrap());
    let all = timeout(COMMIT_TIMEOUT, all).await;
    assert!(all.is_ok_and(|all| all.is_ok()));
}

#[test]
fn commits_that_wait_together_are_decided_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hearth.db");
    let mut core = Sqlite::open(&path).and_then(Core::new).unwrap();
    let mut watch = core.watch(Revision(0)).unwrap();
    let put = |key: &str, compares: Vec<Compare>| Txn {
        compares,
        ops: vec![Op::Put {
            key: key.into(),
            value: b"v".to_vec(),
            lease: None,
        }],
        ..Txn::default()
    };
    let absent = |key: &str| vec![Compare::Absent(key.into())];
    // The second loses to the first, which is not on the disk yet.
    let txns = [
        put("/a", absent("/a")),
        put("/a", absent("/a")),
        put("/b", vec![]),
    ];
    let outcomes: Vec<_> = core
        .commit_all(&txns)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Committed(Revision(1)),
            Outcome::Conflict(Revision(1)),
            Outcome::Committed(Revision(2)),
        ]
    );
    let told: Vec<_> = std::iter::from_fn(|| watch.try_recv().ok()).collect();
    assert_eq!(
        told.iter().map(|b| b.revision.0).collect::<Vec<_>>(),
        [1, 2]
    );

    // One that can't be written is no matter of the others.
    core.engine_for_tests()
        .connection
        .execute_batch(
            "CREATE TRIGGER no BEFORE INSERT ON entries WHEN NEW.key = '/no' \
         BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .unwrap();
    let outcomes = core.commit_all(&[put("/c", vec![]), put("/no", vec![]), put("/d", vec![])]);
    assert!(outcomes[0].is_ok() && outcomes[1].is_err() && outcomes[2].is_ok());
    // One that takes the whole group with it: each is tried by itself.
    core.engine_for_tests()
        .connection
        .execute_batch(
            "DROP TRIGGER no; CREATE TRIGGER no BEFORE INSERT ON entries WHEN NEW.key = '/no' \
         BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
        )
        .unwrap();
    let outcomes = core.commit_all(&[put("/e", vec![]), put("/no", vec![]), put("/f", vec![])]);
    assert!(outcomes[0].is_ok() && outcomes[1].is_err() && outcomes[2].is_ok());
    let told: Vec<_> = std::iter::from_fn(|| watch.try_recv().ok()).collect();
    assert_eq!(
        told.iter().map(|b| b.revision.0).collect::<Vec<_>>(),
        [3, 4, 5, 6]
    );
    drop(core);
    let core = Sqlite::open(&path).and_then(Core::new).unwrap();
    let keys: Vec<_> = core
        .range("")
        .unwrap()
        .entries
        .into_iter()
        .map(|e| e.key)
        .collect();
    assert_eq!(keys, ["/a", "/b", "/c", "/d", "/e", "/f"]);
    assert_eq!(core.range("").unwrap().revision, Revision(6));
}

#[test]
fn its_own_space_is_back_with_the_first_commit_that_finds_room() {
    const PLENTY: u64 = 1 << 40;
    thread_local! { static AVAILABLE: Cell<u64> = const { Cell::new(PLENTY) } }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hearth.db");
    let mut core = Sqlite::open(&path).and_then(Core::new).unwrap();
    core.engine().available = |_| AVAILABLE.get();
    let put = |key: &str, size| Txn {
        ops: vec![Op::Put {
            key: key.into(),
            value: vec![b'v'; size],
            lease: None,
        }],
        ..Txn::default()
    };
    // More than there is room for: what needs none goes on.
    AVAILABLE.set(0);
    let full = |outcome| matches!(outcome, Err(StoreError::Full));
    let large = |n: u32| put(&format!("/{n}"), 256 << 10);
    let filled = (0..1000).find(|n| full(core.commit(&large(*n)))).unwrap();
    assert!(full(core.commit(&put("/more", 1))));
    core.commit(&put("/0", 256 << 10)).unwrap();
    assert!(u64::from(filled) < REFILL / 4, "{filled}");

    AVAILABLE.set(PLENTY);
    core.commit(&put("/more", 1)).unwrap();
    AVAILABLE.set(0);
    for n in 1000..1000 + filled / 2 {
        core.commit(&large(n)).unwrap();
    }
}

#[test]
fn what_leads_to_more_than_there_is_room_for_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hearth.db");
    let mut core = Sqlite::open(&path).and_then(Core::new).unwrap();
    core.engine().available = |_| 1 << 20;
    let room = reserve::room(&core.engine().connection, 1 << 20);
    let room = usize::try_from(room.unwrap().unwrap()).unwrap();
    let put = |key: &str, to_come| Txn {
        ops: vec![Op::Put {
            key: key.into(),
            value: b"v".to_vec(),
            lease: None,
        }],
        to_come,
        ..Txn::default()
    };
    let full = |outcome| matches!(outcome, Err(StoreError::Full));
    assert!(full(core.commit(&put("/a", room + 1))));
    assert!(core.get("/a").unwrap().is_none());
    core.commit(&put("/a", room)).unwrap();
    // That was no use of its own space.
    assert!(!core.engine().touched);
}

#[test]
fn a_commit_that_the_disk_has_no_room_for_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hearth.db");
    let mut core = Sqlite::open(&path).and_then(Core::new).unwrap();
    // The file may not grow, whatever the file system says that it has.
    core.engine().available = |_| u64::MAX;
    let connection = &core.engine().connection;
    let pages: i64 = connection
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .unwrap();
    connection
        .pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))
        .unwrap();
    let put = |key: &str, size| Txn {
        ops: vec![Op::Put {
            key: key.into(),
            value: vec![b'v'; size],
            lease: None,
        }],
        ..Txn::default()
    };
    let full = core.commit(&put("/large", 32 << 20));
    assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
    assert!(core.get("/large").unwrap().is_none());
    let after = core.commit(&put("/small", 1)).unwrap();
    assert_eq!(after, Outcome::Committed(Revision(1)));
}

#[tokio::test]
async fn what_cant_be_read_is_listed_while_the_store_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hearth.db");
    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(view_of(&path).unwrap().unreadable().count(), 0);
    let ops = vec![Op::Put {
        key: "/hosts/a".into(),
        value: b"{}".to_vec(),
        lease: None,
    }];
    let compares = vec![];
    store
        .commit(Txn {
            compares,
            ops,
            ..Txn::default()
        })
        .await
        .unwrap();
    let view = view_of(&path).unwrap();
    let (key, why) = view.unreadable().next().unwrap();
    assert_eq!(key, "/hosts/a");
    assert!(why.contains("version"), "{why}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hearth.db");
    drop(SqliteStore::open(&path).await.unwrap());
    Connection::open(&path)
        .unwrap()
        .execute(
            "UPDATE meta SET value = 99 WHERE name IN ('schema', 'min_reader')",
            [],
        )
        .unwrap();
    let refused = SqliteStore::open(&path).await;
    assert!(matches!(
        refused,
        Err(StoreError::Schema {
            found: 99,
            known: 5
        })
    ));
}
