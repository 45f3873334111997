//! What many actions have in common: filters, pages, tags, and the errors of
//! identifiers.

pub mod describe;
pub mod filter;
pub mod id;
pub mod page;
pub mod quota;
pub mod tag;

pub(crate) use describe::describe;
pub use describe::{Filtered, Listing, Paged, Row};
pub use filter::{Filter, Filterable, Filters, Table, TagsOf, Values};
pub use id::{
    all_found, all_found_by, found, found_visible, in_use, not_found, parse_id, unreferred,
};
pub use page::Page;
pub use tag::{Tag, TagSpecification};
