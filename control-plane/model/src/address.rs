//! Allocations that must be unique across the cloud, each a record of its own,
//! so that the store's compare-and-swap alone keeps two takers apart; and hosts.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Authority, Described as _, Eni, EniId, Quota, Scope, SubnetId,
    resource::{regional, shared},
};

/// The name of a host: what the controllers that touch a host are keyed by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(pub String);

impl std::fmt::Display for HostId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The public addresses that interfaces may have, one after the other. A pool may have
/// a million: it is counted and looked into, never written out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicPool {
    first: u32,
    count: u32,
}

impl PublicPool {
    /// Those from `first` on, before `end`.
    pub fn new(first: Ipv4Addr, end: Ipv4Addr) -> Self {
        let (first, end) = (u32::from(first), u32::from(end));
        Self {
            first,
            count: end.saturating_sub(first),
        }
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.count
    }

    /// The `n`th of these, 0 the first.
    pub fn at(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first.saturating_add(n))
    }
}

/// The hosts that one process acts for: this machine, or all of a simulation. What
/// is on another is never touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(Arc<BTreeSet<HostId>>);

impl Hosts {
    /// This one.
    pub fn one(id: HostId) -> Self {
        [id].into_iter().collect()
    }

    /// Whether something with this host is among them.
    pub fn have(&self, host: Option<&HostId>) -> bool {
        host.is_some_and(|host| self.0.contains(host))
    }

    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = &HostId> {
        self.0.iter()
    }
}

impl FromIterator<HostId> for Hosts {
    fn from_iter<I: IntoIterator<Item = HostId>>(ids: I) -> Self {
        Self(Arc::new(ids.into_iter().collect()))
    }
}

/// A host and what it can give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub id: HostId,
    /// Its availability zone.
    pub zone: String,
    /// How many vCPUs may be handed out (cores times the overcommit ratio).
    pub vcpus: u32,
    /// How much memory may be handed out, in MiB.
    pub memory_mib: u64,
    /// How much disk may be promised to volumes, in GiB: what they take already,
    /// and what is free beyond the host's reserve times the overcommit ratio. 0
    /// while the reserve is touched: nothing new is taken then.
    #[serde(default)]
    pub disk_gib: u64,
}

impl Host {
    /// All that it can give.
    pub fn quota(&self) -> Quota {
        Quota {
            vcpus: u64::from(self.vcpus),
            memory_mib: self.memory_mib,
            disk_gib: self.disk_gib,
        }
    }
}

shared! {
    Host {
        kind: "hosts",
        key: |this| &this.id.0,
        owner: |_this| None,
        authority: |_this| Authority::Closed("what a host can give is measured, not asked for"),
    }
}

/// A public address in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicAddress {
    /// The address, as text: the store's key.
    pub address: String,
    /// The interface that has it.
    pub eni: EniId,
    /// Whose the interface is. The oldest records don't say; controllers alone write
    /// those.
    #[serde(default)]
    pub owner: Option<Scope>,
}

shared! {
    PublicAddress {
        kind: "public-addresses",
        key: |this| &this.address,
        owner: |this| this.owner.as_ref(),
        authority: |this| match &this.owner {
            Some(owner) => Authority::Of(Eni::arn_at(owner, this.eni.as_str())),
            None => Authority::Closed("it doesn't say whose it is"),
        },
    }
}

/// A subnet's address in use; keyed `subnet-…:172.31.0.4`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateAddress {
    /// The account and region that it is in.
    pub scope: Scope,
    /// The store's key.
    pub key: String,
    /// The interface that has it.
    pub eni: EniId,
}

impl PrivateAddress {
    /// The record of `address` in `subnet`, taken by `eni`.
    pub fn new(scope: &Scope, subnet: &SubnetId, address: Ipv4Addr, eni: EniId) -> Self {
        Self {
            scope: scope.clone(),
            key: format!("{subnet}:{address}"),
            eni,
        }
    }
}

regional! {
    PrivateAddress {
        kind: "private-addresses",
        key: key,
        indexes: [],
        authority: |this| Authority::Of(Eni::arn_at(&this.scope, this.eni.as_str())),
    }
}
