//! What a request is about: it is resolved into this before it is authorized.
//!
//! The resources and condition keys of each action are in AWS's tables:
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>

use std::collections::BTreeMap;

use super::{
    registry::Iam,
    shared::{TagSpecification, tag::TagInput},
};
use crate::{
    auth::{Keys, Target},
    model::{Arn, ConditionKey, Described, Part, Visible, condition_key::aws},
    store::Scoped,
};

/// The resources of a request, as the view has them. What isn't there, or is another
/// account's, stands under the name that it would have here: whether it exists is for
/// the handler to say, when the caller may ask.
pub struct Targets<'v> {
    view: Scoped<'v>,
    iam: Iam,
    action: &'static str,
    /// What policies are asked about.
    pub(super) asked: Vec<Target>,
    /// Whether they are asked about `*`.
    pub(super) any: bool,
    /// What is tagged as it is made: policies are asked about `CreateTags`, too.
    pub(super) tagged: Vec<Target>,
    /// What is written along with those, and policies aren't asked about.
    pub(super) along: Vec<Arn>,
    /// The condition keys of the request itself.
    pub(super) keys: Keys,
}

impl<'v> Targets<'v> {
    pub(super) fn new(view: Scoped<'v>, iam: Iam, action: &'static str) -> Self {
        let keys = [aws::REQUESTED_REGION].into_iter().chain(iam.region_key);
        Self {
            view,
            iam,
            action,
            asked: Vec::new(),
            any: false,
            tagged: Vec::new(),
            along: Vec::new(),
            keys: single(keys.map(|key| (key, view.scope().region.clone()))),
        }
    }

    /// What there is in the caller's scope.
    pub fn view(&self) -> Scoped<'v> {
        self.view
    }

    /// No resource by itself: policies are asked about `*`, as of most lists.
    pub fn any(&mut self) {
        self.any = true;
    }

    /// A resource that is there.
    pub fn existing<T: Described>(&mut self, resource: &T) {
        let mut keys = self.tags(self.view.tags_of(resource));
        keys.extend(single(resource.condition_keys()));
        self.asked.push(Target {
            arn: resource.arn(),
            keys,
        });
    }

    /// One that isn't, by the id or name that the request has.
    pub fn absent<T: Described>(&mut self, id: &str) {
        let arn = T::arn_at(self.view.scope(), id);
        let keys = Keys::new();
        self.asked.push(Target { arn, keys });
    }

    /// The caller's resources with these ids.
    pub fn named<T: Described>(&mut self, ids: impl IntoIterator<Item = impl AsRef<str>>) {
        for id in ids {
            let id = id.as_ref();
            match id.parse().ok().and_then(|id| self.view.find::<T>(&id)) {
                Some(resource) => self.existing(resource),
                None => self.absent::<T>(id),
            }
        }
    }

    /// The resource with this id, whosever it is.
    pub fn visible<T: Visible>(&mut self, id: &str) {
        match id.parse().ok().and_then(|id| self.view.visible::<T>(&id)) {
            Some(resource) => self.existing(resource),
            None => self.absent::<T>(id),
        }
    }

    /// What is a part of a resource, and has no record of its own but its tags.
    pub fn part<P: Part>(&mut self, id: &str) {
        let target = Target {
            arn: P::arn_at(self.view.scope(), id),
            keys: self.tags(self.view.tags(id)),
        };
        self.asked.push(target);
    }

    /// What is of no kind that there is, and so of none that any policy names.
    pub fn unknown(&mut self, id: &str) {
        let scope = self.view.scope();
        let arn = Arn::new(self.iam.name, &scope.region, &scope.account, "unknown", id);
        let keys = Keys::new();
        self.asked.push(Target { arn, keys });
    }

    /// What the action makes, with the condition keys that it will have and its tags.
    pub fn made<T: Described>(
        &mut self,
        keys: impl IntoIterator<Item = (ConditionKey, String)>,
        tags: &[TagSpecification],
    ) {
        let arn = T::arn_at(self.view.scope(), Arn::ANY);
        self.made_with(arn, keys, &of_kind(T::TYPE, tags));
    }

    /// The same of a part of a resource, which only its tags make a matter of policies.
    pub fn made_part<P: Part>(&mut self, tags: &[TagSpecification]) {
        let tags = of_kind(P::TYPE, tags);
        if !tags.is_empty() {
            self.made_with(P::arn_at(self.view.scope(), Arn::ANY), [], &tags);
        }
    }

    fn made_with(
        &mut self,
        arn: Arn,
        keys: impl IntoIterator<Item = (ConditionKey, String)>,
        tags: &[(&str, &str)],
    ) {
        let mut target = Target {
            arn,
            keys: single(keys),
        };
        add_tags(&mut target.keys, tags);
        if !tags.is_empty() {
            let mut tagged = target.clone();
            if let Some(key) = self.iam.create_action_key {
                let why = vec![self.action.to_owned()];
                tagged.keys.insert(key.into(), why);
            }
            self.tagged.push(tagged);
        }
        self.asked.push(target);
    }

    /// The tags that the request itself is about.
    pub fn request_tags(&mut self, tags: &[TagInput]) {
        add_tags(&mut self.keys, &pairs(tags));
    }

    /// Another condition key of the request itself.
    pub fn request_key(&mut self, key: ConditionKey, values: Vec<String>) {
        self.keys.insert(key.into(), values);
    }

    /// The same of a part of one, as `ec2:Attribute/SourceDestCheck`.
    pub fn request_key_of(&mut self, key: ConditionKey, part: &str, value: String) {
        self.keys.insert(key.of(part), vec![value]);
    }

    /// What is changed along with what was named, as an instance's interface is.
    pub fn along<T: Described>(&mut self, resource: &T) {
        self.along.push(resource.arn());
    }

    /// Of what was named so far, policies are told its tags alone: AWS's table has no
    /// other keys for some actions.
    pub fn by_tags_alone(&mut self) {
        let tags = [Some(aws::RESOURCE_TAG), self.iam.resource_tag_key];
        let prefixes = tags.map(|key| key.map(|key| key.of("")));
        let is_tag = |name: &str| prefixes.iter().flatten().any(|p| name.starts_with(p));
        for target in &mut self.asked {
            target.keys.retain(|name, _| is_tag(name));
        }
    }

    /// What a resource's tags say to conditions; what isn't there has none.
    fn tags(&self, tags: &BTreeMap<String, String>) -> Keys {
        let names = || {
            [aws::RESOURCE_TAG]
                .into_iter()
                .chain(self.iam.resource_tag_key)
        };
        let keys = tags
            .iter()
            .flat_map(|(key, value)| names().map(move |name| (name.of(key), value.clone())));
        single(keys)
    }
}

/// Keys of one value each.
fn single(keys: impl IntoIterator<Item = (impl Into<String>, String)>) -> Keys {
    let keys = keys.into_iter();
    keys.map(|(key, value)| (key.into(), vec![value])).collect()
}

/// The tags that a request has for what it makes of this kind.
fn of_kind<'t>(kind: &str, tags: &'t [TagSpecification]) -> Vec<(&'t str, &'t str)> {
    tags.iter()
        .filter(|tags| tags.resource_type.as_deref() == Some(kind))
        .flat_map(|tags| pairs(&tags.tags))
        .collect()
}

fn pairs(tags: &[TagInput]) -> Vec<(&str, &str)> {
    tags.iter()
        .map(|tag| (tag.key.as_str(), tag.value.as_deref().unwrap_or_default()))
        .collect()
}

fn add_tags(keys: &mut Keys, tags: &[(&str, &str)]) {
    keys.extend(single(tags.iter().map(|(key, value)| {
        (aws::REQUEST_TAG.of(key), (*value).to_owned())
    })));
    if !tags.is_empty() {
        let all = tags.iter().map(|(key, _)| (*key).to_owned());
        keys.insert(aws::TAG_KEYS.into(), all.collect());
    }
}
