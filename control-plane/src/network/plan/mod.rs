//! What the network of this host should be: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::model::{
    Eni, EniId, GroupId, Hosts, Instance, InstanceId, InstanceState, Peer, Rule, SecurityGroup,
    Subnet, Vpc, VpcId,
};
use crate::store::View;

pub mod connections;
pub mod host_rules;
pub mod nft;
pub mod rules;
#[cfg(test)]
pub(crate) mod testing;

pub use host_rules::{HostPort, HostSide};

/// What one interface may use of what all share; above that, its packets are
/// dropped and nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tracked connections that it has opened, and as many that were opened to
    /// it from outside the VPC.
    pub connections: u32,
    /// New ones of each a second.
    pub new_connections: u32,
    /// Packets a second to DNS, IMDS and DHCP.
    ///
    /// <https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html>
    pub service_packets: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A host's nf_conntrack_max is 262144 from 4 GiB of memory on.
            connections: 16384,
            new_connections: 1000,
            service_packets: 1024,
        }
    }
}

/// The full desired network of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// The VPCs that have an interface here.
    pub vpcs: BTreeMap<VpcId, VpcNet>,
}

/// The host's own part of that: what no VPC has for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNet {
    /// The VPCs that have an interface here.
    pub vpcs: BTreeSet<VpcId>,
    /// Who has which public address here.
    pub owners: connections::Owners,
}

/// A VPC on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcNet {
    /// Its id.
    pub id: VpcId,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// The interfaces that have a tap here.
    pub interfaces: BTreeMap<EniId, Interface>,
    /// The groups of those interfaces, and the groups that their rules name.
    pub groups: BTreeMap<GroupId, Group>,
}

/// An interface of an instance that runs here or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its id.
    pub id: EniId,
    /// The instance behind it.
    pub instance: InstanceId,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its private address.
    pub private_ip: Ipv4Addr,
    /// Its subnet's addresses.
    pub subnet: Ipv4Net,
    /// Its subnet's router, the first address.
    pub router: Ipv4Addr,
    /// Its public address, if it has one now.
    pub public_ip: Option<Ipv4Addr>,
    /// Its groups.
    pub groups: BTreeSet<GroupId>,
    /// Whether only its own address may be the source of its packets.
    pub source_dest_check: bool,
}

impl Interface {
    /// The name of its tap.
    pub fn tap(&self) -> String {
        super::names::tap(&self.id)
    }
}

/// A security group as the host needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Its rules.
    pub rules: Vec<Rule>,
    /// The private addresses of its members, wherever they run; kept only for
    /// groups that some rule names.
    pub members: BTreeSet<Ipv4Addr>,
}

impl Topology {
    /// The host's own part.
    pub fn host(&self) -> HostNet {
        HostNet {
            vpcs: self.vpcs.keys().cloned().collect(),
            owners: connections::owners(self.vpcs.values()),
        }
    }
}

impl VpcNet {
    /// The resolver's address: the VPC's base plus two.
    ///
    /// <https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html>
    pub fn resolver(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()).saturating_add(2))
    }

    /// The interface with this private address.
    pub fn by_address(&self, address: Ipv4Addr) -> Option<&Interface> {
        self.interfaces.values().find(|i| i.private_ip == address)
    }
}

/// Whether records that say what a VPC is here can't be read: it may be more than
/// the view shows, and must not be cut down to that.
pub fn is_unclear(view: &View, vpc: &VpcId) -> bool {
    match view.find::<Vpc>(vpc) {
        Some(vpc) => {
            let own = view.at(&vpc.scope);
            own.has_unreadable::<Instance>()
                || own.has_unreadable::<Eni>()
                || own.has_unreadable::<Subnet>()
        }
        None => view.has_unreadable::<Vpc>(),
    }
}

/// The same of any VPC.
pub fn is_unclear_anywhere(view: &View) -> bool {
    view.has_unreadable::<Vpc>()
        || view.has_unreadable::<Instance>()
        || view.has_unreadable::<Eni>()
        || view.has_unreadable::<Subnet>()
}

/// Whether an instance in this state may have a VMM, and thus needs its taps.
fn has_taps(state: InstanceState) -> bool {
    match state {
        InstanceState::Pending
        | InstanceState::Running
        | InstanceState::Stopping
        | InstanceState::ShuttingDown => true,
        InstanceState::Stopped | InstanceState::Terminated => false,
    }
}

/// The network that these hosts should have: the taps of every instance placed there
/// that may have a VMM, with what those need.
pub fn topology(view: &View, hosts: &Hosts) -> Topology {
    let ids: BTreeSet<&VpcId> = here(view, hosts).map(|(_, eni)| &eni.vpc).collect();
    let vpcs = ids
        .into_iter()
        .filter_map(|id| Some((id.clone(), vpc(view, hosts, id)?)));
    Topology {
        vpcs: vpcs.collect(),
    }
}

/// The same of one VPC; none when it has no interface there.
pub fn vpc(view: &View, hosts: &Hosts, id: &VpcId) -> Option<VpcNet> {
    let vpc = view.find::<Vpc>(id)?;
    let own = view.at(&vpc.scope);
    let mut net = VpcNet {
        id: vpc.id.clone(),
        cidr: vpc.cidr,
        interfaces: BTreeMap::new(),
        groups: BTreeMap::new(),
    };
    for (instance, eni) in instances(view, hosts, id).flat_map(|instance| tapped(view, instance)) {
        if let Some(subnet) = own.get::<Subnet>(&eni.subnet) {
            let interface = interface(instance, eni, subnet);
            net.interfaces.insert(eni.id.clone(), interface);
        }
    }
    if net.interfaces.is_empty() {
        return None;
    }
    net.groups = groups_of(&net, view);
    Some(net)
}

/// The instances of a VPC that are on these hosts.
pub fn instances<'v>(
    view: &'v View,
    hosts: &Hosts,
    vpc: &VpcId,
) -> impl Iterator<Item = &'v Instance> {
    hosts.iter().flat_map(move |host| {
        let key = Instance::vpc_and_host(vpc, host);
        view.by(Instance::BY_VPC_AND_HOST, &key)
    })
}

/// The host's own part of its network.
pub fn host_net(view: &View, hosts: &Hosts) -> HostNet {
    let mut net = HostNet::default();
    for (instance, eni) in here(view, hosts) {
        let own = view.at(&instance.scope);
        let known = net.vpcs.contains(&eni.vpc)
            || (own.get::<Vpc>(&eni.vpc).is_some() && own.get::<Subnet>(&eni.subnet).is_some());
        if known {
            net.vpcs.insert(eni.vpc.clone());
            net.owners
                .extend(eni.public_ip.map(|a| (a, eni.id.clone())));
        }
    }
    net
}

/// The interfaces that need a tap there, with their instances.
fn here<'v>(view: &'v View, hosts: &Hosts) -> impl Iterator<Item = (&'v Instance, &'v Eni)> {
    let hosts = hosts.iter();
    let here = hosts.flat_map(|host| view.by(Instance::BY_HOST, &host.0));
    here.flat_map(|instance| tapped(view, instance))
}

/// The interfaces of this instance that need a tap.
fn tapped<'v>(
    view: &'v View,
    instance: &'v Instance,
) -> impl Iterator<Item = (&'v Instance, &'v Eni)> {
    let own = view.at(&instance.scope);
    let ids = instance.enis.iter().filter(|_| has_taps(instance.state));
    let enis = ids.filter_map(move |id| own.get::<Eni>(id));
    enis.map(move |eni| (instance, eni))
}

fn interface(instance: &Instance, eni: &Eni, subnet: &Subnet) -> Interface {
    Interface {
        id: eni.id.clone(),
        instance: instance.id.clone(),
        mac: eni.mac,
        private_ip: eni.private_ip,
        subnet: subnet.cidr,
        router: subnet.router(),
        public_ip: eni.public_ip,
        groups: eni.groups.iter().cloned().collect(),
        source_dest_check: eni.source_dest_check,
    }
}

/// The groups that a VPC's rules need here, with members where a rule names them: those
/// that are here, for one on another host has no way to here. An interface whose
/// instance is not placed yet is no member either, and no reason to go through the VPC.
fn groups_of(vpc: &VpcNet, view: &View) -> BTreeMap<GroupId, Group> {
    let used: BTreeSet<&GroupId> = vpc.interfaces.values().flat_map(|i| &i.groups).collect();
    let mut groups: BTreeMap<GroupId, Group> = BTreeMap::new();
    for group in used
        .into_iter()
        .filter_map(|id| view.find::<SecurityGroup>(id))
    {
        if group.vpc == vpc.id {
            groups.entry(group.id.clone()).or_default().rules = group.rules.clone();
        }
    }
    let peers: BTreeSet<GroupId> = groups
        .values()
        .flat_map(|g| &g.rules)
        .filter_map(|rule| match &rule.peer {
            Peer::Group(id) => Some(id.clone()),
            Peer::Ipv4(_) | Peer::Ipv6(_) => None,
        })
        .collect();
    for id in peers {
        let members = view
            .by(Eni::BY_GROUP, id.as_str())
            .filter(|eni| vpc.interfaces.contains_key(&eni.id))
            .map(|eni| eni.private_ip)
            .collect();
        groups.entry(id).or_default().members = members;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use crate::model::{Direction, HostId, Protocol, Resource, Scope, samples};
    use crate::store::{Db, Op, Txn};

    fn this_host() -> HostId {
        HostId(HOST.into())
    }

    fn here() -> Hosts {
        Hosts::one(this_host())
    }

    #[test]
    fn only_instances_that_may_have_a_vmm_here_have_taps() {
        for (state, host, expected) in [
            (InstanceState::Pending, Some(this_host()), true),
            (InstanceState::Running, Some(this_host()), true),
            (InstanceState::Stopping, Some(this_host()), true),
            (InstanceState::ShuttingDown, Some(this_host()), true),
            (InstanceState::Stopped, Some(this_host()), false),
            (InstanceState::Terminated, Some(this_host()), false),
            (InstanceState::Pending, None, false),
            (InstanceState::Running, Some(HostId("there".into())), false),
        ] {
            let (mut instance, eni) = instance(4, &[1], state);
            instance.host = host.clone();
            let view = view().with(group(1, vec![])).with(instance).with(eni);
            let topology = topology(&view, &here());
            assert_eq!(!topology.vpcs.is_empty(), expected, "{state:?} {host:?}");
            assert_eq!(host_net(&view, &here()), topology.host());
        }
    }

    #[test]
    fn an_interface_needs_its_vpc_and_its_subnet() {
        let (instance, eni) = instance(4, &[], InstanceState::Running);
        let vpc = Vpc {
            id: vpc_id(),
            ..samples::vpc()
        };
        let without_subnet = View::default()
            .with(vpc)
            .with(instance.clone())
            .with(eni.clone());
        let subnet = samples::subnet();
        let without_vpc = View::default()
            .with(subnet)
            .with(instance.clone())
            .with(eni.clone());
        for view in [without_subnet, without_vpc] {
            assert_eq!(host_net(&view, &here()), HostNet::default());
            assert_eq!(topology(&view, &here()), Topology::default());
        }
        let view = view().with(instance).with(eni.clone());
        let net = vpc_of(&view);
        let found = net.by_address(eni.private_ip).map(|i| &i.id);
        assert_eq!(found, Some(&eni.id));
        assert_eq!(net.by_address(Ipv4Addr::new(172, 31, 0, 5)), None);
    }

    fn vpc_of(view: &View) -> VpcNet {
        vpc(view, &here(), &vpc_id()).unwrap()
    }

    /// The view with a record beside that can't be read.
    async fn with_unreadable<T: Resource>(record: &T) -> View {
        let db = Db::in_memory().await;
        db.transact(|_, change| {
            for vpc in view().all::<Vpc>() {
                change.create(vpc);
            }
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
        let put = Op::Put {
            key: record.key(),
            value: b"?".to_vec(),
            lease: None,
        };
        let txn = Txn {
            ops: vec![put],
            ..Txn::default()
        };
        db.store().commit(txn).await.unwrap();
        let mut changed = db.changed();
        let there = changed.wait_for(|view| view.is_unreadable(record)).await;
        let there = there.unwrap();
        View::clone(&there)
    }

    #[tokio::test]
    async fn a_vpc_is_unclear_while_something_of_it_cant_be_read() {
        let clear = view();
        let gone = VpcId::from_random(77);
        assert!(!is_unclear(&clear, &vpc_id()) && !is_unclear(&clear, &gone));
        assert!(!is_unclear_anywhere(&clear));

        let (instance, eni) = instance(4, &[], InstanceState::Running);
        for view in [
            with_unreadable(&instance).await,
            with_unreadable(&eni).await,
            with_unreadable(&samples::subnet()).await,
        ] {
            assert!(
                is_unclear(&view, &vpc_id()),
                "{:?}",
                view.unreadable().next()
            );
            assert!(!is_unclear(&view, &gone));
            assert!(is_unclear_anywhere(&view));
        }
        // A VPC that isn't there may be the one that can't be read.
        let other = Vpc {
            id: gone.clone(),
            ..samples::vpc()
        };
        let view = with_unreadable(&other).await;
        assert!(!is_unclear(&view, &vpc_id()));
        assert!(is_unclear(&view, &gone) && is_unclear_anywhere(&view));

        // What another account has says nothing of this one's.
        let theirs = Eni {
            scope: Scope::new("111122223333", "us-east-1"),
            ..eni
        };
        let view = with_unreadable(&theirs).await;
        assert!(!is_unclear(&view, &vpc_id()) && is_unclear_anywhere(&view));
        // A volume is no part of a network.
        let view = with_unreadable(&samples::volume(1)).await;
        assert!(!is_unclear(&view, &vpc_id()) && !is_unclear_anywhere(&view));
    }

    #[test]
    fn a_group_that_a_rule_names_has_its_members_that_are_here() {
        let ssh = Protocol::Tcp { from: 22, to: 22 };
        let from_2 = rule(1, Direction::Ingress, ssh, Peer::Group(group_id(2)));
        let (a, a_eni) = instance(4, &[1], InstanceState::Running);
        let (mut b, b_eni) = instance(5, &[2], InstanceState::Running);
        b.host = Some(HostId("there".into()));
        let (c, c_eni) = instance(6, &[2], InstanceState::Stopped);
        let (mut d, d_eni) = instance(7, &[2], InstanceState::Pending);
        d.host = None;
        let (e, e_eni) = instance(8, &[2], InstanceState::Running);
        let view = view()
            .with(group(1, vec![from_2]))
            .with(group(2, vec![]))
            .with(group(3, vec![]));
        let view = view
            .with(a)
            .with(a_eni)
            .with(b)
            .with(b_eni)
            .with(c)
            .with(c_eni)
            .with(d)
            .with(d_eni)
            .with(e)
            .with(e_eni);
        let topology = topology(&view, &here());
        let vpc = &topology.vpcs[&vpc_id()];
        assert_eq!(vpc.interfaces.len(), 2);
        let members: Vec<String> = vpc.groups[&group_id(2)]
            .members
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(members, ["172.31.0.8"]);
        assert!(vpc.groups[&group_id(1)].members.is_empty());
        assert!(
            !vpc.groups.contains_key(&group_id(3)),
            "nobody needs it here"
        );
        assert_eq!(vpc.resolver().to_string(), "172.31.0.2");
    }
}
