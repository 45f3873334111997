//! Wakes the controllers.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, time::sleep};

use crate::store::Db;

/// How long a controller sleeps at most: what no event told it, it finds then.
const RESYNC: Duration = Duration::from_secs(30);
/// The pause after a first failed pass; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// When a controller wants its next pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Again {
    /// Now: it did something, and there may be more to do.
    Now,
    /// After this time, if nothing wakes it earlier.
    After(Duration),
    /// When something wakes it.
    Idle,
}

/// One reconciler.
#[async_trait]
pub trait Controller: Send + Sync {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// Looks, plans, and does what can be done now.
    ///
    /// # Errors
    /// When the pass as a whole could not be made; the driver tries again after
    /// a growing pause. What fails for one resource only is that resource's
    /// matter, and no error here.
    async fn pass(&self) -> anyhow::Result<Again>;

    /// A counter that moves when the host has news.
    fn events(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// Runs a controller until `shutdown` is true or the view has ended.
pub async fn drive(controller: Arc<dyn Controller>, db: Db, mut shutdown: watch::Receiver<bool>) {
    let mut view = db.changed();
    let mut events = controller.events();
    let mut backoff = BACKOFF_MIN;
    loop {
        view.mark_unchanged();
        if let Some(events) = &mut events {
            events.mark_unchanged();
        }
        let again = controller.pass().await;
        // A pass is never cut short: only between two of them do we look.
        if *shutdown.borrow() {
            return;
        }
        let pause = match again {
            Ok(Again::Now) => {
                backoff = BACKOFF_MIN;
                // Lets others run, should a plan ever go in a circle.
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Again::After(pause)) => pause.min(RESYNC),
            Ok(Again::Idle) => RESYNC,
            Err(error) => {
                tracing::warn!(
                    controller = controller.name(),
                    error = format!("{error:#}"),
                    "pass failed, trying again in {backoff:?}"
                );
                // Not even news shortens it: a pass that fails because of what
                // it keeps changing would turn in a hot loop.
                tokio::select! {
                    () = sleep(backoff) => {}
                    _ = shutdown.wait_for(|s| *s) => return,
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
                continue;
            }
        };
        backoff = BACKOFF_MIN;
        let news = async {
            if let Some(events) = &mut events
                && events.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = sleep(pause) => {}
            changed = view.changed() => if changed.is_err() { return },
            () = news => {}
            _ = shutdown.wait_for(|s| *s) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::mpsc;

    use super::*;
    use crate::model::samples;

    /// Answers its passes from a list, and tells that each was made.
    struct Scripted {
        answers: Mutex<Vec<anyhow::Result<Again>>>,
        passes: mpsc::UnboundedSender<tokio::time::Instant>,
        news: watch::Sender<u64>,
    }

    #[async_trait]
    impl Controller for Scripted {
        fn name(&self) -> &'static str {
            "scripted"
        }
        async fn pass(&self) -> anyhow::Result<Again> {
            let _ = self.passes.send(tokio::time::Instant::now());
            self.answers
                .lock()
                .unwrap()
                .pop()
                .unwrap_or(Ok(Again::Idle))
        }
        fn events(&self) -> Option<watch::Receiver<u64>> {
            Some(self.news.subscribe())
        }
    }

    struct Rig {
        db: Db,
        controller: Arc<Scripted>,
        passes: mpsc::UnboundedReceiver<tokio::time::Instant>,
        shutdown: watch::Sender<bool>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn rig(mut answers: Vec<anyhow::Result<Again>>) -> Rig {
        answers.reverse();
        let (passes_in, passes) = mpsc::unbounded_channel();
        let controller = Arc::new(Scripted {
            answers: Mutex::new(answers),
            passes: passes_in,
            news: watch::Sender::new(0),
        });
        let db = Db::in_memory().await;
        let (shutdown, receiver) = watch::channel(false);
        let task = tokio::spawn(drive(controller.clone(), db.clone(), receiver));
        Rig {
            db,
            controller,
            passes,
            shutdown,
            task,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wakes_by_the_view_by_events_and_by_timer() {
        let mut rig = rig(vec![]).await;
        let first = rig.passes.recv().await.unwrap();
        rig.db
            .transact(|_, change| {
                change.put(&samples::vpc());
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
        rig.passes.recv().await.unwrap();
        rig.controller.news.send_modify(|n| *n += 1);
        let third = rig.passes.recv().await.unwrap();
        assert!(third - first < RESYNC);
        let fourth = rig.passes.recv().await.unwrap();
        assert!(fourth - third >= RESYNC);
        rig.shutdown.send(true).unwrap();
        rig.task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_pass_is_never_a_hot_loop() {
        let fail = || Err(anyhow::anyhow!("no"));
        let mut rig = rig(vec![
            fail(),
            fail(),
            fail(),
            Ok(Again::Now),
            Ok(Again::Idle),
        ])
        .await;
        let mut times = Vec::new();
        for _ in 0..5 {
            // News comes all the time, and yet the pauses hold.
            rig.controller.news.send_modify(|n| *n += 1);
            times.push(rig.passes.recv().await.unwrap());
        }
        let pauses: Vec<_> = times.windows(2).map(|w| w[1] - w[0]).collect();
        for (pause, least) in pauses.iter().zip([1, 2, 4, 0]) {
            assert!(*pause >= BACKOFF_MIN * least, "{pauses:?}");
        }
        assert!(pauses[3] < BACKOFF_MIN, "{pauses:?}");
        rig.shutdown.send(true).unwrap();
        rig.task.await.unwrap();
    }
}
