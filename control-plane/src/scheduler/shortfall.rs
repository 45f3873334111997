//! What a launch that no host could take was missing.

use std::fmt;

use super::Demand;
use crate::model::HostId;

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
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in GiB.
    pub disk_gib: u64,
}

impl Lack {
    /// What there is too little of, by name.
    pub fn missing(&self, demand: &Demand) -> Vec<&'static str> {
        [
            ("vcpus", u64::from(self.vcpus) < u64::from(demand.vcpus)),
            ("memory", self.memory_mib < demand.memory_mib),
            ("disk", self.disk_gib < demand.disk_gib),
        ]
        .into_iter()
        .filter_map(|(name, short)| short.then_some(name))
        .collect()
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = &self.demand;
        write!(
            f,
            "needed in {}: {} vCPUs, {} MiB of memory, {} GiB of disk; ",
            d.zone, d.vcpus, d.memory_mib, d.disk_gib
        )?;
        if self.hosts.is_empty() {
            return write!(f, "no host is there");
        }
        for (i, lack) in self.hosts.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(
                f,
                "{separator}host {} has {} vCPUs, {} MiB, {} GiB free: too little {}",
                lack.host,
                lack.vcpus,
                lack.memory_mib,
                lack.disk_gib,
                lack.missing(d).join(", ")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_what_is_missing_on_each_host() {
        let lack = |host: &str, vcpus, memory_mib, disk_gib| Lack {
            host: HostId(host.into()),
            vcpus,
            memory_mib,
            disk_gib,
        };
        let mut shortfall = Shortfall {
            demand: Demand {
                zone: "us-east-1a".into(),
                vcpus: 2,
                memory_mib: 1048,
                disk_gib: 8,
            },
            hosts: vec![lack("a", 1, 500, 7), lack("b", 2, 2000, 0)],
        };
        assert_eq!(
            shortfall.to_string(),
            "needed in us-east-1a: 2 vCPUs, 1048 MiB of memory, 8 GiB of disk; \
             host a has 1 vCPUs, 500 MiB, 7 GiB free: too little vcpus, memory, disk; \
             host b has 2 vCPUs, 2000 MiB, 0 GiB free: too little disk"
        );
        shortfall.hosts.clear();
        assert!(shortfall.to_string().ends_with("; no host is there"));
    }
}
