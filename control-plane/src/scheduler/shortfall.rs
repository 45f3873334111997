//! What a launch that no host could take was missing.

use std::fmt;

use super::Demand;
use crate::model::{HostId, Quota};

/// Why no host could take it: for the log and the operator. The caller gets
/// EC2's own words, which say nothing of hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// What was needed.
    pub demand: Demand,
    /// What the hosts of its zone had left.
    pub hosts: Vec<Lack>,
}

/// What one host had left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// The host.
    pub host: HostId,
    /// How much.
    pub left: Quota,
}

impl Lack {
    /// What there is too little of, by name.
    pub fn missing(&self, needed: Quota) -> Vec<&'static str> {
        [
            ("vcpus", self.left.vcpus < needed.vcpus),
            ("memory", self.left.memory_mib < needed.memory_mib),
            ("disk", self.left.disk_gib < needed.disk_gib),
        ]
        .into_iter()
        .filter_map(|(name, short)| short.then_some(name))
        .collect()
    }
}

/// As many hosts are named in one line.
const NAMED: usize = 8;

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Demand { zone, quota } = &self.demand;
        write!(
            f,
            "needed in {zone}: {} vCPUs, {} MiB of memory, {} GiB of disk; ",
            quota.vcpus, quota.memory_mib, quota.disk_gib
        )?;
        if self.hosts.is_empty() {
            return write!(f, "no host is there");
        }
        for (i, Lack { host, left }) in self.hosts.iter().take(NAMED).enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(
                f,
                "{separator}host {host} has {} vCPUs, {} MiB, {} GiB free: too little {}",
                left.vcpus,
                left.memory_mib,
                left.disk_gib,
                self.hosts[i].missing(*quota).join(", ")
            )?;
        }
        match self.hosts.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} hosts more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_what_is_missing_on_each_host() {
        let quota = |vcpus, memory_mib, disk_gib| Quota {
            vcpus,
            memory_mib,
            disk_gib,
        };
        let lack = |host: &str, vcpus, memory_mib, disk_gib| Lack {
            host: HostId(host.into()),
            left: quota(vcpus, memory_mib, disk_gib),
        };
        let mut shortfall = Shortfall {
            demand: Demand {
                zone: "us-east-1a".into(),
                quota: quota(2, 1048, 8),
            },
            hosts: vec![lack("a", 1, 500, 7), lack("b", 2, 2000, 0)],
        };
        assert_eq!(
            shortfall.to_string(),
            "needed in us-east-1a: 2 vCPUs, 1048 MiB of memory, 8 GiB of disk; \
             host a has 1 vCPUs, 500 MiB, 7 GiB free: too little vcpus, memory, disk; \
             host b has 2 vCPUs, 2000 MiB, 0 GiB free: too little disk"
        );
        let enough = lack("c", 2, 1048, 8);
        assert!(enough.missing(quota(2, 1048, 8)).is_empty());
        assert_eq!(enough.missing(quota(3, 1048, 8)), ["vcpus"]);
        assert_eq!(enough.missing(quota(2, 1049, 8)), ["memory"]);
        assert_eq!(enough.missing(quota(2, 1048, 9)), ["disk"]);
        shortfall.hosts = vec![lack("a", 0, 0, 0); 10];
        assert!(shortfall.to_string().ends_with("; and 2 hosts more"));
        shortfall.hosts.clear();
        assert!(shortfall.to_string().ends_with("; no host is there"));
    }
}
