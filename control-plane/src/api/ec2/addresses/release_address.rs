//! `ReleaseAddress`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ReleaseAddress.html>

use serde::Deserialize;

use super::Named;
use crate::{
    api::{Action, ApiError, Ctx, Done, Targets, shared::unreferred},
    model::{AddressHolder, PublicAddress, Vpc},
    records::elastic_ip,
};

/// The action.
pub(crate) struct ReleaseAddress;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    allocation_id: Option<String>,
    public_ip: Option<String>,
    network_border_group: Option<String>,
}

impl Request {
    fn address(&self) -> Named<'_> {
        Named {
            id: self.allocation_id.as_ref(),
            address: self.public_ip.as_ref(),
        }
    }
}

impl Action for ReleaseAddress {
    const NAME: &'static str = "ReleaseAddress";
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        request.address().target(to);
        request.address().along(to);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        let region = &ctx.scope().region;
        let group = request.network_border_group.as_ref();
        if let Some(group) = group.filter(|group| *group != region) {
            let why = format!("It must be {region}.");
            return Err(ApiError::invalid_value("networkBorderGroup", group, &why));
        }
        let pool = ctx.config.public_addresses();
        ctx.transact(|view, change| {
            let elastic = request.address().find(view)?;
            // Only in a default VPC it is disassociated by that.
            if let Some(eni) = elastic_ip::interface(view, elastic) {
                if !view.get::<Vpc>(&eni.vpc).is_some_and(|vpc| vpc.is_default) {
                    let message = format!("Address {} is in use.", elastic.address);
                    return Err(ApiError::new("InvalidIPAddress.InUse", message));
                }
                elastic_ip::leave(view, change, elastic, pool);
            }
            unreferred(view, elastic)?;
            let held = view.shared::<PublicAddress>(elastic.address.to_string());
            let holder = AddressHolder::Allocation(elastic.id.clone());
            if let Some(held) = held.filter(|held| held.holder == holder) {
                change.delete(held);
            }
            change.delete_tagged(elastic);
            Ok(())
        })
        .await?;
        Ok(Done::OK)
    }
}
