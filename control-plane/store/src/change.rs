//! What one transaction is going to do.

use std::collections::{BTreeMap, BTreeSet};

use super::{Compare, Op, StoreError, Txn, View, record};
use hearth_model::{Arn, Authority, Described, Part, Regional as _, Resource, Scope, Shared, Tags};

/// As many records may one transaction depend on: etcd's default for its comparisons
/// and its operations each.
///
/// <https://etcd.io/docs/v3.5/op-guide/configuration/> (`max-txn-ops`)
const MOST: usize = 128;
/// As many bytes may one have: etcd's default for a request.
///
/// <https://etcd.io/docs/v3.5/op-guide/configuration/> (`max-request-bytes`)
const MOST_BYTES: usize = 3 << 19;
/// What a request spends on one comparison and operation beside keys and value, in
/// bytes, at most.
const FRAMING: usize = 64;

/// What the transaction has to do with one record.
struct Planned {
    compare: Compare,
    write: Option<Write>,
}

impl Planned {
    /// What it takes of a request.
    fn bytes(&self, key: &str) -> usize {
        let value = match &self.write {
            Some(Write::Touch(value) | Write::Put(value)) => value.len(),
            Some(Write::Delete) | None => 0,
        };
        2 * key.len() + value + FRAMING
    }
}

/// What takes one step of a change back.
enum Undo {
    /// What was planned of the record with this key.
    Record(String, Option<Planned>),
    Authority((String, Authority)),
    Part(Arn),
}

/// What becomes of a record.
enum Write {
    /// It is written as it is.
    Touch(Vec<u8>),
    Put(Vec<u8>),
    Delete,
}

/// Collects the changes of one transaction. Each is guarded by the revision
/// that the view has of its record, so that what was decided on is what is
/// changed.
pub struct Change<'v> {
    view: &'v View,
    /// The one scope whose records may be changed, if not all may.
    only: Option<&'v Scope>,
    /// Why it can't be carried out, whatever the store has.
    fault: Option<StoreError>,
    /// By the store's key.
    records: BTreeMap<String, Planned>,
    /// What those take of a request.
    bytes: usize,
    makes_room: bool,
    to_come: usize,
    /// What a call must be authorized for, by the record that it would write.
    authorities: BTreeSet<(String, Authority)>,
    /// The parts of resources that it makes.
    parts: BTreeSet<Arn>,
    /// What takes each of its steps back, the last at the end.
    undo: Vec<Undo>,
}

impl<'v> Change<'v> {
    pub(super) fn new(view: &'v View, only: Option<&'v Scope>) -> Self {
        Self {
            view,
            only,
            fault: None,
            records: BTreeMap::new(),
            bytes: 0,
            // What is refused a caller is the others' to end.
            makes_room: only.is_none(),
            to_come: 0,
            authorities: BTreeSet::new(),
            parts: BTreeSet::new(),
            undo: Vec::new(),
        }
    }

    /// Writes a record that is new: if another transaction writes one with its path
    /// first, this one is decided anew. Who gives a name that can be taken looks before;
    /// where the view has one, the transaction fails with [`StoreError::Exists`].
    pub fn create<T: Resource>(&mut self, new: &T) {
        if self.view.modified(new).is_some() {
            self.refuse(StoreError::Exists(new.key()));
        }
        self.write_once(new);
    }

    /// Writes `new` in place of `old`, which is the view's own record. If another
    /// transaction writes it first, this one is decided anew on what is there then: no
    /// update is lost. One transaction updates a record once, for the view doesn't show
    /// what it has of it.
    pub fn update<T: Resource>(&mut self, old: &T, new: &T) {
        self.known(old);
        if old.path() != new.path() {
            let (old, new) = (old.key(), new.key());
            self.refuse(StoreError::Invalid(format!("{new} is no update of {old}")));
        }
        self.write_once(new);
    }

    /// Writes a record whatever it was before, or whether it was: for what is measured
    /// or found and has no other writer, as a host's capacity. Of several for one record
    /// the last wins; against other transactions it is guarded as all are.
    pub fn overwrite<T: Resource>(&mut self, resource: &T) {
        self.need(resource);
        self.write(resource, Some(record::encode(resource)));
    }

    /// Deletes the record with the path of this one, if it is still as the view
    /// has it.
    pub fn delete<T: Resource>(&mut self, resource: &T) {
        self.need(resource);
        self.write(resource, None);
    }

    /// Writes a record that all share as it is: of two transactions that do, only one
    /// commits.
    pub fn touch<T: Shared>(&mut self, id: impl AsRef<str>) {
        let view = self.view;
        if let Some(there) = view.shared::<T>(id) {
            let planned = self.records.get(&there.key());
            if planned.is_none_or(|planned| planned.write.is_none()) {
                self.plan(there, Some(Write::Touch(record::encode(there))));
            }
        }
    }

    /// Says that a record which this transaction writes begins to refer to this one, the
    /// view's own: it is written as it is, so that of this transaction and one that deletes
    /// it since nothing refers to it only one commits. Not for what every launch refers
    /// to: that would be written by all of them, and is marked before it is deleted.
    pub fn refer_to<T: Resource>(&mut self, to: &T) {
        self.known(to);
        let planned = self.records.get(&to.key());
        if planned.is_none_or(|planned| planned.write.is_none()) {
            self.plan(to, Some(Write::Touch(record::encode(to))));
        }
    }

    /// Makes the transaction depend on a record of the view that it only read.
    pub fn expect_unchanged<T: Resource>(&mut self, read: &T) {
        self.known(read);
        self.plan(read, None);
    }

    /// Says that this is a step towards more room: it goes on while the store's disk is
    /// full, as those of the reconcilers do.
    pub fn makes_room(&mut self) {
        self.makes_room = true;
    }

    /// Says that further transactions follow from this one, which add about so many
    /// bytes: it is refused where the store has no room for those. Others may still
    /// take the room before they come.
    pub fn leads_to(&mut self, bytes: usize) {
        self.to_come = bytes;
    }

    /// Takes a part of a piece of work whole or not at all: if the transaction can't carry
    /// it beside what it has, nothing of it stays, and the answer is `None`: it goes in a
    /// further transaction. The first of all stays whatever its size, since no other
    /// could carry it either; the transaction is refused for it then.
    pub fn attempt<T>(&mut self, part: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let (first, steps) = (self.records.is_empty(), self.undo.len());
        let (faulty, makes_room) = (self.fault.is_some(), self.makes_room);
        let to_come = self.to_come;
        let done = part(self);
        if first || self.fits() {
            return Some(done);
        }
        for step in self.undo.split_off(steps).into_iter().rev() {
            match step {
                Undo::Record(key, planned) => _ = self.set(key, planned),
                Undo::Authority(needed) => _ = self.authorities.remove(&needed),
                Undo::Part(arn) => _ = self.parts.remove(&arn),
            }
        }
        (self.makes_room, self.to_come) = (makes_room, to_come);
        if !faulty {
            self.fault = None;
        }
        None
    }

    /// Whether etcd would take it.
    fn fits(&self) -> bool {
        self.records.len() <= MOST && self.bytes <= MOST_BYTES
    }

    /// Whether this transaction already writes the record with the path of this
    /// one: the view doesn't show that yet.
    pub fn puts<T: Resource>(&self, resource: &T) -> bool {
        self.puts_at(&resource.key())
    }

    /// Writes a resource's tags; none at all deletes their record.
    pub fn put_tags<T: Described>(&mut self, of: &T, tags: BTreeMap<String, String>) {
        let id = Tags::id(T::SERVICE, T::TYPE, of.described_id().as_ref());
        self.tag(of.home(), id, of.arn(), tags);
    }

    /// The same of a part of a resource.
    pub fn put_part_tags<P: Part>(
        &mut self,
        scope: &Scope,
        part: &P,
        tags: BTreeMap<String, String>,
    ) {
        let arn = P::arn_at(scope, part.as_ref());
        let new = self.view.by(P::INDEX, part.as_ref()).next().is_none();
        if new && self.parts.insert(arn.clone()) {
            self.undo.push(Undo::Part(arn.clone()));
        }
        self.tag(scope, tags_of(part), arn, tags);
    }

    /// Deletes the tags of a part that its whole loses.
    pub fn delete_part_tags<P: Part>(&mut self, whole: &P::Whole, part: &P) {
        self.tag(whole.home(), tags_of(part), whole.arn(), BTreeMap::new());
    }

    /// Deletes a resource with its tags.
    pub fn delete_tagged<T: Described>(&mut self, resource: &T) {
        self.delete(resource);
        self.put_tags(resource, BTreeMap::new());
    }

    fn tag(&mut self, scope: &Scope, id: String, of: Arn, tags: BTreeMap<String, String>) {
        let tags = Tags {
            scope: scope.clone(),
            resource: id,
            tags,
        };
        self.needs((tags.key(), Authority::Of(of)));
        // Where there are none, this transaction depends on that: tags given to what
        // is being deleted would stay.
        let value = (!tags.tags.is_empty()).then(|| record::encode(&tags));
        self.write(&tags, value);
    }

    /// Refuses the transaction, if it isn't already.
    fn refuse(&mut self, why: StoreError) {
        self.fault.get_or_insert(why);
    }

    /// Refuses what is not the view's own record: another of its path may be of before a
    /// change that this one would undo.
    fn known<T: Resource>(&mut self, read: &T) {
        let there = self.view.get_at::<T>(&read.path());
        if !there.is_some_and(|there| std::ptr::eq(there, read)) {
            let key = read.key();
            let why = format!("{key} was not read from the view that is decided on");
            self.refuse(StoreError::Invalid(why));
        }
    }

    /// Writes a record that the transaction has not written yet.
    fn write_once<T: Resource>(&mut self, resource: &T) {
        let key = resource.key();
        let planned = self.records.get(&key);
        if planned.is_some_and(|p| matches!(p.write, Some(Write::Put(_) | Write::Delete))) {
            let why = format!("{key} is written twice in one transaction");
            self.refuse(StoreError::Invalid(why));
        }
        self.overwrite(resource);
    }

    fn write<T: Resource>(&mut self, resource: &T, value: Option<Vec<u8>>) {
        self.within(resource);
        self.plan(resource, Some(value.map_or(Write::Delete, Write::Put)));
    }

    /// The record with the path of this one, if the view has it, and this one: who
    /// writes over a record must be allowed to change either.
    fn both<'a, T: Resource>(&self, resource: &'a T) -> [Option<&'a T>; 2]
    where
        'v: 'a,
    {
        let there = self.view.get_at::<T>(&resource.path());
        [there, Some(resource)]
    }

    fn need<T: Resource>(&mut self, resource: &T) {
        for record in self.both(resource).into_iter().flatten() {
            let needed = (record.key(), record.authority());
            self.needs(needed);
        }
    }

    fn needs(&mut self, needed: (String, Authority)) {
        if self.authorities.insert(needed.clone()) {
            self.undo.push(Undo::Authority(needed));
        }
    }

    /// Makes the transaction depend on what the view has of a record, and write it so.
    fn plan<T: Resource>(&mut self, resource: &T, write: Option<Write>) {
        let key = resource.key();
        if self.view.is_unreadable(resource) {
            // It is there, and nobody knows what it says.
            self.refuse(StoreError::Unreadable(key.clone()));
        }
        if write.is_none() && self.records.contains_key(&key) {
            return;
        }
        let compare = match self.view.modified(resource) {
            Some(revision) => Compare::Unchanged(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        let before = self.set(key.clone(), Some(Planned { compare, write }));
        self.undo.push(Undo::Record(key, before));
    }

    /// Plans this of the record with this key; what was planned of it before.
    fn set(&mut self, key: String, planned: Option<Planned>) -> Option<Planned> {
        self.bytes += planned.as_ref().map_or(0, |planned| planned.bytes(&key));
        let before = match planned {
            Some(planned) => self.records.insert(key.clone(), planned),
            None => self.records.remove(&key),
        };
        self.bytes -= before.as_ref().map_or(0, |before| before.bytes(&key));
        before
    }

    fn within<T: Resource>(&mut self, resource: &T) {
        let Some(only) = self.only else { return };
        let mut both = self.both(resource).into_iter().flatten();
        if both.any(|record| record.owner() != Some(only)) {
            let key = resource.key();
            self.refuse(StoreError::Invalid(format!("{key} is out of scope")));
        }
    }

    /// What a call must be authorized for to write each of its records, by their keys,
    /// with whether the resource that is meant is there already.
    pub fn authorities(&self) -> impl Iterator<Item = (&str, &Authority, bool)> {
        let made = |(key, authority): &(String, Authority)| match authority {
            Authority::Own(arn) if self.makes(key) => Some(arn.clone()),
            _ => None,
        };
        let made: BTreeSet<Arn> = self.authorities.iter().filter_map(made).collect();
        self.authorities.iter().map(move |(key, authority)| {
            let exists = match authority {
                Authority::Own(arn) | Authority::Of(arn) => {
                    !made.contains(arn) && !self.parts.contains(arn)
                }
                Authority::Free(_) | Authority::Closed(_) => true,
            };
            (key.as_str(), authority, exists)
        })
    }

    fn makes(&self, key: &str) -> bool {
        let planned = self.records.get(key);
        let absent = planned.is_some_and(|p| matches!(p.compare, Compare::Absent(_)));
        absent && self.puts_at(key)
    }

    fn puts_at(&self, key: &str) -> bool {
        let planned = self.records.get(key);
        planned.is_some_and(|p| matches!(p.write, Some(Write::Put(_))))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.values().all(|planned| planned.write.is_none())
    }

    /// # Errors
    /// `Invalid` when it changes a record that it may not, `Unreadable` when it
    /// depends on one that can't be read.
    pub(super) fn into_txn(self) -> Result<Txn, StoreError> {
        if !self.fits() {
            // The embedded store takes it; where it is tested, it is found.
            let (records, bytes) = (self.records.len(), self.bytes);
            tracing::error!(records, bytes, "a transaction that etcd would not take");
            if cfg!(debug_assertions) {
                let why = format!(
                    "{records} records with {bytes} bytes in one transaction: \
                     {MOST} and {MOST_BYTES} are the most"
                );
                return Err(StoreError::Invalid(why));
            }
        }
        self.fault.map_or(Ok(()), Err)?;
        let mut txn = Txn {
            makes_room: self.makes_room,
            to_come: self.to_come,
            ..Txn::default()
        };
        for (key, Planned { compare, write }) in self.records {
            txn.compares.push(compare);
            txn.ops.extend(write.map(|write| match write {
                Write::Touch(value) | Write::Put(value) => Op::Put {
                    key,
                    value,
                    lease: None,
                },
                Write::Delete => Op::Delete { key },
            }));
        }
        Ok(txn)
    }

    /// # Errors
    /// What [`into_txn`](Self::into_txn) would refuse but for its size.
    pub(super) fn fault(self) -> Result<(), StoreError> {
        self.fault.map_or(Ok(()), Err)
    }
}

/// What the tags of a part are kept under.
fn tags_of<P: Part>(part: &P) -> String {
    Tags::id(P::Whole::SERVICE, P::TYPE, part.as_ref())
}

#[cfg(test)]
mod tests;
