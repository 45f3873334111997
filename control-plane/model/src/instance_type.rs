//! Instance types: vCPU and memory quotas under EC2's names and sizes.
//!
//! <https://aws.amazon.com/ec2/instance-types/>

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
    /// Whether EC2 gives it CPU credits (`BurstablePerformanceSupported`).
    pub burstable: bool,
}

const fn t(name: &'static str, vcpus: u8, memory_mib: u32, burstable: bool) -> InstanceType {
    InstanceType {
        name,
        vcpus,
        memory_mib,
        burstable,
    }
}

/// Every type that Hearth offers, by family, smallest first.
pub const INSTANCE_TYPES: &[InstanceType] = &[
    t("t2.nano", 1, 512, true),
    t("t2.micro", 1, 1024, true),
    t("t2.small", 1, 2048, true),
    t("t2.medium", 2, 4096, true),
    t("t2.large", 2, 8192, true),
    t("t2.xlarge", 4, 16384, true),
    t("t3.nano", 2, 512, true),
    t("t3.micro", 2, 1024, true),
    t("t3.small", 2, 2048, true),
    t("t3.medium", 2, 4096, true),
    t("t3.large", 2, 8192, true),
    t("t3.xlarge", 4, 16384, true),
    t("t3.2xlarge", 8, 32768, true),
    t("m5.large", 2, 8192, false),
    t("m5.xlarge", 4, 16384, false),
    t("m5.2xlarge", 8, 32768, false),
    t("m5.4xlarge", 16, 65536, false),
    t("m5.8xlarge", 32, 131_072, false),
    t("c5.large", 2, 4096, false),
    t("c5.xlarge", 4, 8192, false),
    t("c5.2xlarge", 8, 16384, false),
    t("c5.4xlarge", 16, 32768, false),
    t("r5.large", 2, 16384, false),
    t("r5.xlarge", 4, 32768, false),
    t("r5.2xlarge", 8, 65536, false),
    t("r5.4xlarge", 16, 131_072, false),
];

impl InstanceType {
    /// The type of this name.
    pub fn find(name: &str) -> Option<&'static InstanceType> {
        INSTANCE_TYPES.iter().find(|t| t.name == name)
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
        for (i, t) in INSTANCE_TYPES.iter().enumerate() {
            assert_eq!(InstanceType::find(t.name), Some(t));
            assert!(
                INSTANCE_TYPES[..i].iter().all(|o| o.name != t.name),
                "{}",
                t.name
            );
        }
        assert_eq!(InstanceType::find("t3.micro").unwrap().family(), "t3");
        assert_eq!(InstanceType::find("t3"), None);
    }
}
