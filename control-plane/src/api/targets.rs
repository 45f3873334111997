//! What a request is about: it is resolved into this before it is authorized.
//!
//! The resources and condition keys of each action are in AWS's table:
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html>

use super::shared::TagSpecification;
use crate::{
    auth::{Keys, Target},
    model::{Arn, Described, Visible},
    store::Scoped,
};

/// The resources of a request, as the view has them. What isn't there, or is another
/// account's, stands under the name that it would have here: whether it exists is for
/// the handler to say, when the caller may ask.
pub struct Targets<'v> {
    view: Scoped<'v>,
    action: &'static str,
    /// What policies are asked about.
    pub(super) asked: Vec<Target>,
    /// What is tagged as it is made: policies are asked about `CreateTags`, too.
    pub(super) tagged: Vec<Target>,
    /// What is written along with those, and policies aren't asked about.
    pub(super) along: Vec<Arn>,
    /// The condition keys of the request itself.
    pub(super) keys: Keys,
}

impl<'v> Targets<'v> {
    pub(super) fn new(view: Scoped<'v>, action: &'static str) -> Self {
        let region = &view.scope().region;
        let keys = ["aws:RequestedRegion", "ec2:Region"];
        Self {
            view,
            action,
            asked: Vec::new(),
            tagged: Vec::new(),
            along: Vec::new(),
            keys: keys
                .map(|key| (key.to_owned(), vec![region.clone()]))
                .into(),
        }
    }

    /// What there is in the caller's scope.
    pub fn view(&self) -> Scoped<'v> {
        self.view
    }

    /// A resource that is there.
    pub fn existing<T: Described>(&mut self, resource: &T) {
        let tags = self.view.tags(resource.described_id());
        let tags = tags.iter().flat_map(|(key, value)| {
            ["aws", "ec2"].map(|by| (format!("{by}:ResourceTag/{key}"), value.clone()))
        });
        let own = resource.condition_keys();
        let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
        self.asked.push(Target {
            arn: resource.arn(),
            keys: tags
                .chain(own)
                .map(|(key, value)| (key, vec![value]))
                .collect(),
        });
    }

    /// One that isn't, by the id or name that the request has.
    pub fn absent(&mut self, kind: &'static str, id: &str) {
        let arn = self.arn(kind, id);
        let keys = Keys::new();
        self.asked.push(Target { arn, keys });
    }

    /// The caller's resources with these ids.
    pub fn named<T: Described>(&mut self, ids: impl IntoIterator<Item = impl AsRef<str>>) {
        for id in ids {
            let id = id.as_ref();
            match id.parse().ok().and_then(|id| self.view.find::<T>(&id)) {
                Some(resource) => self.existing(resource),
                None => self.absent(T::TYPE, id),
            }
        }
    }

    /// The resource with this id, whosever it is.
    pub fn visible<T: Visible>(&mut self, id: &str) {
        match id.parse().ok().and_then(|id| self.view.visible::<T>(&id)) {
            Some(resource) => self.existing(resource),
            None => self.absent(T::TYPE, id),
        }
    }

    /// What the action makes, with the condition keys that it will have and its tags.
    pub fn made<T: Described>(
        &mut self,
        keys: impl IntoIterator<Item = (&'static str, String)>,
        tags: &[TagSpecification],
    ) {
        let keys = keys
            .into_iter()
            .map(|(key, value)| (key.to_owned(), vec![value]));
        let mut target = Target {
            arn: self.arn(T::TYPE, Arn::ANY),
            keys: keys.collect(),
        };
        let tags = tags
            .iter()
            .filter(|tags| tags.resource_type.as_deref() == Some(T::TYPE));
        let tags = tags.flat_map(|tags| &tags.tags);
        let tags: Vec<_> = tags
            .map(|tag| (tag.key.as_str(), tag.value.as_deref().unwrap_or_default()))
            .collect();
        add_tags(&mut target.keys, &tags);
        if !tags.is_empty() {
            let mut tagged = target.clone();
            let why = vec![self.action.to_owned()];
            tagged.keys.insert("ec2:CreateAction".into(), why);
            self.tagged.push(tagged);
        }
        self.asked.push(target);
    }

    /// The tags that the request itself is about.
    pub fn request_tags<'t>(&mut self, tags: impl IntoIterator<Item = (&'t str, &'t str)>) {
        let tags: Vec<_> = tags.into_iter().collect();
        add_tags(&mut self.keys, &tags);
    }

    /// What is changed along with what was named, as an instance's interface is.
    pub fn along<T: Described>(&mut self, resource: &T) {
        self.along.push(resource.arn());
    }

    fn arn(&self, kind: &'static str, id: &str) -> Arn {
        Arn {
            scope: self.view.scope().clone(),
            kind,
            id: id.to_owned(),
        }
    }
}

fn add_tags(keys: &mut Keys, tags: &[(&str, &str)]) {
    for (key, value) in tags {
        keys.insert(format!("aws:RequestTag/{key}"), vec![(*value).to_owned()]);
    }
    if !tags.is_empty() {
        let all = tags.iter().map(|(key, _)| (*key).to_owned());
        keys.insert("aws:TagKeys".into(), all.collect());
    }
}
