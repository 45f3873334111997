//! Who calls, and what they may.
//!
//! - [`sigv4`] — the signature of a request, verified: pure.
//! - [`credentials`] — the accounts and their access keys.
//! - [`authenticate`] puts the two together; [`authorize`] decides, and hands
//!   out the [`Authorized`] that the dispatch needs to call a handler at all.

pub mod credentials;
pub mod sigv4;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::model::Arn;
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
    pub arn: Arn,
    /// Its unique id.
    pub user_id: String,
    /// The key that signed.
    pub access_key_id: String,
}

/// Verifies a request's signature; answers who signed it and what it says of
/// itself. `regions` are the names of those there are.
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
        arn: Arn::root(&account),
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

/// Condition keys with their values, as `ec2:InstanceType`.
pub type Keys = BTreeMap<String, Vec<String>>;

/// A resource that somebody wants to do something to, or to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub arn: Arn,
    /// What it says to the conditions of policies.
    pub keys: Keys,
}

/// What somebody wants to do: all that a policy decides on.
#[derive(Debug, Clone, Copy)]
pub struct AuthorizationRequest<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// What, by its name in IAM, as `ec2:RunInstances`.
    pub action: &'a str,
    /// To what; `None` for what is about no resource, which policies call `*`.
    pub target: Option<&'a Target>,
    /// What the request says to the conditions of policies.
    pub keys: &'a Keys,
}

/// Who may do what.
pub trait Policies: Send + Sync {
    /// Whether this is allowed.
    fn allow(&self, request: &AuthorizationRequest<'_>) -> bool;
}

/// The account's root is the one principal so far, and may do everything.
#[derive(Debug, Clone, Copy)]
pub struct RootOnly;

impl Policies for RootOnly {
    fn allow(&self, request: &AuthorizationRequest<'_>) -> bool {
        request.caller.arn == Arn::root(&request.caller.account)
    }
}

/// The proof that somebody was allowed something to certain resources. Only
/// [`authorize`] makes it.
#[derive(Debug)]
pub struct Authorized {
    action: String,
    arns: BTreeSet<Arn>,
    #[cfg(test)]
    all: bool,
}

impl Authorized {
    /// What was allowed, by its name in IAM.
    pub fn action(&self) -> &str {
        &self.action
    }

    /// Whether a resource may be written: one that there is by its own name, a new one
    /// where any was asked for.
    pub fn covers(&self, arn: &Arn, exists: bool) -> bool {
        #[cfg(test)]
        if self.all {
            return true;
        }
        self.arns.contains(arn) || (!exists && self.arns.contains(&arn.any()))
    }

    /// What is changed along with that, and no policy is asked about.
    #[must_use]
    pub fn along(mut self, arns: impl IntoIterator<Item = Arn>) -> Self {
        self.arns.extend(arns);
        self
    }

    /// For tests of handlers: everything.
    #[cfg(test)]
    pub fn for_tests() -> Self {
        Self {
            action: "ec2:Test".to_owned(),
            arns: BTreeSet::new(),
            all: true,
        }
    }
}

/// Why an action is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("You are not authorized to perform this operation. {caller} may not {action}")]
pub struct Denied {
    /// Whose request it was.
    pub caller: String,
    /// The IAM name of the action.
    pub action: String,
}

/// Decides whether a caller may do `action` to each of `targets`.
///
/// # Errors
/// When it may not.
pub fn authorize(
    policies: &dyn Policies,
    caller: &Caller,
    action: &str,
    targets: &[Target],
    keys: &Keys,
) -> Result<Authorized, Denied> {
    let request = |target| AuthorizationRequest {
        caller,
        action,
        target,
        keys,
    };
    let denied = if targets.is_empty() {
        !policies.allow(&request(None))
    } else {
        targets
            .iter()
            .any(|target| !policies.allow(&request(Some(target))))
    };
    if denied {
        tracing::warn!(caller = %caller.arn, action, "denied");
        return Err(Denied {
            caller: caller.arn.to_string(),
            action: action.to_owned(),
        });
    }
    Ok(Authorized {
        action: action.to_owned(),
        arns: targets.iter().map(|target| target.arn.clone()).collect(),
        #[cfg(test)]
        all: false,
    })
}

#[cfg(test)]
mod tests;
