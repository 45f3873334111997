//! The in-memory picture of the store: what Describe calls, reconcilers and the
//! network's services read.
//!
//! Records and indexes are persistent trees: a commit copies the few nodes on
//! the way to what it changed, whatever the number of records, and every older
//! picture stays as it was for whoever holds it.

mod feed;
mod kinds;

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use imbl::{OrdMap, OrdSet};

use super::{Revision, Scoped};
use hearth_model::{
    Described, HostId, IdForm, Identifier as _, Index, Quota, Regional, Resource, Scope, Shared,
};
use kinds::{IndexEntry, KINDS, Value};

pub(super) use kinds::{kind_and_path, number_of};

#[derive(Clone)]
struct Record {
    modified: Revision,
    value: Value,
}

/// The records of one kind, by path, and its indexes.
#[derive(Clone, Default)]
struct Kind {
    records: OrdMap<Arc<str>, Record>,
    index: OrdSet<IndexEntry>,
}

/// An immutable, typed picture of the whole store at one revision. Cheap to
/// clone.
#[derive(Clone)]
pub struct View {
    revision: Revision,
    /// In the order of [`KINDS`].
    kinds: Vec<Kind>,
    /// What is taken of each host.
    claimed: OrdMap<HostId, Quota>,
    /// Why a record could not be read, by its key.
    unreadable: OrdMap<Arc<str>, Arc<str>>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            revision: Revision::default(),
            kinds: KINDS.iter().map(|_| Kind::default()).collect(),
            claimed: OrdMap::new(),
            unreadable: OrdMap::new(),
        }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = KINDS.iter().zip(&self.kinds);
        let counts: BTreeMap<_, _> = counts.map(|(k, v)| (k.name, v.records.len())).collect();
        f.debug_struct("View")
            .field("revision", &self.revision)
            .field("kinds", &counts)
            .finish()
    }
}

impl View {
    /// The revision that the picture was taken at.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What an account has in a region.
    pub fn at<'v>(&'v self, scope: &'v Scope) -> Scoped<'v> {
        Scoped::new(self, scope)
    }

    fn kind<T: Resource>(&self) -> Option<&Kind> {
        self.kinds.get(T::SLOT)
    }

    fn record<T: Resource>(&self, path: &str) -> Option<&Record> {
        self.kind::<T>()?.records.get(path)
    }

    /// The record with this path.
    pub(super) fn get_at<T: Resource>(&self, path: &str) -> Option<&T> {
        self.record::<T>(path)?.value.downcast_ref()
    }

    /// The record that all accounts share with this id.
    pub fn shared<T: Shared>(&self, id: impl AsRef<str>) -> Option<&T> {
        self.get_at(id.as_ref())
    }

    /// The resource with this identifier, in whichever scope it is. Ids are
    /// random, so there is one; an image, whose id is its content's, has one a
    /// region. Names are looked up [at](Self::at) their scope.
    pub fn find<T: Described>(&self, id: &T::Id) -> Option<&T> {
        debug_assert!(!matches!(T::Id::FORM, IdForm::Name { .. }), "{}", T::KIND);
        self.by_number(0, id.as_ref(), "").next()
    }

    /// All records of a kind, in the order of their paths.
    pub fn all<T: Resource>(&self) -> impl Iterator<Item = &T> {
        self.kind::<T>()
            .into_iter()
            .flat_map(|kind| kind.records.values())
            .filter_map(|record| record.value.downcast_ref())
    }

    /// How many records of a kind there are.
    pub fn count<T: Resource>(&self) -> usize {
        self.kind::<T>().map_or(0, |kind| kind.records.len())
    }

    /// The records that an index has under this key, in the order of their paths.
    pub fn by<T: Resource>(
        &self,
        index: Index<T>,
        key: &str,
    ) -> impl Iterator<Item = &T> + use<'_, T> {
        let number = number_of(index);
        debug_assert!(number.is_some(), "{} has no index {}", T::KIND, index.name);
        let found = number.map(|number| self.by_number(number, key, ""));
        found.into_iter().flatten()
    }

    /// All records that an index has, in the order of their keys in it.
    pub fn in_order<T: Resource>(&self, index: Index<T>) -> impl Iterator<Item = &T> + use<'_, T> {
        let kind = self.kind::<T>().zip(number_of(index));
        debug_assert!(kind.is_some(), "{} has no index {}", T::KIND, index.name);
        kind.into_iter().flat_map(|(kind, number)| {
            let first: IndexEntry = (number, "".into(), "".into());
            kind.index
                .range(first..)
                .take_while(move |(n, _, _)| *n == number)
                .filter_map(|(_, _, path)| kind.records.get(&**path)?.value.downcast_ref())
        })
    }

    /// The records of an index under this key whose paths begin so.
    pub(super) fn by_number<T: Resource>(
        &self,
        number: u8,
        key: &str,
        prefix: &str,
    ) -> impl Iterator<Item = &T> + use<'_, T> {
        let kind = self.kind::<T>();
        let (key, prefix): (Arc<str>, Arc<str>) = (key.into(), prefix.into());
        let first = (number, Arc::clone(&key), Arc::clone(&prefix));
        kind.into_iter()
            .flat_map(move |kind| kind.index.range(first.clone()..))
            .take_while(move |(n, k, path)| *n == number && *k == key && path.starts_with(&*prefix))
            .filter_map(move |(_, _, path)| kind?.records.get(&**path)?.value.downcast_ref())
    }

    /// The records whose paths begin with `prefix` and come after `after`, in
    /// the order of their paths.
    pub(super) fn after<T: Resource>(
        &self,
        prefix: &str,
        after: &str,
    ) -> impl Iterator<Item = &T> + use<'_, T> {
        let prefix: Box<str> = prefix.into();
        let first: Arc<str> = format!("{prefix}{after}").into();
        let bound = if after.is_empty() {
            Bound::Included(first)
        } else {
            Bound::Excluded(first)
        };
        self.kind::<T>()
            .into_iter()
            .flat_map(move |kind| {
                kind.records
                    .range::<_, Arc<str>>((bound.clone(), Bound::Unbounded))
            })
            .take_while(move |(path, _)| path.starts_with(&*prefix))
            .filter_map(|(_, record)| record.value.downcast_ref())
    }

    /// Whether there are at most so many records of each kind whose paths begin so.
    pub(super) fn has_at_most(&self, prefix: &str, most: usize) -> bool {
        let first: Arc<str> = prefix.into();
        self.kinds.iter().all(|kind| {
            let all = kind.records.range::<_, Arc<str>>(Arc::clone(&first)..);
            let mut here = all.take_while(|(path, _)| path.starts_with(prefix));
            here.nth(most).is_none()
        })
    }

    /// What all records together take of this host.
    pub fn claimed(&self, host: &HostId) -> Quota {
        self.claimed.get(host).copied().unwrap_or_default()
    }

    /// The commit that last wrote the record with the path of this one.
    pub fn modified<T: Resource>(&self, resource: &T) -> Option<Revision> {
        self.modified_at::<T>(&resource.path())
    }

    pub(super) fn modified_at<T: Resource>(&self, path: &str) -> Option<Revision> {
        self.record::<T>(path).map(|record| record.modified)
    }

    /// The records that could not be read, by their keys, and why.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.unreadable.iter().map(|(key, why)| (&**key, &**why))
    }

    /// Whether there are records of this kind that could not be read: what a
    /// host has then and no record knows may well be one of those.
    pub fn has_unreadable<T: Resource>(&self) -> bool {
        let prefix = T::key_of("");
        self.unreadable().any(|(key, _)| key.starts_with(&prefix))
    }

    /// The same of those of one account in one region.
    pub fn has_unreadable_at<T: Regional>(&self, scope: &Scope) -> bool {
        let prefix = T::key_of(&scope.prefix());
        self.unreadable().any(|(key, _)| key.starts_with(&prefix))
    }

    /// Whether the record with the path of this one is there and can't be read.
    pub fn is_unreadable<T: Resource>(&self, resource: &T) -> bool {
        self.unreadable.contains_key(resource.key().as_str())
    }

    /// Whether a record of the same scope refers to this one, or may: one that can't be
    /// read refers to any.
    pub(super) fn is_referred_to<T: Described>(&self, resource: &T) -> bool {
        let id: Arc<str> = resource.described_id().as_ref().into();
        let prefix: Arc<str> = resource.home().prefix().into();
        KINDS.iter().zip(&self.kinds).any(|(kind, records)| {
            let mut found = false;
            (kind.refers)(T::KIND, &mut |number| {
                let first = (number, Arc::clone(&id), Arc::clone(&prefix));
                let next = records.index.range(first..).next();
                let refers = next.is_some_and(|(n, key, path)| {
                    *n == number && *key == id && path.starts_with(&*prefix)
                });
                let unreadable = format!("/{}/{prefix}", kind.name);
                let mut unreadables = self.unreadable();
                found |= refers || unreadables.any(|(key, _)| key.starts_with(&unreadable));
            });
            found
        })
    }
}

#[cfg(test)]
mod tests;
