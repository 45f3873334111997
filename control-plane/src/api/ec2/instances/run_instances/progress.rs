//! The rest of a launch, whose intent is written: made, or taken back.

use std::time::Duration;

use crate::{
    api::{ApiError, Ctx, Once},
    model::{PublicPool, Reservation},
    records::launch::{expand, refuse},
};

/// The pause after a failure to take a launch back.
const RETRY: Duration = Duration::from_secs(1);
/// How often that is tried: for as long as callers wait for an answer.
const TRIES: u32 = 60;

/// Makes the next of what a launch makes; whether it is whole then. After an error
/// nothing of it will be: it is taken back.
pub(super) async fn make_next(ctx: &Ctx, once: &Once, pool: PublicPool) -> Result<bool, ApiError> {
    let made = ctx.transact(|view, change| {
        match view.get::<Reservation>(&once.made) {
            Some(made) if !is_refused(made) => Ok(expand(view, change, made, pool)),
            // Its instances have ended, and had their time.
            None if once.repeated => Ok(true),
            // By a call with the same token, at the same time.
            _ => Err(ApiError::new(
                "Unavailable",
                "The launch could not be carried out, and was taken back. Try again.",
            )
            .with_status(503)),
        }
    });
    let error = match made.await {
        Ok(whole) => return Ok(whole),
        Err(error) => error,
    };
    // The answer waits: a caller that was told of an error may launch anew, and must
    // not get both. Whoever doesn't wait for it has none.
    for _ in 0..TRIES {
        let refused = ctx.transact(|view, change| {
            let Some(made) = view.get::<Reservation>(&once.made) else {
                return Ok(true);
            };
            let refused = refuse(view, change, made);
            if refused {
                ctx.forget(view, change, &once.made);
            }
            Ok(refused)
        });
        match refused.await {
            Ok(true) => return Err(error),
            // Somebody else has made the rest meanwhile.
            Ok(false) => return Ok(true),
            Err(why) => {
                let (launch, why) = (&once.made, &why.message);
                tracing::warn!(launch, %why, "a launch that failed can't be taken back yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    Err(error)
}

fn is_refused(reservation: &Reservation) -> bool {
    let pending = reservation.pending.as_ref();
    pending.is_some_and(|launch| launch.refused)
}
