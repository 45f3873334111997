//! The in-memory picture of the store: what Describe calls, reconcilers and the
//! network's services read.
//!
//! Records and indexes are persistent trees: a commit copies the few nodes on
//! the way to what it changed, whatever the number of records, and every older
//! picture stays as it was for whoever holds it.

use std::{any::Any, collections::BTreeMap, ops::Bound, sync::Arc};

use imbl::{OrdMap, OrdSet};

use super::{Batch, Entry, Event, Range, Revision, Scoped, record};
use hearth_model::{Described, HostId, Index, Quota, Regional, Resource, Scope, Shared, each_kind};

type Value = Arc<dyn Any + Send + Sync>;

#[derive(Clone)]
struct Record {
    modified: Revision,
    value: Value,
}

/// The number of an index among its kind's, a key in it, and a record's path.
type IndexEntry = (u8, Arc<str>, Arc<str>);

/// Calls back with each index and key that a record is found under.
type Found = fn(&Value, &mut dyn FnMut(u8, &str));

/// Calls back with the number of each index by resources of this kind that are referred
/// to.
type Refers = fn(&str, &mut dyn FnMut(u8));

/// What the view must know of a kind, without its type.
struct KindOf {
    name: &'static str,
    read: fn(&[u8]) -> Result<Value, String>,
    index: Found,
    refers: Refers,
    claim: fn(&Value) -> Option<(&HostId, Quota)>,
}

const fn kind_of<T: Resource>() -> KindOf {
    KindOf {
        name: T::KIND,
        read: |bytes| Ok(Arc::new(record::decode::<T>(bytes)?)),
        index: |value, found| {
            let Some(value) = value.downcast_ref::<T>() else {
                return;
            };
            for (number, index) in (0..).zip(T::INDEXES) {
                (index.keys)(value, &mut |key| found(number, key));
            }
        },
        refers: |to, found| {
            for reference in T::REFERS.iter().filter(|reference| reference.to == to) {
                number_of(reference.index).into_iter().for_each(&mut *found);
            }
        },
        claim: |value| value.downcast_ref::<T>()?.claim(),
    }
}

macro_rules! kinds {
    (described: [$($resource:ident),* $(,)?], others: [$($other:ident),* $(,)?] $(,)?) => {
        const KINDS: &[KindOf] = &[
            $(kind_of::<hearth_model::$resource>(),)*
            $(kind_of::<hearth_model::$other>(),)*
        ];
    };
}

each_kind!(kinds);

fn slot_of(kind: &str) -> Option<usize> {
    KINDS.iter().position(|known| known.name == kind)
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
    /// region.
    pub fn find<T: Described>(&self, id: &T::Id) -> Option<&T> {
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

    /// This picture with one more record: for tests of pure functions.
    #[must_use]
    pub fn with<T: Resource>(mut self, resource: T) -> Self {
        self.revision.0 += 1;
        if let Some(slot) = slot_of(T::KIND) {
            let record = Record {
                modified: self.revision,
                value: Arc::new(resource.clone()),
            };
            self.insert(slot, &resource.path(), record);
        }
        self
    }

    /// The picture of everything in the store.
    pub(super) fn of(range: Range) -> Self {
        let mut view = Self {
            revision: range.revision,
            ..Self::default()
        };
        for entry in range.entries {
            view.put(entry);
        }
        view
    }

    /// The picture after one more commit.
    pub(super) fn apply(&mut self, batch: Batch) {
        for event in batch.events {
            match event {
                Event::Put(entry) => self.put(entry),
                Event::Delete { key } => {
                    self.unreadable.remove(key.as_str());
                    if let Some((slot, path)) = split(&key) {
                        self.remove(slot, path);
                    }
                }
            }
        }
        self.revision = batch.revision;
    }

    fn put(&mut self, entry: Entry) {
        // A kind that this version doesn't know is not ours to read.
        let Some((slot, path)) = split(&entry.key) else {
            return;
        };
        match (KINDS[slot].read)(&entry.value) {
            Ok(value) => {
                self.unreadable.remove(entry.key.as_str());
                let record = Record {
                    modified: entry.modified,
                    value,
                };
                self.insert(slot, path, record);
            }
            Err(why) => {
                tracing::error!(
                    key = entry.key,
                    why,
                    "a record can't be read, it is set aside"
                );
                self.remove(slot, path);
                self.unreadable
                    .insert(entry.key.as_str().into(), why.as_str().into());
            }
        }
    }

    fn insert(&mut self, slot: usize, path: &str, record: Record) {
        let path: Arc<str> = path.into();
        let kind = &mut self.kinds[slot];
        let entries = entries_of(slot, &path, &record.value);
        let value = Arc::clone(&record.value);
        let before = kind.records.insert(Arc::clone(&path), record);
        if let Some(before) = &before {
            for entry in entries_of(slot, &path, &before.value) {
                if !entries.contains(&entry) {
                    kind.index.remove(&entry);
                }
            }
        }
        for entry in entries {
            kind.index.insert(entry);
        }
        self.claim(slot, before.as_ref().map(|b| &b.value), Some(&value));
    }

    /// Counts what a record takes of its host in place of what it took before.
    fn claim(&mut self, slot: usize, before: Option<&Value>, after: Option<&Value>) {
        let claim = KINDS[slot].claim;
        let (before, after) = (before.and_then(claim), after.and_then(claim));
        if before == after {
            return;
        }
        if let Some((host, quota)) = before {
            let left = self.claimed(host).less(quota);
            if left == Quota::default() {
                self.claimed.remove(host);
            } else {
                self.claimed.insert(host.clone(), left);
            }
        }
        if let Some((host, quota)) = after {
            let all = self.claimed(host).plus(quota);
            self.claimed.insert(host.clone(), all);
        }
    }

    fn remove(&mut self, slot: usize, path: &str) {
        let kind = &mut self.kinds[slot];
        if let Some((path, before)) = kind.records.remove_with_key(path) {
            for entry in entries_of(slot, &path, &before.value) {
                kind.index.remove(&entry);
            }
            self.claim(slot, Some(&before.value), None);
        }
    }
}

fn entries_of(slot: usize, path: &Arc<str>, value: &Value) -> Vec<IndexEntry> {
    let mut entries = Vec::new();
    (KINDS[slot].index)(value, &mut |number, key| {
        entries.push((number, key.into(), Arc::clone(path)));
    });
    entries
}

pub(super) fn number_of<T: Resource>(index: Index<T>) -> Option<u8> {
    let position = T::INDEXES.iter().position(|i| i.name == index.name)?;
    u8::try_from(position).ok()
}

/// The kind of a key, if it is a known one, and the path.
pub(super) fn kind_and_path(key: &str) -> Option<(&'static str, Arc<str>)> {
    let (slot, path) = split(key)?;
    Some((KINDS[slot].name, path.into()))
}

/// The kind of `/kind/path`, by its slot, and the path.
fn split(key: &str) -> Option<(usize, &str)> {
    let (kind, path) = key.strip_prefix('/')?.split_once('/')?;
    Some((slot_of(kind)?, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::{
        Eni, GroupId, Host, HostId, Instance, InstanceId, Reservation, ReservationId, samples,
    };

    #[test]
    fn what_refers_to_a_resource_is_found_by_its_declaration() {
        let (vpc, subnet, group) = (samples::vpc(), samples::subnet(), GroupId::from_random(1));
        let there = View::default().with(vpc.clone());
        assert!(!there.is_referred_to(&vpc));
        let there = there.with(subnet.clone());
        assert!(there.is_referred_to(&vpc) && !there.is_referred_to(&subnet));
        let elsewhere = Scope::new("1", "elsewhere");
        let other = Eni {
            scope: elsewhere.clone(),
            ..samples::eni(1)
        };
        let there = there.with(other);
        assert!(!there.is_referred_to(&subnet), "another account's");
        assert!(there.clone().with(samples::eni(2)).is_referred_to(&subnet));
        // A launch that is under way has no interfaces yet.
        let pending = Reservation {
            id: ReservationId::from_random(1),
            scope: samples::scope(),
            created: samples::time(),
            user_data: None,
            pending: Some(Box::new(samples::launch(1, &subnet, &group))),
        };
        let done = Reservation {
            pending: None,
            ..pending.clone()
        };
        assert!(there.clone().with(pending).is_referred_to(&subnet));
        assert!(!there.clone().with(done).is_referred_to(&subnet));
        // What can't be read may refer to any of its scope; an image refers to none.
        for (scope, kind, refers) in [
            (samples::scope(), Eni::KIND, true),
            (samples::scope(), hearth_model::Image::KIND, false),
            (elsewhere, Eni::KIND, false),
        ] {
            let mut unread = there.clone();
            let key = format!("/{kind}/{}", scope.path("x"));
            unread.unreadable.insert(key.as_str().into(), "why".into());
            assert_eq!(unread.is_referred_to(&subnet), refers, "{key}");
        }
    }

    #[test]
    fn kinds_and_indexes_are_told_apart() {
        for (i, kind) in KINDS.iter().enumerate() {
            assert!(
                KINDS[..i].iter().all(|other| other.name != kind.name),
                "{} twice",
                kind.name
            );
        }
        fn distinct<T: Resource>() {
            assert_eq!(KINDS[T::SLOT].name, T::KIND);
            for (i, index) in T::INDEXES.iter().enumerate() {
                assert!(T::INDEXES[..i].iter().all(|other| other.name != index.name));
            }
        }
        macro_rules! each {
            (described: [$($resource:ident),*], others: [$($other:ident),* $(,)?] $(,)?) => {
                $(distinct::<hearth_model::$resource>();
                // `find` looks in the first.
                assert_eq!(hearth_model::$resource::INDEXES[0].name, "id");)*
                $(distinct::<hearth_model::$other>();)*
            };
        }
        each_kind!(each);
    }

    fn put<T: Resource>(resource: &T, revision: u64) -> Batch {
        let entry = Entry {
            key: resource.key(),
            value: record::encode(resource),
            created: Revision(1),
            modified: Revision(revision),
        };
        Batch {
            revision: Revision(revision),
            events: vec![Event::Put(entry)],
        }
    }

    #[test]
    fn an_older_picture_stays_as_it_was() {
        let before = View::default().with(samples::host("a", 1));
        let mut after = before.clone();
        after.apply(put(&samples::host("a", 2), 2));
        assert_eq!(before.shared::<Host>("a").unwrap().vcpus, 1);
        assert_eq!(after.shared::<Host>("a").unwrap().vcpus, 2);
        assert_eq!(after.modified(&samples::host("a", 0)), Some(Revision(2)));

        let gone = Event::Delete {
            key: "/hosts/a".into(),
        };
        after.apply(Batch {
            revision: Revision(3),
            events: vec![gone],
        });
        assert!(after.shared::<Host>("a").is_none());
        assert_eq!(after.all::<Host>().count(), 0);
        assert_eq!(before.all::<Host>().count(), 1);
    }

    #[test]
    fn indexes_follow_the_records() {
        let on = |host: Option<&str>| Instance {
            host: host.map(|h| HostId(h.into())),
            ..samples::instance(1)
        };
        let ids = |view: &View, index, key: &str| -> Vec<InstanceId> {
            view.by(index, key)
                .map(|i: &Instance| i.id.clone())
                .collect()
        };
        let one = InstanceId::from_random(1);
        let mut view = View::default().with(on(None)).with(samples::instance(2));
        assert_eq!(view.in_order(Instance::UNPLACED).count(), 2);
        view.apply(put(&on(Some("a")), 9));
        assert_eq!(
            ids(&view, Instance::BY_HOST, "a"),
            std::slice::from_ref(&one)
        );
        assert_eq!(view.in_order(Instance::UNPLACED).count(), 1);
        view.apply(put(&on(Some("ab")), 10));
        assert_eq!(ids(&view, Instance::BY_HOST, "a"), []);
        assert_eq!(
            ids(&view, Instance::BY_HOST, "ab"),
            std::slice::from_ref(&one)
        );
        assert_eq!(view.find::<Instance>(&one).unwrap().id, one);
        let key = on(None).key();
        view.apply(Batch {
            revision: Revision(11),
            events: vec![Event::Delete { key }],
        });
        assert_eq!(ids(&view, Instance::BY_HOST, "ab"), []);
        assert!(view.find::<Instance>(&one).is_none());
        assert_eq!(view.kinds[slot_of("instances").unwrap()].index.len(), 4);
    }

    #[test]
    fn an_index_has_its_records_in_the_order_of_its_keys() {
        let asked = |n: u8, seconds, launch_index| Instance {
            launched_at: samples::time() + jiff::SignedDuration::from_secs(seconds),
            launch_index,
            ..samples::instance(n)
        };
        let view = View::default()
            .with(asked(1, 9, 0))
            .with(asked(2, 1, 10))
            .with(asked(3, 1, 9))
            .with(asked(4, 100, 0));
        let order: Vec<_> = view.in_order(Instance::UNPLACED).map(|i| &i.id).collect();
        let expected = [3, 2, 1, 4].map(InstanceId::from_random);
        assert_eq!(order, expected.iter().collect::<Vec<_>>());
    }

    #[test]
    fn an_account_sees_its_own() {
        let theirs = Scope::new("111111111111", "us-east-1");
        let elsewhere = Scope::new(samples::ACCOUNT, "eu-west-1");
        let in_scope = |n, scope: &Scope| Eni {
            scope: scope.clone(),
            ..samples::eni(n)
        };
        let mine = samples::scope();
        let view = View::default()
            .with(in_scope(1, &mine))
            .with(in_scope(2, &theirs))
            .with(in_scope(3, &elsewhere));
        for (scope, n) in [(&mine, 1), (&theirs, 2), (&elsewhere, 3)] {
            let here = view.at(scope);
            let own = samples::eni(n);
            let seen: Vec<_> = here.all::<Eni>().map(|e| &e.id).collect();
            assert_eq!(seen, [&own.id]);
            assert_eq!(here.get::<Eni>(&own.id).unwrap().home(), scope);
            let by_vpc: Vec<_> = here.by(Eni::BY_VPC, own.vpc.as_str()).collect();
            assert_eq!(by_vpc.len(), 1);
        }
        assert!(view.at(&theirs).get::<Eni>(samples::eni(1).id).is_none());
        assert_eq!(view.by(Eni::BY_VPC, samples::vpc().id.as_str()).count(), 3);
    }

    #[test]
    fn a_record_that_cant_be_read_is_set_aside() {
        let mut batch = put(&samples::host("a", 1), 1);
        let Event::Put(entry) = &mut batch.events[0] else {
            unreachable!()
        };
        entry.value = b"{}".to_vec();
        let entries = vec![entry.clone()];
        let mut view = View::of(Range {
            revision: Revision(1),
            entries,
        });
        assert!(view.shared::<Host>("a").is_none());
        assert!(view.has_unreadable::<Host>() && !view.has_unreadable::<Eni>());
        let (key, why) = view.unreadable().next().unwrap();
        assert_eq!(key, "/hosts/a");
        assert!(why.contains("version"), "{why}");
        view.apply(put(&samples::host("a", 1), 2));
        assert!(!view.has_unreadable::<Host>());
        assert_eq!(view.shared::<Host>("a").unwrap().vcpus, 1);
    }
}
