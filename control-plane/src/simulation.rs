//! A simulated cloud: the real API, store, scheduler and reconcilers, with hosts in
//! memory. For scale, for the tests of who uses the API, and for teaching.
//!
//! Nothing of it reaches this machine: instances have no guest, volumes no data,
//! interfaces no packets. Every answer says so in a header, and so do consoles and
//! DescribeAvailabilityZones.

use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    bootstrap::{Machine, host_of},
    compute::{Observed, simulated::SimulatedCompute},
    conditions::Conditions,
    config::Config,
    model::{
        BootMethod, Host, HostId, Hosts, Image, ImageId, Instance, InstanceState, Manifest, Volume,
    },
    network::simulated::SimulatedNetwork,
    reconcile::{Controllers, Slots, system_clock},
    storage::{Space, VolumeSpec, default_reserve, simulated::SimulatedStorage},
    store::{Db, View},
};

/// What each simulated host has: a large server. What it gives of that follows from the
/// same settings as of a real one.
const CPUS: u32 = 128;
const MEMORY_MIB: u64 = 1 << 20;
const DISK: u64 = 16 << 40;

/// As many hosts are written down in one transaction.
const AT_ONCE: usize = 100;
/// How much of each kind of work is done at once.
const SLOTS: usize = 256;

/// The ids of so many hosts.
fn hosts(count: u32) -> Hosts {
    let names = (1..=count).map(|n| HostId(format!("simulated-{n:05}")));
    names.collect()
}

/// Writes down the hosts, those of an earlier simulation with more of them left
/// out, and the image. Twice is harmless.
///
/// # Errors
/// If the store fails, or one that would be left out has something.
pub async fn bootstrap(db: &Db, config: &Config, count: u32) -> anyhow::Result<Hosts> {
    let hosts = hosts(count);
    let view = db.view();
    let used = view.all::<Instance>().filter_map(|i| i.host.as_ref());
    let used = used.chain(view.all::<Volume>().filter_map(|v| v.host.as_ref()));
    if let Some(last) = used.filter(|host| !hosts.have(Some(host))).max() {
        anyhow::bail!("--hosts simulated:{count}: there is something on {last}, too");
    }
    let zones = config.zones_of(&config.region);
    let disk = Space {
        total: DISK,
        available: DISK,
        allocated: 0,
    };
    let reserve = config
        .disk_reserve_mib
        .map(|mib| mib.saturating_mul(1 << 20));
    let reserve = reserve.unwrap_or_else(|| default_reserve(DISK));
    let machine = Machine {
        cpus: CPUS,
        memory_mib: MEMORY_MIB,
        disk_gib: disk.capacity_gib(reserve, config.disk_overcommit),
    };
    let each = host_of(config, machine);
    let records: Vec<Host> = hosts
        .iter()
        .zip(zones.iter().cycle())
        .map(|(id, zone)| Host {
            id: id.clone(),
            zone: zone.clone(),
            ..each.clone()
        })
        .collect();
    for records in records.chunks(AT_ONCE) {
        db.transact_infallible(|view, change| {
            for host in records {
                if view.shared::<Host>(&host.id.0) != Some(host) && !view.is_unreadable(host) {
                    change.overwrite(host);
                }
            }
        })
        .await?;
    }
    let view = db.view();
    let gone: Vec<&Host> = view
        .all::<Host>()
        .filter(|host| !hosts.have(Some(&host.id)))
        .collect();
    for gone in gone.chunks(AT_ONCE) {
        db.transact_infallible(|_, change| {
            gone.iter().for_each(|host| change.delete(*host));
        })
        .await?;
    }
    let images = images(config);
    db.transact_infallible(|view, change| {
        for image in &images {
            let known = view.at(&image.scope).get::<Image>(&image.id);
            if known != Some(image) && !view.is_unreadable(image) {
                change.overwrite(image);
            }
        }
    })
    .await?;
    Ok(hosts)
}

/// The one image that there is, in each region.
fn images(config: &Config) -> Vec<Image> {
    let manifest = Manifest {
        name: "simulated".into(),
        description: "A simulated image: it has no disk".into(),
        architecture: "x86_64".into(),
        root_device_name: "/dev/xvda".into(),
        default_user: "root".into(),
        disk: "simulated.raw".into(),
        disk_size: 2 << 30,
        sha256: "00".repeat(32),
        created: Timestamp::constant(1_767_323_045, 0),
        boot: BootMethod::Linux {
            partition: 0,
            kernel: "/vmlinuz".into(),
            initrd: None,
            cmdline: String::new(),
        },
        warm: false,
    };
    let scopes = config.image_scopes().into_iter();
    scopes
        .map(|scope| Image {
            id: ImageId::from_random(1),
            scope,
            manifest: manifest.clone(),
        })
        .collect()
}

/// The controllers of these hosts, on which is what the records say: they never went
/// down.
pub fn controllers(
    db: &Db,
    config: &Arc<Config>,
    hosts: Hosts,
    conditions: Conditions,
) -> Controllers {
    let compute = SimulatedCompute::new(conditions);
    let storage = SimulatedStorage::new(conditions);
    restore(&db.view(), &hosts, &compute, &storage);
    Controllers {
        db: db.clone(),
        config: config.clone(),
        hosts,
        compute: Arc::new(compute),
        storage: Arc::new(storage),
        network: Arc::new(SimulatedNetwork::new(conditions)),
        images: None,
        slots: Slots::wide(SLOTS),
        clock: system_clock(),
    }
}

fn restore(view: &View, hosts: &Hosts, compute: &SimulatedCompute, storage: &SimulatedStorage) {
    for host in hosts.iter() {
        for instance in view.by(Instance::BY_HOST, &host.0) {
            if matches!(
                instance.state,
                InstanceState::Running | InstanceState::Stopping | InstanceState::ShuttingDown
            ) {
                let boot = instance.boots;
                compute.place(instance.id.clone(), Observed::Running { pid: 1, boot });
            }
            if let Some(boot) = instance.hibernated {
                compute.place_memory(instance.id.clone(), boot);
            }
        }
    }
    for volume in view.all::<Volume>() {
        // One that was asked for and not made yet is made when its instance first starts.
        let made = volume.attachment.as_ref().is_none_or(|attachment| {
            let instance = view.find::<Instance>(&attachment.instance);
            instance.is_none_or(|i| i.boots > 1 || i.state != InstanceState::Pending)
        });
        if made && hosts.have(volume.host.as_ref()) {
            storage.place(VolumeSpec {
                id: volume.id.clone(),
                size_bytes: u64::from(volume.size_gib) << 30,
                source: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Scope, samples};

    #[tokio::test]
    async fn hosts_follow_their_number_and_what_ran_runs_on() {
        let db = Db::in_memory().await;
        let config = Arc::new(Config::for_tests());
        for count in [3, 2, 2] {
            let hosts = bootstrap(&db, &config, count).await.unwrap();
            assert_eq!(hosts.iter().count(), count as usize);
            assert_eq!(db.view().count::<Host>(), count as usize);
        }
        let scope = Scope::new(config.account_id.clone(), config.region.clone());
        assert_eq!(db.view().at(&scope).all::<Image>().count(), 1);
        let vcpus = |db: &Db| db.view().all::<Host>().next().unwrap().vcpus;
        assert_eq!(vcpus(&db), 4 * 128);
        let more = Config {
            cpu_overcommit: 8.0,
            ..Config::for_tests()
        };
        bootstrap(&db, &more, 2).await.unwrap();
        assert_eq!(vcpus(&db), 8 * 128);

        let hosts = hosts(2);
        let host = hosts.iter().last().cloned();
        let on = |n, state| Instance {
            host: host.clone(),
            state,
            ..samples::instance(n)
        };
        let volume = |n| Volume {
            host: host.clone(),
            ..samples::volume(n)
        };
        let (ran, waits) = (on(1, InstanceState::Running), on(2, InstanceState::Pending));
        db.transact_infallible(|_, change| {
            change.create(&ran);
            change.create(&waits);
            change.create(&volume(1));
            change.create(&volume(2));
        })
        .await
        .unwrap();
        let again = controllers(&db, &config, hosts, Conditions::default());
        let observed = again.compute.observe().await.unwrap();
        let boot = ran.boots;
        let running = [(ran.id.clone(), Observed::Running { pid: 1, boot })];
        assert_eq!(observed, running.into());
        assert!(again.storage.holds(&volume(1).id).await.unwrap());
        assert!(!again.storage.holds(&volume(2).id).await.unwrap());
        let fewer = bootstrap(&db, &config, 1).await.unwrap_err();
        assert!(fewer.to_string().contains("simulated-00002"), "{fewer}");
        assert_eq!(db.view().count::<Host>(), 2);
    }
}
