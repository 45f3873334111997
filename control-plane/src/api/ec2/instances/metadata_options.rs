//! `MetadataOptions` of a request: what a launch gives an instance, and what changes of it.

use crate::{api::ApiError, model::MetadataOptions};

/// A request with these options among its parameters, after those of its own.
macro_rules! with_metadata_options {
    ($(#[$doc:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// `optional` or `required`.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub http_tokens: Option<String>,
            /// 1 to 64.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub http_put_response_hop_limit: Option<i64>,
            /// `enabled` or `disabled`.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub http_endpoint: Option<String>,
            /// `enabled` or `disabled`.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub instance_metadata_tags: Option<String>,
        }

        impl $name {
            /// The options that it has.
            pub(in crate::api::ec2) fn metadata_options(
                &self,
            ) -> $crate::api::ec2::instances::metadata_options::Given<'_> {
                $crate::api::ec2::instances::metadata_options::Given {
                    http_tokens: self.http_tokens.as_deref(),
                    http_put_response_hop_limit: self.http_put_response_hop_limit,
                    http_endpoint: self.http_endpoint.as_deref(),
                    instance_metadata_tags: self.instance_metadata_tags.as_deref(),
                }
            }
        }
    };
}
pub(super) use with_metadata_options;

with_metadata_options! {
    /// `MetadataOptions` of a launch.
    Input {}
}

/// The options that a request has.
#[derive(Debug, Clone, Copy)]
pub(in crate::api::ec2) struct Given<'r> {
    pub http_tokens: Option<&'r str>,
    pub http_put_response_hop_limit: Option<i64>,
    pub http_endpoint: Option<&'r str>,
    pub instance_metadata_tags: Option<&'r str>,
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
    let options = MetadataOptions::default();
    match given {
        None => Ok(options),
        Some(given) => given.metadata_options().over(&options, "MetadataOptions."),
    }
}

impl Given<'_> {
    /// Those that it has a value for, by their names.
    pub(in crate::api::ec2) fn values(self) -> impl Iterator<Item = (&'static str, String)> {
        let limit = self.http_put_response_hop_limit;
        let all = [
            ("HttpTokens", self.http_tokens.map(str::to_owned)),
            (
                "HttpPutResponseHopLimit",
                limit.map(|limit| limit.to_string()),
            ),
            ("HttpEndpoint", self.http_endpoint.map(str::to_owned)),
            (
                "InstanceMetadataTags",
                self.instance_metadata_tags.map(str::to_owned),
            ),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
    }

    /// `options` with what is given in place of what they say; `prefix` stands before the
    /// names of these parameters.
    pub(in crate::api::ec2) fn over(
        self,
        options: &MetadataOptions,
        prefix: &str,
    ) -> Result<MetadataOptions, ApiError> {
        let read = |name: &str, value: Option<&str>, words| {
            choice(&format!("{prefix}{name}"), value, words)
        };
        let switch = ["disabled", "enabled"];
        let tokens = read("HttpTokens", self.http_tokens, ["optional", "required"])?;
        let enabled = read("HttpEndpoint", self.http_endpoint, switch)?;
        let tags = read("InstanceMetadataTags", self.instance_metadata_tags, switch)?;
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
