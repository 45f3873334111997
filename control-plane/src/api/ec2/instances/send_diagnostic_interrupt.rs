//! `SendDiagnosticInterrupt`: a non-maskable interrupt, for a guest that answers nothing
//! else to say why, as its kernel is configured to.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_SendDiagnosticInterrupt.html>

use serde::Deserialize;

use super::incorrect_state;
use crate::{
    api::{Action, ApiError, Ctx, Done, Targets, shared::found},
    model::{Instance, InstanceState},
};

/// The action.
pub struct SendDiagnosticInterrupt;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instance.
    pub instance_id: String,
}

impl Action for SendDiagnosticInterrupt {
    const NAME: &'static str = "SendDiagnosticInterrupt";
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>([&request.instance_id]);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        // It writes nothing; a dry run ends here.
        let id = ctx
            .transact(|view, _| {
                let instance = found::<Instance>(view, &request.instance_id)?;
                match instance.state {
                    InstanceState::Running => Ok(instance.id.clone()),
                    _ => Err(incorrect_state(instance, "interrupted")),
                }
            })
            .await?;
        if let Err(error) = ctx.console.interrupt(&id).await {
            // It may have ended since.
            let view = ctx.view();
            let instance = found::<Instance>(view.view(), &request.instance_id)?;
            return Err(match instance.state {
                InstanceState::Running => ApiError::internal(error),
                _ => incorrect_state(instance, "interrupted"),
            });
        }
        Ok(Done::OK)
    }
}
