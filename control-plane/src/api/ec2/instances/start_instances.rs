//! `StartInstances`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StartInstances.html>

use serde::Deserialize;

use super::{
    StateChange, StateChanges, each_once, incorrect_state, insufficient_addresses,
    insufficient_capacity, interfaces_along,
};
use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::found},
    model::{AddressHolder, Eni, Host, Instance, InstanceState, Intent},
    records::launch::free_public,
    scheduler::{Demand, Ledger},
    store::Scoped,
};

/// The action.
pub struct StartInstances;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instances.
    #[serde(rename = "InstanceId")]
    pub ids: Vec<String>,
}

impl Action for StartInstances {
    const NAME: &'static str = "StartInstances";
    const UNSUPPORTED: &'static [&'static str] = &["AdditionalInfo"];
    type Request = Request;
    type Response = StateChanges;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>(&request.ids);
        interfaces_along(to, &request.ids);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<StateChanges, ApiError> {
        let pool = ctx.config.public_addresses();
        let ids = each_once(ctx, &request.ids)?;
        let free = |view: Scoped<'_>| Ledger::of(view.whole());
        let instances_set = ctx
            .each_with(&ids, free, |view, change, ledger, id| {
                let instance = found::<Instance>(view, id)?;
                match instance.state {
                    InstanceState::Stopped => {}
                    InstanceState::Pending | InstanceState::Running => {
                        return Ok(StateChange::new(instance, instance.state));
                    }
                    _ => return Err(incorrect_state(instance, "started")),
                }
                // Its volume is on its host, and so is its place.
                if let Some(id) = &instance.host {
                    let demand = Demand::of_instance(view.whole(), instance);
                    if let Err(missing) = ledger.place_on(id, &demand) {
                        return Err(insufficient_capacity(
                            &instance.instance_type,
                            &instance.zone,
                            &missing,
                        ));
                    }
                    // Two placements on one host can't both commit.
                    change.touch::<Host>(&id.0);
                }
                for eni in instance.enis.iter().filter_map(|id| view.get::<Eni>(id)) {
                    if eni.auto_public_ip && eni.public_ip.is_none() {
                        let (before, holder) =
                            (eni.last_public_ip, AddressHolder::Interface(eni.id.clone()));
                        let taken = free_public(view, change, holder, pool, before);
                        let (address, record) = taken.ok_or_else(insufficient_addresses)?;
                        change.create(&record);
                        change.update(
                            eni,
                            &Eni {
                                public_ip: Some(address),
                                ..eni.clone()
                            },
                        );
                    }
                }
                change.update(
                    instance,
                    &Instance {
                        intent: Intent::Run,
                        state: InstanceState::Pending,
                        state_since: ctx.now(),
                        state_reason: None,
                        transition_reason: String::new(),
                        launched_at: ctx.now(),
                        boots: instance.boots + 1,
                        ..instance.clone()
                    },
                );
                Ok(StateChange::new(instance, InstanceState::Pending))
            })
            .await?;
        Ok(StateChanges { instances_set })
    }
}
