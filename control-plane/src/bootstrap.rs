//! What is there before the first call: the record of this host, and what each
//! account has in each region from the beginning.

use std::{convert::Infallible, path::Path};

use crate::{
    config::Config,
    model::{Host, Scope},
    records::default_vpc,
    store::{Db, TransactError},
};

/// What this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Its CPUs that are online.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// What may be promised to volumes, in GiB ([`crate::storage::Space::capacity_gib`]).
    pub disk_gib: u64,
}

/// What the host's kernel, its services and Hearth itself may need of so much
/// memory, in MiB, unless a setting says otherwise.
fn default_memory_reserve_mib(total_mib: u64) -> u64 {
    (total_mib / 16).clamp(256, 2048)
}

impl Machine {
    /// Asks this machine; how much disk it has is known by its storage.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub fn probe(disk_gib: u64) -> std::io::Result<Self> {
        let cpus = std::thread::available_parallelism()?.get();
        let meminfo = std::fs::read_to_string(Path::new("/proc/meminfo"))?;
        let memory_mib = total_memory(&meminfo)
            .ok_or_else(|| std::io::Error::other("/proc/meminfo has no MemTotal"))?;
        Ok(Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib,
            disk_gib,
        })
    }
}

/// `MemTotal` of /proc/meminfo, in MiB.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Writes down what is missing. Twice is harmless.
///
/// # Errors
/// If the store fails.
pub async fn bootstrap(
    db: &Db,
    config: &Config,
    machine: Machine,
) -> Result<(), TransactError<Infallible>> {
    let host = host_of(config, machine);
    db.transact(|view, change| {
        if view.is_unreadable(&host) {
            // What runs here goes on; nothing new is placed here.
            tracing::error!(host = %host.id, "this host's record can't be read");
        } else if view.shared::<Host>(&host.id.0) != Some(&host) {
            change.overwrite(&host);
        }
        Ok(())
    })
    .await?;
    let scope = Scope::new(config.account_id.clone(), config.region.clone());
    ensure_default_vpc(db, config, &scope).await
}

/// Gives an account its default VPC in a region, if it never had one.
///
/// # Errors
/// If the store fails.
pub async fn ensure_default_vpc(
    db: &Db,
    config: &Config,
    scope: &Scope,
) -> Result<(), TransactError<Infallible>> {
    if default_vpc::was_made(db.view().at(scope)) {
        return Ok(());
    }
    let zones = config.zones_of(&scope.region);
    db.transact_at(scope, |view, change| {
        default_vpc::make(view, change, zones);
        Ok(())
    })
    .await
}

/// The record of this host: what it gives of what it has.
pub(crate) fn host_of(config: &Config, machine: Machine) -> Host {
    let reserve = config
        .memory_reserve_mib
        .unwrap_or_else(|| default_memory_reserve_mib(machine.memory_mib));
    let memory_mib = machine.memory_mib.saturating_sub(reserve);
    // Both ratios are at most 100 and the products far below the integers' ends.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let (vcpus, memory_mib) = (
        (f64::from(machine.cpus) * config.cpu_overcommit) as u32,
        (memory_mib as f64 * config.memory_overcommit) as u64,
    );
    Host {
        id: config.host_id.clone(),
        zone: config.zone.clone(),
        vcpus,
        memory_mib,
        disk_gib: machine.disk_gib,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SecurityGroup, Subnet, Vpc};

    #[tokio::test]
    async fn it_is_all_there_once() {
        let db = Db::in_memory().await;
        let config = Config::for_tests();
        let machine = Machine {
            cpus: 2,
            memory_mib: 3000,
            disk_gib: 100,
        };
        bootstrap(&db, &config, machine).await.unwrap();
        let view = db.view();
        let vpc = view.all::<Vpc>().next().unwrap();
        let subnet = view.all::<Subnet>().next().unwrap();
        assert!(vpc.cidr.contains(&subnet.cidr));
        assert_eq!((&subnet.vpc, subnet.zone.as_str()), (&vpc.id, "us-east-1a"));
        let group = view.all::<SecurityGroup>().next().unwrap();
        assert_eq!(group.rules.len(), 2);
        let host = view.shared::<Host>("test-host").unwrap();
        // The host keeps some memory for itself.
        assert_eq!((host.vcpus, host.memory_mib), (8, 3000 - 256));
        assert_eq!(host.disk_gib, 100);

        bootstrap(&db, &config, machine).await.unwrap();
        assert_eq!(db.view().revision(), view.revision());

        // The machine has grown.
        bootstrap(&db, &config, Machine { cpus: 4, ..machine })
            .await
            .unwrap();
        assert_eq!(db.view().shared::<Host>("test-host").unwrap().vcpus, 16);
        assert_eq!(db.view().all::<Vpc>().count(), 1);
    }

    #[test]
    fn the_host_keeps_memory_for_itself() {
        for (total, kept) in [(3000, 256), (24 << 10, 1536), (512 << 10, 2048)] {
            assert_eq!(default_memory_reserve_mib(total), kept);
        }
        let machine = Machine {
            cpus: 1,
            memory_mib: 4096,
            disk_gib: 1,
        };
        let given = Config {
            memory_reserve_mib: Some(1000),
            memory_overcommit: 2.0,
            ..Config::for_tests()
        };
        assert_eq!(host_of(&given, machine).memory_mib, 2 * 3096);
        let all = Config {
            memory_reserve_mib: Some(5000),
            ..given
        };
        assert_eq!(host_of(&all, machine).memory_mib, 0);
    }

    #[test]
    fn memory_is_read_in_mib() {
        assert_eq!(
            total_memory("MemFree: 1 kB\nMemTotal:        3072000 kB\n"),
            Some(3000)
        );
        assert_eq!(
            total_memory("MemTotal:        3072000 kB\nMemFree: 1 kB\n"),
            Some(3000)
        );
        assert_eq!(total_memory(""), None);
    }
}
