//! How long a step has waited for slots: no part of its deadline.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task_local,
    time::{Instant, sleep_until},
};

task_local! {
    /// Those of the step that runs.
    static WAITS: Waits;
}

#[derive(Debug, Default)]
struct State {
    /// How many of its pieces of work wait, and since when any does.
    waiting: usize,
    since: Option<Instant>,
    /// How long any has waited before that.
    before: Duration,
}

#[derive(Debug, Clone, Default)]
struct Waits(Arc<Mutex<State>>);

/// One piece of work that waits.
struct Waiting(Waits);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting -= 1;
        if state.waiting == 0
            && let Some(since) = state.since.take()
        {
            state.before += since.elapsed();
        }
    }
}

impl Waits {
    fn state(&self) -> MutexGuard<'_, State> {
        // It holds nothing that a panic could leave half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Waiting {
        let mut state = self.state();
        state.waiting += 1;
        state.since.get_or_insert_with(Instant::now);
        drop(state);
        Waiting(self.clone())
    }

    fn so_far(&self) -> Duration {
        let state = self.state();
        state.before + state.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Waits for a slot, for the step that this is part of, if any.
pub(super) async fn during<T>(wait: impl Future<Output = T>) -> T {
    let _waiting = WAITS.try_with(Waits::begin).ok();
    wait.await
}

/// Runs a step; `None` when it took longer than this beside its waits for slots.
pub(super) async fn timeout<T>(deadline: Duration, step: impl Future<Output = T>) -> Option<T> {
    let (began, waits) = (Instant::now(), Waits::default());
    let over = async {
        loop {
            let end = began + deadline + waits.so_far();
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    };
    tokio::select! {
        biased;
        done = WAITS.scope(waits.clone(), step) => Some(done),
        () = over => None,
    }
}
