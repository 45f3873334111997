//! What EC2's Describe calls have in common: of the resources that are named, or
//! all, those that the filters match; and of those one page.
//!
//! Pages are made of keys: a page begins behind the last one's last key and ends
//! when it is full, and only what is on it is turned into an answer.

mod filter;
mod page;

use std::{
    collections::BTreeMap,
    ops::{Deref, RangeInclusive},
};

pub use filter::{Filter, Filterable, Filters, Table, TagsOf, Values};
pub use page::Page;
use page::read_token;

use crate::{
    api::{ApiError, Ctx, shared::all_found},
    model::Described,
    store::Scoped,
};

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

/// What a call asks of a list, and whose it is.
pub struct Listing<'v> {
    /// How this Hearth is set up, and who calls.
    pub ctx: &'v Ctx,
    /// What the caller has.
    pub view: Scoped<'v>,
    /// The ids of what is asked for; none at all asks for all.
    pub ids: Vec<String>,
    /// `Filters`.
    pub filters: Vec<Filter>,
    /// `MaxResults`, from the first to the last of `pages`.
    pub max_results: Option<i64>,
    /// `NextToken`.
    pub next_token: Option<String>,
    /// The smallest and the largest page.
    pub pages: RangeInclusive<i64>,
}

/// A page of a list, and the token of the next one.
pub type Paged<T> = (Vec<T>, Option<String>);

impl<'v> Listing<'v> {
    /// The key that the page comes after, if it isn't the first.
    ///
    /// # Errors
    /// `InvalidNextToken`.
    pub fn after(&self) -> Result<Option<String>, ApiError> {
        self.next_token.as_deref().map(read_token).transpose()
    }

    /// Refuses ids and `MaxResults` together, which some lists of EC2 do; `set` is what
    /// the error calls the ids.
    ///
    /// # Errors
    /// `InvalidParameterCombination`.
    pub fn ids_or_pages(&self, set: &str) -> Result<(), ApiError> {
        if self.ids.is_empty() || self.max_results.is_none() {
            return Ok(());
        }
        Err(ApiError::combination(format!(
            "The parameter {set} cannot be used with the parameter maxResults"
        )))
    }

    /// The page of the caller's resources that are asked for, each as `item` shows it.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn show<T: Filtered, I>(
        self,
        item: impl Fn(&Row<'v, T>) -> I,
    ) -> Result<Paged<I>, ApiError> {
        let (rows, next_token) = self.rows(|_| true)?;
        Ok((rows.iter().map(item).collect(), next_token))
    }

    /// The page of the caller's resources with the ids that are asked for, or of all,
    /// that the filters match and `keep` keeps; in the order of their keys, each once.
    ///
    /// # Errors
    /// Those of [`all_found`] and [`page_of`](Self::page_of).
    pub fn rows<T: Filtered>(
        self,
        keep: impl Fn(&T) -> bool,
    ) -> Result<Paged<Row<'v, T>>, ApiError> {
        let view = self.view;
        let resources = self.resources(keep)?;
        let rows = resources.map(|resource| Row::new(view, resource));
        self.page_of(rows, |row| row.resource.id().to_owned())
    }

    /// What the page is made of before the filters look at it: see [`rows`](Self::rows).
    ///
    /// # Errors
    /// Those of [`all_found`], or `InvalidNextToken`.
    pub fn resources<T: Described, K: Fn(&T) -> bool>(
        &self,
        keep: K,
    ) -> Result<impl Iterator<Item = &'v T> + use<'v, T, K>, ApiError> {
        let mut named = BTreeMap::new();
        let mut all = None;
        if self.ids.is_empty() {
            let after = self.after()?.unwrap_or_default();
            all = Some(self.view.after::<T>(&after));
        } else {
            let found = all_found::<T>(self.view, &self.ids)?.into_iter();
            named.extend(found.map(|resource| (resource.id(), resource)));
        }
        let resources = named.into_values().chain(all.into_iter().flatten());
        Ok(resources.filter(move |resource| keep(resource)))
    }

    /// The page of those `items` that the filters match. The items must be in the order
    /// of their keys; what comes before the page may be left out.
    ///
    /// # Errors
    /// For a filter that such items don't have, a size out of the range, or a
    /// token that is none of ours.
    pub fn page_of<T: Filterable>(
        self,
        items: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> String,
    ) -> Result<Paged<T>, ApiError> {
        let filters = Filters::new(self.filters)?;
        let page = Page::new(self.max_results, self.next_token.as_deref(), self.pages)?;
        let page = page.of(items, key, |item| filters.matches(item));
        filters.within_budget()?;
        Ok(page)
    }
}

/// Declares a `Describe…` action: its request (ids, `more` parameters, `Filters`,
/// `MaxResults` and `NextToken`), its answer (a set of items and `nextToken`), and
/// `page`, which makes the items of a [`Listing`] and of `more`.
///
/// ```text
/// describe! {
///     DescribeVolumes {
///         ids: "VolumeId",                  // on the wire; left out where there are none
///         set: volume_set of Item,          // `volumeSet` on the wire
///         unsupported: ["IncludeManagedResources"],
///         more: { all: Option<bool> },      // fields, with serde's attributes
///         pages: 5..=1000,                  // of `MaxResults`; `none` without pages
///         page: |asked, _| asked.show(Item::new),
///     }
/// }
/// ```
macro_rules! describe {
    ($action:ident { ids: $ids:literal, $($rest:tt)* }) => {
        $crate::api::ec2::listing::describe!(@pages $action [default, rename = $ids] $($rest)*);
    };
    ($action:ident { set: $($rest:tt)* }) => {
        $crate::api::ec2::listing::describe!(@pages $action [skip] set: $($rest)*);
    };
    (@pages $action:ident $ids:tt
        set: $vis:vis $set:ident of $item:ty,
        $(unsupported: $unsupported:tt,)?
        $(more: $more:tt,)?
        pages: none,
        page: $page:expr $(,)?
    ) => {
        $crate::api::ec2::listing::describe! {
            @declare $action $ids [skip] [] [0..=0] [$vis] $set [$item]
            [$($unsupported)?] [$($more)?] $page
        }
    };
    (@pages $action:ident $ids:tt
        set: $vis:vis $set:ident of $item:ty,
        $(unsupported: $unsupported:tt,)?
        $(more: $more:tt,)?
        pages: $least:literal..=$most:literal,
        page: $page:expr $(,)?
    ) => {
        $crate::api::ec2::listing::describe! {
            @declare $action $ids [default] [next_token] [$least..=$most] [$vis] $set [$item]
            [$($unsupported)?] [$($more)?] $page
        }
    };
    (@declare $action:ident [$($ids:tt)*] [$paged:ident] [$($token:ident)?] [$pages:expr]
        [$vis:vis] $set:ident [$item:ty]
        [$([$($unsupported:literal),* $(,)?])?]
        [$({$($(#[$attr:meta])* $field:ident: $kind:ty),* $(,)?})?]
        $page:expr
    ) => {
        /// The action.
        pub(crate) struct $action;

        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub(crate) struct Request {
            #[serde($($ids)*)]
            ids: Vec<String>,
            $($($(#[$attr])* $field: $kind,)*)?
            #[serde(default, rename = "Filter")]
            filters: Vec<$crate::api::ec2::listing::Filter>,
            #[serde($paged)]
            max_results: Option<i64>,
            #[serde($paged)]
            next_token: Option<String>,
        }

        /// The parameters that other lists don't have.
        pub(crate) struct More {
            $($($field: $kind,)*)?
        }

        #[derive(Debug, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(crate) struct Response {
            $vis $set: Vec<$item>,
            $($vis $token: Option<String>,)?
        }

        impl $crate::api::Action for $action {
            const NAME: &'static str = stringify!($action);
            const UNSUPPORTED: &'static [&'static str] = &[$($($unsupported),*)?];
            type Request = Request;
            type Response = Response;

            fn targets(_: &Request, to: &mut $crate::api::Targets<'_>) {
                to.any();
            }

            async fn handle(
                ctx: &$crate::api::Ctx,
                request: Request,
            ) -> Result<Response, $crate::api::ApiError> {
                type Make = for<'v> fn(
                    $crate::api::ec2::listing::Listing<'v>,
                    More,
                ) -> Result<$crate::api::ec2::listing::Paged<$item>, $crate::api::ApiError>;
                let make: Make = $page;
                let view = ctx.view();
                let asked = $crate::api::ec2::listing::Listing {
                    ctx,
                    view: view.view(),
                    ids: request.ids,
                    filters: request.filters,
                    max_results: request.max_results,
                    next_token: request.next_token,
                    pages: $pages,
                };
                let more = More { $($($field: request.$field,)*)? };
                let page = make(asked, more)?;
                Ok(Response { $set: page.0, $($token: page.1)? })
            }
        }
    };
}

pub(crate) use describe;
