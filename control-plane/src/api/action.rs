//! How an action is declared, and what its handler is given.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::anyhow;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ApiError, Console, Targets, lists::Lists};
use crate::{
    auth::{Authorized, Caller, Policies},
    config::Config,
    model::{Arn, Authority, ClientToken, Described, Part, Scope},
    store::{Change, Db, OwnedView, Scoped, TransactError},
};

/// One action of the API, declared once, in one file of its own, and named in
/// one line of its service's registry.
pub trait Action: Send + Sync + 'static {
    /// Its name on the wire.
    const NAME: &'static str;
    /// The parameters that EC2 knows and we don't support, by their dotted names
    /// without indices, as `NetworkInterface.Ipv6Address`. A request that has one, or
    /// anything below one, is refused by its name. What is in neither this
    /// list nor the request type is unknown; a test holds both against
    /// botocore's model.
    const UNSUPPORTED: &'static [&'static str] = &[];

    /// What changes nothing here, by dotted name without indices and value: tools
    /// that fill in EC2's defaults send it. It is taken out of the request
    /// before anything else looks, also where the parameter is else unsupported.
    const NO_OPS: &'static [(&'static str, &'static str)] = &[];

    /// Whether it has `DryRun` where its service has: some forty of EC2's have not,
    /// `ModifySubnetAttribute` among them. The test against botocore's model knows which.
    const DRY_RUN: bool = true;

    /// Its parameters; where there is a `ClientToken` among them, its handler makes what
    /// it makes in [`Ctx::once`]. Text, numbers, booleans, lists and structures under their
    /// names on the wire, with `deny_unknown_fields`.
    type Request: DeserializeOwned + Send;
    /// Its answer, of the same kinds. (It is never read back here;
    /// `Deserialize` is how a test learns its shape.)
    type Response: Serialize + DeserializeOwned + Send + 'static;

    /// Resolves what the request is about, for the authorization: the resources and
    /// condition keys that AWS's table has for the action. Its handler can write those
    /// and what belongs to them. [`Targets::any`] says that it is about none by itself.
    fn targets(request: &Self::Request, to: &mut Targets<'_>);

    /// Carries it out: transactions on the desired state, or a look at the view.
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

/// What an action's `ClientToken` asks of its handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// The action has none.
    Undeclared,
    /// The action has one, and the request leaves it out: each call stands for itself.
    Omitted,
    /// A repeated call is to be known as such.
    Given(Idempotency),
}

/// What makes a repeated request known as such: see [`Ctx::once`].
///
/// <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html>
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// `Action:token`.
    pub key: String,
    /// The SHA-256 of the request's parameters, hexadecimal.
    pub digest: String,
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
    /// Who may do what.
    pub policies: Arc<dyn Policies>,
}

/// How many resources' steps go in one transaction at most: the more there are, the
/// sooner others' changes come between.
const STEPS: usize = 25;

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
    token: Token,
    /// Whether [`Ctx::once`] has seen to it.
    token_kept: AtomicBool,
    /// Whether the token's call was made before.
    repeated: AtomicBool,
    /// Whether the call only asks what would come of it.
    dry_run: bool,
    now: Timestamp,
    authorized: Authorized,
    /// Where the answer is made, if it is long.
    beside: Option<Arc<Lists>>,
}

/// What a call made, now or at an earlier call with the same token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// The id of what was made.
    pub made: String,
    /// Whether it was an earlier call that made it.
    pub repeated: bool,
}

impl Ctx {
    pub(super) fn new(
        cloud: Cloud,
        caller: Caller,
        request_id: String,
        token: Token,
        dry_run: bool,
        now: Timestamp,
        authorized: Authorized,
    ) -> Self {
        Self {
            dry_run,
            db: cloud.db,
            scope: Scope::new(caller.account.clone(), caller.region.clone()),
            config: cloud.config,
            console: cloud.console,
            caller,
            request_id,
            token,
            token_kept: AtomicBool::new(false),
            repeated: AtomicBool::new(false),
            now,
            authorized,
            beside: None,
        }
    }

    /// The same context for a call whose answer is long.
    #[must_use]
    pub(super) fn with_long_answer(mut self, lists: Arc<Lists>) -> Self {
        self.beside = Some(lists);
        self
    }

    /// What is answered of the newest view by an action that answers with what it makes,
    /// as many as there may be: where that is much work, it is done
    /// [beside the runtime](super::lists).
    ///
    /// # Errors
    /// What `make` refuses with.
    pub async fn answer<T: Send + 'static>(
        &self,
        make: impl FnOnce(Scoped<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let view = self.view();
        match &self.beside {
            Some(lists) => {
                let made = async move { make(view.view()) };
                lists.make(&self.caller.account, made).await?
            }
            None => make(view.view()),
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
    pub fn view(&self) -> OwnedView {
        OwnedView::new(self.db.view(), self.scope.clone())
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
        self.check_token()?;
        self.write(decide).await
    }

    async fn write<T>(
        &self,
        mut decide: impl FnMut(Scoped<'_>, &mut Change<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let mut decide = |view: Scoped<'_>, change: &mut Change<'_>| {
            let decided = decide(view, change)?;
            self.check(change)?;
            Ok(decided)
        };
        if self.dry_run {
            // All that the call would be refused for it is refused for here.
            let view = self.db.view();
            self.db.try_out(&view, &self.scope, &mut decide)?;
            return Err(ApiError::dry_run());
        }
        self.db
            .transact_at(&self.scope, decide)
            .await
            .map_err(|error: TransactError<ApiError>| error.into())
    }

    /// Nothing is written before [`once`](Self::once), where the action has a
    /// `ClientToken`: also without one in the request, so that no handler goes wrong
    /// only for those who send it.
    fn check_token(&self) -> Result<(), ApiError> {
        if self.token == Token::Undeclared || self.token_kept.load(Ordering::Relaxed) {
            return Ok(());
        }
        let action = self.authorized.action();
        Err(ApiError::internal(anyhow!(
            "{action} has a ClientToken, and writes before it has seen to that"
        )))
    }

    /// Nothing is written that the caller was not asked about, nor what belongs to it.
    fn check(&self, change: &Change<'_>) -> Result<(), ApiError> {
        let action = self.authorized.action();
        for (record, authority, exists) in change.authorities() {
            let refused = match authority {
                Authority::Own(arn) | Authority::Of(arn) => {
                    let covered = self.authorized.covers(arn, exists);
                    (!covered).then(|| format!("was not authorized for {arn}"))
                }
                Authority::Free(_) => None,
                Authority::Closed(why) => Some(format!("may not: {why}")),
            };
            if let Some(why) = refused {
                let message = anyhow!("{action} would write {record}, and {why}");
                return Err(ApiError::internal(message));
            }
        }
        Ok(())
    }

    /// [`transact`](Self::transact) for calls on many resources: `step` is taken for
    /// each of `items`. Few are one transaction. Those that one can't carry are several;
    /// then all are tried out first, so that a call that must be refused for one of
    /// them is refused before it has changed another.
    ///
    /// # Errors
    /// As `transact`.
    pub async fn each<I: Sync, T>(
        &self,
        items: &[I],
        step: impl Fn(Scoped<'_>, &mut Change<'_>, &I) -> Result<T, ApiError>,
    ) -> Result<Vec<T>, ApiError> {
        let step = |view: Scoped<'_>, change: &mut Change<'_>, (): &mut (), item: &I| {
            step(view, change, item)
        };
        self.each_with(items, |_| (), step).await
    }

    /// [`each`](Self::each), with something that the steps of one transaction share:
    /// `begin` makes it of the view.
    ///
    /// # Errors
    /// As `transact`.
    pub async fn each_with<I: Sync, S, T>(
        &self,
        items: &[I],
        begin: impl Fn(Scoped<'_>) -> S,
        step: impl Fn(Scoped<'_>, &mut Change<'_>, &mut S, &I) -> Result<T, ApiError>,
    ) -> Result<Vec<T>, ApiError> {
        let all = |items: &[I], view: Scoped<'_>, change: &mut Change<'_>| {
            let mut shared = begin(view);
            let steps = items
                .iter()
                .map(|item| step(view, change, &mut shared, item));
            steps.collect::<Result<Vec<T>, ApiError>>()
        };
        self.check_token()?;
        let mut out = Vec::with_capacity(items.len());
        while out.len() < items.len() {
            let (first, rest) = (out.is_empty(), &items[out.len()..]);
            let taken = self.transact(|view, change| {
                let (mut shared, mut done) = (begin(view), Vec::new());
                for item in rest.iter().take(STEPS) {
                    match change.attempt(|change| step(view, change, &mut shared, item)) {
                        Some(one) => done.push(one?),
                        None => break,
                    }
                }
                if first && done.len() < rest.len() {
                    let mut all = |view: Scoped<'_>, change: &mut Change<'_>| {
                        all(items, view, change)?;
                        self.check(change)
                    };
                    self.db.try_out(&self.db.view(), &self.scope, &mut all)?;
                }
                Ok(done)
            });
            out.extend(taken.await?);
        }
        Ok(out)
    }

    /// [`transact`](Self::transact) for what a `ClientToken` makes idempotent: a
    /// call with a token that was used before, with the same parameters, makes
    /// nothing and has what was made then. `make` answers the id of what it makes.
    ///
    /// # Errors
    /// `IdempotentParameterMismatch` for a token that was used with other
    /// parameters; and as `transact`.
    pub async fn once(
        &self,
        mut make: impl FnMut(Scoped<'_>, &mut Change<'_>) -> Result<String, ApiError>,
    ) -> Result<Once, ApiError> {
        let once = self.write(|view, change| {
            let Token::Given(Idempotency { key, digest }) = &self.token else {
                let made = make(view, change)?;
                return Ok(Once {
                    made,
                    repeated: false,
                });
            };
            match view.get::<ClientToken>(key) {
                Some(token) if token.digest == *digest => Ok(Once {
                    made: token.made.clone(),
                    repeated: true,
                }),
                Some(_) => Err(ApiError::new(
                    "IdempotentParameterMismatch",
                    "The client token was used before with other parameters",
                )),
                None => {
                    let made = make(view, change)?;
                    change.create(&ClientToken {
                        scope: self.scope.clone(),
                        key: key.clone(),
                        digest: digest.clone(),
                        made: made.clone(),
                        created: self.now,
                    });
                    Ok(Once {
                        made,
                        repeated: false,
                    })
                }
            }
        });
        let once = once.await?;
        self.token_kept.store(true, Ordering::Relaxed);
        self.repeated.store(once.repeated, Ordering::Relaxed);
        Ok(once)
    }

    /// Whether this call did nothing, since it repeats an earlier one.
    pub(super) fn is_repeated(&self) -> bool {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Makes the call's token as if it had never been used, when what it made is taken
    /// back: asked again, it makes another.
    pub fn forget(&self, view: Scoped<'_>, change: &mut Change<'_>, made: &str) {
        if let Token::Given(Idempotency { key, .. }) = &self.token
            && let Some(token) = view.get::<ClientToken>(key).filter(|t| t.made == made)
        {
            change.delete(token);
        }
    }

    /// Whether the call has a token that still stands for this.
    pub fn stands_for(&self, view: Scoped<'_>, made: &str) -> bool {
        let Token::Given(Idempotency { key, .. }) = &self.token else {
            return false;
        };
        view.get::<ClientToken>(key).is_some_and(|t| t.made == made)
    }

    /// A new identifier: `ctx.fresh_id(InstanceId::from_random)`.
    pub fn fresh_id<T>(&self, make: impl FnOnce(u128) -> T) -> T {
        make(rand::random())
    }

    /// The ARN of a resource of the caller's that is being made.
    pub fn arn_of<T: Described>(&self, id: &T::Id) -> Arn {
        T::arn_at(&self.scope, id.as_ref())
    }

    /// The same of a part of one, which is no record by itself.
    pub fn arn_of_part<P: Part>(&self, id: &P) -> Arn {
        P::arn_at(&self.scope, id.as_ref())
    }

    /// A context for tests of handlers, without the way in.
    #[cfg(test)]
    pub fn for_tests(db: Db) -> Self {
        let config = Config::for_tests();
        Self::for_tests_at(db, &Scope::new(config.account_id, config.region))
    }

    /// The same for a caller elsewhere.
    #[cfg(test)]
    pub fn for_tests_at(db: Db, scope: &Scope) -> Self {
        let config = Arc::new(Config::for_tests());
        let account = scope.account.clone();
        let caller = Caller {
            arn: Arn::root(&account),
            user_id: account.clone(),
            account,
            region: scope.region.clone(),
            access_key_id: "AKIATEST".into(),
        };
        let authorized = Authorized::for_tests();
        let now = Timestamp::UNIX_EPOCH;
        let console = Arc::new(super::console::NoConsole);
        let cloud = Cloud {
            db,
            config,
            console,
            policies: Arc::new(crate::auth::RootOnly),
        };
        let token = Token::Undeclared;
        Self::new(cloud, caller, "req".into(), token, false, now, authorized)
    }

    /// The same context for a call that may do so much.
    #[cfg(test)]
    #[must_use]
    pub fn with_authorized(mut self, authorized: Authorized) -> Self {
        self.authorized = authorized;
        self
    }

    /// The same context for a call with a `ClientToken`.
    #[cfg(test)]
    #[must_use]
    pub fn with_token(mut self, idempotency: Idempotency) -> Self {
        self.token = Token::Given(idempotency);
        self
    }

    /// The same context for a call that only asks.
    #[cfg(test)]
    #[must_use]
    pub fn dry(mut self) -> Self {
        self.dry_run = true;
        self
    }
}
