//! What the Describe calls have in common: of the resources that are named, or
//! all, those that the filters match; and of those one page.
//!
//! Pages are made of keys: a page begins behind the last one's last key and ends
//! when it is full, and only what is on it is turned into an answer.

use std::{collections::BTreeMap, ops::Deref};

use super::{Filter, Filterable, Filters, Page, Table, TagsOf, all_found, page::read_token};
use crate::{api::ApiError, model::Described, store::Scoped};

/// A resource with the view that it is seen in: what filters look at, and what
/// an answer is made from.
#[derive(Debug, Clone, Copy)]
pub struct Row<'v, T> {
    /// The view.
    pub view: Scoped<'v>,
    /// The resource.
    pub resource: &'v T,
}

impl<'v, T: Described> Row<'v, T> {
    /// The resource as it is seen in this view.
    pub fn new(view: Scoped<'v>, resource: &'v T) -> Self {
        Self { view, resource }
    }

    /// Its tags.
    pub fn tags(&self) -> &'v BTreeMap<String, String> {
        self.view.tags_of(self.resource)
    }
}

impl<T> Deref for Row<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.resource
    }
}

/// A resource whose list has filters: its own, and those on its tags by themselves.
pub trait Filtered: Described {
    /// Its own.
    fn filters<'v>() -> Table<Row<'v, Self>>;
}

impl<T: Filtered> Filterable for Row<'_, T> {
    const TAGS: Option<TagsOf<Self>> = Some(|row| row.tags());

    fn filters() -> Table<Self> {
        T::filters()
    }
}

/// What a call asks of a list.
#[derive(Debug)]
pub struct Listing {
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

impl Listing {
    /// The call's `Filters`, `MaxResults` and `NextToken`.
    pub fn new(filters: Vec<Filter>, max_results: Option<i64>, next_token: Option<String>) -> Self {
        Self {
            filters,
            max_results,
            next_token,
        }
    }

    /// The key that the page comes after, if it isn't the first.
    ///
    /// # Errors
    /// `InvalidNextToken`.
    pub fn after(&self) -> Result<Option<String>, ApiError> {
        self.next_token.as_deref().map(read_token).transpose()
    }

    /// The page of the caller's resources with these ids, or of all when there
    /// are no ids, that the filters match and `keep` keeps; in the order of
    /// their ids, each once. With the token of the next page. `MaxResults` must
    /// be within `range`.
    ///
    /// # Errors
    /// Those of [`all_found`] and [`page_of`](Self::page_of).
    pub fn rows<'v, T: Filtered>(
        self,
        view: Scoped<'v>,
        ids: &[String],
        range: (i64, i64),
        keep: impl Fn(&T) -> bool,
    ) -> Result<(Vec<Row<'v, T>>, Option<String>), ApiError> {
        let row = |resource| Row::new(view, resource);
        let key = |row: &Row<'v, T>| row.resource.id().to_owned();
        if ids.is_empty() {
            let after = self.after()?;
            let all = view.after::<T>(after.as_deref().unwrap_or_default());
            return self.page_of(all.filter(|r| keep(r)).map(row), key, range);
        }
        let named = all_found::<T>(view, ids)?.into_iter();
        let named: BTreeMap<&str, &T> = named.map(|resource| (resource.id(), resource)).collect();
        let named = named.into_values().filter(|r| keep(r)).map(row);
        self.page_of(named, key, range)
    }

    /// The page of those `items` that the filters match, and the token of the
    /// next. The items must be in the order of their keys; `MaxResults` must be
    /// within `range`.
    ///
    /// # Errors
    /// For a filter that such items don't have, a size out of the range, or a
    /// token that is none of ours.
    pub fn page_of<T: Filterable>(
        self,
        items: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> String,
        range: (i64, i64),
    ) -> Result<(Vec<T>, Option<String>), ApiError> {
        let filters = Filters::new(self.filters)?;
        let page = Page::new(self.max_results, self.next_token.as_deref(), range)?;
        let page = page.of(items, key, |item| filters.matches(item));
        filters.within_budget()?;
        Ok(page)
    }
}
