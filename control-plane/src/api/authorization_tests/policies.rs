//! What policies are asked, and what becomes of a call that they deny.

use super::*;
use crate::api::{ec2, sts};

#[tokio::test]
async fn what_is_denied_changes_nothing() {
    let db = Db::in_memory().await;
    cloud_on(db.clone()).await;
    let ec2 = ec2::service();
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
    let sts = sts::service();
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
    let ec2 = ec2::service();
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

#[tokio::test]
async fn a_launch_is_asked_for_by_all_that_it_takes_and_makes() {
    let db = Db::in_memory().await;
    cloud_on(db.clone()).await;
    let ec2 = ec2::service();
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
    let ec2 = ec2::service();
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
        ..ec2::service()
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
        ..ec2::service()
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
