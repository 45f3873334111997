//! What a caller is told when an action is not carried out.
//!
//! The public code and message go out; what lies behind an internal failure
//! goes to the log alone.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>

use std::{borrow::Cow, convert::Infallible};

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

    /// Whether the same call may be carried out a moment later: the store's disk is full
    /// or stalls, or too many change the same at once.
    pub fn may_pass(&self) -> bool {
        self.code == "Unavailable"
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

/// What a service calls the errors that all services share: those of signatures,
/// authorization and parameters. The shared code speaks EC2's words.
#[derive(Debug)]
pub struct Vocabulary(&'static [Word]);

#[derive(Debug)]
struct Word {
    /// EC2's code.
    shared: &'static str,
    code: &'static str,
    status: u16,
    /// Where the words are the service's own, too.
    message: Option<&'static str>,
}

impl Vocabulary {
    /// EC2's own.
    pub const EC2: Self = Self(&[]);

    /// What the `query` services have in common.
    ///
    /// <https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>
    pub const QUERY: Self = Self(&[
        Word {
            shared: "AuthFailure",
            code: "InvalidClientTokenId",
            status: 403,
            message: Some("The security token included in the request is invalid."),
        },
        Word::new("UnauthorizedOperation", "AccessDenied", 403),
        Word::new("InvalidParameterValue", "ValidationError", 400),
        Word::new("InvalidParameterCombination", "ValidationError", 400),
        Word::new("MissingParameter", "ValidationError", 400),
        Word::new("UnknownParameter", "ValidationError", 400),
        Word::new("NoSuchVersion", "InvalidAction", 400),
        Word::new("InternalError", "InternalFailure", 500),
        Word::new("Unavailable", "ServiceUnavailable", 503),
    ]);

    /// The error in this service's words.
    pub fn translate(&self, mut error: ApiError) -> ApiError {
        if let Some(word) = self.0.iter().find(|w| w.shared == error.code) {
            error.code = word.code.into();
            error.status = word.status;
            if let Some(message) = word.message {
                error.message = message.into();
            }
        }
        error
    }
}

impl Word {
    const fn new(shared: &'static str, code: &'static str, status: u16) -> Self {
        Self {
            shared,
            code,
            status,
            message: None,
        }
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
        match error {
            StoreError::Full => Self {
                code: "Unavailable".into(),
                message: "The disk that Hearth keeps its records on is full. Until there is room \
                          again, only calls that need none are carried out, as \
                          TerminateInstances is."
                    .into(),
                status: 503,
                internal: Some(error.into()),
            },
            StoreError::Stalled(_) => Self {
                code: "Unavailable".into(),
                message: "The disk that Hearth keeps its records on does not answer. What was \
                          asked for may be carried out yet: ask again with the same client \
                          token, or look first."
                    .into(),
                status: 503,
                internal: Some(error.into()),
            },
            other => Self::internal(other),
        }
    }
}

impl<E: Into<ApiError>> From<TransactError<E>> for ApiError {
    fn from(error: TransactError<E>) -> Self {
        match error {
            TransactError::Refused(refusal) => refusal.into(),
            TransactError::Contended => Self {
                code: "Unavailable".into(),
                message: "The resource is being changed by too many requests at once. Try again."
                    .into(),
                status: 503,
                internal: None,
            },
            TransactError::Store(source) => source.into(),
        }
    }
}

impl From<Infallible> for ApiError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_stalls_or_is_full_is_no_fault_of_the_program() {
        for error in [
            StoreError::Full,
            StoreError::Stalled(std::time::Duration::from_secs(20)),
        ] {
            let ec2 = Vocabulary::EC2.translate(error.into());
            assert_eq!((&*ec2.code, ec2.status), ("Unavailable", 503));
            assert!(ec2.may_pass() && !ApiError::from(StoreError::Closed).may_pass());
            assert!(ec2.message.contains("disk"));
            let query = Vocabulary::QUERY.translate(ec2);
            assert_eq!((&*query.code, query.status), ("ServiceUnavailable", 503));
        }
    }

    #[test]
    fn a_service_has_words_of_its_own() {
        let unknown_key = || ApiError::from(AuthError::UnknownKey);
        let ec2 = Vocabulary::EC2.translate(unknown_key());
        assert_eq!((&*ec2.code, ec2.status), ("AuthFailure", 401));
        let query = Vocabulary::QUERY.translate(unknown_key());
        assert_eq!((&*query.code, query.status), ("InvalidClientTokenId", 403));
        assert!(query.message.contains("security token"));
        let own = Vocabulary::QUERY.translate(ApiError::new("NoSuchEntity", "it"));
        assert_eq!((&*own.code, &*own.message), ("NoSuchEntity", "it"));
    }
}
