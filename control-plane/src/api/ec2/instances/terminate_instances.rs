//! `TerminateInstances`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TerminateInstances.html>

use serde::Deserialize;

use super::{StateChange, StateChanges, each_once, protected, user_initiated};
use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::found},
    model::{Instance, InstanceState, Intent, StateReason},
};

/// The action.
pub struct TerminateInstances;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instances.
    #[serde(rename = "InstanceId")]
    pub ids: Vec<String>,
}

impl Action for TerminateInstances {
    const NAME: &'static str = "TerminateInstances";
    const UNSUPPORTED: &'static [&'static str] = &["Force", "SkipOsShutdown"];
    type Request = Request;
    type Response = StateChanges;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>(&request.ids);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<StateChanges, ApiError> {
        let ids = each_once(ctx, &request.ids)?;
        let instances_set = ctx
            .each(&ids, |view, change, id| {
                let instance = found::<Instance>(view, id)?;
                if matches!(
                    instance.state,
                    InstanceState::ShuttingDown | InstanceState::Terminated
                ) {
                    return Ok(StateChange::new(instance, instance.state));
                }
                if instance.settings.protected {
                    return Err(protected(instance, "terminated", "disableApiTermination"));
                }
                if instance.settings.stop_protected {
                    return Err(protected(instance, "terminated", "disableApiStop"));
                }
                change.makes_room();
                change.update(
                    instance,
                    &Instance {
                        intent: Intent::Terminate,
                        state: InstanceState::ShuttingDown,
                        state_since: ctx.now(),
                        state_reason: Some(StateReason::user_initiated()),
                        transition_reason: user_initiated(ctx.now()),
                        ..instance.clone()
                    },
                );
                Ok(StateChange::new(instance, InstanceState::ShuttingDown))
            })
            .await?;
        Ok(StateChanges { instances_set })
    }
}
