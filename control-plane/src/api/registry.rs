//! The services and their actions.

use std::{future::Future, pin::Pin, sync::Arc};

use anyhow::anyhow;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{
    Action, ApiError, Cloud, Ctx, Idempotency, Targets, Token,
    error::Vocabulary,
    lists::{Lists, MAX_ANSWER_BYTES, is_list, is_short, makes_many},
    wire::{Form, Protocol, Shape, shape_of, xml::XmlError},
};
use crate::{
    auth::{self, Authorized, Caller, Target},
    model::{ConditionKey, Scope},
};

/// A service: all that is known of it in one place.
pub struct Service {
    /// Its name in a credential's scope, as `ec2`. Two services may share one:
    /// they differ in their version then.
    pub signing_name: &'static str,
    /// The one `Version` it has.
    pub version: &'static str,
    /// How it speaks.
    pub protocol: Protocol,
    /// The XML namespace of its answers.
    pub namespace: &'static str,
    /// Whether its actions have `DryRun`, but for those that say not. The dispatch takes that parameter out, so
    /// that no request declares it.
    pub dry_run: bool,
    /// What it calls the errors that come before its actions.
    pub errors: &'static Vocabulary,
    /// What policies call it and its own.
    pub iam: Iam,
    /// botocore's name for it, for the tests that hold it against that model.
    pub botocore: &'static str,
    /// The names of all operations that AWS has, one a line: what is among them
    /// and not in `actions` is not there *yet*.
    pub known: &'static str,
    /// What is there.
    pub actions: Vec<Registered>,
}

/// What policies call a service, and those of its condition keys that all its actions
/// have: services differ in which they have beside those of `aws:`.
///
/// <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>
#[derive(Debug, Clone, Copy)]
pub struct Iam {
    /// Its part of an ARN (`arn:aws:ec2:…`) and of its actions' names (`ec2:RunInstances`).
    pub name: &'static str,
    /// The action that policies are asked about, too, where something is tagged as it is
    /// made, as `CreateTags`.
    pub tag_action: Option<&'static str>,
    /// The key of the action that makes what is tagged, as `ec2:CreateAction`.
    pub create_action_key: Option<ConditionKey>,
    /// The key of the region that is asked, as `ec2:Region`.
    pub region_key: Option<ConditionKey>,
    /// The key of a resource's tags, as `ec2:ResourceTag`.
    pub resource_tag_key: Option<ConditionKey>,
}

impl Iam {
    /// Of a service that has none but the keys of `aws:`, and tags nothing.
    pub const fn plain(name: &'static str) -> Self {
        Self {
            name,
            tag_action: None,
            create_action_key: None,
            region_key: None,
            resource_tag_key: None,
        }
    }

    /// The name of its action, as `ec2:RunInstances`.
    pub fn action(&self, action: &str) -> String {
        format!("{}:{action}", self.name)
    }
}

impl Service {
    /// The action of this name.
    ///
    /// # Errors
    /// `InvalidAction`, which tells what AWS doesn't have from what Hearth doesn't.
    pub fn find(&self, name: &str) -> Result<&Registered, ApiError> {
        if let Some(action) = self.actions.iter().find(|a| a.name == name) {
            return Ok(action);
        }
        let message = if self.known.lines().any(|known| known == name) {
            format!("The action {name} is not implemented by Hearth")
        } else {
            let name = super::wire::quoted(name);
            format!("The action {name} is not valid for this web service.")
        };
        Err(ApiError::new("InvalidAction", message))
    }
}

/// Every service.
pub fn services() -> Vec<Service> {
    // The first is whose protocol unsigned callers are told off in.
    vec![super::ec2::service(), super::sts::service()]
}

/// The services with this signing name, in the registry's order.
pub fn signed_for<'s>(
    services: &'s [Service],
    signing_name: &str,
) -> impl Iterator<Item = &'s Service> {
    services
        .iter()
        .filter(move |service| service.signing_name == signing_name)
}

/// What one call brings along, before it is authorized.
pub struct Call {
    /// What all requests share.
    pub cloud: Cloud,
    /// Who calls.
    pub caller: Caller,
    /// The answer's id.
    pub request_id: String,
    /// When it came in.
    pub now: Timestamp,
    /// Its parameters, without `Action` and `Version`.
    pub form: Form,
    /// Where it is made if it is a long list.
    pub(super) lists: Arc<Lists>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Answered, ApiError>> + Send>>;

/// What a call comes to.
pub(super) struct Answered {
    /// The answer, as the protocol writes it.
    pub(super) body: String,
    /// Whether it can be had again, since nothing was done for it.
    pub(super) again: bool,
}

/// An action as the dispatch sees it.
pub struct Registered {
    /// Its name.
    pub name: &'static str,
    /// Whether it has a `ClientToken`: its request declares one.
    pub idempotent: bool,
    /// Whether it has `DryRun` where its service has.
    pub dry_run: bool,
    /// What is refused by name.
    pub unsupported: &'static [&'static str],
    /// The shape of its request.
    pub request: fn() -> Result<Shape, String>,
    /// The shape of its answer.
    pub response: fn() -> Result<Shape, String>,
    call: fn(&Service, bool, Call) -> Answer,
}

impl Registered {
    /// Carries out one call of it.
    pub(super) fn call(&self, service: &Service, call: Call) -> Answer {
        (self.call)(service, self.idempotent, call)
    }
}

/// The registry's line for `A`.
pub fn action<A: Action>() -> Registered {
    // Where that can't be known, its handler has to show that it thinks of it.
    let request = shape_of::<A::Request>();
    let idempotent = request.map_or(true, |shape| shape.has("ClientToken"));
    Registered {
        name: A::NAME,
        idempotent,
        dry_run: A::DRY_RUN,
        unsupported: A::UNSUPPORTED,
        request: shape_of::<A::Request>,
        response: shape_of::<A::Response>,
        call: |service, idempotent, call| {
            let spoken = Spoken {
                protocol: service.protocol,
                namespace: service.namespace,
                iam: service.iam,
                dry_run: service.dry_run && A::DRY_RUN,
            };
            Box::pin(run::<A>(spoken, idempotent, call))
        },
    }
}

/// How an action's service speaks.
#[derive(Clone, Copy)]
struct Spoken {
    protocol: Protocol,
    namespace: &'static str,
    iam: Iam,
    dry_run: bool,
}

/// Typed decode → resolve → authorize → handle (which a dry run leaves before it changes
/// anything) → encode.
async fn run<A: Action>(
    spoken: Spoken,
    idempotent: bool,
    mut call: Call,
) -> Result<Answered, ApiError> {
    let Spoken {
        protocol,
        namespace,
        iam,
        dry_run,
    } = spoken;
    let dry_run = dry_run && take_dry_run(&mut call.form)?;
    call.form.drop_no_ops(A::NO_OPS);
    if let Some(name) = call.form.find_any(A::UNSUPPORTED) {
        return Err(ApiError::unsupported(&format!("The parameter {name}")));
    }
    let request: A::Request = protocol.decode(&call.form)?;

    let authorized = authorize::<A>(&call, iam, &request)?;
    let fields = call.form.fields();
    let token = match fields.iter().find(|(name, _)| name == "ClientToken") {
        Some((_, token)) => Token::Given(idempotency(A::NAME, token, &call.form)?),
        None if idempotent => Token::Omitted,
        None => Token::Undeclared,
    };

    let scope = Scope::new(call.caller.account.clone(), call.caller.region.clone());
    let long = is_list(A::NAME) && !is_short(call.cloud.db.view().at(&scope), &call.form);
    let long_answer = !is_list(A::NAME) && makes_many(&call.form);
    let request_id = call.request_id.clone();
    let mut ctx = Ctx::new(
        call.cloud,
        call.caller,
        call.request_id,
        token,
        dry_run,
        call.now,
        authorized,
    );
    if long_answer {
        ctx = ctx.with_long_answer(Arc::clone(&call.lists));
    }
    // What has been done is answered; a list may be asked for in pages.
    let most = if is_list(A::NAME) {
        MAX_ANSWER_BYTES
    } else {
        usize::MAX
    };
    let encode = move |response: A::Response| {
        let encoded = protocol.encode(namespace, A::NAME, &request_id, &response, most);
        encoded.map_err(|error| match error {
            XmlError::TooLong => ApiError::new(
                "InvalidRequest",
                "The answer is too long: ask for pages of it, with MaxResults",
            ),
            XmlError::Unfit(_) => ApiError::internal(error),
        })
    };
    let handle = async move {
        let response = A::handle(&ctx, request).await?;
        if dry_run {
            return Err(ApiError::dry_run());
        }
        Ok((response, ctx.is_repeated()))
    };
    let (lists, account) = (&call.lists, &scope.account);
    if long {
        let answer = async move { encode(handle.await?.0) };
        let body = lists.make(account, answer).await??;
        return Ok(Answered { body, again: true });
    }
    let (response, repeated) = handle.await?;
    let again = is_list(A::NAME) || repeated;
    let body = match long_answer {
        true => {
            lists
                .make(account, async move { encode(response) })
                .await??
        }
        false => encode(response)?,
    };
    Ok(Answered { body, again })
}

/// Asks the policies about all that the request is about.
fn authorize<A: Action>(
    call: &Call,
    iam: Iam,
    request: &A::Request,
) -> Result<Authorized, ApiError> {
    let Call { cloud, caller, .. } = call;
    let picture = cloud.db.view();
    let scope = Scope::new(caller.account.clone(), caller.region.clone());
    let mut targets = Targets::new(picture.at(&scope), iam, A::NAME);
    A::targets(request, &mut targets);
    let Targets {
        asked,
        any,
        tagged,
        along,
        keys,
        ..
    } = targets;
    let may = |action: &str, targets: &[Target]| {
        let action = iam.action(action);
        auth::authorize(&*cloud.policies, caller, &action, targets, &keys)
    };
    if any && !asked.is_empty() {
        may(A::NAME, &[])?;
    }
    // Of a request that names none of those that it must, `*` is asked, too.
    let authorized = may(A::NAME, &asked)?;
    if !tagged.is_empty() {
        let tag_action = iam.tag_action.ok_or_else(|| {
            let (service, action) = (iam.name, A::NAME);
            ApiError::internal(anyhow!(
                "{action} tags, and {service} has no action for that"
            ))
        })?;
        may(tag_action, &tagged)?;
    }
    Ok(authorized.along(along))
}

fn take_dry_run(form: &mut Form) -> Result<bool, ApiError> {
    match form.take("DryRun")? {
        None => Ok(false),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(text) => Err(ApiError::invalid_value(
            "DryRun",
            &text,
            "It must be true or false.",
        )),
    }
}

/// A token's longest form, in characters.
const MAX_TOKEN: usize = 64;

fn idempotency(action: &str, token: &str, form: &Form) -> Result<Idempotency, ApiError> {
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        let why = format!("It must be 1 to {MAX_TOKEN} printable ASCII characters.");
        return Err(ApiError::invalid_value("ClientToken", token, &why));
    }
    let mut hash = Sha256::new();
    for (name, value) in form.fields() {
        // With their lengths, so that no two forms are one text.
        hash.update(format!("{}:{name}={}:", name.len(), value.len()));
        hash.update(value);
    }
    Ok(Idempotency {
        key: format!("{action}:{token}"),
        digest: hex::encode(hash.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn each_folder_of_a_service_is_registered() {
        let services = services();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
        let mut there = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let Ok(known) = fs::read_to_string(path.join("operations.txt")) else {
                continue;
            };
            let registered = services.iter().any(|service| service.known == known);
            assert!(registered, "{} is not in services()", path.display());
            there += 1;
        }
        assert_eq!(there, services.len());
    }
}
