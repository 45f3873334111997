//! Who calls, and what they may.
//!
//! - [`sigv4`] — the signature of a request, verified: pure.
//! - [`credentials`] — the accounts and their access keys.
//! - [`authenticate`] puts the two together; [`authorize`] decides, and hands
//!   out the [`Authorized`] that the dispatch needs to call a handler at all.

pub mod credentials;
pub mod sigv4;

use jiff::Timestamp;

use credentials::CredentialStore;
use sigv4::{AuthError, Claim, Incoming};

/// Whoever signed the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The account's number.
    pub account: String,
    /// The region that the request is for: its credential's scope, which is one of
    /// the configured regions.
    pub region: String,
    /// Its ARN, as GetCallerIdentity shows it.
    pub arn: String,
    /// Its unique id.
    pub user_id: String,
    /// The key that signed.
    pub access_key_id: String,
}

/// Verifies a request's signature; answers who signed it and what it says of
/// itself. /// `regions` are the names of those there are.
///
/// # Errors
/// Whatever keeps the signature from being good.
pub fn authenticate(
    request: &Incoming<'_>,
    credentials: &CredentialStore,
    regions: &[&str],
    now: Timestamp,
) -> Result<(Caller, Claim), AuthError> {
    let claim = sigv4::parse(request)?;
    let (account, secret) = key_of(&claim, credentials)?;
    sigv4::verify(&claim, request, &secret, regions, now)?;
    let caller = Caller {
        region: claim.region().to_owned(),
        arn: format!("arn:aws:iam::{account}:root"),
        user_id: account.clone(),
        account,
        access_key_id: claim.access_key_id.clone(),
    };
    Ok((caller, claim))
}

/// Reads who is said to have signed, from a request's head alone.
///
/// # Errors
/// When nobody is, or with a key that doesn't exist.
pub fn claim(request: &Incoming<'_>, credentials: &CredentialStore) -> Result<(), AuthError> {
    let claim = sigv4::parse(request)?;
    key_of(&claim, credentials).map(|_| ())
}

/// The account and the secret of the key that is said to have signed.
fn key_of(claim: &Claim, credentials: &CredentialStore) -> Result<(String, String), AuthError> {
    if claim.has_session_token {
        return Err(AuthError::SessionToken);
    }
    // The secret of a key that doesn't exist is never compared with anything,
    // so the time this takes tells no more than the answer does.
    credentials
        .find(&claim.access_key_id)
        .ok_or(AuthError::UnknownKey)
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
