//! Volumes in the XFS pool: needs root, loop devices and mkfs.xfs.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use hearth::model::{ImageId, VolumeId};
use hearth::storage::host::{Cloning, HostStorage, purge};
use hearth::storage::{Source, StorageHost, VolumeSpec};

/// The mounts and loop devices that lead to this folder.
fn traces(dir: &std::path::Path) -> Vec<String> {
    let dir = dir.to_str().expect("UTF-8");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mut found: Vec<String> = mounts
        .lines()
        .filter(|l| l.contains(dir))
        .map(str::to_owned)
        .collect();
    for entry in fs::read_dir("/sys/block").expect("/sys/block") {
        let file = entry.expect("entry").path().join("loop/backing_file");
        found.extend(
            fs::read_to_string(file)
                .into_iter()
                .filter(|f| f.contains(dir)),
        );
    }
    found
}

#[tokio::test]
async fn volumes_are_clones_in_a_pool_that_leaves_no_trace() {
    let dir = tempfile::tempdir().expect("folder");
    let data = dir.path().join("data");
    let path = dir.path().join("image.raw");
    let image = File::create(&path).expect("image");
    image.set_len(256 << 20).expect("size");
    image
        .write_all_at(&vec![0x5a; 32 << 20], 1 << 20)
        .expect("contents");
    let source = Source {
        image: ImageId::from_random(1),
        path,
    };

    let host = HostStorage::open(&data, Some(0)).expect("opened");
    if host.cloning() == Cloning::Reflink {
        // The folder's own file system can do it: nothing to mount.
        assert!(traces(&data).is_empty());
    } else {
        assert_eq!(host.cloning(), Cloning::Pool, "loop or mkfs.xfs is missing");
    }
    let mut ids = Vec::new();
    for n in 1..=4 {
        let want = VolumeSpec {
            id: VolumeId::from_random(n),
            size_bytes: 1 << 30,
            source: Some(source.clone()),
        };
        let path = host.ensure_volume(&want).await.expect("made");
        assert_eq!(fs::metadata(&path).expect("there").len(), 1 << 30);
        let mut byte = [0];
        File::open(&path)
            .and_then(|f| f.read_exact_at(&mut byte, (33 << 20) - 1))
            .expect("read");
        assert_eq!(byte, [0x5a]);
        ids.push(want.id);
    }
    if host.cloning() == Cloning::Pool {
        // Four clones and their image share 32 MiB.
        let pool = fs::metadata(data.join("pool.xfs")).expect("pool");
        assert!(pool.blocks() * 512 < 128 << 20, "{}", pool.blocks());
    }

    // Opened again, as after a restart: what is mounted is used.
    let before = traces(&data);
    let again = HostStorage::open(&data, Some(0)).expect("opened again");
    assert_eq!(again.cloning(), host.cloning());
    assert_eq!(traces(&data), before);
    assert_eq!(
        again.observe().await.expect("seen"),
        ids.into_iter().collect()
    );
    for _ in 0..2 {
        purge(&data).expect("purged");
    }
    assert_eq!(traces(&data), Vec::<String>::new());
    assert_eq!(fs::read_dir(&data).expect("data").count(), 0);
}
