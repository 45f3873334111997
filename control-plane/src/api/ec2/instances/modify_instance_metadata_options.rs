//! `ModifyInstanceMetadataOptions`: it applies to the next request that the instance makes.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyInstanceMetadataOptions.html>

use serde::{Deserialize, Serialize};

use super::{answer, incorrect_state, metadata_options::Input};
use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::found},
    model::{Instance, InstanceState, condition_key::ec2},
};

/// The action.
pub struct ModifyInstanceMetadataOptions;

/// Its parameters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Request {
    /// The instance.
    pub instance_id: String,
    /// `optional` or `required`.
    pub http_tokens: Option<String>,
    /// 1 to 64.
    pub http_put_response_hop_limit: Option<i64>,
    /// `enabled` or `disabled`.
    pub http_endpoint: Option<String>,
    /// `enabled` or `disabled`.
    pub instance_metadata_tags: Option<String>,
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
        let limit = request.http_put_response_hop_limit;
        let given = [
            ("HttpTokens", request.http_tokens.clone()),
            (
                "HttpPutResponseHopLimit",
                limit.map(|limit| limit.to_string()),
            ),
            ("HttpEndpoint", request.http_endpoint.clone()),
            (
                "InstanceMetadataTags",
                request.instance_metadata_tags.clone(),
            ),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        let mut names = Vec::new();
        for (name, value) in given {
            names.push(name.to_owned());
            to.request_key_of(ec2::ATTRIBUTE, name, value);
        }
        if !names.is_empty() {
            to.request_key(ec2::ATTRIBUTE, names);
        }
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let given = Input {
            http_tokens: request.http_tokens,
            http_put_response_hop_limit: request.http_put_response_hop_limit,
            http_endpoint: request.http_endpoint,
            instance_metadata_tags: request.instance_metadata_tags,
        };
        if given.is_empty() {
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
            let changed = Instance {
                metadata: given.over(&instance.metadata, "")?,
                ..instance.clone()
            };
            change.update(instance, &changed);
            Ok(Response {
                instance_id: changed.id.to_string(),
                instance_metadata_options: answer::metadata(&changed),
            })
        })
        .await
    }
}
