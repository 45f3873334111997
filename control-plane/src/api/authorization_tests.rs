//! What is asked of policies, and that nothing passes by them.

mod client_tokens;
mod policies;
mod writes;

use std::sync::{Arc, Mutex};

use super::{
    Action, ApiError, Cloud, Ctx, Done, Targets,
    ec2::instances::tests::{RUN, cloud_on},
    registry::{Call, Iam, Service, action},
    wire::Form,
};
use crate::{
    auth::{self, AuthorizationRequest, Caller, Keys, Policies, RootOnly},
    config::Config,
    model::{
        AddressHolder, Arn, ConditionKey, DefaultVpcMark, Described as _, Eni, GroupId, GroupName,
        Host, Instance, PrivateAddress, PublicAddress, RuleId, Scope, SecurityGroup, Subnet, Tags,
        Volume, samples,
    },
    store::{Change, Db, Scoped},
};

/// Denies what a closure says, and keeps what it was asked.
struct Denying<F> {
    deny: F,
    asked: Mutex<Vec<String>>,
}

impl<F: Fn(&AuthorizationRequest<'_>) -> bool + Send + Sync> Policies for Denying<F> {
    fn allow(&self, request: &AuthorizationRequest<'_>) -> bool {
        let target = request.target.map(|target| target.arn.to_string());
        let target = target.unwrap_or_else(|| "*".into());
        let kept = target.rsplit(':').next().unwrap_or_default();
        self.asked
            .lock()
            .unwrap()
            .push(format!("{} {kept}", request.action));
        !(self.deny)(request)
    }
}

/// Denies where a condition key of the target or of the request has this value.
fn with(key: &'static str, value: &'static str) -> impl Fn(&AuthorizationRequest<'_>) -> bool {
    move |request| {
        let of_target = request.target.and_then(|target| target.keys.get(key));
        let mut values = of_target.into_iter().chain(request.keys.get(key)).flatten();
        values.any(|v| v == value)
    }
}

/// Denies what is of this kind.
fn of_kind(kind: &'static str) -> impl Fn(&AuthorizationRequest<'_>) -> bool {
    move |request| request.target.is_some_and(|target| target.arn.kind == kind)
}

async fn ask(
    service: &Service,
    db: &Db,
    policies: Arc<dyn Policies>,
    action: &str,
    parameters: &str,
) -> Result<String, ApiError> {
    let config = Config::for_tests();
    let caller = Caller {
        account: config.account_id.clone(),
        region: config.region.clone(),
        arn: Arn::root(&config.account_id),
        user_id: config.account_id.clone(),
        access_key_id: "AKIATEST".into(),
    };
    let cloud = Cloud {
        db: db.clone(),
        config: Arc::new(config),
        console: Arc::new(super::console::NoConsole),
        policies,
    };
    let call = Call {
        cloud,
        caller,
        request_id: "req".into(),
        now: jiff::Timestamp::UNIX_EPOCH,
        form: Form::parse(parameters.as_bytes())?,
        lists: Arc::default(),
    };
    let answered = service.find(action)?.call(service, call).await?;
    Ok(answered.body)
}

/// The code that a call is refused with, which changes nothing.
async fn refused(
    service: &Service,
    db: &Db,
    policies: impl Policies + 'static,
    action: &str,
    parameters: &str,
) -> String {
    let revision = db.view().revision();
    let refused = ask(service, db, Arc::new(policies), action, parameters).await;
    assert_eq!(db.view().revision(), revision, "{action}");
    refused.unwrap_err().code.into_owned()
}

fn deny<F: Fn(&AuthorizationRequest<'_>) -> bool + Send + Sync>(deny: F) -> Denying<F> {
    Denying {
        deny,
        asked: Mutex::default(),
    }
}
