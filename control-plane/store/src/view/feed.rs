//! How a picture comes of the one before it: what each commit puts and deletes, with
//! its indexes and the totals of the hosts.

use std::sync::Arc;

use super::{
    Record, View,
    kinds::{KINDS, Value, entries_of, slot_of, split},
};
use crate::{Batch, Entry, Event, Range};
use hearth_model::{Quota, Resource};

impl View {
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
    pub(in super::super) fn of(range: Range) -> Self {
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
    pub(in super::super) fn apply(&mut self, batch: Batch) {
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
