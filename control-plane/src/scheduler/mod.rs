//! Placement: which host an instance goes to. Pure.
//!
//! An instance type is a quota of vCPUs and memory, and its volumes are promises
//! of disk; a host has as much to give as its record says, which the overcommit
//! ratios and what the host keeps for itself are already in. Instances are
//! spread: the host with the most memory left takes the next one, so that one
//! host's failure hits the fewest.

mod shortfall;

use std::{cmp::Reverse, collections::BTreeMap};

pub use self::shortfall::{Lack, Shortfall};
use crate::{
    model::{Host, HostId, Instance, InstanceType, Quota, Volume},
    store::View,
};

/// What an instance needs of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The availability zone.
    pub zone: String,
    /// How much, the volumes that are yet to be made included.
    pub quota: Quota,
}

impl Demand {
    /// What an instance of this type needs, with new volumes of this size.
    pub fn of(kind: &InstanceType, zone: &str, disk_gib: u64) -> Self {
        Self {
            zone: zone.to_owned(),
            quota: Quota {
                disk_gib,
                ..kind.quota()
            },
        }
    }

    /// What this instance needs to be placed, or to be started where it is: a
    /// volume that is on a host is there already.
    pub fn of_instance(view: &View, instance: &Instance) -> Self {
        let volumes = view.by(Volume::BY_INSTANCE, instance.id.as_str());
        let unplaced = volumes.filter(|volume| volume.host.is_none());
        let volumes = Quota {
            disk_gib: unplaced.map(|volume| u64::from(volume.size_gib)).sum(),
            ..Quota::default()
        };
        // Where it is, room for its memory is set aside already.
        let room = match instance.host {
            Some(_) => Quota::default(),
            None => instance.room_for_memory(),
        };
        Self {
            zone: instance.zone.clone(),
            quota: instance.quota().plus(volumes).plus(room),
        }
    }
}

#[derive(Debug, Clone)]
struct Free {
    zone: String,
    left: Quota,
}

impl Free {
    fn fits(&self, demand: &Demand) -> bool {
        let (left, needed) = (self.left, demand.quota);
        self.zone == demand.zone
            && left.vcpus >= needed.vcpus
            && left.memory_mib >= needed.memory_mib
            // Who needs none doesn't care that a host is overdrawn.
            && left.disk_gib >= needed.disk_gib
    }
}

/// What each host has left.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    free: BTreeMap<HostId, Free>,
}

impl Ledger {
    /// The hosts less what is on them, in this picture. A host may have shrunk below
    /// what it runs: it has nothing left then.
    pub fn of(view: &View) -> Self {
        let free = view.all::<Host>().map(|host| {
            let free = Free {
                zone: host.zone.clone(),
                left: host.quota().less(view.claimed(&host.id)),
            };
            (host.id.clone(), free)
        });
        Self {
            free: free.collect(),
        }
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
            .max_by(|(a, x), (b, y)| {
                let by_memory = x.left.memory_mib.cmp(&y.left.memory_mib);
                by_memory.then(Reverse(a).cmp(&Reverse(b)))
            });
        match chosen {
            Some((id, free)) => {
                free.left = free.left.less(demand.quota);
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
                free.left = free.left.less(demand.quota);
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
                left: free.left,
            });
        Shortfall {
            demand: demand.clone(),
            hosts: hosts.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstanceState, samples};

    fn cloud(hosts: &[Host]) -> View {
        let hosts = hosts.iter().cloned();
        hosts.fold(View::default(), View::with)
    }

    fn host(id: &str, zone: &str, vcpus: u32, memory_mib: u64) -> Host {
        Host {
            id: HostId(id.into()),
            zone: zone.into(),
            vcpus,
            memory_mib,
            disk_gib: 100,
        }
    }

    fn demand(zone: &str, vcpus: u64, memory_mib: u64) -> Demand {
        Demand {
            zone: zone.into(),
            quota: Quota {
                vcpus,
                memory_mib,
                disk_gib: 1,
            },
        }
    }

    #[test]
    fn the_host_with_the_most_memory_left_takes_the_next() {
        let hosts = [
            host("a", "z", 8, 4096),
            host("b", "z", 8, 6144),
            host("c", "y", 8, 9999),
        ];
        let mut ledger = Ledger::of(&cloud(&hosts));
        let picks: Vec<_> = std::iter::from_fn(|| ledger.place(&demand("z", 1, 2048)).ok())
            .map(|h| h.0)
            .collect();
        // b until they are equal, then by name.
        assert_eq!(picks, ["b", "a", "b", "a", "b"]);
    }

    #[test]
    fn each_quota_and_the_zone_can_refuse() {
        let hosts = [host("a", "z", 2, 2048)];
        let with_disk = |disk_gib| Demand {
            quota: Quota {
                disk_gib,
                ..demand("z", 1, 1).quota
            },
            ..demand("z", 1, 1)
        };
        for (demand, fits) in [
            (demand("z", 2, 2048), true),
            (demand("z", 3, 1), false),
            (demand("z", 1, 2049), false),
            (demand("y", 1, 1), false),
            (with_disk(100), true),
            (with_disk(101), false),
        ] {
            let placed = Ledger::of(&cloud(&hosts)).place(&demand);
            assert_eq!(placed.is_ok(), fits, "{demand:?}");
        }
    }

    #[test]
    fn a_shortfall_names_the_hosts_that_were_asked() {
        let hosts = [
            host("a", "z", 2, 2048),
            host("b", "z", 2, 4096),
            host("c", "y", 9, 9999),
        ];
        let mut ledger = Ledger::of(&cloud(&hosts));
        let named = |shortfall: Shortfall| -> Vec<String> {
            shortfall
                .hosts
                .into_iter()
                .map(|lack| lack.host.0)
                .collect()
        };
        let large = demand("z", 4, 1);
        assert_eq!(named(ledger.place(&large).unwrap_err()), ["a", "b"]);
        let on = |ledger: &mut Ledger, host: &str, demand: Demand| {
            ledger.place_on(&HostId(host.into()), &demand)
        };
        assert_eq!(named(on(&mut ledger, "b", large).unwrap_err()), ["b"]);
        // It is in another zone than what is asked for, or nowhere.
        for elsewhere in ["c", "d"] {
            let refused = on(&mut ledger, elsewhere, demand("z", 1, 1)).unwrap_err();
            assert!(named(refused).is_empty(), "{elsewhere}");
        }
        // What was taken is gone from that host, and from no other.
        on(&mut ledger, "a", demand("z", 2, 2048)).unwrap();
        on(&mut ledger, "a", demand("z", 1, 1)).unwrap_err();
        on(&mut ledger, "b", demand("z", 2, 4096)).unwrap();
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
            let mut ledger = Ledger::of(&cloud(&hosts).with(instance));
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
        let Quota {
            vcpus,
            memory_mib,
            disk_gib,
        } = demand.quota;
        assert_eq!((vcpus, memory_mib, disk_gib), (2, 1024 + 16 + 8, 8));
        // A host with the guest's memory to the last byte is too small.
        for (memory, fits) in [(1024, false), (1047, false), (1048, true)] {
            let hosts = [host("a", "z", 2, memory)];
            let placed = Ledger::of(&cloud(&hosts)).place(&demand);
            assert_eq!(placed.is_ok(), fits, "{memory}");
        }
    }

    #[test]
    fn one_that_may_hibernate_needs_room_for_its_memory_once() {
        let (new, placed) = (samples::instance(1), HostId("a".into()));
        let needs = |host| {
            let mut instance = Instance {
                host,
                ..new.clone()
            };
            instance.settings.may_hibernate = true;
            Demand::of_instance(&View::default(), &instance)
                .quota
                .disk_gib
        };
        assert_eq!(needs(None), 1);
        assert_eq!(needs(Some(placed)), 0);
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
        let view = cloud(&hosts).with(stopped.clone()).with(waiting.clone());
        let view = volumes.into_iter().fold(view, View::with);
        let mut ledger = Ledger::of(&view);
        // Its own volume is there already: starting it needs no more disk.
        let start = Demand::of_instance(&view, &stopped);
        assert_eq!(start.quota.disk_gib, 0);
        let demand = Demand::of_instance(&view, &waiting);
        assert_eq!(demand.quota.disk_gib, 11);
        let shortfall = ledger.place(&demand).unwrap_err();
        assert_eq!(shortfall.hosts[0].left.disk_gib, 10);
        let smaller = Demand {
            quota: Quota {
                disk_gib: 10,
                ..demand.quota
            },
            ..demand
        };
        ledger.place(&smaller).unwrap();
        ledger.place_on(&hosts[0].id, &start).unwrap();
        // Full, and yet what is there can be started.
        ledger.place(&smaller).unwrap_err();
    }
}
