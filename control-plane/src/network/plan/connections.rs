//! Which tracked connections have outlived what they were made for.
//!
//! conntrack remembers a connection for days, with the translation that its
//! first packet got. What an address has open must not reach the next who gets
//! it, and a peer that keeps its port (WireGuard, DNS) must reach the next and
//! not nobody: as on EC2, a connection ends with the address that it is over.
//! A rule that is revoked is another matter: EC2 lets what it had let in go on,
//! and so do we. So is a peer whose address becomes another's: what an instance
//! has open to it is as to any peer beyond the cloud, there as here.
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

/// An interface's hold on its addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hold {
    /// The interface.
    pub eni: EniId,
    /// Its private address.
    pub private_ip: Ipv4Addr,
    /// Its public address, if it has one.
    pub public_ip: Option<Ipv4Addr>,
}

impl Hold {
    /// Whether an address of it is another's or nobody's in `vpc`.
    pub fn has_ended(&self, vpc: &VpcNet) -> bool {
        vpc.interfaces.get(&self.eni).is_none_or(|i| {
            i.private_ip != self.private_ip
                || self.public_ip.is_some() && i.public_ip != self.public_ip
        })
    }
}

/// The holds of a VPC's interfaces.
pub fn holds(vpc: &VpcNet) -> impl Iterator<Item = Hold> {
    vpc.interfaces.values().map(|i| Hold {
        eni: i.id.clone(),
        private_ip: i.private_ip,
        public_ip: i.public_ip,
    })
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

/// Whose connections the host's own namespace may have tracked. To go through
/// them costs a walk over the whole of the kernel's table, however few there
/// are; an address that is not in here has none, and needs no walk.
#[derive(Debug, Default)]
pub struct Past {
    /// Whether what others than this process have left was gone through.
    known: bool,
    /// By public address; none when it had more than one owner.
    owners: BTreeMap<Ipv4Addr, Option<EniId>>,
}

impl Past {
    /// These are about to be led to their owners.
    pub fn begin<'a>(&mut self, holds: impl IntoIterator<Item = &'a Hold>) {
        for hold in holds {
            if let Some(address) = hold.public_ip {
                let owner = self.owners.entry(address);
                let owner = owner.or_insert_with(|| Some(hold.eni.clone()));
                if owner.as_ref() != Some(&hold.eni) {
                    *owner = None;
                }
            }
        }
    }

    /// There may be connections that this process knows nothing of.
    pub fn unknown(&mut self) {
        self.known = false;
    }

    /// What has to go when these are the owners; `None` when there is nothing.
    /// Of an owner that was here before this process, all is taken for its own.
    pub fn outlived(&self, pool: Ipv4Net, host: Ipv4Addr, owners: &Owners) -> Option<OverPool> {
        let left = |(address, owner): (&Ipv4Addr, &Option<EniId>)| {
            (owner.is_none() || owner.as_ref() != owners.get(address)).then_some(*address)
        };
        let gone: BTreeSet<Ipv4Addr> = self.owners.iter().filter_map(left).collect();
        if self.known {
            return (!gone.is_empty()).then_some(OverPool::Gone(gone));
        }
        let kept = owners.keys().copied().filter(|a| !gone.contains(a));
        let kept = kept.chain([host]).collect();
        Some(OverPool::AllBut { pool, kept })
    }

    /// What had outlived these owners is gone. `there` are the holds that VPCs
    /// have or may have by now: an address that is led to another than its owner
    /// is about to move, and is gone through again then.
    pub fn settle<'a>(&mut self, owners: &Owners, there: impl IntoIterator<Item = &'a Hold>) {
        self.known = true;
        self.owners = (owners.iter())
            .map(|(address, owner)| (*address, Some(owner.clone())))
            .collect();
        self.begin(there);
    }
}

/// The public addresses that connections have outlived.
#[derive(Debug, PartialEq, Eq)]
pub enum OverPool {
    /// These.
    Gone(BTreeSet<Ipv4Addr>),
    /// All of the pool but those that have kept their owner, and the host's own.
    AllBut {
        /// The pool.
        pool: Ipv4Net,
        /// What stays.
        kept: BTreeSet<Ipv4Addr>,
    },
}

impl OverPool {
    /// Whether this connection has to go.
    pub fn outlived(&self, connection: &Connection) -> bool {
        let gone = |a: &Ipv4Addr| match self {
            Self::Gone(gone) => gone.contains(a),
            Self::AllBut { pool, kept } => pool.contains(a) && !kept.contains(a),
        };
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

    /// The holds of these, and who has which public address.
    fn held(instances: &[(u8, Option<&str>)]) -> (Vec<Hold>, Owners) {
        let topology = here(instances);
        let vpcs = || topology.vpcs.values();
        (vpcs().flat_map(holds).collect(), owners(vpcs()))
    }

    #[test]
    fn a_hold_ends_when_an_address_of_it_leaves() {
        let (seven, eight) = (Some("203.0.113.7"), Some("203.0.113.8"));
        let now = here(&[(4, seven), (5, None)]);
        let vpc = &now.vpcs[&vpc_id()];
        for (before, ended) in [
            ((4, seven), false),
            ((5, None), false),
            // It has got one since.
            ((4, None), false),
            ((4, eight), true),
            ((5, eight), true),
            ((6, None), true),
        ] {
            let (holds, _) = held(&[before]);
            assert_eq!(holds[0].has_ended(vpc), ended, "{before:?}");
        }
        let (mut holds, _) = held(&[(5, None)]);
        holds[0].private_ip = "172.31.0.9".parse().unwrap();
        assert!(holds[0].has_ended(vpc));
    }

    fn pool() -> (Ipv4Net, Ipv4Addr) {
        (
            "203.0.113.0/24".parse().unwrap(),
            "203.0.113.1".parse().unwrap(),
        )
    }

    fn outlived(past: &Past, owners: &Owners) -> Option<OverPool> {
        let (pool, host) = pool();
        past.outlived(pool, host, owners)
    }

    fn gone(addresses: &[&str]) -> Option<OverPool> {
        let addresses = addresses.iter().map(|a| a.parse().unwrap());
        Some(OverPool::Gone(addresses.collect()))
    }

    #[test]
    fn the_host_is_gone_through_for_what_leaves_and_not_for_what_comes() {
        let (seven, eight) = (Some("203.0.113.7"), Some("203.0.113.8"));
        let mut past = Past::default();
        let (first, owned) = held(&[(4, seven)]);
        past.begin(&first);
        past.settle(&owned, &first);
        assert_eq!(outlived(&past, &owned), None);

        // An address that none has had.
        let (both, owned) = held(&[(4, seven), (5, eight)]);
        past.begin(&both);
        assert_eq!(outlived(&past, &owned), None);
        // Released before anybody asked; and then another's.
        let (_, released) = held(&[(4, seven), (5, None)]);
        assert_eq!(outlived(&past, &released), gone(&["203.0.113.8"]));
        let (moved, owned) = held(&[(4, seven), (6, eight)]);
        past.begin(&moved);
        assert_eq!(outlived(&past, &owned), gone(&["203.0.113.8"]));
        past.settle(&owned, &moved);
        assert_eq!(outlived(&past, &owned), None);

        // Released and gone through: whoever gets it begins anew.
        let (first, one) = held(&[(4, seven)]);
        assert_eq!(outlived(&past, &one), gone(&["203.0.113.8"]));
        past.settle(&one, &first);
        let (again, owned) = held(&[(4, seven), (5, eight)]);
        past.begin(&again);
        assert_eq!(outlived(&past, &owned), None);
    }

    #[test]
    fn an_address_that_is_still_led_to_another_is_not_settled() {
        let seven = Some("203.0.113.7");
        let (taken, _) = held(&[(4, seven), (5, None)]);
        let (wanted, owned) = held(&[(4, None), (5, seven)]);
        let (_, released) = held(&[(4, None), (5, None)]);
        for owners in [owned, released] {
            let mut past = Past::default();
            past.begin(&taken);
            past.settle(&owners, &taken);
            assert_eq!(outlived(&past, &owners), gone(&["203.0.113.7"]));
            // The VPC is between the two.
            past.settle(&owners, taken.iter().chain(&wanted));
            assert_eq!(outlived(&past, &owners), gone(&["203.0.113.7"]));
            past.settle(&owners, []);
            assert_eq!(outlived(&past, &owners), None);
        }
    }

    #[test]
    fn what_was_over_an_address_that_left_its_owner_goes() {
        let (_, host) = pool();
        let (seven, eight) = (Some("203.0.113.7"), Some("203.0.113.8"));
        let (holds, now) = held(&[(4, seven), (5, eight)]);
        let (before, _) = held(&[(4, seven), (6, eight)]);
        // By a process that has just started, and by one that saw it move.
        let mut restarted = Past::default();
        restarted.begin(&holds);
        let mut moved = Past::default();
        moved.begin(before.iter().chain(&holds));
        let mut later = Past::default();
        later.settle(&BTreeMap::new(), &before);
        let masqueraded = |public: &str| connection(&format!("{public} {PEER} {PEER} 192.0.2.1"));
        let inbound = |public: &str| connection(&format!("{host} {public} {public} {host}"));
        for (public, expected) in [
            ("203.0.113.7", [false, false, false]),
            ("203.0.113.8", [false, true, true]),
            ("203.0.113.9", [true, true, false]),
        ] {
            for connection in [masqueraded(public), inbound(public)] {
                let goes = [&restarted, &moved, &later].map(|past| {
                    outlived(past, &now).is_some_and(|over| over.outlived(&connection))
                });
                assert_eq!(goes, expected, "{public}");
            }
        }
        let others = connection(&format!("192.0.2.1 {PEER} {PEER} 192.0.2.1"));
        for past in [&mut restarted, &mut moved] {
            assert!(!outlived(past, &now).unwrap().outlived(&others));
            past.settle(&now, &holds);
            assert_eq!(outlived(past, &now), None);
            past.unknown();
            assert!(matches!(
                outlived(past, &now),
                Some(OverPool::AllBut { .. })
            ));
        }
    }
}
