//! Identifiers in requests, and the resources that they name: EC2 has its own
//! pair of error codes for each kind, which its declaration has.

use crate::{
    api::{ApiError, wire::quoted},
    model::{Described, Identifier, Visible},
    store::Scoped,
};

/// Reads an identifier.
///
/// # Errors
/// The kind's `Malformed` code.
pub fn parse_id<I: Identifier>(text: &str) -> Result<I, ApiError> {
    text.parse().map_err(|_| {
        let text = quoted(text);
        ApiError::new(I::MALFORMED, format!("Invalid id: \"{text}\""))
    })
}

/// The error for an identifier that names nothing.
pub fn not_found<I: Identifier>(id: impl AsRef<str>) -> ApiError {
    let id = quoted(id.as_ref());
    ApiError::new(
        I::NOT_FOUND,
        format!("The {} '{id}' does not exist", I::NOUN),
    )
}

/// The caller's resource that an identifier of a request names.
///
/// # Errors
/// The kind's `Malformed` or `NotFound`.
pub fn found<'v, T: Described>(view: Scoped<'v>, id: &str) -> Result<&'v T, ApiError> {
    let id = parse_id::<T::Id>(id)?;
    view.find::<T>(&id).ok_or_else(|| not_found::<T::Id>(&id))
}

/// The same for a resource that may be another account's.
///
/// # Errors
/// As there.
pub fn found_visible<'v, T: Visible>(view: Scoped<'v>, id: &str) -> Result<&'v T, ApiError> {
    let id = parse_id::<T::Id>(id)?;
    view.visible::<T>(&id)
        .ok_or_else(|| not_found::<T::Id>(&id))
}
