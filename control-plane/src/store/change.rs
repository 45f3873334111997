//! What one transaction is going to do.

use std::collections::BTreeMap;

use super::{Compare, Op, Txn, View};
use crate::model::{Resource, Tags};

/// Collects the changes of one transaction. Each is guarded by the revision
/// that the view has of its record, so that what was decided on is what is
/// changed.
pub struct Change<'v> {
    view: &'v View,
    compares: BTreeMap<String, Compare>,
    ops: BTreeMap<String, Op>,
}

impl<'v> Change<'v> {
    pub(super) fn new(view: &'v View) -> Self {
        Self {
            view,
            compares: BTreeMap::new(),
            ops: BTreeMap::new(),
        }
    }

    /// Writes a record: a new one only if there is still none, a known one only
    /// if it is still as the view has it. The last of several for one record wins.
    pub fn put<T: Resource>(&mut self, resource: &T) {
        debug_assert!(
            super::view::knows::<T>(),
            "{} is no kind of the view",
            T::KIND
        );
        let key = resource.key();
        self.guard::<T>(resource.id());
        // Our own types have no maps with keys that JSON lacks, and no failing impl.
        #[allow(clippy::expect_used)]
        let value = serde_json::to_vec(resource).expect("a resource is JSON");
        self.ops.insert(
            key.clone(),
            Op::Put {
                key,
                value,
                lease: None,
            },
        );
    }

    /// Deletes a record, if it is still as the view has it.
    pub fn delete<T: Resource>(&mut self, id: impl AsRef<str>) {
        let key = T::key_of(id.as_ref());
        self.guard::<T>(id.as_ref());
        self.ops.insert(key.clone(), Op::Delete { key });
    }

    /// Makes the transaction depend on a record that it only read, or on its absence.
    pub fn expect_unchanged<T: Resource>(&mut self, id: impl AsRef<str>) {
        self.guard::<T>(id.as_ref());
    }

    /// Makes the transaction one that changes a record, although it stays as it
    /// is: for a record that something new refers to. A deletion that saw
    /// nothing refer to it conflicts with this, which
    /// [`expect_unchanged`](Self::expect_unchanged) would not do when it commits
    /// second.
    pub fn refer_to<T: Resource>(&mut self, id: impl AsRef<str>) {
        let id = id.as_ref();
        match self.view.get::<T>(id) {
            // What this transaction does to it anyway is a change, too.
            Some(_) if self.ops.contains_key(&T::key_of(id)) => {}
            Some(resource) => self.put(resource),
            None => self.guard::<T>(id),
        }
    }

    /// Whether this transaction already writes the record with this id: the
    /// view doesn't show that yet.
    pub fn puts<T: Resource>(&self, id: impl AsRef<str>) -> bool {
        matches!(self.ops.get(&T::key_of(id.as_ref())), Some(Op::Put { .. }))
    }

    /// Writes a resource's tags; none at all deletes their record.
    pub fn put_tags(&mut self, resource: impl AsRef<str>, tags: BTreeMap<String, String>) {
        if tags.is_empty() {
            self.delete::<Tags>(resource);
        } else {
            self.put(&Tags {
                resource: resource.as_ref().to_owned(),
                tags,
            });
        }
    }

    fn guard<T: Resource>(&mut self, id: &str) {
        let key = T::key_of(id);
        let compare = match self.view.modified::<T>(id) {
            Some(revision) => Compare::Unchanged(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        self.compares.insert(key, compare);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(super) fn into_txn(self) -> Txn {
        Txn {
            compares: self.compares.into_values().collect(),
            ops: self.ops.into_values().collect(),
        }
    }
}
