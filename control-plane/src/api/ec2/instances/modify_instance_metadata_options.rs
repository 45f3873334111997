//! `ModifyInstanceMetadataOptions`: it applies to the next request that the instance makes.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyInstanceMetadataOptions.html>

use serde::{Deserialize, Serialize};

use super::{answer, incorrect_state, metadata_options::with_metadata_options};
use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::found},
    model::{Instance, InstanceState, condition_key::ec2},
};

/// The action.
pub struct ModifyInstanceMetadataOptions;

with_metadata_options! {
    /// Its parameters.
    Request {
        /// The instance.
        pub instance_id: String,
    }
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The instance.
    pub instance_id: String,
    /// What it has now.
    pub instance_metadata_options: answer::Metadata,
}

impl Action for ModifyInstanceMetadataOptions {
    const NAME: &'static str = "ModifyInstanceMetadataOptions";
    const UNSUPPORTED: &'static [&'static str] = &["HttpProtocolIpv6"];
    const NO_OPS: &'static [(&'static str, &'static str)] = &[("HttpProtocolIpv6", "disabled")];
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.named::<Instance>([&request.instance_id]);
        let mut names = Vec::new();
        for (name, value) in request.metadata_options().values() {
            names.push(name.to_owned());
            to.request_key_of(ec2::ATTRIBUTE, name, value);
        }
        if !names.is_empty() {
            to.request_key(ec2::ATTRIBUTE, names);
        }
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let given = request.metadata_options();
        if given.values().next().is_none() {
            return Err(ApiError::combination(
                "None of HttpTokens, HttpEndpoint, HttpPutResponseHopLimit and InstanceMetadataTags is given",
            ));
        }
        ctx.transact(|view, change| {
            let instance = found::<Instance>(view, &request.instance_id)?;
            if matches!(
                instance.state,
                InstanceState::ShuttingDown | InstanceState::Terminated
            ) {
                return Err(incorrect_state(instance, "modified"));
            }
            let mut changed = instance.clone();
            changed.settings.metadata = given.over(&instance.settings.metadata, "")?;
            change.update(instance, &changed);
            Ok(Response {
                instance_id: changed.id.to_string(),
                instance_metadata_options: answer::metadata(&changed),
            })
        })
        .await
    }
}
