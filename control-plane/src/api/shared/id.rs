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
        let prefix = I::PREFIX;
        let ours = text
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('-'));
        let text = quoted(text);
        let mut message = format!("Invalid id: \"{text}\"");
        if !ours {
            message += &format!(" (expecting \"{prefix}-...\")");
        }
        ApiError::new(I::MALFORMED, message)
    })
}

/// The error for an identifier that names nothing.
pub fn not_found<I: Identifier>(id: impl AsRef<str>) -> ApiError {
    none_found::<I>(&[id.as_ref()])
}

/// The error for identifiers, one or more, that name nothing, in EC2's words.
fn none_found<I: Identifier>(ids: &[&str]) -> ApiError {
    let mut shown = ids
        .iter()
        .map(|id| quoted(id))
        .collect::<Vec<_>>()
        .join(", ");
    if I::PREFIX == "ami" {
        // Of images EC2 prints the list, even if there is one in it.
        shown = format!("[{shown}]");
    }
    let (plural, does) = if ids.len() == 1 {
        ("", "does")
    } else {
        ("s", "do")
    };
    ApiError::new(
        I::NOT_FOUND,
        format!("The {}{plural} '{shown}' {does} not exist", I::NOUN),
    )
}

/// The caller's resources that identifiers of a request name, in their order.
///
/// # Errors
/// The kind's `Malformed` for the first that is none, or else its `NotFound` for
/// all that name nothing.
pub fn all_found<'v, T: Described>(
    view: Scoped<'v>,
    ids: &[String],
) -> Result<Vec<&'v T>, ApiError> {
    all_found_by(ids, |id: &T::Id| view.find::<T>(id))
}

/// The same of what `find` finds.
///
/// # Errors
/// As there.
pub fn all_found_by<I: Identifier, R>(
    ids: &[String],
    find: impl Fn(&I) -> Option<R>,
) -> Result<Vec<R>, ApiError> {
    let parsed = ids.iter().map(|id| parse_id::<I>(id));
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    let mut unknown: Vec<&str> = Vec::new();
    let mut all = Vec::new();
    for id in &parsed {
        match find(id) {
            Some(resource) => all.push(resource),
            None if !unknown.contains(&id.as_ref()) => unknown.push(id.as_ref()),
            None => {}
        }
    }
    if unknown.is_empty() {
        Ok(all)
    } else {
        Err(none_found::<I>(&unknown))
    }
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

/// The error for a resource that something refers to, in EC2's words.
pub fn in_use<T: Described>(id: &T::Id) -> ApiError {
    let message = T::IN_USE.replace("{id}", id.as_ref());
    ApiError::new("DependencyViolation", message)
}

/// What each deletion asks first: whether something refers to the resource, as the
/// records that do declare with `refers:`. In a transaction that deletes it, this is
/// enough only where what begins to refer to it says so with [`Change::refer_to`](crate::store::Change::refer_to); else it
/// is marked before, as a security group is.
///
/// # Errors
/// [`in_use`].
pub fn unreferred<T: Described>(view: Scoped<'_>, resource: &T) -> Result<(), ApiError> {
    match view.is_referred_to(resource) {
        true => Err(in_use::<T>(resource.described_id())),
        false => Ok(()),
    }
}
