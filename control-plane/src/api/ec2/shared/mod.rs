//! What many actions have in common: filters, pages, tags, and the errors of
//! identifiers.

pub mod describe;
pub mod filter;
pub mod id;
pub mod page;
pub mod tag;

pub use describe::{Listing, Tagged, named_or_all};
pub use filter::{Filter, Filterable, Filters};
pub use id::{ApiId, found, not_found, parse_id};
pub use page::{Page, page};
pub use tag::{Tag, TagSpecification};
