//! Runs a controller: a work queue that is keyed by resource.
//!
//! ```text
//!   changes of the view ─┐                     ┌─► step(a) ─┐
//!   news from the host ──┼─► ready: a, b, c … ─┼─► step(b) ─┼─► idle, again
//!   timers, resync ──────┘                     └─► step(c) ─┘   now, later
//! ```
//!
//! At most one step of a key runs at a time; a key that is woken meanwhile is
//! stepped once more after it. A key whose step fails, or takes longer than its
//! deadline, waits for itself alone, twice as long each time. No key waits for
//! another's disk, network or guest; what they compete for is in [`Slots`].

mod keys;
mod slots;
#[cfg(test)]
mod tests;
mod waits;

use std::{
    collections::BTreeSet, fmt::Display, future::pending, panic::AssertUnwindSafe, sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use self::keys::Keys;
pub use self::{
    keys::{Wake, backoff},
    slots::{Kind, Late, Limits, Slots},
};
use crate::store::{Changed, Db, View};

/// How often every key is woken: what no event told of, is found then.
const RESYNC: Duration = Duration::from_secs(30);
/// How soon that is tried again when it fails.
const SURVEY_AGAIN: Duration = Duration::from_secs(1);
/// How long finding all keys may take.
const SURVEY: Duration = Duration::from_secs(30);

/// When a key wants its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requeue {
    /// Now: something was done, and there may be more to do.
    Now,
    /// After this time, if nothing wakes it earlier.
    After(Duration),
    /// When something wakes it.
    Idle,
}

/// One reconciler.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// What its work is keyed by: the id of a resource.
    type Key: Ord + Clone + Display + Send + Sync + 'static;

    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// How long a step may take beside waiting for [`Slots`]; then it is cut short,
    /// and counts as failed.
    fn deadline(&self) -> Duration;

    /// How many keys are stepped at once.
    fn at_once(&self) -> usize {
        64
    }

    /// Every key that a step may be due for: by the view, and by what is on the
    /// host although no record knows it. Asked at the start and every half minute.
    ///
    /// # Errors
    /// When that can't be told; it is asked again soon.
    async fn all(&self) -> anyhow::Result<BTreeSet<Self::Key>>;

    /// The keys that a change of the view is news for.
    fn concerned(&self, view: &View, changed: &Changed) -> Vec<Wake<Self::Key>>;

    /// Looks, plans, and does what can be done for this key now. It takes no
    /// input but the view and the host, so that recovery from a crash is the
    /// ordinary step.
    ///
    /// # Errors
    /// When it should be tried again after a growing pause.
    async fn step(&self, key: &Self::Key) -> anyhow::Result<Requeue>;

    /// The keys that the host has news of.
    fn events(&self) -> Option<broadcast::Receiver<Self::Key>> {
        None
    }
}

/// The key of a controller that has but one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Singleton;

impl Display for Singleton {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("all")
    }
}

/// What woke the queue.
enum Event<K> {
    Done(K, anyhow::Result<Requeue>),
    Changed(Option<Changed>),
    News(K),
    /// News was missed: all may have some.
    Missed,
    Resync,
    All(anyhow::Result<BTreeSet<K>>),
    Timer,
    Shutdown,
}

/// Runs a controller until `shutdown` is true or the view has ended. Steps that
/// run then are waited for.
pub async fn run<C: Controller>(controller: Arc<C>, db: Db, mut shutdown: watch::Receiver<bool>) {
    let mut changes = db.changes();
    let mut events = controller.events();
    let mut keys = Keys::new();
    let mut steps = JoinSet::new();
    let mut survey = JoinSet::new();
    let mut resync = interval(RESYNC);
    resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = Instant::now();
        keys.due(now);
        while steps.len() < controller.at_once()
            && let Some(key) = keys.take()
        {
            steps.spawn(step(Arc::clone(&controller), key));
        }
        let event = tokio::select! {
            _ = shutdown.wait_for(|s| *s) => Event::Shutdown,
            Some(done) = steps.join_next() => match done {
                Ok((key, result)) => Event::Done(key, result),
                // They catch their own panics, and nobody aborts them.
                Err(_) => continue,
            },
            changed = changes.next() => Event::Changed(changed),
            event = news(&mut events) => event,
            Some(all) = survey.join_next() => match all {
                Ok(all) => Event::All(all),
                Err(error) => Event::All(Err(error.into())),
            },
            _ = resync.tick(), if survey.is_empty() => Event::Resync,
            () = until(keys.next_timer()) => Event::Timer,
        };
        let now = Instant::now();
        match event {
            Event::Done(key, result) => done(&*controller, &mut keys, key, result, now),
            Event::Changed(None) | Event::Shutdown => break,
            Event::Changed(Some(changed)) => {
                if changed.all {
                    resync.reset_immediately();
                }
                for wake in controller.concerned(&db.view(), &changed) {
                    keys.wake(wake, now);
                }
            }
            Event::News(key) => keys.wake(Wake::News(key), now),
            Event::Missed => resync.reset_immediately(),
            Event::Resync => {
                let controller = Arc::clone(&controller);
                survey.spawn(async move {
                    timeout(SURVEY, controller.all())
                        .await
                        .with_context(|| format!("not all was found after {SURVEY:?}"))?
                });
            }
            Event::All(Ok(all)) => {
                for key in all {
                    keys.wake(Wake::News(key), now);
                }
            }
            Event::All(Err(error)) => {
                let name = controller.name();
                tracing::warn!(
                    controller = name,
                    error = format!("{error:#}"),
                    "can't look"
                );
                resync.reset_after(SURVEY_AGAIN);
            }
            Event::Timer => {}
        }
    }
    // A step is never cut short by the end.
    while steps.join_next().await.is_some() {}
}

/// One step, whatever becomes of it.
async fn step<C: Controller>(controller: Arc<C>, key: C::Key) -> (C::Key, anyhow::Result<Requeue>) {
    let deadline = controller.deadline();
    let step = AssertUnwindSafe(controller.step(&key)).catch_unwind();
    let result = match waits::timeout(deadline, step).await {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(anyhow!("the step panicked")),
        None => Err(anyhow!("the step took longer than {deadline:?}")),
    };
    (key, result)
}

fn done<C: Controller>(
    controller: &C,
    keys: &mut Keys<C::Key>,
    key: C::Key,
    result: anyhow::Result<Requeue>,
    now: Instant,
) {
    match result {
        Ok(requeue) => keys.done(key, requeue, now),
        Err(error) => {
            let pause = keys.failed(key.clone(), now);
            tracing::warn!(
                controller = controller.name(),
                %key,
                error = format!("{error:#}"),
                "step failed, trying again in {pause:?}"
            );
        }
    }
}

async fn until(timer: Option<Instant>) {
    match timer {
        Some(timer) => sleep_until(timer).await,
        None => pending().await,
    }
}

async fn news<K: Clone>(events: &mut Option<broadcast::Receiver<K>>) -> Event<K> {
    let Some(receiver) = events else {
        return pending().await;
    };
    match receiver.recv().await {
        Ok(key) => Event::News(key),
        Err(broadcast::error::RecvError::Lagged(_)) => Event::Missed,
        Err(broadcast::error::RecvError::Closed) => {
            *events = None;
            pending().await
        }
    }
}
