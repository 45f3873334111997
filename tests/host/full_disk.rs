//! Disks that are full or fail, for real: file systems on loop devices, filled to
//! the last byte. Needs root, loop devices, mkfs.ext4 and mkfs.xfs.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hearth::compute::Pausable;
use hearth::model::{Host, HostId, InstanceId, Scope, Tags, Volume, VolumeId};
use hearth::reconcile::host::DiskGuard;
use hearth::storage::host::{Cloning, HostStorage, purge};
use hearth::storage::{StorageError, StorageHost, VolumeSpec};
use hearth::store::{Db, Op, Outcome, SqliteStore, Store, StoreError, TransactError, Txn};

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(120);

fn run(program: &str, args: &[&str]) {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    let done = Command::new(program).args(args).env("PATH", path).output();
    let done = done.unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {args:?}: {said}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A file system in a file, mounted for as long as this lives.
struct Mounted {
    folder: PathBuf,
}

impl Mounted {
    fn new(image: &Path, kind: &str, size: u64, folder: &Path) -> Self {
        if !image.exists() {
            File::create(image)
                .and_then(|f| f.set_len(size))
                .expect("image");
            match kind {
                // All of it for everyone.
                "ext4" => run("mkfs.ext4", &["-q", "-m", "0", text(image)]),
                _ => run("mkfs.xfs", &["-q", text(image)]),
            }
        }
        fs::create_dir_all(folder).expect("folder");
        run("mount", &["-o", "loop", text(image), text(folder)]);
        Self {
            folder: folder.to_owned(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes until not one more byte can be.
    fn fill(&self) -> PathBuf {
        let path = self.path("filler");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .expect("filler");
        for size in [1 << 20, 64 << 10, 4096, 512, 1] {
            let chunk = vec![0xa5; size];
            while file.write_all(&chunk).is_ok() {}
            let _ = file.sync_all();
        }
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A store closes its files some moments after it is dropped.
        let end = Instant::now() + Duration::from_secs(20);
        let unmount = |flag: &[&str]| {
            let mut command = Command::new("/usr/bin/umount");
            command.args(flag).arg(&self.folder).output()
        };
        while !unmount(&[]).is_ok_and(|done| done.status.success()) {
            if Instant::now() > end {
                let _ = unmount(&["--lazy"]);
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn put(key: &str, value: &[u8]) -> Txn {
    Txn {
        compares: vec![],
        ops: vec![Op::Put {
            key: key.to_owned(),
            value: value.to_vec(),
            lease: None,
        }],
        ..Txn::default()
    }
}

async fn committed(store: &SqliteStore, txn: Txn) -> u64 {
    match store.commit(txn).await.expect("committed") {
        Outcome::Committed(revision) => revision.0,
        conflict => panic!("{conflict:?}"),
    }
}

#[tokio::test]
async fn the_store_writes_when_its_disk_is_full_to_the_last_byte() {
    for (kind, size) in [("ext4", 64 * MIB), ("xfs", 320 * MIB)] {
        let dir = tempfile::tempdir().expect("folder");
        let disk = Mounted::new(&dir.path().join("image"), kind, size, &dir.path().join("m"));
        let db = disk.path("hearth.db");
        let store = SqliteStore::open(&db).await.expect("opened");
        let all = |value: &[u8]| -> Vec<Op> {
            let keys = 0..200;
            keys.flat_map(|n| put(&format!("/instances/{n}"), value).ops)
                .collect()
        };
        let by_twenty = async |store: &SqliteStore, ops: Vec<Op>| {
            for ops in ops.chunks(20) {
                let ops = ops.to_vec();
                let txn = Txn {
                    ops,
                    ..Txn::default()
                };
                committed(store, txn).await;
            }
        };
        by_twenty(&store, all(&[7; 2000])).await;
        let data = disk.path("data");
        let before = match kind {
            "xfs" => Some(HostStorage::open(&data, None).expect("opened").cloning()),
            _ => None,
        };
        disk.fill();
        fs::write(disk.path("more"), [1; 65536]).expect_err("the disk is full");

        // Thousands of steps of instances' lives, more than the log holds, and every
        // record goes at last.
        for round in 0..25 {
            by_twenty(&store, all(&[round; 2000])).await;
        }
        // A new process finds its way as well.
        drop(store);
        if before.is_some() {
            let again = HostStorage::open(&data, None).expect("opened on a full disk");
            assert_eq!(
                (before, again.cloning()),
                (Some(Cloning::Reflink), Cloning::Reflink)
            );
        }
        let store = SqliteStore::open(&db).await.expect("opened on a full disk");
        assert_eq!(store.range("").await.expect("read").entries.len(), 200);
        let deletes = (0..200).map(|n| Op::Delete {
            key: format!("/instances/{n}"),
        });
        by_twenty(&store, deletes.collect()).await;
        assert!(store.range("").await.expect("read").entries.is_empty());
    }
}

#[tokio::test]
async fn a_commit_that_finds_no_space_fails_alone() {
    let dir = tempfile::tempdir().expect("folder");
    let image = dir.path().join("image");
    let disk = Mounted::new(&image, "ext4", 64 * MIB, &dir.path().join("m"));
    let path = disk.path("hearth.db");
    let store = SqliteStore::open(&path).await.expect("opened");
    let filler = disk.fill();
    // New records until even the store's own space is used up.
    let big = vec![9; 256 << 10];
    let mut last = 0;
    let error = loop {
        assert!(last < 1000, "it never ends");
        match store.commit(put(&format!("/big/{last}"), &big)).await {
            Ok(_) => last += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full), "{error:?}");
    assert!(last >= 8, "{last}: there was no reserve");
    // It answers, knows all that it confirmed, and fails again.
    let range = store.range("").await.expect("read");
    assert_eq!((range.entries.len() as u64, range.revision.0), (last, last));
    assert!(store.commit(put("/big/x", &big)).await.is_err());
    // So does all that stands on it: what the API says is then an error, and what
    // it knows it tells.
    let store = Arc::new(store);
    let db = Db::open(store.clone()).await.expect("view");
    let scope = Scope::new("000000000000", "us-east-1");
    let tag = |size| [("k".to_owned(), "v".repeat(size))].into();
    let failed = db
        .transact(|_, change| {
            change.create(&Tags {
                scope: scope.clone(),
                resource: "i-1".to_owned(),
                tags: tag(256 << 10),
            });
            Ok::<_, ()>(())
        })
        .await;
    assert!(matches!(failed, Err(TransactError::Store(_))), "{failed:?}");
    assert_eq!(db.view().revision().0, last);
    // With room again it goes on where it was, as does the next process.
    fs::remove_file(filler).expect("removed");
    assert_eq!(committed(&store, put("/small", b"v")).await, last + 1);
    drop((store, db));
    let store = SqliteStore::open(&path).await.expect("opened");
    let again = store.range("").await.expect("read");
    assert_eq!(again.entries.len() as u64, last + 1);
    assert_eq!(again.revision.0, last + 1);
}

#[tokio::test]
async fn after_input_and_output_errors_all_that_was_confirmed_is_there() {
    let dir = tempfile::tempdir().expect("folder");
    // The file under the file system can't grow: a disk that fails its writes.
    let ram = dir.path().join("ram");
    fs::create_dir(&ram).expect("folder");
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=48m", "ram", text(&ram)],
    );
    let ram = Mounted { folder: ram };
    let image = ram.path("image");
    let disk = Mounted::new(&image, "ext4", 256 * MIB, &dir.path().join("m"));
    let store = SqliteStore::open(&disk.path("hearth.db"))
        .await
        .expect("opened");
    committed(&store, put("/first", b"v")).await;
    let filler = ram.fill();
    let big = vec![9; 256 << 10];
    let mut confirmed = 1;
    loop {
        assert!(confirmed < 1000, "the disk doesn't fail");
        let key = format!("/big/{confirmed}");
        match store.commit(put(&key, &big)).await {
            Ok(_) => confirmed += 1,
            Err(_) => break,
        }
    }
    // The file system may be gone by now, reads too may fail; nothing hangs, and
    // nobody is told that a write was done.
    let _ = store.get("/first").await;
    assert!(store.commit(put("/more", &big)).await.is_err());
    drop(store);
    drop(disk);

    fs::remove_file(filler).expect("removed");
    let mended = Command::new("/usr/sbin/e2fsck")
        .args(["-fy", text(&image)])
        .output()
        .expect("e2fsck");
    assert!(mended.status.code() < Some(4), "{mended:?}");
    let disk = Mounted::new(&image, "ext4", 0, &dir.path().join("m"));
    let store = SqliteStore::open(&disk.path("hearth.db"))
        .await
        .expect("opened again");
    let range = store.range("").await.expect("read");
    // One that was answered with an error may have been written all the same.
    let found = range.entries.len();
    assert!(
        (confirmed..=confirmed + 2).contains(&found),
        "{found} of {confirmed}"
    );
    assert_eq!(range.revision.0, found as u64);
    committed(&store, put("/last", b"v")).await;
}

/// A guest that fills its disk, unless it is paused.
struct Guest {
    id: InstanceId,
    paused: AtomicBool,
    /// There was one template.
    gave_way: AtomicBool,
    ended: AtomicBool,
    written: AtomicU64,
}

impl Pausable for Guest {
    fn give_way(&self) -> std::io::Result<bool> {
        Ok(!self.gave_way.swap(true, Ordering::SeqCst))
    }

    /// Not told before the guest is paused: it must be, whatever the host's figures
    /// wait for.
    fn kept_bytes(&self) -> std::io::Result<u64> {
        while !self.paused.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(0)
    }

    fn set_paused(&self, id: &InstanceId, paused: bool) -> std::io::Result<()> {
        assert_eq!(*id, self.id);
        assert!(!paused || self.gave_way.load(Ordering::SeqCst));
        self.paused.store(paused, Ordering::SeqCst);
        Ok(())
    }
    fn paused(&self) -> std::io::Result<std::collections::BTreeSet<InstanceId>> {
        let paused = self.paused.load(Ordering::SeqCst);
        Ok(paused.then(|| self.id.clone()).into_iter().collect())
    }
}

fn write_all_the_time(guest: &Guest, volume: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(volume)?;
    let chunk = vec![0x5a; 1 << 20];
    while !guest.ended.load(Ordering::SeqCst) {
        if guest.paused.load(Ordering::SeqCst) {
            // Nothing of it is lost: what it wrote before reaches the disk.
            file.sync_all()?;
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        file.write_all(&chunk)?;
        guest.written.fetch_add(MIB, Ordering::SeqCst);
        // As fast as a fast disk, and not as this machine's memory: the reserve is
        // what one writes while nobody looks, and how long that is is no test's matter.
        std::thread::sleep(Duration::from_millis(2));
    }
    file.sync_all()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A whole host whose one guest fills its volume, on a data folder of this kind.
async fn a_guest_that_fills_its_disk(kind: &str, cloning: Cloning) {
    let dir = tempfile::tempdir().expect("folder");
    let image = dir.path().join("image");
    let disk = Mounted::new(&image, kind, 1536 * MIB, &dir.path().join("m"));
    let data = disk.folder.clone();
    let storage = HostStorage::open(&data, Some(512 * MIB)).expect("opened");
    assert_eq!(storage.cloning(), cloning);
    let store = SqliteStore::open(&data.join("hearth.db"))
        .await
        .expect("store");
    let db = Db::open(Arc::new(store)).await.expect("view");

    let guest = Arc::new(Guest {
        id: InstanceId::from_random(1),
        paused: AtomicBool::new(false),
        gave_way: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        written: AtomicU64::new(0),
    });
    let host = HostId("here".to_owned());
    let scope = Scope::new("000000000000", "us-east-1");
    let volume = VolumeSpec {
        id: VolumeId::from_random(1),
        size_bytes: 8 << 30,
        source: None,
    };
    let path = storage.ensure_volume(&volume).await.expect("made");
    let record: Volume = serde_json::from_value(serde_json::json!({
        "id": volume.id, "scope": scope, "zone": "us-east-1a", "host": "here",
        "size_gib": 8, "volume_type": "gp3", "image": null, "created": "2026-11-01T00:00:00Z",
        "attachment": { "instance": guest.id, "device": "/dev/xvda",
                        "attached": "2026-11-01T00:00:00Z", "delete_on_termination": true },
    }))
    .expect("a record");
    let ours = Host {
        id: host.clone(),
        zone: "us-east-1a".to_owned(),
        vcpus: 8,
        memory_mib: 8192,
        disk_gib: 10,
    };
    db.transact(|_, change| {
        change.create(&record);
        change.create(&ours);
        Ok::<_, ()>(())
    })
    .await
    .expect("written");

    let storage = Arc::new(storage);
    let guard = DiskGuard {
        db: db.clone(),
        host: host.clone(),
        storage: storage.clone(),
        writers: guest.clone(),
        overcommit: 4.0,
    };
    let (shutdown, receiver) = tokio::sync::watch::channel(false);
    let guarding = tokio::spawn(guard.run(receiver));
    let writer = {
        let (guest, path) = (guest.clone(), path.clone());
        std::thread::spawn(move || write_all_the_time(&guest, &path))
    };

    until("it is paused", || guest.paused.load(Ordering::SeqCst)).await;
    let paused_at = guest.written.load(Ordering::SeqCst);
    let left = storage.space().await.expect("space").available;
    eprintln!(
        "{kind}, {cloning:?}: paused after {} MiB with {} MiB left of the reserve of 512",
        paused_at / MIB,
        left / MIB
    );
    assert!(left > 0, "the disk was full before the guest was paused");
    // Somebody else takes some, too: XFS gives back what it allocated ahead for a file
    // that rests, and that would be just enough again.
    let others = data.join("others");
    fs::write(&others, vec![1; 64 << 20]).expect("there is room yet");
    // The host gives nothing more, says so, and makes no new volume.
    let nothing = || {
        db.view()
            .shared::<Host>("here")
            .is_some_and(|h| h.disk_gib == 0)
    };
    until("the host is known to be full", nothing).await;
    let another = VolumeSpec {
        id: VolumeId::from_random(2),
        ..volume.clone()
    };
    let refused = storage.ensure_volume(&another).await.expect_err("no room");
    assert!(matches!(refused, StorageError::NoSpace { .. }), "{refused}");
    // The store writes, and with room made elsewhere the guest goes on and on.
    db.transact(|_, change| {
        change.put_tags(&record, [("a".to_owned(), "b".to_owned())].into());
        Ok::<_, ()>(())
    })
    .await
    .expect("the store writes");

    // Terminated: its volume goes, and the host has room again.
    fs::remove_file(&others).expect("removed");
    guest.ended.store(true, Ordering::SeqCst);
    let wrote = writer.join().expect("the guest's thread");
    wrote.expect("no write of the guest failed");
    storage.remove_volume(&volume.id).await.expect("removed");
    until("the host has room again", || !nothing()).await;
    until("it would go on", || !guest.paused.load(Ordering::SeqCst)).await;
    storage.ensure_volume(&another).await.expect("room again");

    shutdown.send_replace(true);
    guarding.await.expect("ended");
    drop(db);
    purge(&data).expect("purged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_fills_its_disk_is_paused_in_time_with_reflinks() {
    a_guest_that_fills_its_disk("xfs", Cloning::Reflink).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_fills_its_disk_is_paused_in_time_in_the_pool() {
    a_guest_that_fills_its_disk("ext4", Cloning::Pool).await;
}
