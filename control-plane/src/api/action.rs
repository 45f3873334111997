//! How an action is declared, and what its handler is given.

use std::{future::Future, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ApiError, Console};
use crate::{
    auth::{Authorized, Caller},
    config::Config,
    model::Scope,
    store::{Change, Db, Picture, Scoped, TransactError},
};

/// One action of the API, declared once, in one file of its own, and named in
/// one line of its service's registry.
pub trait Action: Send + Sync + 'static {
    /// Its name on the wire.
    const NAME: &'static str;
    /// Its name in IAM policies, as `ec2:RunInstances`.
    const IAM: &'static str;
    /// Whether it has `DryRun`. The dispatch takes that parameter out, so that
    /// no request declares it.
    const DRY_RUN: bool = true;
    /// The parameters that EC2 knows and we don't support, by their dotted names
    /// without indices, as `NetworkInterface.Ipv6Address`. A request that has one, or
    /// anything below one, is refused by its name. What is in neither this
    /// list nor the request type is unknown; a test holds both against
    /// botocore's model.
    const UNSUPPORTED: &'static [&'static str] = &[];

    /// Its parameters: text, numbers, booleans, lists and structures under their
    /// names on the wire, with `deny_unknown_fields`.
    type Request: DeserializeOwned + Send;
    /// Its answer, of the same kinds. (It is never read back here;
    /// `Deserialize` is how a test learns its shape.)
    type Response: Serialize + DeserializeOwned + Send;

    /// The ARNs or ids that the request is about, for the authorization.
    fn resources(_request: &Self::Request) -> Vec<String> {
        Vec::new()
    }

    /// The request's `ClientToken`, where the action has one: see [`Idempotency`].
    fn client_token(_request: &Self::Request) -> Option<&str> {
        None
    }

    /// Carries it out: one transaction on the desired state, or a look at the view.
    fn handle(
        ctx: &Ctx,
        request: Self::Request,
    ) -> impl Future<Output = Result<Self::Response, ApiError>> + Send;
}

/// The answer of actions that have nothing to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// `true`.
    #[serde(rename = "return")]
    pub done: bool,
}

impl Done {
    /// The only answer there is.
    pub const OK: Self = Self { done: true };
}

/// What makes a repeated request known as such: the handler looks its key up in
/// the view and, when the call is new, writes the record in the same transaction
/// as its effect.
///
/// <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html>
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// `Action:token`.
    pub key: String,
    /// The SHA-256 of the request's parameters, hexadecimal.
    pub digest: String,
}

impl Idempotency {
    /// The error for a token that was used with other parameters.
    pub fn mismatch(&self) -> ApiError {
        ApiError::new(
            "IdempotentParameterMismatch",
            "The client token was used before with other parameters",
        )
    }
}

/// What all requests share.
#[derive(Clone)]
pub struct Cloud {
    /// The desired state.
    pub db: Db,
    /// How this Hearth is set up.
    pub config: Arc<Config>,
    /// The instances' consoles.
    pub console: Arc<dyn Console>,
}

/// What a handler knows beside its request. Only the dispatch makes one, and
/// only after the authorization.
pub struct Ctx {
    db: Db,
    scope: Scope,
    /// How this Hearth is set up.
    pub config: Arc<Config>,
    /// The instances' consoles.
    pub console: Arc<dyn Console>,
    /// Who calls.
    pub caller: Caller,
    /// The id that the answer will have.
    pub request_id: String,
    /// Where the action has a `ClientToken` and the request too.
    pub idempotency: Option<Idempotency>,
    now: Timestamp,
    _authorized: Authorized,
}

impl Ctx {
    pub(super) fn new(
        cloud: Cloud,
        caller: Caller,
        request_id: String,
        idempotency: Option<Idempotency>,
        now: Timestamp,
        authorized: Authorized,
    ) -> Self {
        Self {
            db: cloud.db,
            scope: Scope::new(caller.account.clone(), cloud.config.region.clone()),
            config: cloud.config,
            console: cloud.console,
            caller,
            request_id,
            idempotency,
            now,
            _authorized: authorized,
        }
    }

    /// When the request came in.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The caller's account, in the region that the request is for.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The newest picture of what is in that scope.
    pub fn view(&self) -> Picture {
        Picture::new(self.db.view(), self.scope.clone())
    }

    /// Decides on the view of the scope and carries the decision out, all or
    /// nothing: see [`Db::transact_at`].
    ///
    /// # Errors
    /// What the closure refuses with, or the store's failure.
    pub async fn transact<T>(
        &self,
        decide: impl FnMut(Scoped<'_>, &mut Change<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.db
            .transact_at(&self.scope, decide)
            .await
            .map_err(|error: TransactError<ApiError>| error.into())
    }

    /// A new identifier: `ctx.fresh_id(InstanceId::from_random)`.
    pub fn fresh_id<T>(&self, make: impl FnOnce(u128) -> T) -> T {
        make(rand::random())
    }

    /// The ARN of one of this account's EC2 resources: `arn("instance/i-…")`.
    pub fn arn(&self, resource: &str) -> String {
        format!(
            "arn:aws:ec2:{}:{}:{resource}",
            self.scope.region, self.scope.account
        )
    }

    /// A context for tests of handlers, without the way in.
    #[cfg(test)]
    pub fn for_tests(db: Db) -> Self {
        let config = Arc::new(Config::for_tests());
        let account = config.account_id.clone();
        let caller = Caller {
            arn: format!("arn:aws:iam::{account}:root"),
            user_id: account.clone(),
            account,
            access_key_id: "AKIATEST".into(),
        };
        let authorized = crate::auth::authorize(&caller, "test", &[]).expect("root may all");
        let now = Timestamp::UNIX_EPOCH;
        let console = Arc::new(super::console::NoConsole);
        let cloud = Cloud {
            db,
            config,
            console,
        };
        Self::new(cloud, caller, "req".into(), None, now, authorized)
    }
}
