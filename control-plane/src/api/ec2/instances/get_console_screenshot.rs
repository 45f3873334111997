//! `GetConsoleScreenshot`: an instance's console as a person at its screen would see it.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetConsoleScreenshot.html>

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{incorrect_state, screen};
use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::found},
    model::{Instance, InstanceState},
};

/// So many pictures are drawn at a time: each takes a processor for some milliseconds.
static DRAWN: Semaphore = Semaphore::const_new(2);

/// The action.
pub struct GetConsoleScreenshot;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instance.
    pub instance_id: String,
    /// Whether to press a key first, so that the screen is on: a serial one always is.
    pub wake_up: Option<bool>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The instance.
    pub instance_id: String,
    /// The picture, a JPEG, base64.
    pub image_data: String,
}

impl Action for GetConsoleScreenshot {
    const NAME: &'static str = "GetConsoleScreenshot";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>([&request.instance_id]);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let id = {
            let view = ctx.view();
            let instance = found::<Instance>(view.view(), &request.instance_id)?;
            if instance.state != InstanceState::Running {
                return Err(incorrect_state(instance, "looked at"));
            }
            instance.id.clone()
        };
        let tail = ctx.console.tail(&id).await.map_err(ApiError::internal)?;
        let turn = DRAWN.acquire().await.map_err(ApiError::internal)?;
        let picture = tokio::task::spawn_blocking(move || {
            // Kept until it is drawn, also when the caller has gone.
            let _turn = turn;
            screen::picture(&tail)
        });
        let picture = picture.await.map_err(ApiError::internal)?;
        Ok(Response {
            instance_id: id.to_string(),
            image_data: STANDARD.encode(picture.map_err(ApiError::internal)?),
        })
    }
}
