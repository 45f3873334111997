//! A control group (v2) for each instance: its share of CPU time, the most
//! memory and processes it may have, and a sure way to end all of it.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statfs;

use super::process::is_of_the_kernel;
use crate::compute::LaunchSpec;
use crate::model::InstanceId;
use crate::model::overhead_mib;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// The controllers that the limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The period of `cpu.max`, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// The page cache of its disks that a VMM may hold beyond what it was admitted
/// with. The kernel takes it back before anybody goes short, so it is not
/// counted in admission; with less, a guest's writes wait for the disk.
const PAGE_CACHE: u64 = 128 << 20;
/// Threads beside the vCPUs: devices, io_uring's workers.
const TASKS_ALLOWANCE: u64 = 512;
/// How long the kernel may take to end what was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// The groups of all instances: `<root>/<label>/<instance>`.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    root: PathBuf,
    /// `hearth`, or what else this hearth names its own by.
    label: String,
    /// False only in tests, which run where the controllers belong to v1.
    limits: bool,
}

/// The most memory that so many VMMs of one instance may have, in bytes: there are two
/// while one takes over from another.
fn memory_max(spec: &LaunchSpec, vmms: u64) -> u64 {
    let guest_mib = u64::from(spec.memory_mib);
    vmms * ((guest_mib + overhead_mib(guest_mib)) << 20) + PAGE_CACHE
}

/// What is written into a group's files, in order.
pub(super) fn limits(spec: &LaunchSpec) -> Vec<(&'static str, String)> {
    let memory = memory_max(spec, 1);
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
    pub(super) fn new(label: &str) -> Self {
        Self {
            root: "/sys/fs/cgroup".into(),
            label: label.to_owned(),
            limits: true,
        }
    }

    #[cfg(test)]
    pub(super) fn without_limits(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            label: "hearth".to_owned(),
            limits: false,
        }
    }

    /// The groups of templates that are being made, in one beside those of instances.
    pub(super) fn of_templates(&self) -> Self {
        Self {
            root: self.parent(),
            label: "templates".to_owned(),
            limits: self.limits,
        }
    }

    /// Lets what is beside the groups have the processor first, or not any more.
    pub(super) fn yields(&self, yields: bool) -> io::Result<()> {
        // The least that there is, and the kernel's default.
        let weight = if yields { "1" } else { "100" };
        match self.limits {
            // Of their parent: a group's own weight counts among its siblings only.
            true => write(&self.parent().join("cpu.weight"), weight),
            false => Ok(()),
        }
    }

    /// The memory that a group has, in bytes, with the page cache.
    pub(super) fn memory(&self, id: &InstanceId) -> io::Result<u64> {
        if !self.limits {
            return Ok(0);
        }
        let path = self.path(id).join("memory.current");
        let text = named(&path, fs::read_to_string(&path))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// How long its processes have run so far, on all processors together.
    pub(super) fn ran(&self, id: &InstanceId) -> io::Result<Duration> {
        if !self.limits {
            return Ok(Duration::ZERO);
        }
        let path = self.path(id).join("cpu.stat");
        let text = named(&path, fs::read_to_string(&path))?;
        let micros = text.lines().find_map(|l| l.strip_prefix("usage_usec "));
        let micros = micros.and_then(|micros| micros.trim().parse().ok());
        let none = || io::Error::other(format!("{}: no usage_usec", path.display()));
        micros.map(Duration::from_micros).ok_or_else(none)
    }

    /// Ends every process of every group at once, and waits for none.
    pub(super) fn kill_all(&self) -> io::Result<()> {
        for id in self.list()? {
            self.kill(&id)?;
        }
        Ok(())
    }

    fn parent(&self) -> PathBuf {
        self.root.join(&self.label)
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
            let file = folder.join("cgroup.subtree_control");
            let enabled = fs::read_to_string(&file).unwrap_or_default();
            // A write takes a lock that all groups of the host share.
            if CONTROLLERS
                .iter()
                .any(|c| !enabled.split_whitespace().any(|e| e == *c))
            {
                write(&file, &enable)?;
            }
        }
        for (file, value) in limits(spec) {
            write(&path.join(file), &value)?;
        }
        Ok(())
    }

    /// Lets the group have the memory of so many VMMs of the instance.
    pub(super) fn set_memory(&self, spec: &LaunchSpec, vmms: u64) -> io::Result<()> {
        match self.limits {
            true => write(
                &self.path(&spec.instance).join("memory.max"),
                &memory_max(spec, vmms).to_string(),
            ),
            false => Ok(()),
        }
    }

    /// Ends every process of the group at once, and waits for none.
    pub(super) fn kill(&self, id: &InstanceId) -> io::Result<()> {
        write(&self.path(id).join("cgroup.kill"), "1")
    }

    /// The group's folder, open: what a process is started in.
    pub(super) fn open(&self, id: &InstanceId) -> io::Result<File> {
        let path = self.path(id);
        named(&path, File::open(&path))
    }

    /// Stops every process of the group where it is, or lets them go on. None is
    /// no error. The kernel ends frozen processes all the same when told to.
    pub(super) fn freeze(&self, id: &InstanceId, frozen: bool) -> io::Result<()> {
        let path = self.path(id).join("cgroup.freeze");
        match fs::write(&path, if frozen { "1" } else { "0" }) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            outcome => named(&path, outcome),
        }
    }

    /// Whether the group was told to stop where it is.
    pub(super) fn is_frozen(&self, id: &InstanceId) -> bool {
        fs::read_to_string(self.path(id).join("cgroup.freeze")).is_ok_and(|s| s.trim() == "1")
    }

    /// The processes in the group; none when there is no group. The kernel's own that work
    /// for a VMM there, as those of vhost-net before Linux 6.4, end with it and are not
    /// counted.
    pub(super) fn members(&self, id: &InstanceId) -> io::Result<Vec<u32>> {
        let path = self.path(id).join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let all = text.lines().filter_map(|l| l.parse().ok());
                Ok(all.filter(|pid| !is_of_the_kernel(*pid)).collect())
            }
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
        // rmdir tells when the last one is gone; the kernel tells it no sooner
        // in any other way. One that is being started from outside may come after the rest
        // was ended.
        let emptied = async {
            loop {
                match write(&path.join("cgroup.kill"), "1").and_then(|()| fs::remove_dir(&path)) {
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
