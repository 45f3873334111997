//! What one account has in one region: all that a handler gets to see.

use std::{collections::BTreeMap, sync::Arc};

use super::{View, view::number_of};
use hearth_model::{Described, Index, Regional, Scope, Shared, Tags, Visible};

/// A view that shows the records of one scope. What lies outside is reached
/// through the doors that say so: [`visible`](Self::visible),
/// [`shared`](Self::shared), [`whole`](Self::whole).
#[derive(Debug, Clone, Copy)]
pub struct Scoped<'v> {
    view: &'v View,
    scope: &'v Scope,
}

impl<'v> Scoped<'v> {
    pub(super) fn new(view: &'v View, scope: &'v Scope) -> Self {
        Self { view, scope }
    }

    /// Whose, and where.
    pub fn scope(self) -> &'v Scope {
        self.scope
    }

    /// The record with this id.
    pub fn get<T: Regional>(self, id: impl AsRef<str>) -> Option<&'v T> {
        self.view.get_at(&self.scope.path(id.as_ref()))
    }

    /// The resource with this identifier, whatever its key.
    pub fn find<T: Described>(self, id: &T::Id) -> Option<&'v T> {
        self.view
            .by_number(0, id.as_ref(), &self.scope.prefix())
            .next()
    }

    /// All records of a kind, in the order of their ids.
    pub fn all<T: Regional>(self) -> impl Iterator<Item = &'v T> {
        self.after("")
    }

    /// Those after this id, in the order of their ids; after "", all.
    pub fn after<T: Regional>(self, id: &str) -> impl Iterator<Item = &'v T> + use<'v, T> {
        self.view.after(&self.scope.prefix(), id)
    }

    /// Whether there are at most so many records of each kind; no more are looked at.
    pub fn has_at_most(self, most: usize) -> bool {
        self.view.has_at_most(&self.scope.prefix(), most)
    }

    /// The records that an index has under this key, in the order of their ids.
    pub fn by<T: Regional>(self, index: Index<T>, key: &str) -> impl Iterator<Item = &'v T> {
        let number = number_of(index);
        debug_assert!(number.is_some(), "{} has no index {}", T::KIND, index.name);
        let found = number.map(|number| self.view.by_number(number, key, &self.scope.prefix()));
        found.into_iter().flatten()
    }

    /// The tags that this account gave a resource; empty when there are none.
    pub fn tags_of<T: Described>(self, resource: &T) -> &'v BTreeMap<String, String> {
        let id = resource.described_id().as_ref();
        self.tags(Tags::id(T::SERVICE, T::TYPE, id))
    }

    /// The same of what has this id on EC2.
    pub fn tags(self, id: impl AsRef<str>) -> &'v BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.get::<Tags>(id).map_or(&NONE, |tags| &tags.tags)
    }

    /// The resource with this identifier that can be seen from here, whosever
    /// it is.
    pub fn visible<T: Visible>(self, id: &T::Id) -> Option<&'v T> {
        self.view
            .by_number::<T>(0, id.as_ref(), "")
            .find(|resource| resource.visible_from(self.scope))
    }

    /// All resources of a kind that can be seen from here, in no order.
    pub fn all_visible<T: Visible>(self) -> impl Iterator<Item = &'v T> {
        self.view
            .all::<T>()
            .filter(move |resource| resource.visible_from(self.scope))
    }

    /// Whether something refers to this resource, or may, so that it can't be deleted:
    /// what does is in the declarations ([`Resource::REFERS`](hearth_model::Resource::REFERS)).
    pub fn is_referred_to<T: Described>(self, resource: &T) -> bool {
        self.view.is_referred_to(resource)
    }

    /// Whether records of this kind can't be read here: what seems to be gone
    /// may be one of those.
    pub fn has_unreadable<T: Regional>(self) -> bool {
        self.view.has_unreadable_at::<T>(self.scope)
    }

    /// The record that all accounts share with this id.
    pub fn shared<T: Shared>(self, id: impl AsRef<str>) -> Option<&'v T> {
        self.view.shared(id)
    }

    /// The whole cloud, for what is bounded by what all accounts have together:
    /// a host's capacity, the pool of public addresses.
    pub fn whole(self) -> &'v View {
        self.view
    }
}

/// A picture with the scope that its holder may see.
#[derive(Debug, Clone)]
pub struct OwnedView {
    view: Arc<View>,
    scope: Scope,
}

impl OwnedView {
    /// What `scope` has in `view`.
    pub fn new(view: Arc<View>, scope: Scope) -> Self {
        Self { view, scope }
    }

    /// The view of it.
    pub fn view(&self) -> Scoped<'_> {
        self.view.at(&self.scope)
    }
}
