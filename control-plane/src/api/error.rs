//! What a caller is told when an action is not carried out.
//!
//! The public code and message go out; what lies behind an internal failure
//! goes to the log alone.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>

use std::borrow::Cow;

use crate::{
    api::wire::{WireError, quoted},
    auth::{Denied, sigv4::AuthError},
    store::{StoreError, TransactError},
};

/// An error of the API.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// EC2's code, as `InvalidInstanceID.NotFound`.
    pub code: Cow<'static, str>,
    /// For a human reader.
    pub message: String,
    /// The HTTP status.
    pub status: u16,
    /// What is behind it: for the log, never for the caller.
    #[source]
    pub internal: Option<anyhow::Error>,
}

impl ApiError {
    /// The call would have been carried out, had it not only asked.
    pub fn dry_run() -> Self {
        let message = "Request would have succeeded, but DryRun flag is set.";
        Self::new("DryRunOperation", message).with_status(412)
    }

    /// The caller's mistake, status 400.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            status: 400,
            internal: None,
        }
    }

    /// With another HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Our own fault: `InternalError`, status 500.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        Self {
            code: "InternalError".into(),
            message: "An internal error has occurred".into(),
            status: 500,
            internal: Some(source.into()),
        }
    }

    /// `InvalidParameterValue`: a value that the parameter can't have.
    pub fn invalid_value(parameter: &str, value: &str, why: &str) -> Self {
        Self::new(
            "InvalidParameterValue",
            format!(
                "Value ({}) for parameter {parameter} is invalid. {why}",
                quoted(value)
            ),
        )
    }

    /// `MissingParameter`.
    pub fn missing(parameter: &str) -> Self {
        Self::new(
            "MissingParameter",
            format!("The request must contain the parameter {parameter}"),
        )
    }

    /// `InvalidParameterCombination`.
    pub fn combination(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterCombination", message)
    }

    /// `UnsupportedOperation`: EC2 knows it, Hearth doesn't do it (yet).
    pub fn unsupported(what: &str) -> Self {
        Self::new(
            "UnsupportedOperation",
            format!("{what} is not supported by Hearth"),
        )
    }
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        let code = match &error {
            WireError::Unknown(_) => "UnknownParameter",
            WireError::Missing(_) => "MissingParameter",
            WireError::Invalid { .. } => "InvalidParameterValue",
            WireError::Malformed(_) => "InvalidRequest",
        };
        Self::new(code, error.to_string())
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        // STS says InvalidClientTokenId where EC2 says AuthFailure: the
        // dispatch knows the service and sets that right.
        let (code, status) = match &error {
            AuthError::Missing => ("MissingAuthenticationToken", 403),
            AuthError::Incomplete(_) => ("IncompleteSignature", 400),
            AuthError::UnknownKey => ("AuthFailure", 401),
            AuthError::SessionToken => ("InvalidClientTokenId", 403),
            AuthError::Mismatch | AuthError::Scope(_) | AuthError::Payload => {
                ("SignatureDoesNotMatch", 403)
            }
            AuthError::Expired { .. } => ("RequestExpired", 400),
        };
        Self::new(code, error.to_string()).with_status(status)
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::new("UnauthorizedOperation", denied.to_string()).with_status(403)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error)
    }
}

impl From<TransactError<ApiError>> for ApiError {
    fn from(error: TransactError<ApiError>) -> Self {
        match error {
            TransactError::Refused(refusal) => refusal,
            TransactError::Contended => Self {
                code: "Unavailable".into(),
                message: "The resource is being changed by too many requests at once. Try again."
                    .into(),
                status: 503,
                internal: None,
            },
            TransactError::Store(source) => Self::internal(source),
        }
    }
}
