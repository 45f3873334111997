//! The in-memory picture of the store: what Describe calls, reconcilers and the
//! network's services read.

use std::{any::Any, collections::BTreeMap, sync::Arc};

use super::{Batch, Entry, Event, Range, Revision, StoreError};
use crate::model::{self, Resource, Tags};

type Value = Arc<dyn Any + Send + Sync>;
type Parse = fn(&[u8]) -> Result<Value, serde_json::Error>;

#[derive(Clone)]
struct Record {
    modified: Revision,
    value: Value,
}

/// The records of one kind, by id. Copied when changed while somebody holds the
/// picture before: at the sizes meant here (thousands) cheaper than a
/// persistent tree is to read.
type Kind = Arc<BTreeMap<String, Record>>;

fn parse<T: Resource>(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    Ok(Arc::new(serde_json::from_slice::<T>(bytes)?))
}

macro_rules! kinds {
    ($($kind:ty),* $(,)?) => {
        /// Every kind that the view knows; a new resource is one line here.
        const KINDS: &[(&str, Parse)] = &[$((<$kind as Resource>::KIND, parse::<$kind>)),*];
    };
}

kinds![
    model::ClientToken,
    model::Eni,
    model::Host,
    model::Image,
    model::Instance,
    model::KeyPair,
    model::PrivateAddress,
    model::PublicAddress,
    model::PublicPool,
    model::Reachability,
    model::SecurityGroup,
    model::Subnet,
    Tags,
    model::Volume,
    model::Vpc,
];

fn parser(kind: &str) -> Option<Parse> {
    KINDS
        .iter()
        .find(|(name, _)| *name == kind)
        .map(|(_, parse)| *parse)
}

/// An immutable, typed picture of the whole store at one revision. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct View {
    revision: Revision,
    kinds: BTreeMap<&'static str, Kind>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: BTreeMap<_, _> = self.kinds.iter().map(|(k, v)| (k, v.len())).collect();
        f.debug_struct("View")
            .field("revision", &self.revision)
            .field("kinds", &kinds)
            .finish()
    }
}

impl View {
    /// The revision that the picture was taken at.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    fn record<T: Resource>(&self, id: &str) -> Option<&Record> {
        self.kinds.get(T::KIND)?.get(id)
    }

    /// The record with this id.
    pub fn get<T: Resource>(&self, id: impl AsRef<str>) -> Option<&T> {
        self.record::<T>(id.as_ref())?.value.downcast_ref()
    }

    /// The record with this id, to be kept beyond the view.
    pub fn get_arc<T: Resource>(&self, id: impl AsRef<str>) -> Option<Arc<T>> {
        Arc::clone(&self.record::<T>(id.as_ref())?.value)
            .downcast()
            .ok()
    }

    /// All records of a kind, in the order of their ids.
    pub fn all<T: Resource>(&self) -> impl Iterator<Item = &T> {
        self.kinds
            .get(T::KIND)
            .into_iter()
            .flat_map(|kind| kind.values())
            .filter_map(|record| record.value.downcast_ref())
    }

    /// The commit that last wrote the record with this id.
    pub fn modified<T: Resource>(&self, id: impl AsRef<str>) -> Option<Revision> {
        self.record::<T>(id.as_ref()).map(|record| record.modified)
    }

    /// The tags of the resource with this id; empty when it has none.
    pub fn tags(&self, id: impl AsRef<str>) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.get::<Tags>(id).map_or(&NONE, |tags| &tags.tags)
    }

    /// This picture with one more record: for tests of pure functions.
    #[must_use]
    pub fn with<T: Resource>(mut self, resource: T) -> Self {
        self.revision.0 += 1;
        let record = Record {
            modified: self.revision,
            value: Arc::new(resource.clone()),
        };
        Arc::make_mut(self.kinds.entry(T::KIND).or_default())
            .insert(resource.id().to_owned(), record);
        self
    }

    /// The picture of everything in the store.
    pub(super) fn of(range: Range) -> Result<Self, StoreError> {
        let mut view = Self {
            revision: range.revision,
            kinds: BTreeMap::new(),
        };
        for entry in range.entries {
            view.put(entry)?;
        }
        Ok(view)
    }

    /// The picture after one more commit.
    pub(super) fn apply(&mut self, batch: Batch) -> Result<(), StoreError> {
        for event in batch.events {
            match event {
                Event::Put(entry) => self.put(entry)?,
                Event::Delete { key } => {
                    if let Some((kind, id)) = split(&key)
                        && let Some(records) = self.kinds.get_mut(kind)
                    {
                        Arc::make_mut(records).remove(id);
                    }
                }
            }
        }
        self.revision = batch.revision;
        Ok(())
    }

    fn put(&mut self, entry: Entry) -> Result<(), StoreError> {
        let Some((kind, id)) = split(&entry.key) else {
            return Ok(());
        };
        // A kind that this version doesn't know is not ours to read.
        let Some((kind, parse)) = KINDS.iter().find(|(name, _)| *name == kind) else {
            return Ok(());
        };
        let value = parse(&entry.value).map_err(|source| StoreError::Corrupt {
            key: entry.key.clone(),
            source,
        })?;
        let record = Record {
            modified: entry.modified,
            value,
        };
        Arc::make_mut(self.kinds.entry(kind).or_default()).insert(id.to_owned(), record);
        Ok(())
    }
}

/// Whether the view would show records of this kind.
pub(super) fn knows<T: Resource>() -> bool {
    parser(T::KIND).is_some()
}

/// `/kind/id` in its two parts.
fn split(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix('/')?.split_once('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Host, samples::host};

    #[test]
    fn kinds_are_told_apart() {
        for (i, (name, _)) in KINDS.iter().enumerate() {
            assert!(
                KINDS[..i].iter().all(|(other, _)| other != name),
                "{name} twice"
            );
        }
    }

    #[test]
    fn an_older_picture_stays_as_it_was() {
        let before = View::default().with(host("a", 1));
        let mut after = before.clone();
        let entry = Entry {
            key: "/hosts/a".into(),
            value: serde_json::to_vec(&host("a", 2)).unwrap(),
            created: Revision(1),
            modified: Revision(2),
        };
        after
            .apply(Batch {
                revision: Revision(2),
                events: vec![Event::Put(entry)],
            })
            .unwrap();
        assert_eq!(before.get::<Host>("a").unwrap().vcpus, 1);
        assert_eq!(after.get::<Host>("a").unwrap().vcpus, 2);
        assert_eq!(after.modified::<Host>("a"), Some(Revision(2)));

        let gone = Event::Delete {
            key: "/hosts/a".into(),
        };
        after
            .apply(Batch {
                revision: Revision(3),
                events: vec![gone],
            })
            .unwrap();
        assert!(after.get::<Host>("a").is_none());
        assert_eq!(after.all::<Host>().count(), 0);
        assert_eq!(before.all::<Host>().count(), 1);
    }

    #[test]
    fn a_record_that_is_no_such_resource_is_an_error() {
        let entry = Entry {
            key: "/hosts/a".into(),
            value: b"{}".to_vec(),
            created: Revision(1),
            modified: Revision(1),
        };
        let range = Range {
            revision: Revision(1),
            entries: vec![entry],
        };
        assert!(
            matches!(View::of(range), Err(StoreError::Corrupt { key, .. }) if key == "/hosts/a")
        );
    }
}
