//! `GetConsoleOutput`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetConsoleOutput.html>

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::found, wire::Time},
    model::Instance,
};

/// The action.
pub struct GetConsoleOutput;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instance.
    pub instance_id: String,
    /// Whether to ask for the newest output: it always is.
    pub latest: Option<bool>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The instance.
    pub instance_id: String,
    /// When the console was read.
    pub timestamp: Time,
    /// Its last 64 KiB, base64; left out when there are none.
    pub output: Option<String>,
}

impl Action for GetConsoleOutput {
    const NAME: &'static str = "GetConsoleOutput";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>([&request.instance_id]);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let id = {
            let view = ctx.view();
            found::<Instance>(view.view(), &request.instance_id)?
                .id
                .clone()
        };
        let tail = ctx.console.tail(&id).await.map_err(ApiError::internal)?;
        Ok(Response {
            instance_id: id.to_string(),
            timestamp: ctx.now().into(),
            output: (!tail.is_empty()).then(|| STANDARD.encode(&tail)),
        })
    }
}
