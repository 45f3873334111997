//! Takes addresses, each a record of its own, in the transaction of whoever
//! needs them.

use std::net::Ipv4Addr;

use crate::{
    api::ApiError,
    config::Config,
    model::{EniId, PrivateAddress, PublicAddress, Resource as _, Subnet},
    store::{Change, Scoped},
};

/// Takes a free address of the subnet. The search begins at a place of
/// `random`'s choice, so that an address just left is rarely met again at once.
///
/// # Errors
/// `InsufficientFreeAddressesInSubnet`.
pub fn private_address(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    subnet: &Subnet,
    eni: &EniId,
    random: u64,
) -> Result<Ipv4Addr, ApiError> {
    let all: Vec<Ipv4Addr> = subnet.usable().collect();
    let start = usize::try_from(random % all.len().max(1) as u64).unwrap_or_default();
    for address in all[start..].iter().chain(&all[..start]) {
        let record = PrivateAddress::new(&subnet.scope, &subnet.id, *address, eni.clone());
        let free = view.get::<PrivateAddress>(record.id()).is_none() && !change.puts(&record);
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

/// Draws addresses from the public pool, for one transaction. From a place of
/// chance on, so that two calls at once rarely draw the same, and neither has to
/// write down where the other should go on.
pub struct PublicAddresses<'v> {
    view: Scoped<'v>,
    pool: Vec<Ipv4Addr>,
}

impl<'v> PublicAddresses<'v> {
    /// The pool as it is.
    pub fn new(view: Scoped<'v>, config: &Config) -> Self {
        let pool = config.public_addresses().collect();
        Self { view, pool }
    }

    /// Takes a free address; the one that the interface had before only if no
    /// other is free, so that stop and start really change it.
    ///
    /// # Errors
    /// `InsufficientAddressCapacity`.
    pub fn take(
        &self,
        change: &mut Change<'_>,
        eni: &EniId,
        before: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr, ApiError> {
        let record = |address: &Ipv4Addr| PublicAddress {
            address: address.to_string(),
            eni: eni.clone(),
        };
        let start = rand::random_range(0..self.pool.len().max(1));
        let (behind, ahead) = self.pool.split_at(start.min(self.pool.len()));
        let other = ahead.iter().chain(behind).filter(|a| Some(**a) != before);
        let free = other
            .chain(before.iter())
            .map(|a| (*a, record(a)))
            .find(|(_, record)| {
                self.view.shared::<PublicAddress>(&record.address).is_none() && !change.puts(record)
            });
        let (address, record) = free.ok_or_else(|| {
            ApiError::new(
                "InsufficientAddressCapacity",
                "There are no free addresses in the pool of public addresses.",
            )
        })?;
        change.put(&record);
        Ok(address)
    }
}
