//! Elastic IP addresses.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/elastic-ip-addresses-eip.html>

mod allocate_address;
mod associate_address;
mod describe_addresses;
mod disassociate_address;
mod release_address;

pub(super) use allocate_address::AllocateAddress;
pub(super) use associate_address::AssociateAddress;
pub(super) use describe_addresses::DescribeAddresses;
pub(super) use disassociate_address::DisassociateAddress;
pub(super) use release_address::ReleaseAddress;

use crate::{
    api::{ApiError, Targets, shared::found, wire::quoted},
    model::{ElasticIp, Eni},
    records::elastic_ip,
    store::Scoped,
};

/// EC2's quota of Elastic IP addresses in a region.
pub(super) const MAX_ADDRESSES: usize = 5;
/// The pool that all addresses are from, by EC2's name of its own.
const POOL: &str = "amazon";

/// How requests name an address: by its allocation, or as it is.
#[derive(Clone, Copy)]
struct Named<'r> {
    id: Option<&'r String>,
    address: Option<&'r String>,
}

impl Named<'_> {
    /// The address that is named.
    fn find<'v>(&self, view: Scoped<'v>) -> Result<&'v ElasticIp, ApiError> {
        match (self.id, self.address) {
            (Some(id), None) => found(view, id),
            (None, Some(address)) => by_address(view, address).ok_or_else(|| not_yours(address)),
            (Some(_), Some(_)) => Err(ApiError::combination(
                "You may specify public IP or allocation id, but not both in the same call",
            )),
            (None, None) => Err(ApiError::missing("AllocationId")),
        }
    }

    /// What policies are asked about.
    fn target(&self, to: &mut Targets<'_>) {
        match (self.id, self.address) {
            (Some(id), _) => to.named::<ElasticIp>([id]),
            (None, Some(address)) => match by_address(to.view(), address) {
                Some(elastic) => to.existing(elastic),
                None => to.absent::<ElasticIp>(address),
            },
            (None, None) => {}
        }
    }

    /// The interface that has it changes along with it.
    fn along(&self, to: &mut Targets<'_>) {
        let view = to.view();
        let elastic = self.find(view).ok();
        if let Some(eni) = elastic.and_then(|elastic| elastic_ip::interface(view, elastic)) {
            to.along::<Eni>(eni);
        }
    }
}

fn by_address<'v>(view: Scoped<'v>, address: &str) -> Option<&'v ElasticIp> {
    view.by(ElasticIp::BY_ADDRESS, address).next()
}

/// `AuthFailure`, for an address that the account doesn't have.
fn not_yours(address: &str) -> ApiError {
    ApiError::new(
        "AuthFailure",
        format!("The address '{}' does not belong to you.", quoted(address)),
    )
}
