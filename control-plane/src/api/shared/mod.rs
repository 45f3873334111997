//! What actions of all services have in common: identifiers and their errors, quotas,
//! tags.

pub mod id;
pub mod quota;
pub mod tag;

pub use id::{
    all_found, all_found_by, found, found_visible, in_use, not_found, parse_id, unreferred,
};
pub use tag::{Tag, TagSpecification};
