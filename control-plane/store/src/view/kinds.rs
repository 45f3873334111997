//! What the view must know of each kind of record, without its type: how its records
//! are read, and what they are found under.

use std::{any::Any, sync::Arc};

use crate::record;
use hearth_model::{HostId, Index, Quota, Resource, each_kind};

pub(super) type Value = Arc<dyn Any + Send + Sync>;

/// The number of an index among its kind's, a key in it, and a record's path.
pub(super) type IndexEntry = (u8, Arc<str>, Arc<str>);

/// Calls back with each index and key that a record is found under.
type Found = fn(&Value, &mut dyn FnMut(u8, &str));

/// Calls back with the number of each index by resources of this kind that are referred
/// to.
type Refers = fn(&str, &mut dyn FnMut(u8));

/// What the view must know of a kind, without its type.
pub(super) struct KindOf {
    pub(super) name: &'static str,
    pub(super) read: fn(&[u8]) -> Result<Value, String>,
    pub(super) index: Found,
    pub(super) refers: Refers,
    pub(super) claim: fn(&Value) -> Option<(&HostId, Quota)>,
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
        pub(super) const KINDS: &[KindOf] = &[
            $(kind_of::<hearth_model::$resource>(),)*
            $(kind_of::<hearth_model::$other>(),)*
        ];
    };
}

each_kind!(kinds);

pub(super) fn slot_of(kind: &str) -> Option<usize> {
    KINDS.iter().position(|known| known.name == kind)
}

pub(super) fn entries_of(slot: usize, path: &Arc<str>, value: &Value) -> Vec<IndexEntry> {
    let mut entries = Vec::new();
    (KINDS[slot].index)(value, &mut |number, key| {
        entries.push((number, key.into(), Arc::clone(path)));
    });
    entries
}

pub(in super::super) fn number_of<T: Resource>(index: Index<T>) -> Option<u8> {
    let position = T::INDEXES.iter().position(|i| i.name == index.name)?;
    u8::try_from(position).ok()
}

/// The kind of a key, if it is a known one, and the path.
pub(in super::super) fn kind_and_path(key: &str) -> Option<(&'static str, Arc<str>)> {
    let (slot, path) = split(key)?;
    Some((KINDS[slot].name, path.into()))
}

/// The kind of `/kind/path`, by its slot, and the path.
pub(super) fn split(key: &str) -> Option<(usize, &str)> {
    let (kind, path) = key.strip_prefix('/')?.split_once('/')?;
    Some((slot_of(kind)?, path))
}
