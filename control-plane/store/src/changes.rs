//! What has changed, record by record: what wakes the reconcilers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::Notify;

use super::{Batch, Event, View};
use hearth_model::Resource;

/// More changes than this, not yet asked for, count as "everything": whoever is
/// so far behind reads everything sooner.
const MANY: usize = 100_000;

/// The records that changed since the last time that was asked, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Anything may have changed; `keys` need not be complete then.
    pub all: bool,
    /// Paths ([`Resource::path`]) by kind ([`Resource::KIND`]), of records written
    /// and deleted.
    pub keys: BTreeMap<&'static str, BTreeSet<Arc<str>>>,
}

impl Changed {
    /// The changed records of this kind as the view has them; of those that it
    /// doesn't have (any more), the last part of the path.
    pub fn of<'a, T: Resource>(
        &'a self,
        view: &'a View,
    ) -> impl Iterator<Item = Result<&'a T, &'a str>> {
        let paths = self.keys.get(T::KIND).into_iter().flatten();
        paths.map(move |path| {
            // What has a name for its id may have a slash in that.
            let id = path.splitn(3, '/').last().unwrap_or_default();
            view.get_at(path).ok_or(id)
        })
    }

    /// Those of them that are there.
    pub fn there<'a, T: Resource>(&'a self, view: &'a View) -> impl Iterator<Item = &'a T> {
        self.of(view).filter_map(Result::ok)
    }

    fn is_empty(&self) -> bool {
        !self.all && self.keys.is_empty()
    }

    fn count(&self) -> usize {
        self.keys.values().map(BTreeSet::len).sum()
    }
}

/// What one subscriber has not asked for yet.
#[derive(Debug, Default)]
struct Mailbox {
    state: Mutex<(Changed, bool)>,
    news: Notify,
}

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, (Changed, bool)> {
        // It holds nothing that a panic could leave half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription to the changes of a store's view.
#[derive(Debug)]
pub struct Changes(Arc<Mailbox>);

impl Changes {
    /// Waits until something has changed, and takes all of it. The view has it
    /// by then. `None` when the view is no longer fed.
    pub async fn next(&mut self) -> Option<Changed> {
        loop {
            let news = self.0.news.notified();
            {
                let mut state = self.0.state();
                if !state.0.is_empty() {
                    return Some(std::mem::take(&mut state.0));
                }
                if state.1 {
                    return None;
                }
            }
            news.await;
        }
    }
}

/// Those who want to know.
#[derive(Debug, Clone, Default)]
pub(super) struct Subscribers(Arc<Mutex<Vec<Weak<Mailbox>>>>);

impl Subscribers {
    pub(super) fn subscribe(&self) -> Changes {
        let mailbox = Arc::new(Mailbox::default());
        self.lock().push(Arc::downgrade(&mailbox));
        Changes(mailbox)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Mailbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each(&self, change: impl Fn(&mut (Changed, bool))) {
        self.lock().retain(|mailbox| {
            let Some(mailbox) = mailbox.upgrade() else {
                return false;
            };
            change(&mut mailbox.state());
            mailbox.news.notify_one();
            true
        });
    }

    /// These records have changed.
    pub(super) fn post(&self, keys: &[(&'static str, Arc<str>)]) {
        self.each(|(changed, _)| {
            for (kind, id) in keys {
                changed.keys.entry(kind).or_default().insert(id.clone());
            }
            if changed.count() > MANY {
                *changed = Changed {
                    all: true,
                    ..Changed::default()
                };
            }
        });
    }

    /// Anything may have changed.
    pub(super) fn post_all(&self) {
        self.each(|(changed, _)| changed.all = true);
    }

    /// No more will come.
    pub(super) fn close(&self) {
        self.each(|(_, closed)| *closed = true);
    }
}

/// The kinds and paths that these commits are about.
pub(super) fn keys(batches: &[Batch]) -> Vec<(&'static str, Arc<str>)> {
    let events = batches.iter().flat_map(|batch| &batch.events);
    let keys = events.map(|event| match event {
        Event::Put(entry) => entry.key.as_str(),
        Event::Delete { key } => key,
    });
    keys.filter_map(super::view::kind_and_path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Db;
    use hearth_model::{Host, Vpc, samples};

    #[tokio::test]
    async fn changes_are_told_once_and_together() {
        let db = Db::in_memory().await;
        let mut changes = db.changes();
        for n in 0..2 {
            db.transact(|_, change| {
                change.overwrite(&samples::host("a", n));
                change.overwrite(&samples::vpc());
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
        }
        let changed = changes.next().await.unwrap();
        let view = db.view();
        let hosts: Vec<_> = changed.of::<Host>(&view).collect();
        assert_eq!(hosts, [Ok(&samples::host("a", 1))]);
        assert_eq!(changed.there::<Vpc>(&view).count(), 1);
        db.transact(|_, change| {
            change.delete(&samples::host("a", 1));
            Ok::<_, ()>(())
        })
        .await
        .unwrap();
        loop {
            let changed = changes.next().await.unwrap();
            let view = db.view();
            let hosts: Vec<_> = changed.of::<Host>(&view).collect();
            assert_eq!(hosts, [Err("a")]);
            if changed.of::<Vpc>(&view).count() == 0 {
                break;
            }
        }
    }

    #[tokio::test]
    async fn who_falls_behind_is_told_everything() {
        let subscribers = Subscribers::default();
        let mut changes = subscribers.subscribe();
        let id = |n: usize| ("hosts", Arc::<str>::from(n.to_string()));
        let keys: Vec<_> = (0..=MANY).map(id).collect();
        subscribers.post(&keys[..MANY]);
        let changed = changes.next().await.unwrap();
        assert!(!changed.all && changed.count() == MANY);
        subscribers.post(&keys);
        let changed = changes.next().await.unwrap();
        assert!(changed.all && changed.keys.is_empty());
        subscribers.post_all();
        assert!(changes.next().await.unwrap().all);
        subscribers.post(&keys[..1]);
        subscribers.close();
        assert!(changes.next().await.is_some(), "what was told before");
        assert!(changes.next().await.is_none());
    }
}
