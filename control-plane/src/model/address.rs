//! Allocations that must be unique across the cloud, each a record of its own,
//! so that the store's compare-and-swap alone keeps two takers apart; and hosts.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{EniId, Resource, SubnetId};

/// The name of a host: what the controllers that touch a host are keyed by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(pub String);

impl std::fmt::Display for HostId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
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
}

impl Resource for Host {
    const KIND: &'static str = "hosts";
    fn id(&self) -> &str {
        &self.id.0
    }
}

/// Where the pool of public addresses was last drawn from. The next one is
/// looked for after it, so that an address that was given back is the last to
/// be given out again: stop and start really change the address, and nobody
/// meets a stranger at an address just left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicPool {
    /// The pool, as `203.0.113.0/24`.
    pub pool: String,
    /// The address last given out.
    pub last: Ipv4Addr,
}

impl Resource for PublicPool {
    const KIND: &'static str = "public-pools";
    // The network's slash is fine in a key: only the first two parts are told apart.
    fn id(&self) -> &str {
        &self.pool
    }
}

/// A public address in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicAddress {
    /// The address, as text: the store's key.
    pub address: String,
    /// The interface that has it.
    pub eni: EniId,
}

impl Resource for PublicAddress {
    const KIND: &'static str = "public-addresses";
    fn id(&self) -> &str {
        &self.address
    }
}

/// A subnet's address in use; keyed `subnet-…:172.31.0.4`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateAddress {
    /// The store's key.
    pub key: String,
    /// The interface that has it.
    pub eni: EniId,
}

impl PrivateAddress {
    /// The record of `address` in `subnet`, taken by `eni`.
    pub fn new(subnet: &SubnetId, address: Ipv4Addr, eni: EniId) -> Self {
        Self {
            key: format!("{subnet}:{address}"),
            eni,
        }
    }
}

impl Resource for PrivateAddress {
    const KIND: &'static str = "private-addresses";
    fn id(&self) -> &str {
        &self.key
    }
}
