//! Who calls, and what they may.
//!
//! - [`sigv4`] — the signature of a request, verified: pure.
//! - [`credentials`] — the access keys there are.
//! - [`authenticate`] puts the two together; [`authorize`] decides, and hands
//!   out the [`Authorized`] that the dispatch needs to call a handler at all.

pub mod credentials;
pub mod sigv4;

use jiff::Timestamp;

use credentials::CredentialStore;
use sigv4::{AuthError, Incoming};

/// Whoever signed the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The account's number.
    pub account: String,
    /// Its ARN, as GetCallerIdentity shows it.
    pub arn: String,
    /// Its unique id.
    pub user_id: String,
    /// The key that signed.
    pub access_key_id: String,
}

/// Verifies a request's signature; answers who signed it and for which service.
///
/// # Errors
/// Whatever keeps the signature from being good.
pub fn authenticate(
    request: &Incoming<'_>,
    credentials: &CredentialStore,
    region: &str,
    now: Timestamp,
) -> Result<(Caller, String), AuthError> {
    let claim = sigv4::parse(request)?;
    if claim.has_session_token {
        return Err(AuthError::SessionToken);
    }
    // The secret of a key that doesn't exist is never compared with anything,
    // so the time this takes tells no more than the answer does.
    let key = credentials
        .find(&claim.access_key_id)
        .ok_or(AuthError::UnknownKey)?;
    sigv4::verify(&claim, request, &key.secret_access_key, region, now)?;
    let caller = Caller {
        account: credentials.account.clone(),
        arn: format!("arn:aws:iam::{}:root", credentials.account),
        user_id: credentials.account.clone(),
        access_key_id: claim.access_key_id.clone(),
    };
    Ok((caller, claim.service))
}

/// The proof that somebody was allowed something. Only [`authorize`] makes it.
#[derive(Debug)]
pub struct Authorized(());

/// Why an action is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("You are not authorized to perform this operation. {caller} may not {action}")]
pub struct Denied {
    /// Whose request it was.
    pub caller: String,
    /// The IAM name of the action.
    pub action: String,
}

/// Decides whether a caller may do `action` to `resources`. The account's root
/// is the one principal so far, and may do everything.
///
/// # Errors
/// When it may not.
pub fn authorize(
    caller: &Caller,
    action: &str,
    resources: &[String],
) -> Result<Authorized, Denied> {
    if caller.arn.ends_with(":root") {
        return Ok(Authorized(()));
    }
    tracing::warn!(caller = caller.arn, action, ?resources, "denied");
    Err(Denied {
        caller: caller.arn.clone(),
        action: action.to_owned(),
    })
}
