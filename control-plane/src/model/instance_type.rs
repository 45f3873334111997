//! Instance types: vCPU and memory quotas under EC2's names and sizes.
//!
//! <https://aws.amazon.com/ec2/instance-types/>

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
    }
}
