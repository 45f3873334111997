//! The nft table in the host's own namespace.
//!
//! ```text
//! prerouting  from-instances  an instance reaches what lies beyond the host, and
//!                             nothing of the host but answers and what is opened
//! postrouting uplink          leaves the host with the host's address
//! ```

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;

use super::nft::Table;
use super::rules::{NOWHERE, add_set, base};
use crate::network::names::HostNames;

/// A port of the host that instances may reach: `tcp/3128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Whether it is UDP's; else it is TCP's.
    udp: bool,
    port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (protocol, port) = text.split_once('/').unwrap_or_default();
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return Err("must be tcp/PORT or udp/PORT".to_owned()),
        };
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self { udp, port }),
            _ => Err("the port must be from 1 to 65535".to_owned()),
        }
    }
}

/// What rules need to know of the host that a VPC is on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSide {
    /// The host's addresses, on whatever link.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Its ports that instances may reach.
    pub ports: BTreeSet<HostPort>,
}

impl HostSide {
    /// The ports as elements of a set of `inet_proto . inet_service`.
    pub(super) fn port_elements(&self) -> BTreeSet<String> {
        let element = |HostPort { udp, port }: &HostPort| {
            let protocol = if *udp { "udp" } else { "tcp" };
            format!("{protocol} . {port}")
        };
        self.ports.iter().map(element).collect()
    }
}

/// The table in the host's own namespace.
///
/// `from-instances` stands after conntrack (-200), so that an answer to what the
/// host itself has opened is known as one, and before any translation (-100), so
/// that a port that the host publishes (as Docker does) counts as the host's.
/// What instances send beyond the host leaves with the host's address, since
/// nobody out there knows the pool.
pub fn host_table(names: &HostNames, pool: Ipv4Net, host: &HostSide) -> Table {
    let igw = names.igw_prefix();
    let mut table = Table::default();
    let kind = "inet_proto . inet_service";
    add_set(&mut table, "host-ports", kind, "", host.port_elements());
    base(
        &mut table,
        "from-instances",
        "type filter hook prerouting priority -150; policy accept;",
        &[
            format!("iifname != \"{igw}*\" accept"),
            format!("ip saddr != {} drop", pool.trunc()),
            "meta nfproto != ipv4 drop".into(),
            format!("ip daddr {NOWHERE} drop"),
            "ct state vmap { established : accept, related : accept, invalid : drop }".into(),
            "fib daddr type local meta l4proto . th dport @host-ports accept".into(),
            "fib daddr type { local, broadcast, anycast, multicast } drop".into(),
        ],
    );
    base(
        &mut table,
        "uplink",
        "type nat hook postrouting priority 100; policy accept;",
        &[format!(
            "ip saddr {} oifname != {{ \"lo\", \"{igw}*\" }} masquerade",
            pool.trunc()
        )],
    );
    table
}

#[cfg(test)]
mod tests {
    use super::super::nft::replace;
    use super::*;

    #[test]
    fn ports_are_read() {
        let host = HostSide {
            ports: ["udp/53", "tcp/3128"].map(|p| p.parse().unwrap()).into(),
            ..HostSide::default()
        };
        let elements: Vec<String> = host.port_elements().into_iter().collect();
        assert_eq!(elements, ["tcp . 3128", "udp . 53"]);
        for bad in [
            "",
            "22",
            "tcp",
            "tcp/",
            "tcp/0",
            "tcp/65536",
            "icmp/8",
            "TCP/1",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_whole_table() {
        let host = HostSide {
            ports: ["tcp/3128".parse().unwrap()].into(),
            ..HostSide::default()
        };
        let pool = "203.0.113.0/24".parse().unwrap();
        insta::assert_snapshot!(replace(
            "hearth",
            &host_table(&HostNames::new(None), pool, &host)
        ));
    }
}
