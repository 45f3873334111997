//! Which tracked connections have outlived what they were made for.
//!
//! conntrack remembers a connection for days, with the translation that its
//! first packet got. What an address has open must not reach the next who gets
//! it, and a peer that keeps its port (WireGuard, DNS) must reach the next and
//! not nobody: as on EC2, a connection ends with the address that it is over.
//! A rule that is revoked is another matter: EC2 lets what it had let in go on,
//! and so do we.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/security-group-connection-tracking.html>

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::VpcNet;
use crate::model::EniId;

/// The addresses of a tracked connection. The two ends differ by what was
/// translated: `original` is a packet as it comes, `reply` as its answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Source and destination of the first packet.
    pub original: (Ipv4Addr, Ipv4Addr),
    /// Source and destination of the answers to it.
    pub reply: (Ipv4Addr, Ipv4Addr),
}

impl Connection {
    fn addresses(&self) -> [Ipv4Addr; 4] {
        let ((a, b), (c, d)) = (self.original, self.reply);
        [a, b, c, d]
    }
}

/// What connections in a VPC's namespace may be about.
#[derive(Debug)]
pub struct InVpc {
    cidr: Ipv4Net,
    /// Private addresses, with the public ones.
    public_of: BTreeMap<Ipv4Addr, Option<Ipv4Addr>>,
    private_of: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// What answers here beside the instances.
    services: BTreeSet<Ipv4Addr>,
    fresh: BTreeSet<Ipv4Addr>,
}

impl InVpc {
    /// Those of `vpc`. The interfaces `fresh` begin now: whatever is tracked of
    /// their private addresses was another's.
    pub fn new<'a>(vpc: &VpcNet, fresh: impl IntoIterator<Item = &'a EniId>) -> Self {
        let interfaces = || vpc.interfaces.values();
        let private_of = |i: &super::Interface| Some((i.public_ip?, i.private_ip));
        let fresh = fresh.into_iter().filter_map(|id| vpc.interfaces.get(id));
        Self {
            cidr: vpc.cidr,
            public_of: interfaces().map(|i| (i.private_ip, i.public_ip)).collect(),
            private_of: interfaces().filter_map(private_of).collect(),
            services: interfaces()
                .map(|i| i.router)
                .chain([vpc.resolver()])
                .collect(),
            fresh: fresh.map(|i| i.private_ip).collect(),
        }
    }

    /// Whether this connection has to go: it has a translation that is no longer
    /// so, or is about an address that nobody has or that is another's now.
    pub fn outlived(&self, connection: &Connection) -> bool {
        let Connection { original, reply } = connection;
        let destination = || self.private_of.get(&original.1) == Some(&reply.0);
        let source = || self.public_of.get(&original.0) == Some(&Some(reply.1));
        let nobodys = |a: &Ipv4Addr| {
            self.cidr.contains(a) && !self.public_of.contains_key(a) && !self.services.contains(a)
        };
        (original.1 != reply.0 && !destination())
            || (original.0 != reply.1 && !source())
            || (connection.addresses().iter()).any(|a| nobodys(a) || self.fresh.contains(a))
    }
}

/// Who has which public address.
pub type Owners = BTreeMap<Ipv4Addr, EniId>;

/// The owners of the public addresses of these VPCs.
pub fn owners<'a>(vpcs: impl IntoIterator<Item = &'a VpcNet>) -> Owners {
    vpcs.into_iter()
        .flat_map(|vpc| vpc.interfaces.values())
        .filter_map(|i| Some((i.public_ip?, i.id.clone())))
        .collect()
}

/// Those of `owners` who have their address for themselves: one that some other
/// interface of the VPCs `there` still has is about to move, and what is tracked
/// of it may still be the other's.
pub fn settled<'a>(owners: &Owners, there: impl IntoIterator<Item = &'a VpcNet>) -> Owners {
    let mut settled = owners.clone();
    for (address, has) in there.into_iter().flat_map(owners_of) {
        if settled.get(&address).is_some_and(|owner| owner != has) {
            settled.remove(&address);
        }
    }
    settled
}

fn owners_of(vpc: &VpcNet) -> impl Iterator<Item = (Ipv4Addr, &EniId)> {
    let interfaces = vpc.interfaces.values();
    interfaces.filter_map(|i| Some((i.public_ip?, &i.id)))
}

/// Which public addresses connections may be over, in any namespace: an
/// instance is another's peer by its public address too.
#[derive(Debug)]
pub struct OverPool {
    pool: Ipv4Net,
    /// The addresses that have kept their owner, and the host's own.
    kept: BTreeSet<Ipv4Addr>,
}

impl OverPool {
    /// Those of `owners`. What had another owner `before` begins anew; without
    /// that, all are taken for what they were.
    pub fn new(pool: Ipv4Net, host: Ipv4Addr, owners: &Owners, before: Option<&Owners>) -> Self {
        let same = |a: &Ipv4Addr| before.is_none_or(|b| b.get(a) == owners.get(a));
        let kept = owners.keys().copied().filter(same).chain([host]).collect();
        Self { pool, kept }
    }

    /// Whether this connection has to go: it is about an address of the pool
    /// that nobody has, or that is another's now.
    pub fn outlived(&self, connection: &Connection) -> bool {
        let gone = |a: &Ipv4Addr| self.pool.contains(a) && !self.kept.contains(a);
        connection.addresses().iter().any(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Topology, topology};
    use super::*;
    use crate::model::{HostId, Hosts, InstanceState};

    const PEER: &str = "198.51.100.9";

    /// `172.31.0.4 203.0.113.7 …`: source, destination, and those of the answers.
    fn connection(text: &str) -> Connection {
        let a: Vec<Ipv4Addr> = text.split(' ').map(|a| a.parse().unwrap()).collect();
        Connection {
            original: (a[0], a[1]),
            reply: (a[2], a[3]),
        }
    }

    /// A VPC whose instances are these, each at 172.31.0.N with a public address.
    fn here(instances: &[(u8, Option<&str>)]) -> Topology {
        let view = instances
            .iter()
            .fold(view().with(group(1, vec![])), |view, (n, public)| {
                let (instance, mut eni) = instance(*n, &[1], InstanceState::Running);
                eni.public_ip = public.map(|a| a.parse().unwrap());
                view.with(instance).with(eni)
            });
        topology(&view, &Hosts::one(HostId(HOST.into())))
    }

    fn in_vpc(instances: &[(u8, Option<&str>)], fresh: &[u8]) -> InVpc {
        let topology = here(instances);
        let vpc = &topology.vpcs[&vpc_id()];
        let is_fresh = |i: &&crate::network::Interface| fresh.contains(&i.private_ip.octets()[3]);
        let fresh = vpc.interfaces.values().filter(is_fresh).map(|i| &i.id);
        InVpc::new(vpc, fresh)
    }

    #[test]
    fn a_connection_lives_as_long_as_its_translation() {
        let inbound = connection(&format!("{PEER} 203.0.113.7 172.31.0.4 {PEER}"));
        let outbound = connection(&format!("172.31.0.4 {PEER} {PEER} 203.0.113.7"));
        let neighbour = connection("172.31.0.4 172.31.0.5 172.31.0.5 172.31.0.4");
        let has = Some("203.0.113.7");
        for (what, instances, expected) in [
            ("as it was", [(4, has), (5, None)], [false; 3]),
            ("released", [(4, None), (5, None)], [true, true, false]),
            ("moved", [(4, None), (5, has)], [true, true, false]),
            (
                "another in its place",
                [(4, Some("203.0.113.8")), (5, None)],
                [true, true, false],
            ),
            ("the instance is gone", [(5, None), (6, has)], [true; 3]),
        ] {
            let vpc = in_vpc(&instances, &[]);
            let outlived = [inbound, outbound, neighbour].map(|c| vpc.outlived(&c));
            assert_eq!(outlived, expected, "{what}");
        }
    }

    #[test]
    fn a_new_interface_begins_without_its_addresses_past() {
        let instances = [(4, Some("203.0.113.7")), (5, None), (6, None)];
        let vpc = in_vpc(&instances, &[5]);
        for (text, expected) in [
            ("172.31.0.4 172.31.0.5 172.31.0.5 172.31.0.4", true),
            ("172.31.0.4 172.31.0.6 172.31.0.6 172.31.0.4", false),
            // The resolver, a router and the metadata service are no instances.
            ("172.31.0.4 172.31.0.2 172.31.0.2 172.31.0.4", false),
            ("172.31.0.4 172.31.0.1 172.31.0.1 172.31.0.4", false),
            (
                "172.31.0.4 169.254.169.254 169.254.169.254 172.31.0.4",
                false,
            ),
            ("0.0.0.0 255.255.255.255 255.255.255.255 0.0.0.0", false),
        ] {
            assert_eq!(vpc.outlived(&connection(text)), expected, "{text}");
        }
    }

    #[test]
    fn what_was_over_an_address_that_left_its_owner_goes() {
        let pool = "203.0.113.0/24".parse().unwrap();
        let host = "203.0.113.1".parse().unwrap();
        let now = owners(
            here(&[(4, Some("203.0.113.7")), (5, Some("203.0.113.8"))])
                .vpcs
                .values(),
        );
        let before = owners(
            here(&[(4, Some("203.0.113.7")), (6, Some("203.0.113.8"))])
                .vpcs
                .values(),
        );
        let masqueraded = |public: &str| connection(&format!("{public} {PEER} {PEER} 192.0.2.1"));
        let inbound = |public: &str| connection(&format!("{host} {public} {public} {host}"));
        for (public, moved, restarted) in [
            ("203.0.113.7", false, false),
            ("203.0.113.8", true, false),
            ("203.0.113.9", true, true),
        ] {
            for connection in [masqueraded(public), inbound(public)] {
                let known = OverPool::new(pool, host, &now, Some(&before));
                assert_eq!(known.outlived(&connection), moved, "{public}");
                let unknown = OverPool::new(pool, host, &now, None);
                assert_eq!(unknown.outlived(&connection), restarted, "{public}");
            }
        }
        let others = connection(&format!("192.0.2.1 {PEER} {PEER} 192.0.2.1"));
        assert!(!OverPool::new(pool, host, &now, Some(&before)).outlived(&others));
    }

    #[test]
    fn an_address_that_another_still_has_is_not_settled() {
        let taken = here(&[(4, Some("203.0.113.7")), (5, None)]);
        let wanted = here(&[(4, None), (5, Some("203.0.113.7"))]);
        let owners = owners(wanted.vpcs.values());
        assert_eq!(settled(&owners, taken.vpcs.values()), Owners::new());
        assert_eq!(settled(&owners, wanted.vpcs.values()), owners);
        assert_eq!(settled(&owners, []), owners);
    }
}
