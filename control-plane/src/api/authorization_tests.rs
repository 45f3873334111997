//! What is asked of policies, and that nothing passes by them.

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
    service.find(action)?.call(service, call).await
}

#[tokio::test]
async fn what_is_denied_changes_nothing() {
    let db = Db::in_memory().await;
    cloud_on(db.clone()).await;
    let ec2 = super::ec2::service();
    let root: Arc<dyn Policies> = Arc::new(RootOnly);
    let tagged = format!(
        "{RUN}&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=team\
         &TagSpecification.1.Tag.1.Value=red"
    );
    ask(&ec2, &db, root, "RunInstances", &tagged).await.unwrap();
    let view = db.view();
    let instance = view.all::<Instance>().next().unwrap();
    let volume = view.all::<Volume>().next().unwrap().id.clone();
    let (id, arn) = (instance.id.clone(), instance.arn());
    let one = format!("InstanceId.1={id}");
    let denied: [(&str, String, Arc<dyn Policies>); 7] = [
        // By the resource's own name.
        ("TerminateInstances", one.clone(), {
            Arc::new(deny(move |w| w.target.is_some_and(|t| t.arn == arn)))
        }),
        // By its kind, of what is yet to be made.
        (
            "RunInstances",
            tagged.clone(),
            Arc::new(deny(|w| w.target.is_some_and(|t| t.arn.kind == "volume"))),
        ),
        // By its tags, its type and its place.
        (
            "StopInstances",
            one.clone(),
            Arc::new(deny(with("ec2:ResourceTag/team", "red"))),
        ),
        (
            "RebootInstances",
            one,
            Arc::new(deny(with("ec2:InstanceType", "t2.micro"))),
        ),
        (
            "CreateTags",
            format!("ResourceId.1={volume}&Tag.1.Key=a&Tag.1.Value=b"),
            Arc::new(deny(with("ec2:VolumeType", "gp3"))),
        ),
        // By the tags that it would have.
        (
            "RunInstances",
            tagged.clone(),
            Arc::new(deny(with("aws:RequestTag/team", "red"))),
        ),
        // Tagging it, where making it is allowed.
        (
            "RunInstances",
            tagged,
            Arc::new(deny(|w| {
                w.action == "ec2:CreateTags" && with("ec2:CreateAction", "RunInstances")(w)
            })),
        ),
    ];
    let revision = db.view().revision();
    for (action, parameters, policies) in denied {
        let error = ask(&ec2, &db, policies, action, &parameters)
            .await
            .unwrap_err();
        assert_eq!(
            (error.code.as_ref(), error.status),
            ("UnauthorizedOperation", 403),
            "{action}"
        );
        assert_eq!(db.view().revision(), revision, "{action}");
    }
    let sts = super::sts::service();
    let nobody = Arc::new(deny(|_| true));
    let error = ask(&sts, &db, nobody, "GetCallerIdentity", "")
        .await
        .unwrap_err();
    assert_eq!(sts.errors.translate(error).code, "AccessDenied");
}

#[tokio::test]
async fn policies_see_the_condition_keys_that_ec2_documents() {
    let db = Db::in_memory().await;
    cloud_on(db.clone()).await;
    let ec2 = super::ec2::service();
    let root: Arc<dyn Policies> = Arc::new(RootOnly);
    ask(&ec2, &db, root.clone(), "RunInstances", RUN)
        .await
        .unwrap();
    let group = db.view().all::<SecurityGroup>().next().unwrap().id.clone();
    let rule = format!(
        "GroupId={group}&IpProtocol=tcp&FromPort=22&ToPort=22&CidrIp=0.0.0.0/0\
         &TagSpecification.1.ResourceType=security-group-rule\
         &TagSpecification.1.Tag.1.Key=team&TagSpecification.1.Tag.1.Value=red"
    );
    let authorize = "AuthorizeSecurityGroupIngress";
    let no_tags = |w: &AuthorizationRequest<'_>| {
        w.action == "ec2:CreateTags" && of_kind("security-group-rule")(w)
    };
    let denied = refused(&ec2, &db, deny(no_tags), authorize, &rule).await;
    assert_eq!(denied, "UnauthorizedOperation");
    ask(&ec2, &db, root, authorize, &rule).await.unwrap();
    let view = db.view();
    let instance = view.all::<Instance>().next().unwrap();
    let subnet = view.all::<Subnet>().next().unwrap().arn().to_string();
    let subnet: &'static str = subnet.leak();
    let group = view
        .at(&instance.scope)
        .get::<SecurityGroup>(&group)
        .unwrap();
    let rule = &group.rules.iter().last().unwrap().id;
    let tag_rule = format!("ResourceId.1={rule}&Tag.1.Key=a&Tag.1.Value=b");
    let modify = |what: &str| format!("InstanceId={}&{what}", instance.id);
    let one = format!("InstanceId.1={}", instance.id);
    let key_pair = "KeyName=mine".to_owned();
    for (action, parameters, (key, value)) in [
        // What is left out has its default.
        (
            "RunInstances",
            RUN.to_owned(),
            ("ec2:MetadataHttpTokens", "optional"),
        ),
        ("RunInstances", RUN.to_owned(), ("ec2:VolumeType", "gp3")),
        ("RunInstances", RUN.to_owned(), ("ec2:Encrypted", "false")),
        (
            "RunInstances",
            RUN.to_owned(),
            ("ec2:AssociatePublicIpAddress", "true"),
        ),
        ("RunInstances", RUN.to_owned(), ("ec2:Subnet", subnet)),
        ("CreateKeyPair", key_pair, ("ec2:KeyPairType", "rsa")),
        // What is there has what it was made with.
        (
            "StopInstances",
            one.clone(),
            ("ec2:MetadataHttpEndpoint", "enabled"),
        ),
        ("StopInstances", one, ("ec2:Region", "us-east-1")),
        ("CreateTags", tag_rule, ("ec2:ResourceTag/team", "red")),
        // An attribute has one name, in whichever form it is given.
        (
            "ModifyInstanceAttribute",
            modify("DisableApiTermination.Value=true"),
            ("ec2:Attribute", "DisableApiTermination"),
        ),
        (
            "ModifyInstanceAttribute",
            modify("Attribute=disableApiTermination&Value=true"),
            ("ec2:Attribute/DisableApiTermination", "true"),
        ),
        (
            "ModifyInstanceAttribute",
            modify(&format!("GroupId.1={}", group.id)),
            ("ec2:Attribute", "GroupId"),
        ),
    ] {
        let denied = refused(&ec2, &db, deny(with(key, value)), action, &parameters).await;
        assert_eq!(denied, "UnauthorizedOperation", "{action} by {key}");
    }
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

#[tokio::test]
async fn a_launch_is_asked_for_by_all_that_it_takes_and_makes() {
    let db = Db::in_memory().await;
    cloud_on(db.clone()).await;
    let ec2 = super::ec2::service();
    let all = Arc::new(deny(|_| false));
    ask(&ec2, &db, all.clone(), "RunInstances", RUN)
        .await
        .unwrap();
    let mut asked = std::mem::take(&mut *all.asked.lock().unwrap());
    // The id of each without its digits.
    for one in &mut asked {
        if let Some(at) = one.rfind('-').filter(|at| one.len() - at > 16) {
            one.truncate(at);
        }
    }
    asked.sort();
    let expected = [
        "image/ami",
        "instance/*",
        "network-interface/*",
        "security-group/sg",
        "subnet/subnet",
        "volume/*",
    ];
    assert_eq!(
        asked,
        expected.map(|target| format!("ec2:RunInstances {target}"))
    );
    ask(&ec2, &db, all.clone(), "DescribeInstances", "")
        .await
        .unwrap();
    assert_eq!(*all.asked.lock().unwrap(), ["ec2:DescribeInstances *"]);
}

#[tokio::test]
async fn whether_anothers_is_there_is_told_to_nobody_who_may_not_ask() {
    let db = Db::in_memory().await;
    cloud_on(db.clone()).await;
    let ec2 = super::ec2::service();
    let parameters = "InstanceId.1=i-0123456789abcdef0";
    let nobody = Arc::new(deny(|_| true));
    let denied = ask(&ec2, &db, nobody, "StopInstances", parameters)
        .await
        .unwrap_err();
    assert_eq!(denied.code, "UnauthorizedOperation");
    let root = Arc::new(RootOnly);
    let missing = ask(&ec2, &db, root, "StopInstances", parameters)
        .await
        .unwrap_err();
    assert_eq!(missing.code, "InvalidInstanceID.NotFound");
}

/// A call's context that may do so much.
fn ctx(db: &Db, authorized: auth::Authorized) -> Ctx {
    Ctx::for_tests(db.clone()).with_authorized(authorized)
}

#[tokio::test]
async fn a_handler_writes_nothing_that_was_not_asked_for() {
    let db = Db::in_memory().await;
    let made = cloud_on(db.clone()).await;
    let instance = samples::instance(1);
    let instance = Instance {
        scope: made.scope().clone(),
        ..instance
    };
    let nothing = || {
        let caller = made.caller.clone();
        auth::authorize(&RootOnly, &caller, "ec2:Test", &[], &Keys::new()).unwrap()
    };
    let put = async |ctx: &Ctx| {
        ctx.transact(|_, change| {
            change.overwrite(&instance);
            Ok(())
        })
        .await
    };
    let refused = put(&ctx(&db, nothing())).await.unwrap_err();
    assert!(
        format!("{:?}", refused.internal).contains("not authorized"),
        "{refused:?}"
    );
    // Asked for by its own name, or, while there is none, as a new one.
    let by_name = nothing().along([made.arn_of::<Instance>(&instance.id)]);
    let any = || nothing().along([instance.arn().any()]);
    put(&ctx(&db, any())).await.unwrap();
    put(&ctx(&db, any())).await.unwrap_err();
    put(&ctx(&db, by_name)).await.unwrap();
    // Of many, none is written when one was not asked for.
    let many: Vec<_> = (2..32).map(samples::instance).collect();
    let but_one = many.iter().take(29).map(|i| made.arn_of::<Instance>(&i.id));
    let most = ctx(&db, nothing().along(but_one));
    let written = most.each(&many, |_, change, instance| {
        change.overwrite(&Instance {
            scope: made.scope().clone(),
            ..instance.clone()
        });
        Ok(())
    });
    written.await.unwrap_err();
    assert_eq!(db.view().all::<Instance>().count(), 1);
}

/// Whether a call that was allowed this much may write what the closure does.
async fn may(
    db: &Db,
    arns: impl IntoIterator<Item = Arn>,
    write: impl Fn(&mut Change<'_>),
) -> Result<(), String> {
    let made = Ctx::for_tests(db.clone());
    let nothing = auth::authorize(&RootOnly, &made.caller, "ec2:Test", &[], &Keys::new());
    let ctx = made.with_authorized(nothing.unwrap().along(arns));
    let revision = db.view().revision();
    let written = ctx.transact(|_, change| {
        write(change);
        Ok(())
    });
    let written = written.await;
    assert_eq!(db.view().revision() == revision, written.is_err());
    written.map_err(|refused| format!("{:?}", refused.internal))
}

#[tokio::test]
async fn what_belongs_to_a_resource_is_written_by_who_may_write_that() {
    let db = Db::in_memory().await;
    let made = cloud_on(db.clone()).await;
    let scope = made.scope();
    let instance = |n| Instance {
        scope: scope.clone(),
        ..samples::instance(n)
    };
    let (old, new) = (instance(1), instance(2));
    let any = old.arn().any();
    may(&db, [any.clone()], |change| change.overwrite(&old))
        .await
        .unwrap();
    let tags = || [("a".to_owned(), "b".to_owned())].into();

    // Tags: of what is there by its own name, of what is made with it.
    let tag_old = |change: &mut Change<'_>| change.put_tags(&old, tags());
    for arns in [vec![], vec![new.arn()], vec![any.clone()]] {
        let refused = may(&db, arns, tag_old).await.unwrap_err();
        assert!(refused.contains("not authorized for"), "{refused}");
    }
    may(&db, [old.arn()], tag_old).await.unwrap();
    may(&db, [any.clone()], |change| change.put_tags(&new, tags()))
        .await
        .unwrap_err();
    let tag_new = |change: &mut Change<'_>| {
        change.put_tags(&new, tags());
        change.overwrite(&new);
    };
    may(&db, [any], tag_new).await.unwrap();
    // And not past what they are on.
    let record = db.view().all::<Tags>().next().unwrap().clone();
    let refused = may(&db, [old.arn()], |change| change.delete(&record))
        .await
        .unwrap_err();
    assert!(refused.contains("put_tags"), "{refused}");

    // Those of a rule: by its own name, or with the group that loses it.
    let view = db.view();
    let group = view.at(scope).all::<SecurityGroup>().next().unwrap();
    let rule = &group.rules[0].id;
    let tag_rule = |change: &mut Change<'_>| change.put_part_tags(scope, rule, tags());
    let any_rule = made.arn_of_part(rule).any();
    may(&db, [any_rule.clone(), group.arn()], tag_rule)
        .await
        .unwrap_err();
    may(&db, [made.arn_of_part(rule)], tag_rule).await.unwrap();
    let drop_rule = |change: &mut Change<'_>| change.delete_part_tags(group, rule);
    may(&db, [any_rule.clone()], drop_rule).await.unwrap_err();
    may(&db, [group.arn()], drop_rule).await.unwrap();
    let new_rule = RuleId::from_random(77);
    may(&db, [any_rule], |change| {
        change.put_part_tags(scope, &new_rule, tags())
    })
    .await
    .unwrap();

    // A name that another group has is that group's.
    let mut name = GroupName::of(group);
    name.group = GroupId::from_random(77);
    let mine = SecurityGroup::arn_at(scope, name.group.as_str());
    may(&db, [mine], |change| change.overwrite(&name))
        .await
        .unwrap_err();
    // An instance's interface is needed for that interface's address.
    let eni = samples::eni(1);
    let address = PrivateAddress::new(scope, &eni.subnet, eni.private_ip, eni.id.clone());
    may(&db, [old.arn()], |change| change.overwrite(&address))
        .await
        .unwrap_err();
    let eni = Eni::arn_at(scope, eni.id.as_str());
    may(&db, [eni], |change| change.overwrite(&address))
        .await
        .unwrap();
    let settled = DefaultVpcMark::of(scope);
    may(&db, [], |change| change.overwrite(&settled))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn what_all_accounts_share_is_written_by_its_owner() {
    let db = Db::in_memory().await;
    let made = cloud_on(db.clone()).await;
    let eni = samples::eni(1);
    let address = |scope: &Scope| PublicAddress {
        address: "203.0.113.1".into(),
        holder: AddressHolder::Interface(eni.id.clone()),
        owner: Some(scope.clone()),
    };
    let other = Scope::new("222222222222", &made.scope().region);
    let (mine, others) = (address(made.scope()), address(&other));
    let unknown = PublicAddress {
        owner: None,
        ..mine.clone()
    };
    let (mine, others, unknown) = (&mine, &others, &unknown);
    let arn = |scope: &Scope| Eni::arn_at(scope, eni.id.as_str());
    let (my, their) = (arn(made.scope()), arn(&other));
    for there in [others, unknown] {
        let given = db.transact(|_, change| {
            change.overwrite(there);
            Ok::<_, ()>(())
        });
        given.await.unwrap();
        // Whatever it was authorized for.
        let arns = || [my.clone(), their.clone()];
        may(&db, arns(), |change| change.delete(there))
            .await
            .unwrap_err();
        may(&db, arns(), |change| change.overwrite(mine))
            .await
            .unwrap_err();
        // The store alone refuses that, too.
        for delete in [true, false] {
            let stolen = db.transact_at(made.scope(), |_, change| {
                if delete {
                    change.delete(there);
                } else {
                    change.overwrite(mine);
                }
                Ok::<_, ()>(())
            });
            stolen.await.unwrap_err();
        }
    }
    let freed = db.transact(|_, change| {
        change.delete(unknown);
        Ok::<_, ()>(())
    });
    freed.await.unwrap();
    may(&db, [my.clone()], |change| change.overwrite(mine))
        .await
        .unwrap();
    may(&db, [my], |change| change.delete(mine)).await.unwrap();

    // A host is nobody's: it can be touched, and stays as it is.
    let host = db.view().all::<Host>().next().unwrap().clone();
    let more = Host {
        vcpus: host.vcpus + 1,
        ..host.clone()
    };
    may(&db, [], |change| change.overwrite(&more))
        .await
        .unwrap_err();
    may(&db, [], |change| change.delete(&host))
        .await
        .unwrap_err();
    may(&db, [], |change| change.touch::<Host>(&host.id.0))
        .await
        .unwrap();
    assert_eq!(db.view().shared::<Host>(&host.id.0), Some(&host));
}

#[tokio::test]
async fn of_many_none_is_written_where_one_was_not_asked_for() {
    let db = Db::in_memory().await;
    let made = cloud_on(db.clone()).await;
    // More than one transaction takes.
    let many: Vec<Instance> = (1..=40)
        .map(|n| Instance {
            scope: made.scope().clone(),
            ..samples::instance(n)
        })
        .collect();
    let all_but_last = many[..39].iter().map(Instance::arn);
    let authorized = auth::authorize(&RootOnly, &made.caller, "ec2:Test", &[], &Keys::new());
    let ctx = ctx(&db, authorized.unwrap().along(all_but_last));
    let revision = db.view().revision();
    let put = ctx.each(&many, |_, change, instance| {
        change.overwrite(instance);
        Ok(())
    });
    let refused = format!("{:?}", put.await.unwrap_err().internal);
    let last = many[39].arn().to_string();
    assert!(
        refused.contains("ec2:Test") && refused.contains(&last),
        "{refused}"
    );
    assert_eq!(db.view().revision(), revision);
}

#[tokio::test]
async fn what_one_transaction_cant_carry_is_several_or_none() {
    let db = Db::in_memory().await;
    let ctx = cloud_on(db.clone()).await;
    // By their tags alone more bytes than etcd takes, though few records.
    let many: Vec<Instance> = (1..=10)
        .map(|n| Instance {
            scope: ctx.scope().clone(),
            ..samples::instance(n)
        })
        .collect();
    let tags = || [("k".to_owned(), "v".repeat(200 << 10))].into();
    let put = async |refused: Option<&Instance>| {
        let step = |_: Scoped<'_>, change: &mut Change<'_>, instance: &Instance| {
            if refused == Some(instance) {
                return Err(ApiError::missing("Test"));
            }
            change.create(instance);
            change.put_tags(instance, tags());
            Ok(())
        };
        ctx.each(&many, step).await
    };
    let before = db.view().revision();
    put(many.last()).await.unwrap_err();
    assert_eq!(db.view().revision(), before);
    assert_eq!(put(None).await.unwrap().len(), 10);
    assert_eq!(db.view().all::<Instance>().count(), 10);
    assert_eq!(db.view().revision().0, before.0 + 2);
}

#[tokio::test]
async fn a_client_token_is_kept_before_anything_is_written() {
    let db = Db::in_memory().await;
    let token = super::Idempotency {
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

/// An action that is about a resource and about `*`.
struct Both;

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct BothRequest {
    instance_id: Option<String>,
}

impl Action for Both {
    const NAME: &'static str = "Both";
    type Request = BothRequest;
    type Response = Done;

    fn targets(request: &BothRequest, to: &mut Targets<'_>) {
        to.named::<Instance>(&request.instance_id);
        to.any();
    }

    async fn handle(_: &Ctx, _: BothRequest) -> Result<Done, ApiError> {
        Ok(Done::OK)
    }
}

#[tokio::test]
async fn what_is_about_any_resource_is_asked_so() {
    let db = Db::in_memory().await;
    let service = Service {
        actions: vec![action::<Both>()],
        ..super::ec2::service()
    };
    for (parameters, expected) in [
        ("", vec!["ec2:Both *"]),
        (
            "InstanceId=i-1",
            vec!["ec2:Both *", "ec2:Both instance/i-1"],
        ),
    ] {
        let all = Arc::new(deny(|_| false));
        let asked = ask(&service, &db, all.clone(), "Both", parameters).await;
        asked.unwrap();
        assert_eq!(*all.asked.lock().unwrap(), expected);
    }
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
        ..super::ec2::service()
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

/// An action of another service than EC2, which makes something and tags it.
struct Tagging;

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct TaggingRequest {
    #[serde(rename = "TagSpecification")]
    tags: Vec<crate::api::shared::TagSpecification>,
}

impl Action for Tagging {
    const NAME: &'static str = "Tagging";
    type Request = TaggingRequest;
    type Response = Done;

    fn targets(request: &TaggingRequest, to: &mut Targets<'_>) {
        to.made::<Volume>([], &request.tags);
    }

    async fn handle(_: &Ctx, _: TaggingRequest) -> Result<Done, ApiError> {
        Ok(Done::OK)
    }
}

#[tokio::test]
async fn another_service_has_its_own_words_in_policies() {
    let db = Db::in_memory().await;
    cloud_on(db.clone()).await;
    let parameters = "TagSpecification.1.ResourceType=volume\
                      &TagSpecification.1.Tag.1.Key=a&TagSpecification.1.Tag.1.Value=b";
    let service = |iam| Service {
        iam,
        actions: vec![action::<Tagging>()],
        ..super::ec2::service()
    };
    let own = Iam {
        tag_action: Some("AddTags"),
        create_action_key: Some(ConditionKey::sample("lb:CreateAction")),
        ..Iam::plain("lb")
    };
    let none_of_ec2s = Arc::new(deny(|request| {
        let of_target = request.target.iter().flat_map(|target| target.keys.keys());
        let mut keys = of_target.chain(request.keys.keys());
        request.action.starts_with("ec2:") || keys.any(|key| key.starts_with("ec2:"))
    }));
    let lb = service(own);
    ask(&lb, &db, none_of_ec2s.clone(), "Tagging", parameters)
        .await
        .unwrap();
    let asked = std::mem::take(&mut *none_of_ec2s.asked.lock().unwrap());
    assert_eq!(asked, ["lb:Tagging volume/*", "lb:AddTags volume/*"]);
    // One that has no action for tagging tags nothing.
    let refused = ask(
        &service(Iam::plain("lb")),
        &db,
        none_of_ec2s,
        "Tagging",
        parameters,
    )
    .await;
    let refused = format!("{:?}", refused.unwrap_err().internal);
    assert!(refused.contains("lb has no action for that"), "{refused}");
}
