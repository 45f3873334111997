//! What a host has to give, and what instances and volumes take of it.

/// An amount of each of what a host gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// vCPUs.
    pub vcpus: u64,
    /// Memory in MiB, what VMMs need themselves included.
    pub memory_mib: u64,
    /// Disk in GiB.
    pub disk_gib: u64,
}

impl Quota {
    /// More than any host has, and far below what a sum of many overflows at.
    pub const UNKNOWN: Self = Self {
        vcpus: 1 << 32,
        memory_mib: 1 << 40,
        disk_gib: 0,
    };

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_gib: self.disk_gib.saturating_add(other.disk_gib),
        }
    }

    /// What is left of it; nothing, where more is taken than there is.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_gib: self.disk_gib.saturating_sub(other.disk_gib),
        }
    }
}
