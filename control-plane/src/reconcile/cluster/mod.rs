//! The controllers of which the cloud has one: they run where the leader's key is
//! held (`reconcile/leader.rs`).

mod garbage;
mod placement;

pub use garbage::GarbageController;
pub use placement::PlacementController;

use std::convert::Infallible;

use crate::store::{Change, Db, TransactError, View};

/// Writes the instances' lives down in a transaction that can't refuse.
pub(super) async fn transact<T>(
    db: &Db,
    mut decide: impl FnMut(&View, &mut Change<'_>) -> T,
) -> anyhow::Result<T> {
    db.transact(|view, change| Ok::<T, Infallible>(decide(view, change)))
        .await
        .map_err(|error| match error {
            TransactError::Refused(never) => match never {},
            TransactError::Contended => anyhow::anyhow!("too many conflicting changes"),
            TransactError::Store(error) => error.into(),
        })
}
