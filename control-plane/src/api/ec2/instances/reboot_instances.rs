//! `RebootInstances`: the guest is asked to, and reset when it doesn't within a
//! few minutes.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RebootInstances.html>

use serde::Deserialize;

use super::{each_once, incorrect_state};
use crate::{
    api::{Action, ApiError, Ctx, Done, Targets, shared::found},
    model::{Instance, InstanceState},
};

/// The action.
pub struct RebootInstances;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instances.
    #[serde(rename = "InstanceId")]
    pub ids: Vec<String>,
}

impl Action for RebootInstances {
    const NAME: &'static str = "RebootInstances";
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>(&request.ids);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        let ids = each_once(ctx, &request.ids)?;
        ctx.each(&ids, |view, change, id| {
            let instance = found::<Instance>(view, id)?;
            if instance.state != InstanceState::Running {
                return Err(incorrect_state(instance, "rebooted"));
            }
            let reboots_asked = instance.reboots_asked + 1;
            change.update(
                instance,
                &Instance {
                    reboots_asked,
                    ..instance.clone()
                },
            );
            Ok(())
        })
        .await?;
        Ok(Done::OK)
    }
}
