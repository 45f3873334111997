//! The rest of a launch, whose intent is written: made, or taken back.

use std::time::Duration;

use crate::{
    api::{ApiError, Ctx, Once},
    model::{Instance, PublicPool, Reservation, StateReason},
    records::launch::{expand, refuse},
    store::Scoped,
};

/// The pause after a failure to take a launch back.
const RETRY: Duration = Duration::from_secs(1);

/// Makes the next of what a launch makes; whether it is whole then. After an error
/// nothing of it will be: it is taken back. Only after `InternalError` nobody knows.
pub(super) async fn make_next(ctx: &Ctx, once: &Once, pool: PublicPool) -> Result<bool, ApiError> {
    let made = ctx.transact(|view, change| {
        match view.get::<Reservation>(&once.made) {
            Some(made) if !is_refused(view, made) => Ok(expand(view, change, made, pool)),
            // Its instances have ended, and had their time.
            None if once.repeated && ctx.stands_for(view, &once.made) => Ok(true),
            // By a call with the same token, at the same time; where nothing was begun of
            // it, it may be gone already, and its token with it.
            _ => Err(taken_back()),
        }
    });
    let error = match made.await {
        Ok(whole) => return Ok(whole),
        Err(error) => error,
    };
    // The answer waits for as long as that may help: a caller that was told of an error
    // may launch anew, and must not get both. Whoever doesn't wait for it has none.
    loop {
        let refused = ctx.transact(|view, change| {
            let Some(made) = view.get::<Reservation>(&once.made) else {
                return Ok(true);
            };
            let refused = refuse(view, change, made);
            if refused {
                ctx.forget(view, change, &once.made);
            }
            Ok(refused || is_refused(view, made))
        });
        match refused.await {
            Ok(true) => return Err(error),
            // Somebody else has made the rest meanwhile.
            Ok(false) => return Ok(true),
            Err(why) if why.may_pass() => {
                let (launch, why) = (&once.made, &why.message);
                tracing::warn!(launch, %why, "a launch that failed can't be taken back yet");
                tokio::time::sleep(RETRY).await;
            }
            // Not by waiting, and maybe it is made whole yet: no error that says it isn't.
            Err(why) => {
                let (launch, cause) = (&once.made, &error.internal);
                tracing::error!(launch, %error, ?cause, "a launch that failed can't be taken back");
                return Err(why);
            }
        }
    }
}

/// What a call is told whose launch another with the same token has given up.
fn taken_back() -> ApiError {
    let why = "The launch could not be carried out, and was taken back. Try again.";
    ApiError::new("Unavailable", why).with_status(503)
}

/// Whether a launch is taken back, or has been: what was begun of it says so for as long
/// as it is seen.
fn is_refused(view: Scoped<'_>, reservation: &Reservation) -> bool {
    if let Some(launch) = &reservation.pending {
        return launch.refused;
    }
    let made = view.by(Instance::BY_RESERVATION, reservation.id.as_str());
    let refused = Some(StateReason::launch_refused());
    made.into_iter()
        .any(|instance| instance.state_reason == refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Idempotency, ec2::instances::tests::cloud_on},
        model::ReservationId,
        store::Db,
    };

    #[tokio::test]
    async fn a_launch_that_is_gone_has_ended_only_if_its_token_still_stands_for_it() {
        let ctx = cloud_on(Db::in_memory().await).await;
        let ctx = ctx.with_token(Idempotency {
            key: "RunInstances:t".into(),
            digest: "d".into(),
        });
        let pool = ctx.config.public_addresses();
        let made = ReservationId::from_random(1).to_string();
        let once = async || ctx.once(|_, _| Ok(made.clone())).await.unwrap();
        assert!(!once().await.repeated);
        // Its instances have ended.
        let ended = once().await;
        assert!(ended.repeated);
        assert!(make_next(&ctx, &ended, pool).await.unwrap());
        // Another call has taken it back meanwhile, and launched anew since.
        let forget = ctx.transact(|view, change| {
            ctx.forget(view, change, &ended.made);
            Ok(())
        });
        forget.await.unwrap();
        let refused = make_next(&ctx, &ended, pool).await.unwrap_err();
        assert_eq!((&*refused.code, refused.status), ("Unavailable", 503));
        let anew = ReservationId::from_random(2).to_string();
        ctx.once(|_, _| Ok(anew.clone())).await.unwrap();
        let refused = make_next(&ctx, &ended, pool).await.unwrap_err();
        assert_eq!(refused.code, "Unavailable");
    }
}
