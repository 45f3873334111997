//! Nothing is written by an action with a `ClientToken` before it has seen to that, nor
//! by a dry run, where the service has those.

use super::*;
use crate::api::{Idempotency, ec2, sts};

#[tokio::test]
async fn a_client_token_is_kept_before_anything_is_written() {
    let db = Db::in_memory().await;
    let token = Idempotency {
        key: "Test:a".into(),
        digest: "d".into(),
    };
    let ctx = cloud_on(db.clone()).await.with_token(token);
    let revision = db.view().revision();
    let write = async || {
        let instance = Instance {
            scope: ctx.scope().clone(),
            ..samples::instance(1)
        };
        ctx.transact(|_, change| {
            change.put_tags(&instance, [].into());
            Ok(())
        })
        .await
    };
    let refused = write().await.unwrap_err();
    assert!(
        format!("{:?}", refused.internal).contains("has a ClientToken"),
        "{refused:?}"
    );
    assert_eq!(db.view().revision(), revision);
    ctx.once(|_, _| Ok("made".into())).await.unwrap();
    write().await.unwrap();
}

/// An action whose request has a `ClientToken`, and whose handler doesn't think of it.
struct Forgetful;

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ForgetfulRequest {
    many: bool,
    #[serde(rename = "ClientToken")]
    _client_token: Option<String>,
}

impl Action for Forgetful {
    const NAME: &'static str = "Forgetful";
    type Request = ForgetfulRequest;
    type Response = Done;

    fn targets(_: &ForgetfulRequest, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: ForgetfulRequest) -> Result<Done, ApiError> {
        let put = |change: &mut Change<'_>| {
            change.overwrite(&Instance {
                scope: ctx.scope().clone(),
                ..samples::instance(1)
            });
        };
        if request.many {
            let written = ctx.each(&[()], |_, change, ()| {
                put(change);
                Ok(())
            });
            written.await?;
        } else {
            let written = ctx.transact(|_, change| {
                put(change);
                Ok(())
            });
            written.await?;
        }
        Ok(Done::OK)
    }
}

#[tokio::test]
async fn a_handler_that_forgets_its_client_token_writes_nothing() {
    let db = Db::in_memory().await;
    let service = Service {
        actions: vec![action::<Forgetful>()],
        ..ec2::service()
    };
    assert!(service.actions[0].idempotent);
    let revision = db.view().revision();
    // Also for a caller who doesn't use it, and a dry run.
    for parameters in [
        "Many=false&ClientToken=a",
        "Many=true&ClientToken=a",
        "Many=false",
        "Many=true",
        "Many=true&DryRun=true",
    ] {
        let refused = ask(&service, &db, Arc::new(RootOnly), "Forgetful", parameters).await;
        let refused = format!("{:?}", refused.unwrap_err().internal);
        assert!(
            refused.contains("ec2:Forgetful has a ClientToken"),
            "{refused}"
        );
        assert_eq!(db.view().revision(), revision, "{parameters}");
    }
}

/// An action of EC2's without `DryRun`.
struct Wet;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct WetRequest {}

impl Action for Wet {
    const NAME: &'static str = "Wet";
    const DRY_RUN: bool = false;
    type Request = WetRequest;
    type Response = Done;

    fn targets(_: &WetRequest, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(_: &Ctx, _: WetRequest) -> Result<Done, ApiError> {
        Ok(Done::OK)
    }
}

#[tokio::test]
async fn a_service_has_dry_runs_or_does_not_know_the_parameter() {
    let db = Db::in_memory().await;
    cloud_on(db.clone()).await;
    let wet = Service {
        actions: vec![action::<Wet>()],
        ..ec2::service()
    };
    for (service, action, code) in [
        (ec2::service(), "DescribeVpcs", "DryRunOperation"),
        (wet, "Wet", "UnknownParameter"),
        (sts::service(), "GetCallerIdentity", "UnknownParameter"),
    ] {
        let policies: Arc<dyn Policies> = Arc::new(RootOnly);
        let asked = ask(&service, &db, policies.clone(), action, "DryRun=true").await;
        assert_eq!(asked.unwrap_err().code, code, "{action}");
        ask(&service, &db, policies, action, "").await.unwrap();
    }
}
