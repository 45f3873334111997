//! The two accounts, what each of them has, and what their requests take.

use std::{collections::BTreeMap, sync::Arc};

use super::super::{
    ApiError, Cloud, console, ec2,
    registry::{Call, Registered, Service},
    wire::Form,
};
use crate::{
    auth::{Caller, Policies, RootOnly},
    bootstrap::{Machine, bootstrap, ensure_default_vpc},
    config::{Config, Region},
    model::{
        Arn, Eni, Host, Image, Instance, InstanceState, Scope, Subnet, Volume, VolumeId, Vpc,
        samples,
    },
    store::{Db, MemoryStore, Store as _},
};

/// Who has something. Not the default account, which owns the images that all see.
pub(super) const OWNER: (&str, &str) = ("111111111111", "us-east-1");
/// Who asks: another account, and the same one in another region.
pub(super) const STRANGERS: [(&str, &str); 2] =
    [("222222222222", "us-east-1"), ("111111111111", "eu-west-1")];

/// What more an action needs that says so by `InvalidParameterCombination`.
const MORE: [(&str, &[(&str, &str)]); 2] = [
    (
        "ModifyInstanceAttribute",
        &[("SourceDestCheck.Value", "true")],
    ),
    (
        "ModifyInstanceMetadataOptions",
        &[("HttpTokens", "required")],
    ),
];

/// What the owner's rule for what goes out has in place of `SecurityGroupRuleId`.
pub(super) const RULE_OUT: &str = "SecurityGroupRuleId of Egress";
/// Before what a rule is to say from now on.
const RULE_UPDATE: &str = "SecurityGroupRule.1.SecurityGroupRule.";
/// What the owner's rule for a group has, where a request names one for it.
const RULE_OF_GROUP: &str = "SecurityGroupRuleId of ReferencedGroupId";

/// Two scopes of one cloud, each with something of everything.
pub(super) struct Two {
    store: Arc<MemoryStore>,
    pub(super) db: Db,
    pub(super) owner: Scope,
    pub(super) stranger: Scope,
    /// What each of them has, by the name of the parameter that names it.
    pub(super) owners: BTreeMap<&'static str, String>,
    strangers: BTreeMap<&'static str, String>,
    /// Who may do what.
    pub(super) policies: Arc<dyn Policies>,
}

pub(super) type Parameters = BTreeMap<String, String>;

pub(super) fn parameters(all: &[(&str, &str)]) -> Parameters {
    let all = all.iter();
    all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// The text of the first element of this name.
fn text<'a>(body: &'a str, name: &str) -> &'a str {
    let (_, rest) = body.split_once(&format!("<{name}>")).unwrap();
    rest.split_once("</").unwrap().0
}

/// With two regions.
fn config() -> Config {
    let mut config = Config::for_tests();
    config.regions.push(Region {
        name: "eu-west-1".into(),
        zones: vec!["eu-west-1a".into()],
    });
    config
}

impl Two {
    pub(super) async fn new(stranger: (&str, &str)) -> Self {
        let store = Arc::new(MemoryStore::default());
        let db = Db::open(store.clone()).await.unwrap();
        let config = config();
        let machine = Machine {
            cpus: 64,
            memory_mib: 64 << 10,
            disk_gib: 1000,
        };
        bootstrap(&db, &config, machine).await.unwrap();
        let [owner, stranger] =
            [OWNER, stranger].map(|(account, region)| Scope::new(account, region));
        for scope in [&owner, &stranger] {
            ensure_default_vpc(&db, &config, scope).await.unwrap();
        }
        let far = Host {
            zone: "eu-west-1a".into(),
            memory_mib: 64 << 10,
            ..samples::host("far", 64)
        };
        db.transact(|_, change| {
            change.create(&far);
            for scope in config.image_scopes() {
                change.create(&Image {
                    scope,
                    ..samples::image()
                });
            }
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
        let mut two = Self {
            store,
            db,
            owner: owner.clone(),
            stranger: stranger.clone(),
            owners: BTreeMap::new(),
            strangers: BTreeMap::new(),
            policies: Arc::new(RootOnly),
        };
        two.strangers = two.has(&stranger, "strangers").await;
        two.owners = two.has(&owner, "owners").await;
        two
    }

    /// Makes something of everything there.
    async fn has(&self, scope: &Scope, name: &str) -> BTreeMap<&'static str, String> {
        let ec2 = ec2::service();
        let [key, group, tag] = ["key", "group", "tag"].map(|what| format!("{name}-{what}"));
        let call = async |action: &str, all: &[(&str, &str)]| {
            let action = ec2.find(action).unwrap();
            let answer = self.call(&ec2, action, scope, &parameters(all)).await;
            answer.unwrap()
        };
        let made = call(
            "CreateKeyPair",
            &[("KeyName", &key), ("KeyType", "ed25519")],
        )
        .await;
        let key_pair = text(&made, "keyPairId").to_owned();
        let made = call(
            "CreateSecurityGroup",
            &[("GroupName", &group), ("GroupDescription", "d")],
        )
        .await;
        let group_id = text(&made, "groupId").to_owned();
        let rule = [
            ("GroupId", group_id.as_str()),
            ("CidrIp", "10.0.0.0/8"),
            ("IpProtocol", "tcp"),
            ("FromPort", "1"),
            ("ToPort", "1"),
        ];
        let made = call("AuthorizeSecurityGroupIngress", &rule).await;
        let rule = text(&made, "securityGroupRuleId").to_owned();
        let mut out = port("IpPermissions.1.");
        out.insert("GroupId".into(), group_id.clone());
        out.insert(
            "IpPermissions.1.IpRanges.1.CidrIp".into(),
            "10.0.0.0/8".into(),
        );
        let out: Vec<_> = out
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let made = call("AuthorizeSecurityGroupEgress", &out).await;
        let rule_out = text(&made, "securityGroupRuleId").to_owned();
        let rule_of_group = [
            ("GroupId", group_id.as_str()),
            ("SourceSecurityGroupName", &group),
        ];
        let made = call("AuthorizeSecurityGroupIngress", &rule_of_group).await;
        let rule_of_group = text(&made, "securityGroupRuleId").to_owned();
        let template = format!("{name}-template");
        let made = call(
            "CreateLaunchTemplate",
            &[
                ("LaunchTemplateName", &template),
                ("LaunchTemplateData.ImageId", samples::image().id.as_ref()),
            ],
        )
        .await;
        let template_id = text(&made, "launchTemplateId").to_owned();
        let made = call(
            "RunInstances",
            &[
                ("ImageId", samples::image().id.as_ref()),
                ("InstanceType", "t2.micro"),
                ("MinCount", "1"),
                ("MaxCount", "1"),
                ("TagSpecification.1.ResourceType", "instance"),
                ("TagSpecification.1.Tag.1.Key", "whose"),
                ("TagSpecification.1.Tag.1.Value", &tag),
            ],
        )
        .await;
        let instance = text(&made, "instanceId").to_owned();
        let made = call("AllocateAddress", &[]).await;
        let [allocation, public_ip] =
            ["allocationId", "publicIp"].map(|name| text(&made, name).to_owned());
        self.is_in(scope, &instance, InstanceState::Running).await;
        let associate = [
            ("AllocationId", allocation.as_str()),
            ("InstanceId", instance.as_str()),
        ];
        let made = call("AssociateAddress", &associate).await;
        let association = text(&made, "associationId").to_owned();
        self.is_in(scope, &instance, InstanceState::Pending).await;
        let free = Volume {
            id: VolumeId::from_random(rand::random()),
            scope: scope.clone(),
            attachment: None,
            ..samples::volume(1)
        };
        self.db
            .transact(|_, change| {
                change.create(&free);
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
        let view = self.db.view();
        let view = view.at(scope);
        let vpc = view.all::<Vpc>().next().unwrap().id.to_string();
        let subnet = view.all::<Subnet>().next().unwrap().id.to_string();
        let eni = view.all::<Eni>().next().unwrap().id.to_string();
        [
            ("AllocationId", allocation),
            ("AssociationId", association),
            ("GroupId", group_id.clone()),
            ("GroupName", group.clone()),
            ("InstanceId", instance.clone()),
            ("KeyName", key),
            ("KeyPairId", key_pair),
            ("NetworkInterfaceId", eni),
            ("PublicIp", public_ip),
            ("LaunchTemplateId", template_id),
            ("LaunchTemplateName", template),
            ("ReferencedGroupId", group_id.clone()),
            ("ResourceId", instance),
            ("SecurityGroup", group.clone()),
            ("SecurityGroupId", group_id),
            ("SecurityGroupRuleId", rule),
            (RULE_OUT, rule_out),
            (RULE_OF_GROUP, rule_of_group),
            ("SourceSecurityGroupName", group),
            ("SubnetId", subnet),
            ("Tag", tag),
            ("VolumeId", free.id.to_string()),
            ("VpcId", vpc),
        ]
        .into()
    }

    /// As the host's controller says.
    async fn is_in(&self, scope: &Scope, instance: &str, state: InstanceState) {
        let up = self.db.transact(|view, change| {
            let view = view.at(scope);
            let instance = view.get::<Instance>(instance).unwrap();
            change.update(
                instance,
                &Instance {
                    state,
                    ..instance.clone()
                },
            );
            Ok::<_, ()>(())
        });
        up.await.unwrap();
    }

    async fn call(
        &self,
        service: &Service,
        action: &Registered,
        scope: &Scope,
        parameters: &Parameters,
    ) -> Result<String, ApiError> {
        let mut form = Form::default();
        for (name, value) in parameters {
            form.insert(name, value.clone()).unwrap();
        }
        let cloud = Cloud {
            db: self.db.clone(),
            config: Arc::new(config()),
            console: Arc::new(console::NoConsole),
            policies: self.policies.clone(),
        };
        let caller = Caller {
            account: scope.account.clone(),
            region: scope.region.clone(),
            arn: Arn::root(&scope.account),
            user_id: scope.account.clone(),
            access_key_id: "AKIATEST".into(),
        };
        let call = Call {
            cloud,
            caller,
            request_id: "req".into(),
            now: jiff::Timestamp::UNIX_EPOCH,
            form,
            lists: Arc::default(),
        };
        let answered = action.call(service, call).await?;
        Ok(answered.body)
    }

    /// Calls with what it takes beside these parameters, as far as the action says what
    /// that is: of the caller's own.
    pub(super) async fn call_with(
        &self,
        service: &Service,
        action: &Registered,
        scope: &Scope,
        parameters: &Parameters,
    ) -> Result<String, ApiError> {
        let own = if *scope == self.owner {
            &self.owners
        } else {
            &self.strangers
        };
        let mut parameters = parameters.clone();
        loop {
            let answer = self.call(service, action, scope, &parameters).await;
            let more = match &answer {
                Err(error) if error.code == "MissingParameter" => {
                    let missing = error.message.rsplit(' ').next().unwrap_or_default();
                    filled_in(missing, &parameters, own)
                }
                Err(error) if error.code == "InvalidParameterCombination" => {
                    let more = MORE.iter().filter(|(name, _)| *name == action.name);
                    more.flat_map(|(_, more)| self::parameters(more)).collect()
                }
                _ => return answer,
            };
            let before = parameters.len();
            for (name, value) in more {
                parameters.entry(name).or_insert(value);
            }
            if parameters.len() == before {
                return answer;
            }
        }
    }

    /// All that the owner has, by key.
    pub(super) async fn records(&self) -> BTreeMap<String, Vec<u8>> {
        let all = self.store.range("").await.unwrap().entries.into_iter();
        let owners = all.filter(|entry| entry.key.contains(&self.owner.prefix()));
        owners.map(|entry| (entry.key, entry.value)).collect()
    }
}

/// Values for a parameter that a request must have: the caller's own, where it names
/// something.
fn filled_in(
    missing: &str,
    given: &Parameters,
    own: &BTreeMap<&'static str, String>,
) -> Parameters {
    let last = missing
        .rsplit('.')
        .find(|part| part.parse::<u32>().is_err() && *part != "member");
    let last = last.unwrap_or_default();
    let of_group = given.keys().any(|name| name.ends_with("ReferencedGroupId"));
    let rule = match last {
        "SecurityGroupRuleId" if of_group => RULE_OF_GROUP,
        other => other,
    };
    // Of what is made, which nobody has yet.
    let named_by_others = ["Tag", "LaunchTemplateName"].contains(&last);
    if let Some(value) = own.get(rule).filter(|_| !named_by_others) {
        return [(missing.to_owned(), value.clone())].into();
    }
    let value = match last {
        "Attribute" => "sourceDestCheck",
        "DeviceIndex" => "0",
        "GroupDescription" => "d",
        "ImageId" => return [(missing.to_owned(), samples::image().id.to_string())].into(),
        // Either way of naming rules.
        "IpPermissions" | "SecurityGroupRuleDescriptions" | "SecurityGroupRuleIds" => {
            let range = [("IpPermissions.1.IpRanges.1.CidrIp", "10.1.0.0/16")];
            return [parameters(&range), port("IpPermissions.1.")]
                .into_iter()
                .flatten()
                .collect();
        }
        "IpProtocol" => {
            let nested = ["IpPermissions.1.", RULE_UPDATE];
            let given = |prefix: &&str| given.keys().any(|name| name.starts_with(*prefix));
            return port(nested.into_iter().find(given).unwrap_or_default());
        }
        // Of ModifySecurityGroupRules.
        "SecurityGroupRule" => {
            let cidr = [(format!("{RULE_UPDATE}CidrIpv4"), "10.1.0.0/16".to_owned())];
            let all = port(RULE_UPDATE).into_iter();
            // Or a group, where that is what the request names.
            return all.chain(cidr.into_iter().filter(|_| !of_group)).collect();
        }
        "InstanceType" => "t2.micro",
        "LaunchTemplateName" => "another",
        "LaunchTemplateData" => {
            return [(format!("{missing}.InstanceType"), "t2.micro".to_owned())].into();
        }
        // So EC2 says it.
        "name" => {
            let name = own["LaunchTemplateName"].clone();
            return [("LaunchTemplateName".to_owned(), name)].into();
        }
        "LaunchTemplateVersion" => return parameters(&[("LaunchTemplateVersion.1", "7")]),
        "SetDefaultVersion" => "1",
        "MaxCount" | "MinCount" => "1",
        "PrincipalArn" => "all",
        "PublicKeyMaterial" => PUBLIC_KEY,
        // Of those that are about the format of IDs.
        "Resource" => "instance",
        "UseLongIds" => "true",
        "Tag" => return parameters(&[("Tag.1.Key", "k")]),
        _ => return Parameters::new(),
    };
    [(missing.to_owned(), value.to_owned())].into()
}

/// A range of ports of one rule.
fn port(prefix: &str) -> Parameters {
    let all = [("IpProtocol", "tcp"), ("FromPort", "1"), ("ToPort", "1")];
    all.iter()
        .map(|(name, value)| (format!("{prefix}{name}"), (*value).to_owned()))
        .collect()
}

/// An ssh-ed25519 key, base64 once more.
const PUBLIC_KEY: &str = "c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUxtTXJzMEdTOEZualpHQlRyVlhJcVVyNTY4cWF0dTRCd3U3cUxXaWZhdE4=";
