//! What one transaction is going to do.

use std::collections::BTreeMap;

use super::{Compare, Op, StoreError, Txn, View, record};
use hearth_model::{Arn, Regional, Resource, Scope, Tags, arn_of_key};

/// As many records may one transaction depend on: etcd's default for its comparisons
/// and its operations each.
///
/// <https://etcd.io/docs/v3.5/op-guide/configuration/> (`max-txn-ops`)
const MOST: usize = 128;

/// Collects the changes of one transaction. Each is guarded by the revision
/// that the view has of its record, so that what was decided on is what is
/// changed.
pub struct Change<'v> {
    view: &'v View,
    /// The one scope whose records may be changed, if not all may.
    only: Option<&'v Scope>,
    /// Why it can't be carried out, whatever the store has.
    fault: Option<StoreError>,
    compares: BTreeMap<String, Compare>,
    ops: BTreeMap<String, Op>,
    makes_room: bool,
}

impl<'v> Change<'v> {
    pub(super) fn new(view: &'v View, only: Option<&'v Scope>) -> Self {
        Self {
            view,
            only,
            fault: None,
            compares: BTreeMap::new(),
            ops: BTreeMap::new(),
            // What is refused a caller is the others' to end.
            makes_room: only.is_none(),
        }
    }

    /// Writes a record: a new one only if there is still none, a known one only
    /// if it is still as the view has it. The last of several for one record wins.
    pub fn put<T: Resource>(&mut self, resource: &T) {
        let key = self.guard(resource);
        self.within(resource);
        self.ops.insert(
            key.clone(),
            Op::Put {
                key,
                value: record::encode(resource),
                lease: None,
            },
        );
    }

    /// Deletes the record with the path of this one, if it is still as the view
    /// has it.
    pub fn delete<T: Resource>(&mut self, resource: &T) {
        let key = self.guard(resource);
        self.within(resource);
        self.ops.insert(key.clone(), Op::Delete { key });
    }

    /// Makes the transaction depend on a record that it only read, or, if the
    /// view has none with this path, on its absence.
    pub fn expect_unchanged<T: Resource>(&mut self, resource: &T) {
        self.guard(resource);
    }

    /// Says that this is a step towards more room: it goes on while the store's disk is
    /// full, as those of the reconcilers do.
    pub fn makes_room(&mut self) {
        self.makes_room = true;
    }

    /// How many more records it may depend on or change: what there is more of goes in
    /// another transaction.
    pub fn room(&self) -> usize {
        MOST.saturating_sub(self.compares.len())
    }

    /// Whether this transaction already writes the record with the path of this
    /// one: the view doesn't show that yet.
    pub fn puts<T: Resource>(&self, resource: &T) -> bool {
        matches!(self.ops.get(&resource.key()), Some(Op::Put { .. }))
    }

    /// Writes a resource's tags; none at all deletes their record.
    pub fn put_tags(
        &mut self,
        scope: &Scope,
        resource: impl AsRef<str>,
        tags: BTreeMap<String, String>,
    ) {
        let tags = Tags {
            scope: scope.clone(),
            resource: resource.as_ref().to_owned(),
            tags,
        };
        if tags.tags.is_empty() {
            // Where there are none, this transaction depends on that: tags given
            // to what is being deleted would stay.
            self.delete(&tags);
        } else {
            self.put(&tags);
        }
    }

    /// Deletes a resource with its tags.
    pub fn delete_tagged<T: Regional>(&mut self, resource: &T, id: impl AsRef<str>) {
        self.delete(resource);
        self.put_tags(resource.home(), id, BTreeMap::new());
    }

    fn guard<T: Resource>(&mut self, resource: &T) -> String {
        let key = resource.key();
        if self.view.is_unreadable(resource) {
            // It is there, and nobody knows what it says.
            self.fault = Some(StoreError::Unreadable(key.clone()));
        }
        let compare = match self.view.modified(resource) {
            Some(revision) => Compare::Unchanged(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        self.compares.insert(key.clone(), compare);
        key
    }

    fn within<T: Resource>(&mut self, resource: &T) {
        if let (Some(only), Some(scope)) = (self.only, resource.scope())
            && only != scope
        {
            let key = resource.key();
            self.fault = Some(StoreError::Invalid(format!("{key} is out of scope")));
        }
    }

    /// The resources of the API that it writes or deletes, and whether the view has
    /// them.
    pub fn resources(&self) -> impl Iterator<Item = (Arn, bool)> {
        self.ops.keys().filter_map(|key| {
            let exists = matches!(self.compares.get(key), Some(Compare::Unchanged(..)));
            Some((arn_of_key(key)?, exists))
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// # Errors
    /// `Invalid` when it changes a record that it may not, `Unreadable` when it
    /// depends on one that can't be read.
    pub(super) fn into_txn(self) -> Result<Txn, StoreError> {
        let records = self.compares.len();
        if records > MOST {
            // The embedded store takes it; where it is tested, it is found.
            tracing::error!(records, "a transaction that etcd would not take");
            if cfg!(debug_assertions) {
                let why = format!("{records} records in one transaction, {MOST} are the most");
                return Err(StoreError::Invalid(why));
            }
        }
        let Self {
            fault,
            compares,
            ops,
            makes_room,
            ..
        } = self;
        fault.map_or(Ok(()), Err)?;
        Ok(Txn {
            compares: compares.into_values().collect(),
            ops: ops.into_values().collect(),
            makes_room,
        })
    }

    /// # Errors
    /// What [`into_txn`](Self::into_txn) would refuse but for its size.
    pub(super) fn fault(self) -> Result<(), StoreError> {
        self.fault.map_or(Ok(()), Err)
    }
}
