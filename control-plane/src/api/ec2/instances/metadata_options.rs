//! `MetadataOptions` of a request: what a launch gives an instance, and what changes of it.

use serde::Deserialize;

use crate::{api::ApiError, model::MetadataOptions};

/// What an instance has whose launch says nothing of it.
const AT_LAUNCH: MetadataOptions = MetadataOptions {
    enabled: true,
    tokens_required: false,
    hop_limit: 1,
    tags_enabled: false,
};

/// `MetadataOptions`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Input {
    /// `optional` or `required`.
    pub http_tokens: Option<String>,
    /// 1 to 64.
    pub http_put_response_hop_limit: Option<i64>,
    /// `enabled` or `disabled`.
    pub http_endpoint: Option<String>,
    /// `enabled` or `disabled`.
    pub instance_metadata_tags: Option<String>,
}

/// Which of two words a parameter has.
fn choice(name: &str, value: Option<&str>, [no, yes]: [&str; 2]) -> Result<Option<bool>, ApiError> {
    match value {
        None => Ok(None),
        Some(word) if word == yes => Ok(Some(true)),
        Some(word) if word == no => Ok(Some(false)),
        Some(other) => Err(ApiError::invalid_value(
            name,
            other,
            &format!("It must be {no} or {yes}."),
        )),
    }
}

/// What an instance has whose launch gives this.
pub(super) fn at_launch(given: Option<&Input>) -> Result<MetadataOptions, ApiError> {
    match given {
        None => Ok(AT_LAUNCH),
        Some(given) => given.over(&AT_LAUNCH, "MetadataOptions."),
    }
}

impl Input {
    /// Whether nothing is given.
    pub(super) fn is_empty(&self) -> bool {
        self.http_tokens.is_none()
            && self.http_put_response_hop_limit.is_none()
            && self.http_endpoint.is_none()
            && self.instance_metadata_tags.is_none()
    }

    /// `options` with what is given in place of what they say; `prefix` stands before the
    /// names of these parameters.
    pub(super) fn over(
        &self,
        options: &MetadataOptions,
        prefix: &str,
    ) -> Result<MetadataOptions, ApiError> {
        let read = |name: &str, value: &Option<String>, words| {
            choice(&format!("{prefix}{name}"), value.as_deref(), words)
        };
        let switch = ["disabled", "enabled"];
        let tokens = read("HttpTokens", &self.http_tokens, ["optional", "required"])?;
        let enabled = read("HttpEndpoint", &self.http_endpoint, switch)?;
        let tags = read("InstanceMetadataTags", &self.instance_metadata_tags, switch)?;
        let hop_limit = match self.http_put_response_hop_limit {
            None => options.hop_limit,
            Some(limit) => u8::try_from(limit)
                .ok()
                .filter(|limit| (1..=64).contains(limit))
                .ok_or_else(|| {
                    let name = format!("{prefix}HttpPutResponseHopLimit");
                    ApiError::invalid_value(&name, &limit.to_string(), "It must be from 1 to 64.")
                })?,
        };
        Ok(MetadataOptions {
            enabled: enabled.unwrap_or(options.enabled),
            tokens_required: tokens.unwrap_or(options.tokens_required),
            hop_limit,
            tags_enabled: tags.unwrap_or(options.tags_enabled),
        })
    }
}
