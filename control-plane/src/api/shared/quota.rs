//! Quotas: how many of a kind an account may have in a region.

use crate::{
    api::ApiError,
    model::{QuotaGuard, Regional},
    store::{Change, Scoped},
};

/// That one more of these may be made where there may be `most`; of two transactions at
/// once that ask, one commits and the other is decided again.
///
/// # Errors
/// What `full` makes, when there are so many.
pub fn one_more<T: Regional>(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    most: usize,
    full: impl FnOnce() -> ApiError,
) -> Result<(), ApiError> {
    if view.all::<T>().take(most).count() == most {
        return Err(full());
    }
    let guard = QuotaGuard::of::<T>(view.scope());
    match view.get::<QuotaGuard>(&guard.bounds) {
        Some(there) => change.update(there, &guard),
        None => change.create(&guard),
    }
    Ok(())
}
