//! The verdicts, from facts alone.

use std::fmt::Write as _;

use hearth_vmm_api::SandboxLayer;

use super::kvm::Trial;

/// What was found on this machine. An `Err` says in words why not.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Whether we are root.
    pub root: bool,
    /// What became of the tiny guest.
    pub kvm: Trial,
    /// nft's version, if it can list the tables.
    pub nftables: Result<String, String>,
    /// Whether `/dev/net/tun` opens.
    pub tun: Result<(), String>,
    /// Whether `/dev/vhost-net` opens.
    pub vhost_net: Result<(), String>,
    /// Whether a ring can be made.
    pub io_uring: Result<(), String>,
    /// Each sandbox layer but the control group.
    pub layers: Vec<(SandboxLayer, Result<String, String>)>,
    /// The layers that instances may run without.
    pub optional_layers: Vec<SandboxLayer>,
    /// The controllers of cgroup v2's root.
    pub cgroup_controllers: Result<Vec<String>, String>,
    /// The records in the store that can't be read, by their keys; none where there is
    /// no store yet.
    pub unreadable: Result<Option<Vec<String>>, String>,
    /// The volumes in the data folder that no record knows.
    pub stray_volumes: Result<Vec<String>, String>,
    /// The data folder, or its nearest parent that exists.
    pub data_folder: String,
    /// Whether two files can share their blocks there.
    pub reflink: Result<(), String>,
    /// Free space there, in MiB.
    pub disk_free_mib: u64,
    /// `MemAvailable`, in MiB.
    pub memory_mib: u64,
}

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Good,
    /// Instances run, but slower or with less.
    Lesser,
    /// No instance can run.
    Missing,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What was looked at.
    pub name: &'static str,
    /// The verdict.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when it is good.
    pub advice: &'static str,
}

/// Memory under which hardly one instance fits, in MiB.
const MEMORY_MIB: u64 = 1024;
/// Disk space under which hardly one instance fits, in MiB.
const DISK_MIB: u64 = 4096;

/// All verdicts, in the table's order.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Row> {
    let mut rows = vec![
        row(
            "root",
            if facts.root {
                Ok("yes".into())
            } else {
                Err("no".into())
            },
            Level::Missing,
            "run as root: namespaces, taps and cgroups are made here",
        ),
        kvm(&facts.kvm),
        row(
            "nftables",
            facts.nftables.clone(),
            Level::Missing,
            "apt-get install nftables; the kernel needs nf_tables",
        ),
        row(
            "tun",
            facts.tun.clone().map(|()| "/dev/net/tun opens".into()),
            Level::Missing,
            "modprobe tun; in a container, pass /dev/net/tun in",
        ),
        row(
            "vhost-net",
            facts
                .vhost_net
                .clone()
                .map(|()| "/dev/vhost-net opens".into()),
            Level::Lesser,
            "modprobe vhost_net; without it the VMM moves packets itself",
        ),
        row(
            "io_uring",
            facts.io_uring.clone().map(|()| "a ring can be made".into()),
            Level::Lesser,
            "check sysctl kernel.io_uring_disabled and seccomp; without it disks are served by a thread pool",
        ),
        cgroup(&facts.cgroup_controllers),
        records(&facts.unreadable),
        volumes(&facts.stray_volumes),
        row(
            "reflink",
            facts
                .reflink
                .clone()
                .map(|()| format!("{} shares blocks", facts.data_folder))
                .map_err(|e| format!("{}: {e}", facts.data_folder)),
            Level::Lesser,
            "put the data folder on XFS or btrfs; without it volumes lie in an XFS pool on loop, or are copied",
        ),
        row(
            "memory",
            at_least(facts.memory_mib, MEMORY_MIB, "available"),
            Level::Lesser,
            "an instance needs its type's memory at launch; free some",
        ),
        row(
            "disk",
            at_least(
                facts.disk_free_mib,
                DISK_MIB,
                &format!("free in {}", facts.data_folder),
            ),
            Level::Lesser,
            "volumes are sparse, but they grow; choose another --data-dir",
        ),
    ];
    rows.extend(facts.layers.iter().map(|(layer, found)| {
        let otherwise = match facts.optional_layers.contains(layer) {
            true => Level::Lesser,
            false => Level::Missing,
        };
        let (name, advice) = sandbox_layer(*layer);
        row(name, found.clone(), otherwise, advice)
    }));
    rows
}

/// A layer's row and what to do for it.
fn sandbox_layer(layer: SandboxLayer) -> (&'static str, &'static str) {
    match layer {
        SandboxLayer::Cgroup => (
            "sandbox: cgroup",
            "see cgroup v2; HEARTH_JAIL_LAYERS_OPTIONAL=cgroup runs instances without it",
        ),
        SandboxLayer::Namespaces => (
            "sandbox: namespaces",
            "run as root, in a container with CAP_SYS_ADMIN; HEARTH_JAIL_LAYERS_OPTIONAL=namespaces,chroot runs instances without it",
        ),
        SandboxLayer::Chroot => (
            "sandbox: chroot",
            "run as root, in a container with CAP_SYS_ADMIN; HEARTH_JAIL_LAYERS_OPTIONAL=namespaces,chroot runs instances without it",
        ),
        SandboxLayer::User => (
            "sandbox: user",
            "run as root; HEARTH_JAIL_LAYERS_OPTIONAL=user runs instances without it",
        ),
        SandboxLayer::Capabilities => (
            "sandbox: capabilities",
            "the kernel must let a process drop capabilities",
        ),
        SandboxLayer::Landlock => (
            "sandbox: landlock",
            "boot with landlock in lsm=; HEARTH_JAIL_LAYERS_OPTIONAL=landlock runs instances without it",
        ),
        SandboxLayer::Seccomp => ("sandbox: seccomp", "the kernel needs CONFIG_SECCOMP_FILTER"),
        SandboxLayer::IoUring => (
            "sandbox: io-uring",
            "the kernel must be 5.10 or newer, or sysctl kernel.io_uring_disabled=2",
        ),
    }
}

fn at_least(have: u64, want: u64, of_what: &str) -> Result<String, String> {
    let words = format!("{have} MiB {of_what}");
    if have >= want { Ok(words) } else { Err(words) }
}

fn row(
    name: &'static str,
    found: Result<String, String>,
    otherwise: Level,
    advice: &'static str,
) -> Row {
    match found {
        Ok(found) => Row {
            name,
            level: Level::Good,
            found,
            advice: "",
        },
        Err(found) => Row {
            name,
            level: otherwise,
            found,
            advice,
        },
    }
}

fn kvm(trial: &Trial) -> Row {
    let (found, advice) = match trial {
        Trial::Ran => (Ok("runs kernel code".into()), ""),
        Trial::NoDevice(why) => (
            Err(format!("/dev/kvm: {why}")),
            "turn on virtualization (VT-x, AMD-V) in the firmware or the outer hypervisor; modprobe kvm_amd or kvm_intel",
        ),
        Trial::Died(how) => (
            Err(format!(
                "/dev/kvm is there, but a stock kernel dies on it: {how}"
            )),
            "this KVM has no hardware virtualization behind it (kvm_pvm and the like); use a machine that has, or the lab",
        ),
        Trial::Hung => (
            Err("/dev/kvm is there, but a tiny guest never ends on it".into()),
            "see the kernel's log (dmesg); use another machine, or the lab",
        ),
    };
    row("KVM", found, Level::Missing, advice)
}

fn records(unreadable: &Result<Option<Vec<String>>, String>) -> Row {
    let found = match unreadable {
        Ok(None) => Ok("no store yet".into()),
        Ok(Some(keys)) if keys.is_empty() => Ok("all can be read".into()),
        Ok(Some(keys)) => Err(format!("{} can't be read: {}", keys.len(), named(keys))),
        Err(why) => Err(why.clone()),
    };
    row(
        "records",
        found,
        Level::Lesser,
        "what depends on these waits, and nothing is removed: the log says why each can't be read; run the hearth that wrote them",
    )
}

fn volumes(strays: &Result<Vec<String>, String>) -> Row {
    let (found, advice) = match strays {
        Ok(strays) if strays.is_empty() => (Ok("none without its record".into()), ""),
        Ok(strays) => (
            Err(format!(
                "{} that no record knows: {}",
                strays.len(),
                named(strays)
            )),
            "nothing removes these: where hearth.db is neither new nor an older copy, and no instance runs on them, delete volumes/ID.raw in the data folder",
        ),
        Err(why) => (
            Err(why.clone()),
            "so nobody knows which volumes are in use: delete none",
        ),
    };
    row("volumes", found, Level::Lesser, advice)
}

/// The first of them.
fn named(all: &[String]) -> String {
    let some = all[..all.len().min(5)].join(", ");
    let more = if all.len() > 5 { ", …" } else { "" };
    some + more
}

fn cgroup(controllers: &Result<Vec<String>, String>) -> Row {
    let found = controllers.clone().and_then(|all| {
        let lacking: Vec<&str> = ["cpu", "memory"]
            .into_iter()
            .filter(|wanted| !all.iter().any(|c| c == wanted))
            .collect();
        if lacking.is_empty() {
            Ok(all.join(" "))
        } else {
            Err(format!("lacks {}", lacking.join(" ")))
        }
    });
    row(
        "cgroup v2",
        found,
        Level::Missing,
        "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 on /sys/fs/cgroup",
    )
}

/// Whether an instance can run here.
#[must_use]
pub fn able(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.level != Level::Missing)
}

/// The table, with each row's advice below it.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        let verdict = match row.level {
            Level::Good => "ok",
            Level::Lesser => "lesser",
            Level::Missing => "MISSING",
        };
        // Writing to a String can't fail.
        let _ = writeln!(out, "{:<21} {verdict:<8} {}", row.name, row.found);
        if !row.advice.is_empty() {
            let _ = writeln!(out, "{:<21} {:<8} -> {}", "", "", row.advice);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            root: true,
            kvm: Trial::Ran,
            nftables: Ok("nftables v1.0.6".into()),
            tun: Ok(()),
            vhost_net: Ok(()),
            io_uring: Ok(()),
            layers: SandboxLayer::ALL
                .map(|layer| (layer, Ok("yes".into())))
                .to_vec(),
            optional_layers: Vec::new(),
            cgroup_controllers: Ok(vec!["cpu".into(), "memory".into(), "pids".into()]),
            unreadable: Ok(None),
            stray_volumes: Ok(Vec::new()),
            data_folder: "/var/lib".into(),
            reflink: Ok(()),
            disk_free_mib: 100_000,
            memory_mib: 8192,
        }
    }

    fn level(facts: &Facts, name: &str) -> Level {
        judge(facts)
            .into_iter()
            .find(|row| row.name == name)
            .unwrap()
            .level
    }

    #[test]
    fn a_good_machine_has_nothing_to_be_advised() {
        let rows = judge(&good());
        assert!(able(&rows));
        assert!(rows.iter().all(|row| row.advice.is_empty()));
    }

    #[test]
    fn records_that_cant_be_read_are_named() {
        let keys: Vec<String> = (1..=7).map(|n| format!("/volumes/{n}")).collect();
        let facts = Facts {
            unreadable: Ok(Some(keys)),
            ..good()
        };
        let rows = judge(&facts);
        let row = rows.iter().find(|row| row.name == "records").unwrap();
        assert_eq!(row.level, Level::Lesser);
        assert!(
            row.found.starts_with("7 can't be read: /volumes/1, "),
            "{row:?}"
        );
        assert!(row.found.ends_with("/volumes/5, …"), "{row:?}");
        assert!(able(&rows));
    }

    #[test]
    fn volumes_that_no_record_knows_are_named() {
        let strays = (1..=5).map(|n| format!("vol-{n}")).collect();
        let facts = Facts {
            stray_volumes: Ok(strays),
            ..good()
        };
        let rows = judge(&facts);
        let row = rows.iter().find(|row| row.name == "volumes").unwrap();
        assert_eq!(row.level, Level::Lesser);
        let found = "5 that no record knows: vol-1, vol-2, vol-3, vol-4, vol-5";
        assert_eq!(row.found, found);
        assert!(able(&rows));
        // What can't be looked at may be somebody's only data.
        let facts = Facts {
            stray_volumes: Err("no hearth.db".into()),
            ..good()
        };
        let rows = judge(&facts);
        let row = rows.iter().find(|row| row.name == "volumes").unwrap();
        assert!(row.advice.contains("delete none"), "{row:?}");
    }

    #[test]
    fn a_kvm_that_dies_is_missing_though_its_device_is_there() {
        for kvm in [
            Trial::Died("InternalError".into()),
            Trial::NoDevice("no such file".into()),
            Trial::Hung,
        ] {
            let facts = Facts { kvm, ..good() };
            assert_eq!(level(&facts, "KVM"), Level::Missing);
            assert!(!able(&judge(&facts)));
        }
    }

    #[test]
    fn what_only_makes_it_faster_does_not_stop_instances() {
        let facts = Facts {
            vhost_net: Err("no".into()),
            io_uring: Err("no".into()),
            reflink: Err("no".into()),
            disk_free_mib: 10,
            memory_mib: 10,
            ..good()
        };
        let rows = judge(&facts);
        assert!(able(&rows));
        for name in ["vhost-net", "io_uring", "reflink", "disk", "memory"] {
            assert_eq!(level(&facts, name), Level::Lesser, "{name}");
        }
        assert!(
            rows.iter()
                .all(|r| r.level == Level::Good || !r.advice.is_empty())
        );
    }

    #[test]
    fn a_missing_layer_stops_instances_unless_they_may_run_without() {
        for layer in SandboxLayer::ALL {
            let mut facts = Facts {
                layers: vec![(layer, Err("no".into()))],
                ..good()
            };
            let (name, _) = sandbox_layer(layer);
            assert!(name.ends_with(layer.name()));
            assert_eq!(level(&facts, name), Level::Missing);
            facts.optional_layers = vec![layer];
            assert_eq!(level(&facts, name), Level::Lesser);
            assert!(able(&judge(&facts)));
        }
    }

    #[test]
    fn a_cgroup_root_without_a_needed_controller_is_named() {
        let facts = Facts {
            cgroup_controllers: Ok(vec!["cpu".into(), "pids".into()]),
            ..good()
        };
        let table = table(&judge(&facts));
        assert!(table.contains("lacks memory"), "{table}");
        assert_eq!(level(&facts, "cgroup v2"), Level::Missing);
    }
}
