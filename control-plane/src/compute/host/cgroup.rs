//! A control group (v2) for each instance: its share of CPU time, the most
//! memory and processes it may have, and a sure way to end all of it.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statfs;

use crate::compute::LaunchSpec;
use crate::model::InstanceId;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// The controllers that the limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The period of `cpu.max`, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// What a VMM may need beside its guest's memory: its own code and heap, the
/// I/O in flight, and the page cache of its disks, which the kernel takes back.
const MEMORY_ALLOWANCE: u64 = 192 << 20;
/// KVM's page tables and the like, which grow with the guest's memory.
const MEMORY_OVERHEAD_SHARE: u64 = 64;
/// Threads beside the vCPUs: devices, io_uring's workers.
const TASKS_ALLOWANCE: u64 = 512;
/// How long the kernel may take to end what was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// The groups of all instances: `<root>/hearth/<instance>`.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    root: PathBuf,
    /// False only in tests, which run where the controllers belong to v1.
    limits: bool,
}

/// What is written into a group's files, in order.
pub(super) fn limits(spec: &LaunchSpec) -> Vec<(&'static str, String)> {
    let guest = u64::from(spec.memory_mib) << 20;
    let memory = guest + guest / MEMORY_OVERHEAD_SHARE + MEMORY_ALLOWANCE;
    let vcpus = u64::from(spec.vcpus);
    vec![
        ("cpu.max", format!("{} {CPU_PERIOD}", vcpus * CPU_PERIOD)),
        ("memory.max", memory.to_string()),
        // Half a VMM is worse than none.
        ("memory.oom.group", "1".to_owned()),
        ("pids.max", (vcpus + TASKS_ALLOWANCE).to_string()),
    ]
}

fn named<T>(path: &Path, outcome: io::Result<T>) -> io::Result<T> {
    outcome.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    named(path, fs::write(path, value))
}

impl Cgroups {
    pub(super) fn new() -> Self {
        Self {
            root: "/sys/fs/cgroup".into(),
            limits: true,
        }
    }

    #[cfg(test)]
    pub(super) fn without_limits(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            limits: false,
        }
    }

    fn parent(&self) -> PathBuf {
        self.root.join("hearth")
    }

    pub(super) fn path(&self, id: &InstanceId) -> PathBuf {
        self.parent().join(id.as_str())
    }

    /// Whether instances can be limited here.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub(super) fn check(&self) -> io::Result<()> {
        let kind = named(&self.root, statfs(&self.root).map_err(io::Error::from))?;
        let has = fs::read_to_string(self.root.join("cgroup.controllers")).unwrap_or_default();
        let has: BTreeSet<&str> = has.split_whitespace().collect();
        let missing: Vec<&str> = CONTROLLERS
            .into_iter()
            .filter(|c| self.limits && !has.contains(c))
            .collect();
        if kind.f_type == CGROUP2_MAGIC && missing.is_empty() {
            return Ok(());
        }
        let what = if kind.f_type == CGROUP2_MAGIC {
            format!("has no controllers {}", missing.join(", "))
        } else {
            "is not cgroup v2".to_owned()
        };
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "{} {what}: instances can't be limited; boot with \
                 systemd.unified_cgroup_hierarchy=1, or with cgroup_no_v1=all",
                self.root.display()
            ),
        ))
    }

    /// Makes the instance's group, empty, with its limits.
    pub(super) fn create(&self, spec: &LaunchSpec) -> io::Result<()> {
        self.check()?;
        let path = self.path(&spec.instance);
        named(&path, fs::create_dir_all(&path))?;
        if !self.limits {
            return Ok(());
        }
        let enable = CONTROLLERS.map(|c| format!("+{c}")).join(" ");
        for folder in [self.root.clone(), self.parent()] {
            write(&folder.join("cgroup.subtree_control"), &enable)?;
        }
        for (file, value) in limits(spec) {
            write(&path.join(file), &value)?;
        }
        Ok(())
    }

    /// The file whose writer joins the group.
    pub(super) fn door(&self, id: &InstanceId) -> io::Result<File> {
        let path = self.path(id).join("cgroup.procs");
        named(&path, OpenOptions::new().write(true).open(&path))
    }

    /// The processes in the group; none when there is no group.
    pub(super) fn members(&self, id: &InstanceId) -> io::Result<Vec<u32>> {
        let path = self.path(id).join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|l| l.parse().ok()).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => named(&path, Err(e)),
        }
    }

    /// The instances that have a group.
    pub(super) fn list(&self) -> io::Result<BTreeSet<InstanceId>> {
        let entries = match fs::read_dir(self.parent()) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(e) => return named(&self.parent(), Err(e)),
        };
        let mut found = BTreeSet::new();
        for entry in entries {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(|n| n.parse::<InstanceId>().ok()));
        }
        Ok(found)
    }

    /// Ends every process of the group at once, those too that fork meanwhile,
    /// waits until none is left and removes the group.
    pub(super) async fn remove(&self, id: &InstanceId) -> io::Result<()> {
        let path = self.path(id);
        if !path.exists() {
            return Ok(());
        }
        write(&path.join("cgroup.kill"), "1")?;
        // rmdir tells when the last one is gone; the kernel tells it no sooner
        // in any other way.
        let emptied = async {
            loop {
                match fs::remove_dir(&path) {
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                    other => return named(&path, other),
                }
            }
        };
        match tokio::time::timeout(KILL_DEADLINE, emptied).await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{}: processes survive SIGKILL", path.display()),
            )),
        }
    }

    /// Removes the parent of the groups, which must be gone.
    pub(super) fn remove_parent(&self) -> io::Result<()> {
        match fs::remove_dir(self.parent()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => named(&self.parent(), other),
        }
    }
}
