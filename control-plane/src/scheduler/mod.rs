//! Placement: which host an instance goes to. Pure.
//!
//! An instance type is a quota of vCPUs and memory; a host has as much to give
//! as its record says, which the overcommit ratios are already in. Instances
//! are spread: the host with the most memory left takes the next one, so that
//! one host's failure hits the fewest.

use std::collections::BTreeMap;

use crate::model::{Host, HostId, Instance, InstanceState, InstanceType};

/// What an instance needs of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The availability zone.
    pub zone: String,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl Demand {
    /// What an instance of this type needs.
    pub fn of(kind: &InstanceType, zone: &str) -> Self {
        Self {
            zone: zone.to_owned(),
            vcpus: u32::from(kind.vcpus),
            memory_mib: u64::from(kind.memory_mib),
        }
    }

    /// What this instance needs. A type that this version no longer knows needs
    /// more than any host has.
    pub fn of_instance(instance: &Instance) -> Self {
        match InstanceType::find(&instance.instance_type) {
            Some(kind) => Self::of(kind, &instance.zone),
            None => Self {
                zone: instance.zone.clone(),
                vcpus: u32::MAX,
                memory_mib: u64::MAX,
            },
        }
    }
}

/// Whether an instance in this state takes from its host's quota.
pub fn occupies(state: InstanceState) -> bool {
    !matches!(state, InstanceState::Stopped | InstanceState::Terminated)
}

#[derive(Debug, Clone)]
struct Free {
    zone: String,
    vcpus: u32,
    memory_mib: u64,
}

impl Free {
    fn fits(&self, demand: &Demand) -> bool {
        self.zone == demand.zone
            && self.vcpus >= demand.vcpus
            && self.memory_mib >= demand.memory_mib
    }
}

/// What each host has left.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    free: BTreeMap<HostId, Free>,
}

impl Ledger {
    /// The hosts less the instances that are on them.
    pub fn new<'a>(
        hosts: impl IntoIterator<Item = &'a Host>,
        instances: impl IntoIterator<Item = &'a Instance>,
    ) -> Self {
        let mut free: BTreeMap<HostId, Free> = hosts
            .into_iter()
            .map(|h| {
                let all = Free {
                    zone: h.zone.clone(),
                    vcpus: h.vcpus,
                    memory_mib: h.memory_mib,
                };
                (h.id.clone(), all)
            })
            .collect();
        for instance in instances {
            if let Some(host) = instance.host.as_ref().and_then(|id| free.get_mut(id))
                && occupies(instance.state)
            {
                let demand = Demand::of_instance(instance);
                // A host may have shrunk below what it runs: it has nothing left then.
                host.vcpus = host.vcpus.saturating_sub(demand.vcpus);
                host.memory_mib = host.memory_mib.saturating_sub(demand.memory_mib);
            }
        }
        Self { free }
    }

    /// Takes what is needed from the host with the most memory left, or `None`
    /// if no host of the zone has it: EC2's InsufficientInstanceCapacity.
    pub fn place(&mut self, demand: &Demand) -> Option<HostId> {
        let (host, _) = self
            .free
            .iter()
            .filter(|(_, free)| free.fits(demand))
            .max_by_key(|(id, free)| (free.memory_mib, std::cmp::Reverse((*id).clone())))?;
        let host = host.clone();
        self.place_on(&host, demand).then_some(host)
    }

    /// Takes what is needed from this very host; whether it had it.
    pub fn place_on(&mut self, host: &HostId, demand: &Demand) -> bool {
        match self.free.get_mut(host) {
            Some(free) if free.fits(demand) => {
                free.vcpus -= demand.vcpus;
                free.memory_mib -= demand.memory_mib;
                true
            }
            _ => false,
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
        }
    }

    fn demand(zone: &str, vcpus: u32, memory_mib: u64) -> Demand {
        Demand {
            zone: zone.into(),
            vcpus,
            memory_mib,
        }
    }

    #[test]
    fn the_host_with_the_most_memory_left_takes_the_next() {
        let hosts = [
            host("a", "z", 8, 4096),
            host("b", "z", 8, 6144),
            host("c", "y", 8, 9999),
        ];
        let mut ledger = Ledger::new(&hosts, []);
        let picks: Vec<_> = std::iter::from_fn(|| ledger.place(&demand("z", 1, 2048)))
            .map(|h| h.0)
            .collect();
        // b until they are equal, then by name.
        assert_eq!(picks, ["b", "a", "b", "a", "b"]);
    }

    #[test]
    fn either_quota_and_the_zone_can_refuse() {
        let hosts = [host("a", "z", 2, 2048)];
        for (demand, fits) in [
            (demand("z", 2, 2048), true),
            (demand("z", 3, 1), false),
            (demand("z", 1, 2049), false),
            (demand("y", 1, 1), false),
        ] {
            assert_eq!(
                Ledger::new(&hosts, []).place(&demand).is_some(),
                fits,
                "{demand:?}"
            );
        }
    }

    #[test]
    fn only_instances_with_a_place_and_a_life_take_from_it() {
        let hosts = [host("a", "us-east-1a", 2, 4096)];
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
            let mut ledger = Ledger::new(&hosts, [&instance]);
            assert_eq!(
                ledger.place(&demand("us-east-1a", 1, 1)).is_some(),
                left,
                "{state:?}"
            );
        }
    }
}
