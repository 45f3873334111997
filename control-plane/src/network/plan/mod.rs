//! What the network of this host should be: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::model::{
    Eni, EniId, GroupId, HostId, Instance, InstanceId, InstanceState, Rule, SecurityGroup, Subnet,
    SubnetId, Vpc, VpcId,
};

/// The full desired network of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// The VPCs that have an interface here.
    pub vpcs: BTreeMap<VpcId, VpcNet>,
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

/// The records that a topology is made from.
pub trait Records {
    /// A VPC.
    fn vpc(&self, id: &VpcId) -> Option<Vpc>;
    /// A subnet.
    fn subnet(&self, id: &SubnetId) -> Option<Subnet>;
    /// An instance.
    fn instance(&self, id: &InstanceId) -> Option<Instance>;
    /// Every security group.
    fn groups(&self) -> Vec<SecurityGroup>;
    /// Every interface.
    fn enis(&self) -> Vec<Eni>;
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

/// The network that `host` should have by these records.
pub fn topology(records: &impl Records, host: &HostId) -> Topology {
    let enis = records.enis();
    let mut vpcs: BTreeMap<VpcId, VpcNet> = BTreeMap::new();
    for eni in &enis {
        let Some(interface) = interface(records, host, eni) else {
            continue;
        };
        let Some(vpc) = records.vpc(&eni.vpc) else {
            continue;
        };
        vpcs.entry(vpc.id.clone())
            .or_insert_with(|| VpcNet {
                id: vpc.id,
                cidr: vpc.cidr,
                interfaces: BTreeMap::new(),
                groups: BTreeMap::new(),
            })
            .interfaces
            .insert(eni.id.clone(), interface);
    }
    let groups = records.groups();
    for vpc in vpcs.values_mut() {
        vpc.groups = groups_of(vpc, &groups, &enis);
    }
    Topology { vpcs }
}

fn interface(records: &impl Records, host: &HostId, eni: &Eni) -> Option<Interface> {
    let instance = records.instance(eni.instance.as_ref()?)?;
    if instance.host.as_ref() != Some(host) || !has_taps(instance.state) {
        return None;
    }
    let subnet = records.subnet(&eni.subnet)?;
    Some(Interface {
        id: eni.id.clone(),
        instance: instance.id,
        mac: eni.mac,
        private_ip: eni.private_ip,
        subnet: subnet.cidr,
        router: subnet.router(),
        public_ip: eni.public_ip,
        groups: eni.groups.iter().cloned().collect(),
        source_dest_check: eni.source_dest_check,
    })
}

/// The groups that a VPC's rules need here, with members where a rule names them.
fn groups_of(vpc: &VpcNet, all: &[SecurityGroup], enis: &[Eni]) -> BTreeMap<GroupId, Group> {
    let used: BTreeSet<&GroupId> = vpc.interfaces.values().flat_map(|i| &i.groups).collect();
    let mut groups: BTreeMap<GroupId, Group> = BTreeMap::new();
    for group in all {
        if group.vpc == vpc.id && used.contains(&group.id) {
            groups.entry(group.id.clone()).or_default().rules = group.rules.clone();
        }
    }
    let peers: BTreeSet<GroupId> = groups
        .values()
        .flat_map(|g| &g.rules)
        .filter_map(|rule| match &rule.peer {
            crate::model::Peer::Group(id) => Some(id.clone()),
            crate::model::Peer::Ipv4(_) | crate::model::Peer::Ipv6(_) => None,
        })
        .collect();
    for id in peers {
        let members = enis
            .iter()
            .filter(|eni| eni.vpc == vpc.id && eni.groups.contains(&id))
            .map(|eni| eni.private_ip)
            .collect();
        groups.entry(id).or_default().members = members;
    }
    groups
}
