//! `StopInstances`. What can't be hibernated after all is stopped in the ordinary way,
//! and its `StateReason` says so.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StopInstances.html>

use serde::Deserialize;

use super::{StateChange, StateChanges, each_once, incorrect_state, protected, user_initiated};
use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::found},
    model::{Instance, InstanceState, Intent, StateReason},
};

/// The action.
pub struct StopInstances;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instances.
    #[serde(rename = "InstanceId")]
    pub ids: Vec<String>,
    /// Whether the guest is not even asked.
    pub force: Option<bool>,
    /// Whether its memory is kept.
    pub hibernate: Option<bool>,
}

impl Action for StopInstances {
    const NAME: &'static str = "StopInstances";
    const UNSUPPORTED: &'static [&'static str] = &["SkipOsShutdown"];
    type Request = Request;
    type Response = StateChanges;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>(&request.ids);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<StateChanges, ApiError> {
        let force = request.force.unwrap_or(false);
        let hibernate = request.hibernate.unwrap_or(false);
        if force && hibernate {
            return Err(ApiError::combination(
                "The parameters force and hibernate may not be used together",
            ));
        }
        let (intent, reason) = match (force, hibernate) {
            (true, _) => (Intent::ForceStop, StateReason::user_initiated()),
            (_, true) => (Intent::Hibernate, StateReason::user_initiated_hibernate()),
            _ => (Intent::Stop, StateReason::user_initiated()),
        };
        let ids = each_once(ctx, &request.ids)?;
        let instances_set = ctx
            .each(&ids, |view, change, id| {
                let instance = found::<Instance>(view, id)?;
                if instance.settings.stop_protected && instance.state == InstanceState::Running {
                    return Err(protected(instance, "stopped", "disableApiStop"));
                }
                if hibernate && !instance.settings.may_hibernate {
                    return Err(ApiError::new(
                        "UnsupportedHibernationConfiguration",
                        format!(
                            "The instance can't be hibernated because it was not configured at launch for hibernation: {}",
                            instance.id
                        ),
                    ));
                }
                change.makes_room();
                let after = match instance.state {
                    InstanceState::Running => {
                        change.update(
                            instance,
                            &Instance {
                                intent,
                                state: InstanceState::Stopping,
                                state_since: ctx.now(),
                                state_reason: Some(reason.clone()),
                                transition_reason: user_initiated(ctx.now()),
                                ..instance.clone()
                            },
                        );
                        InstanceState::Stopping
                    }
                    InstanceState::Stopping => {
                        if force && instance.intent != Intent::ForceStop {
                            change.update(
                                instance,
                                &Instance {
                                    intent,
                                    state_reason: Some(reason.clone()),
                                    ..instance.clone()
                                },
                            );
                        }
                        InstanceState::Stopping
                    }
                    InstanceState::Stopped => InstanceState::Stopped,
                    _ => return Err(incorrect_state(instance, "stopped")),
                };
                Ok(StateChange::new(instance, after))
            })
            .await?;
        Ok(StateChanges { instances_set })
    }
}
