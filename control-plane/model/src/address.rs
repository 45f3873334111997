//! Allocations that must be unique across the cloud, each a record of its own,
//! so that the store's compare-and-swap alone keeps two takers apart; and hosts.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    AllocationId, Arn, Authority, Described as _, ElasticIp, Eni, EniId, Quota, Scope, SubnetId,
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

/// What a public address is in use for, and so until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressHolder {
    /// An interface drew it, and has it for as long as its instance runs.
    Interface(EniId),
    /// It is an Elastic IP address, until it is released, whichever interface it is
    /// associated with and in whatever state the instance of that is.
    ///
    /// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/elastic-ip-addresses-eip.html>
    Allocation(AllocationId),
}

impl AddressHolder {
    /// The ARN of what has the address, in this scope.
    fn arn(&self, scope: &Scope) -> Arn {
        match self {
            Self::Interface(id) => Eni::arn_at(scope, id.as_str()),
            Self::Allocation(id) => ElasticIp::arn_at(scope, id.as_str()),
        }
    }
}

/// A public address in use: there is no record of one that is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicAddress {
    /// The address, as text: the store's key.
    pub address: String,
    /// What has it.
    pub holder: AddressHolder,
    /// Whose that is. The oldest records don't say; controllers alone write those.
    #[serde(default)]
    pub owner: Option<Scope>,
}

shared! {
    PublicAddress {
        kind: "public-addresses",
        key: |this| &this.address,
        owner: |this| this.owner.as_ref(),
        authority: |this| match &this.owner {
            Some(owner) => Authority::Of(this.holder.arn(owner)),
            None => Authority::Closed("it doesn't say whose it is"),
        },
        version: 2, upgrade: PublicAddress::upgrade,
    }
}

impl PublicAddress {
    /// In the first form all were of interfaces, in a field `eni`.
    fn upgrade(version: u32, mut record: Value) -> Result<Value, String> {
        let fields = record.as_object_mut().filter(|_| version == 1);
        let fields = fields.ok_or_else(|| format!("it has no version {version}"))?;
        let eni = fields.remove("eni").ok_or("it has no eni")?;
        fields.insert("holder".to_owned(), json!({ "interface": eni }));
        Ok(record)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Resource as _, samples};

    #[test]
    fn an_address_says_what_has_it_and_who_may_write_it() {
        let scope = samples::scope();
        let held = |holder| PublicAddress {
            address: "203.0.113.1".into(),
            holder,
            owner: Some(scope.clone()),
        };
        for (holder, form, resource) in [
            (
                AddressHolder::Interface(EniId::from_random(1)),
                json!({ "interface": "eni-00000000000000001" }),
                "network-interface/eni-00000000000000001",
            ),
            (
                AddressHolder::Allocation(AllocationId::from_random(1)),
                json!({ "allocation": "eipalloc-00000000000000001" }),
                "elastic-ip/eipalloc-00000000000000001",
            ),
        ] {
            let address = held(holder);
            assert_eq!(serde_json::to_value(&address).unwrap()["holder"], form);
            let Authority::Of(arn) = address.authority() else {
                panic!("{:?}", address.authority())
            };
            assert!(arn.to_string().ends_with(resource), "{arn}");
        }
    }

    #[test]
    fn the_first_form_knew_interfaces_only() {
        let old = json!({ "address": "203.0.113.1", "eni": "eni-00000000000000001" });
        let new: PublicAddress =
            serde_json::from_value(PublicAddress::upgrade(1, old.clone()).unwrap()).unwrap();
        assert_eq!(new.holder, AddressHolder::Interface(EniId::from_random(1)));
        assert_eq!(new.owner, None);
        PublicAddress::upgrade(0, old).unwrap_err();
        PublicAddress::upgrade(1, json!({})).unwrap_err();
        PublicAddress::upgrade(1, json!(1)).unwrap_err();
    }
}
