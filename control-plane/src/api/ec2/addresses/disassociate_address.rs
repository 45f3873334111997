//! `DisassociateAddress`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DisassociateAddress.html>

use serde::Deserialize;

use super::Named;
use crate::{
    api::{
        Action, ApiError, Ctx, Done, Targets,
        shared::{not_found, parse_id},
    },
    model::{AssociationId, ElasticIp},
    records::elastic_ip,
    store::Scoped,
};

/// The action.
pub(crate) struct DisassociateAddress;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    association_id: Option<String>,
    public_ip: Option<String>,
}

impl Request {
    fn find<'v>(&self, view: Scoped<'v>) -> Result<&'v ElasticIp, ApiError> {
        match (&self.association_id, &self.public_ip) {
            (Some(id), None) => {
                let id = parse_id::<AssociationId>(id)?;
                let mut found = view.by(ElasticIp::BY_ASSOCIATION, id.as_str());
                found.next().ok_or_else(|| not_found::<AssociationId>(&id))
            }
            (None, None) => Err(ApiError::missing("AssociationId")),
            (Some(_), Some(_)) => Err(ApiError::combination(
                "You may specify public IP or association id, but not both in the same call",
            )),
            (None, address) => {
                let address = address.as_ref();
                Named { id: None, address }.find(view)
            }
        }
    }
}

impl Action for DisassociateAddress {
    const NAME: &'static str = "DisassociateAddress";
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let view = to.view();
        match request.find(view) {
            Ok(elastic) => {
                to.existing(elastic);
                if let Some(eni) = elastic_ip::interface(view, elastic) {
                    to.along(eni);
                }
            }
            Err(_) => {
                let named = request
                    .association_id
                    .as_ref()
                    .or(request.public_ip.as_ref());
                if let Some(named) = named {
                    to.absent::<ElasticIp>(named);
                }
            }
        }
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        let pool = ctx.config.public_addresses();
        ctx.transact(|view, change| {
            let elastic = request.find(view)?;
            // By its address it may be asked for twice.
            if elastic.association.is_some() {
                elastic_ip::leave(view, change, elastic, pool);
                change.update(elastic, &elastic_ip::free(elastic));
            }
            Ok::<_, ApiError>(())
        })
        .await?;
        Ok(Done::OK)
    }
}
