//! Volumes in a folder of the tests' own.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;
use crate::{model::ImageId, storage::Source};

/// Volumes on whatever the temporary folder's file system is, without a pool.
fn opened(data: &Path) -> HostStorage {
    let volumes = data.join("volumes");
    fs::create_dir_all(&volumes).unwrap();
    let cloning = if pool::can_reflink(&volumes) {
        Cloning::Reflink
    } else {
        Cloning::Copy
    };
    sweep(&volumes).unwrap();
    HostStorage {
        inner: Arc::new(Inner {
            data: data.to_owned(),
            volumes,
            cloning,
            reserve: 0,
            locks: Mutex::default(),
        }),
    }
}

fn image(dir: &Path) -> Source {
    let path = dir.join("image.raw");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", (4 << 20) + 17).unwrap();
    Source {
        image: ImageId::from_random(1),
        path,
    }
}

fn spec(n: u128, source: Option<Source>) -> VolumeSpec {
    VolumeSpec {
        id: VolumeId::from_random(n),
        size_bytes: 16 << 20,
        source,
    }
}

#[tokio::test]
async fn a_clone_is_whole_grown_and_sparse() {
    let dir = tempfile::tempdir().unwrap();
    let host = opened(dir.path());
    let want = spec(1, Some(image(dir.path())));
    let path = host.ensure_volume(&want).await.unwrap();
    assert_eq!(path, host.volume_path(&want.id));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), 16 << 20);
    assert!(
        meta.blocks() * 512 < 4 << 20,
        "not sparse: {}",
        meta.blocks()
    );
    let mut expected = fs::read(&want.source.as_ref().unwrap().path).unwrap();
    expected.resize(16 << 20, 0);
    assert!(fs::read(&path).unwrap() == expected);
    assert_eq!(host.observe().await.unwrap(), [want.id].into());
}

#[tokio::test]
async fn what_is_there_is_kept_and_grown() {
    let dir = tempfile::tempdir().unwrap();
    let host = opened(dir.path());
    let mut want = spec(1, Some(image(dir.path())));
    let path = host.ensure_volume(&want).await.unwrap();
    fs::write(&path, b"the guest's").unwrap();
    host.ensure_volume(&want).await.unwrap();
    want.size_bytes = 32 << 20;
    host.ensure_volume(&want).await.unwrap();
    let now = fs::read(&path).unwrap();
    assert_eq!(now.len(), 32 << 20);
    assert!(now.starts_with(b"the guest's"));
    want.size_bytes = 16 << 20;
    host.ensure_volume(&want).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 32 << 20, "never cut");
}

#[tokio::test]
async fn nothing_is_made_of_what_is_kept_free() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = opened(dir.path());
    let want = spec(1, Some(image(dir.path())));
    Arc::get_mut(&mut host.inner).unwrap().reserve = u64::MAX;
    let e = host.ensure_volume(&want).await.unwrap_err();
    assert!(matches!(e, StorageError::NoSpace { .. }), "{e}");
    assert!(host.observe().await.unwrap().is_empty());
    // What is there already stays usable.
    Arc::get_mut(&mut host.inner).unwrap().reserve = 0;
    host.ensure_volume(&want).await.unwrap();
    Arc::get_mut(&mut host.inner).unwrap().reserve = u64::MAX;
    host.ensure_volume(&want).await.unwrap();
}

#[tokio::test]
async fn removing_twice_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let host = opened(dir.path());
    let want = spec(1, None);
    host.ensure_volume(&want).await.unwrap();
    for _ in 0..2 {
        host.remove_volume(&want.id).await.unwrap();
        assert!(host.observe().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_image_too_big_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let host = opened(dir.path());
    let mut want = spec(1, Some(image(dir.path())));
    want.size_bytes = 4 << 20;
    let e = host.ensure_volume(&want).await.unwrap_err();
    assert!(matches!(e, StorageError::TooSmall { .. }), "{e}");
    want.source.as_mut().unwrap().path = dir.path().join("none");
    host.ensure_volume(&want).await.unwrap_err();
    assert_eq!(fs::read_dir(&host.inner.volumes).unwrap().count(), 0);
}

#[tokio::test]
async fn a_crash_leaves_nothing_under_a_volumes_name() {
    let dir = tempfile::tempdir().unwrap();
    let host = opened(dir.path());
    let want = spec(1, Some(image(dir.path())));
    // As a crash in the middle of the copy would leave it.
    let half = host.inner.volumes.join(format!("{MAKING}{}.raw", want.id));
    fs::write(&half, b"half").unwrap();
    assert!(host.observe().await.unwrap().is_empty());
    let host = opened(dir.path());
    assert!(!half.exists());
    host.ensure_volume(&want).await.unwrap();
    assert_eq!(host.observe().await.unwrap().len(), 1);
}

#[tokio::test]
async fn many_at_once_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let host = opened(dir.path());
    let want = spec(1, Some(image(dir.path())));
    let all = (0..8).map(|_| host.ensure_volume(&want));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    let bytes = fs::read(host.volume_path(&want.id)).unwrap();
    assert!(bytes.starts_with(b"begin"));
    assert!(host.inner.locks.lock().unwrap().is_empty());
}

#[test]
fn purge_takes_all_and_may_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let host = opened(dir.path());
    fs::write(host.inner.volumes.join("x"), b"x").unwrap();
    for _ in 0..2 {
        purge(dir.path()).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
