//! What the engine and its thread do beyond what every store does.

use std::cell::Cell;

use super::{
    engine::{REFILL, SOUND, is_sound},
    *,
};
use crate::Op;

fn put(key: &str) -> Txn {
    Txn {
        ops: vec![Op::Put {
            key: key.into(),
            value: b"v".to_vec(),
            lease: None,
        }],
        ..Txn::default()
    }
}

fn open(folder: &tempfile::TempDir) -> Core<Sqlite> {
    let path = folder.path().join("hearth.db");
    Sqlite::open(&path).and_then(Core::new).unwrap()
}

#[test]
fn a_sqlite_from_before_the_mend_is_none() {
    assert!(!is_sound(SOUND - 1) && is_sound(SOUND) && is_sound(SOUND + 1));
}

#[test]
fn leases_outlast_the_process_and_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut core = open(&folder);
    let ttl = Duration::from_secs(3600);
    let (kept, ended) = (core.grant(ttl).unwrap(), core.grant(ttl).unwrap());
    let mut leased = put("/leased");
    let Op::Put { lease, .. } = &mut leased.ops[0] else {
        unreachable!()
    };
    *lease = Some(kept);
    core.commit(&leased).unwrap();
    core.revoke(ended).unwrap();
    drop(core);

    let mut core = open(&folder);
    let before = tokio::time::Instant::now();
    let next = core.expire().unwrap();
    assert!(next.is_some_and(|next| next > before));
    assert!(core.get("/leased").unwrap().is_some());
    core.keep_alive(kept).unwrap();
    let gone = core.keep_alive(ended);
    assert!(matches!(gone, Err(StoreError::NoLease(id)) if id == ended));
    core.revoke(kept).unwrap();
    assert!(core.get("/leased").unwrap().is_none());
}

#[test]
fn a_group_that_fails_at_its_end_leaves_nothing_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut core = open(&folder);
    // Found out by the commit, which leaves its transaction open.
    let late = "PRAGMA foreign_keys = ON; CREATE TABLE none (id INTEGER PRIMARY KEY); \
        CREATE TABLE late (id REFERENCES none DEFERRABLE INITIALLY DEFERRED); \
        CREATE TRIGGER late AFTER INSERT ON entries WHEN NEW.key = '/no' \
        BEGIN INSERT INTO late VALUES (1); END";
    core.engine().connection.execute_batch(late).unwrap();
    let outcomes = core.commit_all(&[put("/a"), put("/no"), put("/b")]);
    assert!(
        outcomes[0].is_ok() && outcomes[1].is_err() && outcomes[2].is_ok(),
        "{outcomes:?}"
    );
}

#[test]
fn its_own_space_is_looked_at_once_in_so_many_commits() {
    thread_local! { static LOOKS: Cell<u32> = const { Cell::new(0) } }
    let folder = tempfile::tempdir().unwrap();
    let mut core = open(&folder);
    core.commit(&put("/a")).unwrap();
    core.engine().available = |_| {
        LOOKS.set(LOOKS.get() + 1);
        u64::MAX
    };
    let anew = |core: &mut Core<Sqlite>, commits: u64| {
        // In one group, which waits for the disk once.
        let txns: Vec<Txn> = (0..commits).map(|_| put("/a")).collect();
        assert!(core.commit_all(&txns).iter().all(Result::is_ok));
        LOOKS.take()
    };
    assert_eq!(anew(&mut core, REFILL - 2), 0);
    assert_eq!(anew(&mut core, 1), 1);
    assert_eq!(anew(&mut core, REFILL - 1), 0);
    assert_eq!(anew(&mut core, 1), 1);
    // One that was found touched is looked at with the next commit, and is whole then.
    core.engine().touched = true;
    assert_eq!(anew(&mut core, 1), 1);
    assert_eq!(anew(&mut core, 1), 0);
}

#[tokio::test]
async fn commits_that_wait_go_together_up_to_so_many() {
    let (jobs, queue) = mpsc::channel();
    let places = Arc::new(Semaphore::new(MAX_QUEUED));
    let commit = |key: &str| Commit {
        txn: put(key),
        caller: oneshot::channel().0,
        _place: Arc::clone(&places).try_acquire_owned().unwrap(),
    };
    let (group, next) = gather(commit("/alone"), &queue);
    assert!(group.len() == 1 && next.is_none());

    for n in 0..GROUP {
        assert!(jobs.send(Job::Commit(commit(&format!("/{n}")))).is_ok());
    }
    assert!(jobs.send(Job::Other(Box::new(|_| {}))).is_ok());
    let (group, next) = gather(commit("/first"), &queue);
    assert!(group.len() == GROUP && next.is_none());
    // In the order that they came, and none after what is no commit.
    let (group, next) = gather(commit("/second"), &queue);
    let keys: Vec<_> = group.iter().map(|commit| commit.txn.ops[0].key()).collect();
    assert_eq!(keys, ["/second", &format!("/{}", GROUP - 1)]);
    assert!(matches!(next, Some(Job::Other(_))));
}
