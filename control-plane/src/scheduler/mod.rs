//! Placement: which host an instance goes to. Pure.
//!
//! An instance type is a quota of vCPUs and memory, and its volumes are promises
//! of disk; a host has as much to give as its record says, which the overcommit
//! ratios and what the host keeps for itself are already in. Instances are
//! spread: the host with the most memory left takes the next one, so that one
//! host's failure hits the fewest.

mod shortfall;

use std::collections::BTreeMap;

pub use self::shortfall::{Lack, Shortfall};
use crate::{
    model::{Host, HostId, Instance, InstanceId, InstanceState, InstanceType, Volume},
    store::View,
};

/// What an instance needs of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The availability zone.
    pub zone: String,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in MiB, the VMM's own included.
    pub memory_mib: u64,
    /// The sizes of the volumes that are yet to be made, in GiB.
    pub disk_gib: u64,
}

/// What a VMM of a guest with so much memory needs beside it, in MiB.
///
/// Measured with 128 MiB of guest memory: 3.4 MB resident that isn't the
/// guest's. The page tables, KVM's and the process's own, take 8 bytes each for
/// every 4 KiB page: one part in 256. Socket buffers, io_uring's and the kernel's
/// structures of a process are some MiB. Four times the first and twice the
/// second leave a margin for those.
pub const fn overhead_mib(guest_mib: u64) -> u64 {
    16 + guest_mib / 128
}

impl Demand {
    /// What an instance of this type needs, with new volumes of this size.
    pub fn of(kind: &InstanceType, zone: &str, disk_gib: u64) -> Self {
        let guest_mib = u64::from(kind.memory_mib);
        Self {
            zone: zone.to_owned(),
            vcpus: u32::from(kind.vcpus),
            memory_mib: guest_mib + overhead_mib(guest_mib),
            disk_gib,
        }
    }

    /// What this instance needs. A type that this version no longer knows needs
    /// more than any host has.
    fn of_instance(instance: &Instance, disk_gib: u64) -> Self {
        match InstanceType::find(&instance.instance_type) {
            Some(kind) => Self::of(kind, &instance.zone, disk_gib),
            None => Self {
                zone: instance.zone.clone(),
                vcpus: u32::MAX,
                memory_mib: u64::MAX,
                disk_gib,
            },
        }
    }
}

/// Whether an instance in this state takes from its host's quota. Its volumes
/// do in every state, for as long as they are there.
pub fn occupies(state: InstanceState) -> bool {
    !matches!(state, InstanceState::Stopped | InstanceState::Terminated)
}

#[derive(Debug, Clone)]
struct Free {
    zone: String,
    vcpus: u32,
    memory_mib: u64,
    disk_gib: u64,
}

impl Free {
    fn fits(&self, demand: &Demand) -> bool {
        self.zone == demand.zone
            && self.vcpus >= demand.vcpus
            && self.memory_mib >= demand.memory_mib
            // Who needs none doesn't care that a host is overdrawn.
            && self.disk_gib >= demand.disk_gib
    }

    // A host may have shrunk below what it runs: it has nothing left then.
    fn take(&mut self, demand: &Demand) {
        self.vcpus = self.vcpus.saturating_sub(demand.vcpus);
        self.memory_mib = self.memory_mib.saturating_sub(demand.memory_mib);
        self.disk_gib = self.disk_gib.saturating_sub(demand.disk_gib);
    }
}

/// What each host has left.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    free: BTreeMap<HostId, Free>,
    /// The volumes that are on no host yet, in GiB by their instance.
    unplaced: BTreeMap<InstanceId, u64>,
}

impl Ledger {
    /// The hosts less what is on them, in this picture.
    pub fn of(view: &View) -> Self {
        Self::new(
            view.all::<Host>(),
            view.all::<Instance>(),
            view.all::<Volume>(),
        )
    }

    /// The hosts less the instances and volumes that are on them.
    pub fn new<'a>(
        hosts: impl IntoIterator<Item = &'a Host>,
        instances: impl IntoIterator<Item = &'a Instance>,
        volumes: impl IntoIterator<Item = &'a Volume>,
    ) -> Self {
        let mut free: BTreeMap<HostId, Free> = hosts
            .into_iter()
            .map(|h| {
                let all = Free {
                    zone: h.zone.clone(),
                    vcpus: h.vcpus,
                    memory_mib: h.memory_mib,
                    disk_gib: h.disk_gib,
                };
                (h.id.clone(), all)
            })
            .collect();
        for instance in instances {
            if let Some(host) = instance.host.as_ref().and_then(|id| free.get_mut(id))
                && occupies(instance.state)
            {
                host.take(&Demand::of_instance(instance, 0));
            }
        }
        let mut unplaced = BTreeMap::<InstanceId, u64>::new();
        for volume in volumes {
            let size = u64::from(volume.size_gib);
            match (&volume.host, &volume.attachment) {
                (Some(host), _) => {
                    if let Some(host) = free.get_mut(host) {
                        host.disk_gib = host.disk_gib.saturating_sub(size);
                    }
                }
                (None, Some(attachment)) => {
                    *unplaced.entry(attachment.instance.clone()).or_default() += size;
                }
                (None, None) => {}
            }
        }
        Self { free, unplaced }
    }

    /// What this instance needs to be placed, or to be started where it is.
    pub fn demand(&self, instance: &Instance) -> Demand {
        let disk = self.unplaced.get(&instance.id).copied().unwrap_or(0);
        Demand::of_instance(instance, disk)
    }

    /// Takes what is needed from the host with the most memory left.
    ///
    /// # Errors
    /// What each host of the zone lacks: EC2's InsufficientInstanceCapacity.
    pub fn place(&mut self, demand: &Demand) -> Result<HostId, Shortfall> {
        let chosen = self
            .free
            .iter_mut()
            .filter(|(_, free)| free.fits(demand))
            .max_by_key(|(id, free)| (free.memory_mib, std::cmp::Reverse((*id).clone())));
        match chosen {
            Some((id, free)) => {
                free.take(demand);
                Ok(id.clone())
            }
            None => Err(self.shortfall(demand, |_| true)),
        }
    }

    /// Takes what is needed from this very host.
    ///
    /// # Errors
    /// What it lacks.
    pub fn place_on(&mut self, host: &HostId, demand: &Demand) -> Result<(), Shortfall> {
        match self.free.get_mut(host) {
            Some(free) if free.fits(demand) => {
                free.take(demand);
                Ok(())
            }
            _ => Err(self.shortfall(demand, |id| id == host)),
        }
    }

    fn shortfall(&self, demand: &Demand, which: impl Fn(&HostId) -> bool) -> Shortfall {
        let hosts = self
            .free
            .iter()
            .filter(|(id, free)| which(id) && free.zone == demand.zone)
            .map(|(id, free)| Lack {
                host: id.clone(),
                vcpus: free.vcpus,
                memory_mib: free.memory_mib,
                disk_gib: free.disk_gib,
            })
            .collect();
        Shortfall {
            demand: demand.clone(),
            hosts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::samples;

    fn host(id: &str, zone: &str, vcpus: u32, memory_mib: u64) -> Host {
        Host {
            id: HostId(id.into()),
            zone: zone.into(),
            vcpus,
            memory_mib,
            disk_gib: 100,
        }
    }

    fn demand(zone: &str, vcpus: u32, memory_mib: u64) -> Demand {
        Demand {
            zone: zone.into(),
            vcpus,
            memory_mib,
            disk_gib: 1,
        }
    }

    #[test]
    fn the_host_with_the_most_memory_left_takes_the_next() {
        let hosts = [
            host("a", "z", 8, 4096),
            host("b", "z", 8, 6144),
            host("c", "y", 8, 9999),
        ];
        let mut ledger = Ledger::new(&hosts, [], []);
        let picks: Vec<_> = std::iter::from_fn(|| ledger.place(&demand("z", 1, 2048)).ok())
            .map(|h| h.0)
            .collect();
        // b until they are equal, then by name.
        assert_eq!(picks, ["b", "a", "b", "a", "b"]);
    }

    #[test]
    fn each_quota_and_the_zone_can_refuse() {
        let hosts = [host("a", "z", 2, 2048)];
        for (demand, fits) in [
            (demand("z", 2, 2048), true),
            (demand("z", 3, 1), false),
            (demand("z", 1, 2049), false),
            (demand("y", 1, 1), false),
            (
                Demand {
                    disk_gib: 100,
                    ..demand("z", 1, 1)
                },
                true,
            ),
            (
                Demand {
                    disk_gib: 101,
                    ..demand("z", 1, 1)
                },
                false,
            ),
        ] {
            assert_eq!(
                Ledger::new(&hosts, [], []).place(&demand).is_ok(),
                fits,
                "{demand:?}"
            );
        }
    }

    #[test]
    fn only_instances_with_a_place_and_a_life_take_from_it() {
        let hosts = [host("a", "us-east-1a", 2, 1048)];
        for (state, host, left) in [
            (InstanceState::Pending, Some("a"), false),
            (InstanceState::Running, Some("a"), false),
            (InstanceState::Stopping, Some("a"), false),
            (InstanceState::ShuttingDown, Some("a"), false),
            (InstanceState::Stopped, Some("a"), true),
            (InstanceState::Terminated, Some("a"), true),
            (InstanceState::Running, Some("other"), true),
            (InstanceState::Pending, None, true),
        ] {
            let mut instance = samples::instance(1);
            instance.instance_type = "t3.micro".into();
            instance.state = state;
            instance.host = host.map(|h| HostId(h.into()));
            let mut ledger = Ledger::new(&hosts, [&instance], []);
            assert_eq!(
                ledger.place(&demand("us-east-1a", 1, 1)).is_ok(),
                left,
                "{state:?}"
            );
        }
    }

    #[test]
    fn the_vmm_of_an_instance_takes_memory_too() {
        let kind = InstanceType::find("t3.micro").unwrap();
        let demand = Demand::of(kind, "z", 8);
        assert_eq!(demand.memory_mib, 1024 + 16 + 8);
        // A host with the guest's memory to the last byte is too small.
        for (memory, fits) in [(1024, false), (1047, false), (1048, true)] {
            let hosts = [host("a", "z", 2, memory)];
            let placed = Ledger::new(&hosts, [], []).place(&demand);
            assert_eq!(placed.is_ok(), fits, "{memory}");
        }
    }

    #[test]
    fn volumes_take_disk_where_they_are_in_every_state_of_their_instance() {
        let hosts = [host("a", "us-east-1a", 99, 9999)];
        let here = Some(HostId("a".into()));
        let mut stopped = samples::instance(1);
        stopped.host = here.clone();
        stopped.state = InstanceState::Stopped;
        let volume = |n, host, size_gib| Volume {
            host,
            size_gib,
            ..samples::volume(n)
        };
        let detached = Volume {
            attachment: None,
            ..volume(2, here.clone(), 30)
        };
        let waiting = samples::instance(3);
        let volumes = [volume(1, here.clone(), 60), detached, volume(3, None, 11)];
        let mut ledger = Ledger::new(&hosts, [&stopped, &waiting], &volumes);
        // Its own volume is there already: starting it needs no more disk.
        assert_eq!(ledger.demand(&stopped).disk_gib, 0);
        let demand = ledger.demand(&waiting);
        assert_eq!(demand.disk_gib, 11);
        let shortfall = ledger.place(&demand).unwrap_err();
        assert_eq!(shortfall.hosts[0].disk_gib, 10);
        let smaller = Demand {
            disk_gib: 10,
            ..demand
        };
        ledger.place(&smaller).unwrap();
        ledger
            .place_on(&hosts[0].id, &ledger.demand(&stopped))
            .unwrap();
        // Full, and yet what is there can be started.
        ledger.place(&smaller).unwrap_err();
    }
}
