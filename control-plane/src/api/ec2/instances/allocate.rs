//! Takes addresses, each a record of its own, in the transaction of whoever
//! needs them.

use std::{collections::BTreeSet, net::Ipv4Addr};

use crate::{
    api::ApiError,
    config::Config,
    model::{EniId, PrivateAddress, PublicAddress, PublicPool, Resource as _, Subnet},
    store::{Change, View},
};

/// Takes a free address of the subnet. The search begins at a place of
/// `random`'s choice, so that an address just left is rarely met again at once.
///
/// # Errors
/// `InsufficientFreeAddressesInSubnet`.
pub fn private_address(
    view: &View,
    change: &mut Change<'_>,
    subnet: &Subnet,
    eni: &EniId,
    random: u64,
) -> Result<Ipv4Addr, ApiError> {
    let all: Vec<Ipv4Addr> = subnet.usable().collect();
    let start = usize::try_from(random % all.len().max(1) as u64).unwrap_or_default();
    for address in all[start..].iter().chain(&all[..start]) {
        let record = PrivateAddress::new(&subnet.id, *address, eni.clone());
        let free = view.get::<PrivateAddress>(record.id()).is_none()
            && !change.puts::<PrivateAddress>(record.id());
        if free {
            change.put(&record);
            return Ok(*address);
        }
    }
    Err(ApiError::new(
        "InsufficientFreeAddressesInSubnet",
        format!(
            "There are not enough free addresses in subnet '{}'.",
            subnet.id
        ),
    ))
}

/// Draws addresses from the public pool, for one transaction.
pub struct PublicAddresses {
    last: Option<Ipv4Addr>,
    taken: BTreeSet<String>,
    pool: String,
}

impl PublicAddresses {
    /// The pool as it is.
    pub fn new(view: &View, config: &Config) -> Self {
        let pool = config.public_pool.to_string();
        Self {
            last: view.get::<PublicPool>(&pool).map(|p| p.last),
            taken: view
                .all::<PublicAddress>()
                .map(|a| a.address.clone())
                .collect(),
            pool,
        }
    }

    /// Takes the address that was given back longest ago, which is near enough
    /// the next free one after the last that was given out.
    ///
    /// # Errors
    /// `InsufficientAddressCapacity`.
    pub fn take(
        &mut self,
        change: &mut Change<'_>,
        config: &Config,
        eni: &EniId,
    ) -> Result<Ipv4Addr, ApiError> {
        let last = self.last.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let after = config.public_addresses().filter(|a| *a > last);
        let before = config.public_addresses().filter(|a| *a <= last);
        let next = after
            .chain(before)
            .find(|a| !self.taken.contains(&a.to_string()))
            .ok_or_else(|| {
                ApiError::new(
                    "InsufficientAddressCapacity",
                    "There are no free addresses in the pool of public addresses.",
                )
            })?;
        self.last = Some(next);
        self.taken.insert(next.to_string());
        change.put(&PublicAddress {
            address: next.to_string(),
            eni: eni.clone(),
        });
        change.put(&PublicPool {
            pool: self.pool.clone(),
            last: next,
        });
        Ok(next)
    }
}
