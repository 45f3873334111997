//! What policies are asked by each action, held against AWS's own tables: which types of
//! resources an action is about, what conditions may look at, and that whoever tags what
//! is made is asked for `CreateTags`.
//!
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>

mod ec2;
mod sts;

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
    model::{self, Arn, ConditionKey, Described as _, Part, RuleId, each_kind},
    store::Scoped,
};

/// What AWS's tables have of one service, as far as there are such actions and resources
/// here. Another service brings its own, in a file beside this one.
struct Table {
    /// The service, as policies call it.
    service: &'static str,
    /// The types of resources that each action is about; with a `?` those that a request
    /// may do without. Tags are of every type.
    types: &'static [(&'static str, &'static str)],
    /// The actions that are about no type at all.
    no_type: &'static [&'static str],
    /// The actions that tag what is there.
    tagging: &'static [&'static str],
    /// What conditions may look at beside tags, by type.
    keys: &'static [(&'static str, &'static str)],
    /// The same of what an action makes, which has no id yet.
    made: &'static [(&'static str, &'static str, &'static str)],
    /// The keys of every type, and of actions.
    common: &'static str,
    /// The keys that the model declares.
    declared: &'static [ConditionKey],
    /// The types of which neither account here has one.
    nobodys: &'static [&'static str],
    /// What else an action is asked with.
    more: &'static [(&'static str, &'static [(&'static str, &'static str)])],
}

/// Every service's.
const TABLES: [Table; 2] = [ec2::TABLE, sts::TABLE];

impl Table {
    /// Of a service that has none of all this.
    const fn empty(service: &'static str) -> Self {
        Self {
            service,
            types: &[],
            no_type: &[],
            tagging: &[],
            keys: &[],
            made: &[],
            common: "",
            declared: &[],
            nobodys: &[],
            more: &[],
        }
    }

    fn of(service: &Service) -> &'static Self {
        let mut tables = TABLES.iter();
        let name = service.iam.name;
        let found = tables.find(|table| table.service == name);
        found.unwrap_or_else(|| panic!("{name}: add AWS's tables"))
    }

    /// The types that an action is about, if it is about some.
    fn types_of(&self, action: &str) -> Option<&'static str> {
        let mut types = self.types.iter();
        types.find(|(of, _)| *of == action).map(|(_, types)| *types)
    }

    /// The names of the keys of its own, without those of tags.
    fn own_keys<'k>(&self, keys: &'k Keys) -> BTreeSet<&'k str> {
        let own = keys.keys().filter_map(|key| self.own(key));
        own.filter(|key| !key.starts_with("ResourceTag/") && *key != "CreateAction")
            .collect()
    }

    /// The rest of a key that is its own.
    fn own<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(self.service)?.strip_prefix(':')
    }

    /// What is documented of the keys of a target.
    fn documented(&self, action: &str, arn: &Arn, keys: &Keys) -> BTreeSet<&'static str> {
        let kind: &str = &arn.kind;
        if arn.id != Arn::ANY {
            let found = self.keys.iter().find(|(of, _)| *of == kind);
            let (_, all) = found.unwrap_or_else(|| panic!("{kind}: add the keys of its table"));
            return if action == "DeleteTags" {
                BTreeSet::new()
            } else {
                words(all)
            };
        }
        // CreateTags of what another action makes.
        let maker = keys.iter().find_map(|(key, maker)| {
            let made = self.own(key) == Some("CreateAction");
            made.then(|| &*maker[0])
        });
        let maker = maker.unwrap_or(action);
        let mut made = self.made.iter();
        let made = made.find(|(by, of, _)| *by == maker && *of == kind);
        let (_, _, all) = made.unwrap_or_else(|| panic!("{maker} makes no {kind}"));
        words(all)
    }
}

/// What policies were asked once.
#[derive(Debug, Clone)]
struct Asked {
    action: String,
    target: Option<(Arn, Keys)>,
}

/// Allows all but one action, and keeps what it was asked.
#[derive(Default)]
struct Listening {
    denied: Option<String>,
    asked: Mutex<Vec<Asked>>,
}

impl Policies for Listening {
    fn allow(&self, request: &AuthorizationRequest<'_>) -> bool {
        self.asked.lock().unwrap().push(Asked {
            action: request.action.to_owned(),
            target: request.target.map(|to| (to.arn.clone(), to.keys.clone())),
        });
        self.denied.as_deref() != Some(request.action)
    }
}

/// Calls as the owner; the code of the refusal, if there is one, and what was asked.
async fn listen(
    two: &mut Two,
    service: &Service,
    action: &Registered,
    request: &Parameters,
    denied: Option<&str>,
) -> (Result<String, String>, Vec<Asked>) {
    let listening = Arc::new(Listening {
        denied: denied.map(str::to_owned),
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
        /// Every type of a service that can have tags.
        fn types(service: &str) -> Vec<&'static str> {
            let all = [
                $((model::$resource::SERVICE, model::$resource::TYPE),)*
                (<RuleId as Part>::Whole::SERVICE, RuleId::TYPE),
            ];
            let own = all.into_iter().filter(|(of, _)| *of == service);
            own.map(|(_, kind)| kind).collect()
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
    let table = Table::of(service);
    let mut all = requests(service, action, &two.owners);
    let types = types(table.service).into_iter();
    all.extend(types.filter_map(|kind| tagged(action, kind)));
    if table.tagging.contains(&action.name) {
        let view = two.db.view();
        let own = said(view.at(&two.owner)).into_iter();
        let own = own.filter(|(arn, _)| arn.service == table.service);
        let ids = own.map(|(_, (id, _))| id);
        let rule = two.owners["SecurityGroupRuleId"].clone();
        all.extend(
            ids.chain([rule])
                .map(|id| parameters(&[("ResourceId.1", &id)])),
        );
    }
    let more = table.more.iter().filter(|(of, _)| *of == action.name);
    all.extend(more.map(|(_, more)| parameters(more)));
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

fn words(text: &str) -> BTreeSet<&str> {
    text.split_whitespace().collect()
}

fn name(asked: &Asked) -> &str {
    asked.action.split_once(':').unwrap().1
}

#[tokio::test]
async fn each_action_is_about_what_awss_tables_have() {
    for service in services() {
        let faults = faults_of(&service).await;
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

/// In what a service's actions are about something else than AWS's tables have.
async fn faults_of(service: &Service) -> BTreeSet<String> {
    let table = Table::of(service);
    let mut two = Two::new(STRANGERS[0]).await;
    let mut faults = BTreeSet::new();
    for action in &service.actions {
        let mut types = BTreeSet::new();
        for n in 0.. {
            let Some(request) = all_requests(service, action, &two).into_iter().nth(n) else {
                break;
            };
            let revision = two.db.view().revision();
            let (answer, asked) = listen(&mut two, service, action, &request, None).await;
            let own = asked.iter().filter(|asked| name(asked) == action.name);
            let targets = own.filter_map(|asked| asked.target.as_ref());
            let kinds: BTreeSet<String> = targets.map(|(arn, _)| arn.kind.to_string()).collect();
            if let (Ok(_), Some(of)) = (&answer, table.types_of(action.name)) {
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
                    let documented = table.documented(name(asked), arn, keys);
                    let of = (&asked.action, &arn.kind, arn.id == Arn::ANY);
                    let (all, _) = told.entry(of).or_insert((BTreeSet::new(), documented));
                    all.extend(table.own_keys(keys));
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
        let expected: BTreeSet<String> = match table.types_of(action.name) {
            Some(of) => words(of)
                .iter()
                .map(|of| of.trim_end_matches('?').to_owned())
                .collect(),
            None if table.tagging.contains(&action.name) => self::types(table.service)
                .iter()
                .map(|of| (*of).to_owned())
                .collect(),
            None => {
                assert!(
                    table.no_type.contains(&action.name),
                    "{}: add AWS's row",
                    action.name
                );
                BTreeSet::new()
            }
        };
        if table.tagging.contains(&action.name) {
            types.extend(table.nobodys.iter().map(|of| (*of).to_owned()));
        }
        if types != expected {
            faults.insert(format!(
                "{}: {types:?}, where AWS has {expected:?}",
                action.name
            ));
        }
    }
    faults
}

#[tokio::test]
async fn who_tags_what_is_made_is_asked_for_create_tags() {
    let mut two = Two::new(STRANGERS[0]).await;
    for service in services() {
        let iam = service.iam;
        for action in &service.actions {
            let mut tags = Vec::new();
            for kind in types(iam.name) {
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
                let tag_action = iam.tag_action.expect("a service that tags");
                for of in [action.name, tag_action] {
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
                    let create_action = iam.create_action_key.expect("a key for the maker");
                    let maker = keys.get(&create_action.to_string());
                    let maker = maker.map(|of| of[0].as_str());
                    let expected = (of == tag_action).then_some(action.name);
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
                let denied = iam.action(tag_action);
                let denied = Some(&*denied);
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
    for table in &TABLES {
        let keys = table.keys.iter().map(|(_, keys)| keys);
        let keys = keys.chain(table.made.iter().map(|(_, _, keys)| keys));
        let more = words(table.common);
        let known: BTreeSet<&str> = keys.flat_map(|keys| words(keys)).chain(more).collect();
        let ours: Vec<String> = table.declared.iter().map(ToString::to_string).collect();
        let ours: BTreeSet<&str> = ours.iter().filter_map(|key| table.own(key)).collect();
        assert_eq!(ours, known, "{}", table.service);
        assert_eq!(ours.len(), table.declared.len(), "{}", table.service);
    }
}
