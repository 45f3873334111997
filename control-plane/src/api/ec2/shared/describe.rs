//! What the Describe calls have in common: of the resources that are named, or
//! all, those that the filters match; and of those one page.

use std::collections::BTreeMap;

use super::{ApiId, Filter, Filterable, Filters, Page, found, page};
use crate::{api::ApiError, model::Resource, store::View};

/// A resource with its tags: what most filters look at.
#[derive(Debug)]
pub struct Tagged<'v, T> {
    /// The resource.
    pub resource: &'v T,
    /// Its tags.
    pub tags: &'v BTreeMap<String, String>,
}

impl<'v, T: Resource> Tagged<'v, T> {
    /// The resource with the tags that the view has.
    pub fn new(view: &'v View, resource: &'v T) -> Self {
        let tags = view.tags(resource.id());
        Self { resource, tags }
    }
}

/// The resources that a call names by these ids, or all when it names none; in
/// the order of the view, each once.
///
/// # Errors
/// The kind's `Malformed` or `NotFound`, for the first that is bad.
pub fn named_or_all<'v, I: ApiId + AsRef<str>, T: Resource>(
    view: &'v View,
    ids: &[String],
) -> Result<Vec<&'v T>, ApiError> {
    if ids.is_empty() {
        return Ok(view.all().collect());
    }
    let named = ids.iter().map(|id| found::<I, T>(view, id));
    let named = named.map(|found| found.map(|resource| (resource.id(), resource)));
    let named: BTreeMap<&str, &T> = named.collect::<Result<_, _>>()?;
    Ok(named.into_values().collect())
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
        let filters = Filters::new::<T>(self.filters)?;
        let matching = items.into_iter().filter(|item| filters.matches(item));
        let ask = Page {
            max_results: self.max_results,
            next_token: self.next_token.as_deref(),
            range,
        };
        page(matching.collect(), key, ask)
    }
}
