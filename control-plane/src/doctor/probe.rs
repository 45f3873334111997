//! Gathers the facts: each by trying, and leaving nothing behind.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use hearth_vmm_api::SandboxLayer;

use super::{Facts, kvm, sandbox};
use crate::{
    model::{Resource as _, Volume, VolumeId},
    storage::found_in,
    store::{View, view_of},
};

/// Tries everything out.
#[must_use]
pub fn gather() -> Facts {
    let wanted = std::env::var_os("HEARTH_DATA_DIR")
        .map_or_else(|| PathBuf::from("/var/lib/hearth"), PathBuf::from);
    let folder = wanted
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned();
    let root = rustix::process::geteuid().is_root();
    // Before the records: a volume is made after its record, and goes before it.
    let found = volumes(&wanted);
    let records = records(&wanted);
    Facts {
        layers: sandbox::gather(root),
        optional_layers: optional_layers(),
        root,
        kvm: kvm::attempt(),
        nftables: nftables(),
        tun: opens("/dev/net/tun"),
        vhost_net: opens("/dev/vhost-net"),
        io_uring: ring(),
        cgroup_controllers: fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .map(|text| text.split_whitespace().map(str::to_owned).collect())
            .map_err(|e| format!("/sys/fs/cgroup/cgroup.controllers: {e}")),
        reflink: reflink(&folder).map_err(|e| e.to_string()),
        disk_free_mib: rustix::fs::statvfs(&folder)
            .map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize) >> 20),
        unreadable: records.as_ref().map(unreadable).map_err(String::clone),
        stray_volumes: found.and_then(|found| {
            let strays = known_strays(records?.as_ref(), found)?;
            // What has gone meanwhile may have gone with its record.
            let there = volumes(&wanted)?;
            let strays = strays.intersection(&there);
            Ok(strays.map(ToString::to_string).collect())
        }),
        data_folder: folder.display().to_string(),
        memory_mib: memory_mib(),
    }
}

fn volumes(data_folder: &Path) -> Result<BTreeSet<VolumeId>, String> {
    found_in(data_folder).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

/// The volumes that no record knows, where there are records: without a store, volumes
/// may be all that is left of what somebody had.
fn known_strays(
    view: Option<&View>,
    found: BTreeSet<VolumeId>,
) -> Result<BTreeSet<VolumeId>, String> {
    match view {
        Some(view) => Ok(strays(view, found)),
        None if found.is_empty() => Ok(found),
        None => Err(format!(
            "{} there, and no hearth.db that says whose they are",
            found.len()
        )),
    }
}

/// The volumes that no record knows. One that can't be read still says by its key which
/// it is of.
fn strays(view: &View, found: BTreeSet<VolumeId>) -> BTreeSet<VolumeId> {
    let volumes = Volume::key_of("");
    let unreadable = view.unreadable().map(|(key, _)| key);
    let unreadable = unreadable.filter(|key| key.starts_with(&volumes));
    let unreadable: BTreeSet<&str> = unreadable
        .filter_map(|key| key.rsplit('/').next())
        .collect();
    let known =
        |id: &VolumeId| view.find::<Volume>(id).is_some() || unreadable.contains(id.as_str());
    found.into_iter().filter(|id| !known(id)).collect()
}

fn unreadable(view: &Option<View>) -> Option<Vec<String>> {
    let keys = view.as_ref()?.unreadable().map(|(key, _)| key.to_owned());
    Some(keys.collect())
}

/// The store's records; none where there is no store yet.
fn records(data_folder: &Path) -> Result<Option<View>, String> {
    let path = data_folder.join("hearth.db");
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    }
    let view = view_of(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(view))
}

/// As `hearth serve` has it from the same variable; a name that is none is refused there.
fn optional_layers() -> Vec<SandboxLayer> {
    let text = std::env::var("HEARTH_JAIL_LAYERS_OPTIONAL").unwrap_or_default();
    text.split(',')
        .filter_map(|name| name.parse().ok())
        .collect()
}

fn opens(path: &str) -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map(|_| ())
        .map_err(|e| format!("{path}: {e}"))
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!(
            "{program}: {}",
            errors.lines().next().unwrap_or("failed")
        ))
    }
}

fn nftables() -> Result<String, String> {
    let version = run("nft", &["--version"])?;
    run("nft", &["list", "tables"])?;
    Ok(version)
}

/// `io_uring_setup(2)` with room for one entry.
fn ring() -> Result<(), String> {
    // struct io_uring_params has 120 bytes, all zero for "no wishes".
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and writes exactly 120 bytes at the pointer.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let Ok(fd) = i32::try_from(fd) else {
        return Err("no file descriptor".into());
    };
    if fd < 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    // SAFETY: the descriptor is ours, just made, and closed only here.
    unsafe { libc::close(fd) };
    Ok(())
}

fn reflink(folder: &Path) -> io::Result<()> {
    let name = |which: &str| folder.join(format!(".hearth-doctor-{}-{which}", std::process::id()));
    let (from, to) = (name("a"), name("b"));
    let tried = (|| {
        fs::write(&from, [7_u8; 4096])?;
        let source = File::open(&from)?;
        let target = File::create(&to)?;
        rustix::fs::ioctl_ficlone(&target, &source)?;
        Ok(())
    })();
    // Either may not be there; nothing of ours stays.
    let _ = fs::remove_file(&from);
    let _ = fs::remove_file(&to);
    tried
}

fn memory_mib() -> u64 {
    fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("MemAvailable:"))
                .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        })
        .map_or(0, |kib| kib >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::samples,
        store::{Op, SqliteStore, Store as _, Txn},
    };

    #[test]
    fn a_volume_without_a_record_is_a_stray() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(volumes(folder.path()), Ok(BTreeSet::new()));
        fs::create_dir(folder.path().join("volumes")).unwrap();
        for n in [1, 2] {
            let id = VolumeId::from_random(n);
            fs::write(folder.path().join(format!("volumes/{id}.raw")), "").unwrap();
        }
        fs::write(folder.path().join("volumes/notes.txt"), "").unwrap();
        let found = volumes(folder.path()).unwrap();
        assert_eq!(found.len(), 2);
        let [one, two] = [1, 2].map(VolumeId::from_random);
        let view = View::default().with(samples::volume(1));
        assert_eq!(strays(&view, found.clone()), [two.clone()].into());
        assert_eq!(
            strays(&View::default(), found.clone()),
            [one, two.clone()].into()
        );
        assert_eq!(known_strays(Some(&view), found.clone()), Ok([two].into()));
        let unknown = known_strays(None, found).expect_err("there is no store");
        assert!(unknown.contains("no hearth.db"), "{unknown}");
        assert_eq!(known_strays(None, BTreeSet::new()), Ok(BTreeSet::new()));
    }

    #[tokio::test]
    async fn a_volume_whose_record_cant_be_read_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(records(folder.path()).unwrap().is_none());
        let path = folder.path().join("hearth.db");
        let store = SqliteStore::open(&path);
        let put = Op::Put {
            key: samples::volume(1).key(),
            value: b"{}".to_vec(),
            lease: None,
        };
        let txn = Txn {
            ops: vec![put],
            ..Txn::default()
        };
        store.await.unwrap().commit(txn).await.unwrap();
        let view = records(folder.path()).unwrap();
        assert_eq!(unreadable(&view), Some(vec![samples::volume(1).key()]));
        let found = [1, 2].map(VolumeId::from_random).into();
        let strays = strays(&view.unwrap(), found);
        assert_eq!(strays, [VolumeId::from_random(2)].into());
    }
}
