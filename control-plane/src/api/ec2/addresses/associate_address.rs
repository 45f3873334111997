//! `AssociateAddress`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AssociateAddress.html>

use serde::{Deserialize, Serialize};

use super::Named;
use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::found},
    model::{AssociationId, ElasticIp, Eni, Instance, InstanceState},
    records::elastic_ip,
    store::Scoped,
};

/// The action.
pub(crate) struct AssociateAddress;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    allocation_id: Option<String>,
    public_ip: Option<String>,
    instance_id: Option<String>,
    network_interface_id: Option<String>,
    private_ip_address: Option<String>,
    /// Unless it is false, an address is taken from whatever has it.
    allow_reassociation: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    association_id: String,
}

impl Request {
    fn address(&self) -> Named<'_> {
        Named {
            id: self.allocation_id.as_ref(),
            address: self.public_ip.as_ref(),
        }
    }

    /// The interface that it is to be led to.
    fn interface<'v>(&self, view: Scoped<'v>) -> Result<&'v Eni, ApiError> {
        let eni = match (&self.instance_id, &self.network_interface_id) {
            (Some(id), None) => {
                let instance = found::<Instance>(view, id)?;
                let primary = instance.enis.first().and_then(|id| view.get::<Eni>(id));
                primary.ok_or_else(|| not_valid(instance))?
            }
            (None, Some(id)) => found::<Eni>(view, id)?,
            (Some(_), Some(_)) => {
                return Err(ApiError::combination(
                    "You may specify instance id or network interface id, but not both in the same call",
                ));
            }
            (None, None) => return Err(ApiError::missing("InstanceId")),
        };
        if let Some(private) = &self.private_ip_address
            && *private != eni.private_ip.to_string()
        {
            let why = format!("It is no private address of {}.", eni.id);
            return Err(ApiError::invalid_value("privateIpAddress", private, &why));
        }
        Ok(eni)
    }
}

/// That its instance is in a state in which an address can come to it.
fn ready(view: Scoped<'_>, eni: &Eni) -> Result<(), ApiError> {
    let instance = eni.instance.as_ref();
    match instance.and_then(|id| view.get::<Instance>(id)) {
        Some(instance) => match instance.state {
            InstanceState::Running | InstanceState::Stopping | InstanceState::Stopped => Ok(()),
            _ => Err(not_valid(instance)),
        },
        None => Ok(()),
    }
}

fn not_valid(instance: &Instance) -> ApiError {
    ApiError::new(
        "InvalidInstanceID",
        format!(
            "The {} instance '{}' is not in a valid state for this operation.",
            instance.state.name(),
            instance.id
        ),
    )
}

impl Action for AssociateAddress {
    const NAME: &'static str = "AssociateAddress";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        request.address().target(to);
        to.named::<Instance>(&request.instance_id);
        to.named::<Eni>(&request.network_interface_id);
        request.address().along(to);
        let view = to.view();
        if let Ok(eni) = request.interface(view) {
            to.along::<Eni>(eni);
            if let Some(replaced) = elastic_ip::at(view, eni) {
                to.along::<ElasticIp>(replaced);
            }
        }
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let id = ctx.fresh_id(AssociationId::from_random);
        let pool = ctx.config.public_addresses();
        let association = ctx
            .transact(|view, change| {
                let elastic = request.address().find(view)?;
                let eni = request.interface(view)?;
                if let Some(there) = &elastic.association {
                    if there.eni == eni.id {
                        return Ok(there.id.clone());
                    }
                    if request.allow_reassociation == Some(false) {
                        return Err(ApiError::new(
                            "Resource.AlreadyAssociated",
                            format!(
                                "resource {} is already associated with associate-id {}",
                                elastic.id, there.id
                            ),
                        ));
                    }
                }
                ready(view, eni)?;
                elastic_ip::associate(view, change, elastic, eni, id.clone(), pool);
                Ok::<_, ApiError>(id.clone())
            })
            .await?;
        Ok(Response {
            association_id: association.to_string(),
        })
    }
}
