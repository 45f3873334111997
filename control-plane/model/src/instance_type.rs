//! Instance types: vCPU and memory quotas under EC2's names and sizes.
//!
//! <https://aws.amazon.com/ec2/instance-types/>

mod table;

use super::Quota;

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

/// One instance type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceType {
    /// Its name, as `t3.micro`.
    pub name: &'static str,
    /// How many vCPUs its guest sees.
    pub vcpus: u8,
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// How many interfaces EC2 allows it.
    pub interfaces: u8,
    /// How many addresses EC2 allows each of those.
    pub addresses: u8,
    /// What its network carries at any time, in Mbit/s, where EC2 says that.
    pub network_mbps: Option<u32>,
}

const fn of(
    name: &'static str,
    vcpus: u8,
    memory_mib: u32,
    interfaces: u8,
    addresses: u8,
    network_mbps: Option<u32>,
) -> InstanceType {
    InstanceType {
        name,
        vcpus,
        memory_mib,
        interfaces,
        addresses,
        network_mbps,
    }
}

/// Every type that Hearth offers, by name.
pub const INSTANCE_TYPES: &[InstanceType] = table::TYPES;

impl InstanceType {
    /// The type of this name.
    pub fn find(name: &str) -> Option<&'static InstanceType> {
        let found = INSTANCE_TYPES.binary_search_by(|t| t.name.cmp(name));
        found.ok().and_then(|place| INSTANCE_TYPES.get(place))
    }

    /// Whether EC2 gives it CPU credits (`BurstablePerformanceSupported`).
    pub fn burstable(&self) -> bool {
        self.name.starts_with('t')
    }

    /// The hypervisor that EC2 runs it on.
    pub fn hypervisor(&self) -> &'static str {
        match self.family() {
            "t2" => "xen",
            _ => "nitro",
        }
    }

    /// What a host gives to an instance of it: the guest's memory and its VMM's.
    pub fn quota(&self) -> Quota {
        let guest_mib = u64::from(self.memory_mib);
        Quota {
            vcpus: u64::from(self.vcpus),
            memory_mib: guest_mib + overhead_mib(guest_mib),
            disk_gib: 0,
        }
    }

    /// Its memory in GiB, the last part of one counted as whole.
    pub fn memory_gib(&self) -> u64 {
        u64::from(self.memory_mib.div_ceil(1024))
    }

    /// The part of the name before the dot.
    pub fn family(&self) -> &'static str {
        self.name
            .split_once('.')
            .map_or(self.name, |(family, _)| family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        assert!(INSTANCE_TYPES.is_sorted_by(|a, b| a.name < b.name));
        for t in INSTANCE_TYPES {
            assert_eq!(InstanceType::find(t.name), Some(t));
        }
        assert_eq!(InstanceType::find("t3.micro").unwrap().family(), "t3");
        assert_eq!(InstanceType::find("t3"), None);
    }
}
