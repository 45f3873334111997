//! What policies are asked by each action, held against AWS's own tables: which types of
//! resources an action is about, what conditions may look at, and that whoever tags what
//! is made is asked for `CreateTags`.
//!
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html>,
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_awssecuritytokenservice.html>

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use super::{
    MAKING, requests,
    two::{Parameters, STRANGERS, Two, parameters},
};
use crate::{
    api::registry::{Registered, Service, services},
    auth::{AuthorizationRequest, Keys, Policies, RootOnly},
    model::{self, Arn, ConditionKey, Described as _, Part as _, RuleId, condition_key, each_kind},
    store::Scoped,
};

/// The types of resources that each action is about, as far as there are such resources
/// here; with a `?` those that a request may do without. Tags are of every type.
const TYPES: [(&str, &str); 18] = [
    (
        "AuthorizeSecurityGroupEgress",
        "security-group security-group-rule?",
    ),
    (
        "AuthorizeSecurityGroupIngress",
        "security-group security-group-rule?",
    ),
    ("CreateKeyPair", "key-pair"),
    ("CreateSecurityGroup", "security-group vpc?"),
    ("DeleteKeyPair", "key-pair?"),
    ("DeleteSecurityGroup", "security-group"),
    ("DeleteVolume", "volume"),
    ("DescribeInstanceAttribute", "instance"),
    ("GetConsoleOutput", "instance"),
    ("ImportKeyPair", "key-pair"),
    (
        "ModifyInstanceAttribute",
        "instance security-group? volume?",
    ),
    ("RebootInstances", "instance"),
    ("RevokeSecurityGroupEgress", "security-group"),
    ("RevokeSecurityGroupIngress", "security-group"),
    (
        "RunInstances",
        "image instance network-interface security-group subnet key-pair? volume?",
    ),
    ("StartInstances", "instance"),
    ("StopInstances", "instance"),
    ("TerminateInstances", "instance"),
];

/// Those whose table has no type at all.
const NO_TYPE: [&str; 13] = [
    "DescribeAvailabilityZones",
    "DescribeImages",
    "DescribeInstanceStatus",
    "DescribeInstanceTypes",
    "DescribeInstances",
    "DescribeKeyPairs",
    "DescribeRegions",
    "DescribeSecurityGroupRules",
    "DescribeSecurityGroups",
    "DescribeSubnets",
    "DescribeTags",
    "DescribeVolumes",
    "DescribeVpcs",
];

/// What conditions may look at beside tags, by type. What the tables have more is of what
/// isn't here: launch templates, placement groups, profiles, snapshots, provisioned
/// throughput, AMD SEV, managed resources.
const KEYS: [(&str, &str); 9] = [
    ("image", "ImageID ImageType Owner Public RootDeviceType"),
    (
        "instance",
        "AvailabilityZone AvailabilityZoneId EbsOptimized InstanceID InstanceMarketType \
         InstanceMetadataTags InstanceType MetadataHttpEndpoint \
         MetadataHttpPutResponseHopLimit MetadataHttpTokens RootDeviceType Tenancy",
    ),
    ("key-pair", "KeyPairName KeyPairType"),
    // Its zone, too, which its record doesn't have.
    ("network-interface", "NetworkInterfaceID Subnet Vpc"),
    ("security-group", "SecurityGroupID Vpc"),
    ("security-group-rule", ""),
    ("subnet", "AvailabilityZone AvailabilityZoneId SubnetID Vpc"),
    (
        "volume",
        "AvailabilityZone AvailabilityZoneId Encrypted VolumeID VolumeSize VolumeType",
    ),
    ("vpc", "Tenancy VpcID"),
];

/// The same of what an action makes, which has no id yet.
const MADE: [(&str, &str, &str); 8] = [
    ("AuthorizeSecurityGroupEgress", "security-group-rule", ""),
    ("AuthorizeSecurityGroupIngress", "security-group-rule", ""),
    ("CreateKeyPair", "key-pair", "KeyPairType"),
    ("CreateSecurityGroup", "security-group", ""),
    ("ImportKeyPair", "key-pair", ""),
    (
        "RunInstances",
        "instance",
        "AvailabilityZone AvailabilityZoneId EbsOptimized InstanceMarketType \
         InstanceMetadataTags InstanceType MetadataHttpEndpoint \
         MetadataHttpPutResponseHopLimit MetadataHttpTokens RootDeviceType Tenancy",
    ),
    (
        "RunInstances",
        "network-interface",
        "AssociatePublicIpAddress AvailabilityZone Subnet Vpc",
    ),
    (
        "RunInstances",
        "volume",
        "AvailabilityZone AvailabilityZoneId Encrypted VolumeSize VolumeType",
    ),
];

/// Those that tag what is there.
const TAGGING: [&str; 2] = ["CreateTags", "DeleteTags"];

/// What policies were asked once.
#[derive(Debug, Clone)]
struct Asked {
    action: String,
    target: Option<(Arn, Keys)>,
}

/// Allows all but one action, and keeps what it was asked.
#[derive(Default)]
struct Listening {
    denied: Option<&'static str>,
    asked: Mutex<Vec<Asked>>,
}

impl Policies for Listening {
    fn allow(&self, request: &AuthorizationRequest<'_>) -> bool {
        self.asked.lock().unwrap().push(Asked {
            action: request.action.to_owned(),
            target: request.target.map(|to| (to.arn.clone(), to.keys.clone())),
        });
        self.denied != Some(request.action)
    }
}

/// Calls as the owner; the code of the refusal, if there is one, and what was asked.
async fn listen(
    two: &mut Two,
    service: &Service,
    action: &Registered,
    request: &Parameters,
    denied: Option<&'static str>,
) -> (Result<String, String>, Vec<Asked>) {
    let listening = Arc::new(Listening {
        denied,
        ..Listening::default()
    });
    two.policies = listening.clone();
    let answer = two.call_with(service, action, &two.owner, request).await;
    two.policies = Arc::new(RootOnly);
    let asked = std::mem::take(&mut *listening.asked.lock().unwrap());
    (answer.map_err(|error| error.to_string()), asked)
}

macro_rules! of_all {
    (described: [$($resource:ident),* $(,)?], others: [$($other:ident),* $(,)?] $(,)?) => {
        /// Every type that can have tags.
        fn types() -> Vec<&'static str> {
            vec![$(model::$resource::TYPE,)* RuleId::TYPE]
        }

        /// What each resource there is says of itself, by ARN, with its id.
        fn said(view: Scoped<'_>) -> BTreeMap<Arn, (String, Vec<(ConditionKey, String)>)> {
            let mut said = BTreeMap::new();
            $(for resource in view.all::<model::$resource>() {
                let id = resource.described_id().to_string();
                said.insert(resource.arn(), (id, resource.condition_keys()));
            })*
            said
        }
    };
}

each_kind!(of_all);

/// The owner's requests of an action: about each thing that it can name, and, where it
/// tags, with tags of each type.
fn all_requests(service: &Service, action: &Registered, two: &Two) -> Vec<Parameters> {
    let mut all = requests(service, action, &two.owners);
    all.extend(types().into_iter().filter_map(|kind| tagged(action, kind)));
    if TAGGING.contains(&action.name) {
        let view = two.db.view();
        let ids = said(view.at(&two.owner)).into_values().map(|(id, _)| id);
        let rule = two.owners["SecurityGroupRuleId"].clone();
        all.extend(
            ids.chain([rule])
                .map(|id| parameters(&[("ResourceId.1", &id)])),
        );
    }
    if action.name == "ModifyInstanceAttribute" {
        all.push(parameters(&[
            ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
            ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
        ]));
    }
    all
}

/// A request that tags something of this type as it is made.
fn tagged(action: &Registered, kind: &str) -> Option<Parameters> {
    let shape = (action.request)().unwrap();
    shape.has("TagSpecification").then(|| {
        let mut all = parameters(&[
            ("TagSpecification.1.ResourceType", kind),
            ("TagSpecification.1.Tag.1.Key", "team"),
            ("TagSpecification.1.Tag.1.Value", "red"),
        ]);
        let names = MAKING.iter().filter(|(by, _)| *by == action.name);
        all.extend(names.map(|(_, name)| ((*name).to_owned(), "another".to_owned())));
        all
    })
}

/// The names of the keys of EC2's own, without those of tags.
fn own_keys(keys: &Keys) -> BTreeSet<&str> {
    let own = keys.keys().filter_map(|key| key.strip_prefix("ec2:"));
    own.filter(|key| !key.starts_with("ResourceTag/") && *key != "CreateAction")
        .collect()
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split_whitespace().collect()
}

/// What AWS's tables have of the keys of a target.
fn documented(action: &str, arn: &Arn, keys: &Keys) -> BTreeSet<&'static str> {
    let kind: &str = &arn.kind;
    if arn.id != Arn::ANY {
        let (_, all) = KEYS.iter().find(|(of, _)| *of == kind).unwrap();
        return if action == "DeleteTags" {
            BTreeSet::new()
        } else {
            words(all)
        };
    }
    // CreateTags of what another action makes.
    let maker = keys
        .get("ec2:CreateAction")
        .map_or(action, |maker| &maker[0]);
    let made = MADE.iter().find(|(by, of, _)| *by == maker && *of == kind);
    let (_, _, all) = made.unwrap_or_else(|| panic!("{maker} makes no {kind}"));
    words(all)
}

fn name(asked: &Asked) -> &str {
    asked.action.split_once(':').unwrap().1
}

#[tokio::test]
async fn each_action_is_about_what_awss_tables_have() {
    let mut two = Two::new(STRANGERS[0]).await;
    let mut faults = BTreeSet::new();
    let ec2 = services()
        .into_iter()
        .find(|service| service.iam.name == "ec2")
        .unwrap();
    for action in &ec2.actions {
        let mut types = BTreeSet::new();
        for n in 0.. {
            let Some(request) = all_requests(&ec2, action, &two).into_iter().nth(n) else {
                break;
            };
            let revision = two.db.view().revision();
            let (answer, asked) = listen(&mut two, &ec2, action, &request, None).await;
            let own = asked.iter().filter(|asked| name(asked) == action.name);
            let targets = own.filter_map(|asked| asked.target.as_ref());
            let kinds: BTreeSet<String> = targets.map(|(arn, _)| arn.kind.to_string()).collect();
            if let (Ok(_), Some((_, of))) =
                (&answer, TYPES.iter().find(|(of, _)| *of == action.name))
            {
                let missing = words(of)
                    .into_iter()
                    .find(|t| !t.ends_with('?') && !kinds.contains(*t));
                let missing =
                    missing.map(|of| format!("{} isn't about {of}: {request:?}", action.name));
                faults.extend(missing);
            }
            types.extend(kinds);
            // A call is tried with more parameters until it is whole.
            let mut told = BTreeMap::new();
            for asked in &asked {
                // What isn't there has no keys.
                let with_keys = asked.target.as_ref().filter(|(_, keys)| !keys.is_empty());
                if let Some((arn, keys)) = with_keys {
                    let documented = documented(name(asked), arn, keys);
                    let of = (&asked.action, &arn.kind, arn.id == Arn::ANY);
                    let (all, _) = told.entry(of).or_insert((BTreeSet::new(), documented));
                    all.extend(own_keys(keys));
                }
            }
            for ((of, kind, made), (told, documented)) in told {
                let whole = answer.is_ok() || !made;
                if !told.is_subset(&documented) || whole && told != documented {
                    faults.insert(format!(
                        "{of} of {kind}: {told:?}, where AWS has {documented:?}"
                    ));
                }
            }
            if two.db.view().revision() != revision {
                two = Two::new(STRANGERS[0]).await;
            }
        }
        let expected: BTreeSet<String> = match TYPES.iter().find(|(of, _)| *of == action.name) {
            Some((_, of)) => words(of)
                .iter()
                .map(|of| of.trim_end_matches('?').to_owned())
                .collect(),
            None if TAGGING.contains(&action.name) => {
                self::types().iter().map(|of| (*of).to_owned()).collect()
            }
            None => {
                assert!(
                    NO_TYPE.contains(&action.name),
                    "{}: add AWS's row",
                    action.name
                );
                BTreeSet::new()
            }
        };
        // No image is the owner's here.
        types.extend(TAGGING.contains(&action.name).then(|| "image".to_owned()));
        if types != expected {
            faults.insert(format!(
                "{}: {types:?}, where AWS has {expected:?}",
                action.name
            ));
        }
    }
    let faults: Vec<_> = faults.into_iter().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test]
async fn who_tags_what_is_made_is_asked_for_create_tags() {
    let mut two = Two::new(STRANGERS[0]).await;
    for service in services() {
        for action in &service.actions {
            let mut tags = Vec::new();
            for kind in types() {
                let Some(request) = tagged(action, kind) else {
                    continue;
                };
                let before = two.db.view();
                let (answer, asked) = listen(&mut two, &service, action, &request, None).await;
                match answer {
                    Ok(_) => tags.push(kind),
                    Err(why) if why.contains("is not a valid taggable resource type") => continue,
                    Err(why) => panic!("{} {kind}: {why}", action.name),
                }
                for of in [action.name, "CreateTags"] {
                    let mut of_kind = asked.iter().filter(|asked| name(asked) == of);
                    let keys = of_kind.find_map(|asked| {
                        asked
                            .target
                            .as_ref()
                            .filter(|(arn, _)| arn.kind == kind && arn.id == Arn::ANY)
                    });
                    let (_, keys) = keys.unwrap_or_else(|| panic!("{of} isn't asked of {kind}"));
                    assert_eq!(keys["aws:RequestTag/team"], ["red"], "{of} {kind}");
                    assert_eq!(keys["aws:TagKeys"], ["team"], "{of} {kind}");
                    let maker = keys.get("ec2:CreateAction").map(|of| of[0].as_str());
                    let expected = (of == "CreateTags").then_some(action.name);
                    assert_eq!(maker, expected, "{of} {kind}");
                }
                // What was said of it before it was there is what it says then.
                let there = said(before.at(&two.owner));
                let view = two.db.view();
                let made = said(view.at(&two.owner)).into_iter();
                let made = made.filter(|(arn, _)| arn.kind == kind && !there.contains_key(arn));
                let asked = asked.iter().filter_map(|asked| asked.target.as_ref());
                let asked: Vec<_> = asked
                    .filter(|(arn, _)| arn.id == Arn::ANY && arn.kind == kind)
                    .collect();
                for (arn, (_, says)) in made {
                    for (key, value) in says {
                        let told = asked
                            .iter()
                            .filter_map(|(_, keys)| keys.get(&key.to_string()));
                        told.for_each(|told| assert_eq!(*told, [value.as_str()], "{key} of {arn}"));
                    }
                }
                two = Two::new(STRANGERS[0]).await;
                let revision = two.db.view().revision();
                let denied = Some("ec2:CreateTags");
                let (answer, _) = listen(&mut two, &service, action, &request, denied).await;
                let refused = answer.unwrap_err();
                assert!(refused.contains("UnauthorizedOperation"), "{refused}");
                assert_eq!(two.db.view().revision(), revision, "{} {kind}", action.name);
            }
            let has = (action.request)().unwrap().has("TagSpecification");
            assert_eq!(has, !tags.is_empty(), "{} tags {tags:?}", action.name);
        }
    }
}

#[test]
fn condition_keys_are_those_of_awss_tables() {
    let tables = KEYS.iter().map(|(_, keys)| keys);
    let tables = tables.chain(MADE.iter().map(|(_, _, keys)| keys));
    // Those of every type, and of actions.
    let more = words("Attribute CreateAction Region ResourceTag");
    let known: BTreeSet<&str> = tables.flat_map(|keys| words(keys)).chain(more).collect();
    let ours = condition_key::ec2::ALL.iter().map(ToString::to_string);
    let ours: BTreeSet<String> = ours.map(|key| key.replacen("ec2:", "", 1)).collect();
    assert_eq!(ours, known.iter().map(|key| (*key).to_owned()).collect());
}
