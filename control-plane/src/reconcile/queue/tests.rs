use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

use tokio::{sync::mpsc, task::JoinHandle};

use super::*;
use crate::model::{Host, samples};

type Script = Box<dyn Fn(&str, usize) -> Act + Send + Sync>;

/// What a step does.
enum Act {
    Return(anyhow::Result<Requeue>),
    Hang,
    /// Waits for the gate first.
    Gate,
    Panic,
}

/// Steps its keys, hosts by name, as a script says, and tells of each.
struct Scripted {
    script: Script,
    counts: Mutex<HashMap<String, usize>>,
    steps: mpsc::UnboundedSender<(String, Instant)>,
    gate: tokio::sync::Semaphore,
    news: broadcast::Sender<String>,
    keys: BTreeSet<String>,
    running: Mutex<BTreeSet<String>>,
}

#[async_trait]
impl Controller for Scripted {
    type Key = String;

    fn name(&self) -> &'static str {
        "scripted"
    }
    fn deadline(&self) -> Duration {
        Duration::from_secs(10)
    }
    async fn all(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(self.keys.clone())
    }
    fn concerned(&self, view: &View, changed: &Changed) -> Vec<Wake<String>> {
        let hosts = changed.there::<Host>(view);
        hosts.map(|host| Wake::Changed(host.id.0.clone())).collect()
    }
    async fn step(&self, key: &String) -> anyhow::Result<Requeue> {
        let count = {
            let mut counts = self.counts.lock().unwrap();
            let count = counts.entry(key.clone()).or_default();
            *count += 1;
            *count
        };
        let act = (self.script)(key, count);
        assert!(
            self.running.lock().unwrap().insert(key.clone()),
            "{key} is stepped twice at once"
        );
        let running = Running(self, key);
        let _ = self.steps.send((key.clone(), Instant::now()));
        let result = match act {
            Act::Return(result) => result,
            Act::Hang => pending().await,
            Act::Gate => {
                self.gate.acquire().await.unwrap().forget();
                Ok(Requeue::Idle)
            }
            Act::Panic => panic!("as the script says"),
        };
        drop(running);
        result
    }
    fn events(&self) -> Option<broadcast::Receiver<String>> {
        Some(self.news.subscribe())
    }
}

struct Running<'a>(&'a Scripted, &'a String);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.lock().unwrap().remove(self.1);
    }
}

struct Rig {
    db: Db,
    controller: Arc<Scripted>,
    steps: mpsc::UnboundedReceiver<(String, Instant)>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Rig {
    async fn new(
        keys: &[&str],
        script: impl Fn(&str, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Self::with(keys, script).await
    }

    async fn with(
        keys: BTreeSet<String>,
        script: impl Fn(&str, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let (sender, steps) = mpsc::unbounded_channel();
        let controller = Arc::new(Scripted {
            script: Box::new(script),
            counts: Mutex::default(),
            steps: sender,
            gate: tokio::sync::Semaphore::new(0),
            news: broadcast::Sender::new(1024),
            keys,
            running: Mutex::default(),
        });
        let db = Db::in_memory().await;
        let (shutdown, receiver) = watch::channel(false);
        let task = tokio::spawn(run(controller.clone(), db.clone(), receiver));
        Self {
            db,
            controller,
            steps,
            shutdown,
            task,
        }
    }

    async fn next(&mut self) -> (String, Instant) {
        self.steps.recv().await.unwrap()
    }

    /// The record of this key changes.
    async fn change(&self, key: &str, n: u32) {
        let host = samples::host(key, n);
        self.db
            .transact(|_, change| {
                change.overwrite(&host);
                Ok::<_, ()>(())
            })
            .await
            .unwrap();
    }

    async fn end(self) {
        self.shutdown.send(true).unwrap();
        self.task.await.unwrap();
    }
}

fn idle() -> Act {
    Act::Return(Ok(Requeue::Idle))
}

fn fail() -> Act {
    Act::Return(Err(anyhow!("as the script says")))
}

#[tokio::test(start_paused = true)]
async fn a_key_is_woken_by_its_change_by_news_and_by_the_resync() {
    let mut rig = Rig::new(&["a"], |_, _| idle()).await;
    let (_, first) = rig.next().await;
    rig.change("b", 1).await;
    assert_eq!(rig.next().await.0, "b");
    rig.controller.news.send("c".into()).unwrap();
    let (key, third) = rig.next().await;
    assert_eq!(key, "c");
    assert!(third - first < RESYNC);
    let (key, fourth) = rig.next().await;
    assert_eq!(key, "a");
    assert_eq!(fourth - first, RESYNC);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_that_never_returns_delays_no_other_and_ends_at_its_deadline() {
    let mut rig = Rig::new(&["hung", "well"], |key, count| match (key, count) {
        ("hung", 1) => Act::Hang,
        ("well", n) if n < 1000 => Act::Return(Ok(Requeue::Now)),
        _ => idle(),
    })
    .await;
    let mut well = 0;
    let mut hung = Vec::new();
    while hung.len() < 2 {
        let (key, at) = rig.next().await;
        match key.as_str() {
            "hung" => hung.push(at),
            _ => {
                assert!(at - hung.first().copied().unwrap_or(at) < Duration::from_secs(1));
                well += 1;
            }
        }
    }
    assert_eq!(well, 1000);
    // The deadline, and then the pause of a failed step.
    assert_eq!(hung[1] - hung[0], Duration::from_secs(10) + backoff(1));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_woken_while_it_runs_runs_once_more() {
    let mut rig = Rig::new(&["a"], |_, count| match count {
        1 => Act::Gate,
        _ => idle(),
    })
    .await;
    let (_, first) = rig.next().await;
    for n in 0..5 {
        rig.change("a", n).await;
        rig.controller.news.send("a".into()).unwrap();
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.controller.gate.add_permits(1);
    let (_, second) = rig.next().await;
    assert_eq!(second - first, Duration::from_secs(1));
    let (_, third) = rig.next().await;
    assert_eq!(third - first, RESYNC, "once, and not five times");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_key_backs_off_whatever_the_news() {
    let mut rig = Rig::new(&["a"], |_, count| match count {
        3 => Act::Panic,
        1..8 => fail(),
        _ => idle(),
    })
    .await;
    let mut times = Vec::new();
    while times.len() < 8 {
        let (_, at) = rig.next().await;
        times.push(at);
        for _ in 0..10 {
            rig.controller.news.send("a".into()).unwrap();
            tokio::task::yield_now().await;
        }
    }
    let pauses: Vec<u64> = times.windows(2).map(|w| (w[1] - w[0]).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60]);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_record_is_not_kept_waiting_by_what_failed_before() {
    let mut rig = Rig::new(&["a"], |_, count| match count {
        1..6 => fail(),
        6..20 => fail(),
        _ => idle(),
    })
    .await;
    let mut last = rig.next().await.1;
    for _ in 0..4 {
        last = rig.next().await.1;
    }
    // It would wait for 16 seconds.
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.change("a", 1).await;
    let (_, at) = rig.next().await;
    assert_eq!(at - last, Duration::from_secs(1));
    // And its pauses begin anew.
    let (_, next) = rig.next().await;
    assert_eq!(next - at, backoff(1));
    // A record that changes all the time is still no hot loop.
    let began = next;
    let mut steps = 0;
    let mut n = 2;
    while Instant::now() - began < Duration::from_secs(2) {
        rig.change("a", n).await;
        n += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
        while rig.steps.try_recv().is_ok() {
            steps += 1;
        }
    }
    assert!((5..=11).contains(&steps), "{steps}");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_keys_are_served_in_turn() {
    const KEYS: usize = 10_000;
    let keys = (0..KEYS).map(|n| format!("{n:05}")).collect();
    // Each wants three steps at once; a hundred never come back.
    let mut rig = Rig::with(keys, |key, count| match count {
        _ if key.ends_with("77") && key < "05000" => Act::Hang,
        1..3 => Act::Return(Ok(Requeue::Now)),
        _ => idle(),
    })
    .await;
    let hung = 50;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut total = 0;
    while total < (KEYS - hung) * 3 + hung {
        let (key, at) = rig.next().await;
        *counts.entry(key).or_default() += 1;
        total += 1;
        let _ = at;
        if total == KEYS {
            let most = counts.values().max().copied().unwrap_or(0);
            assert!(most <= 2, "one was stepped {most} times before others once");
        }
    }
    assert_eq!(counts.len(), KEYS);
    rig.end_now();
}

impl Rig {
    /// Ends without waiting for what hangs.
    fn end_now(self) {
        self.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_the_steps_that_run() {
    let mut rig = Rig::new(&["a"], |_, _| Act::Gate).await;
    rig.next().await;
    rig.shutdown.send(true).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!rig.task.is_finished());
    rig.controller.gate.add_permits(1);
    rig.task.await.unwrap();
}

#[test]
fn idle_keys_are_not_kept() {
    let now = Instant::now();
    let mut keys = Keys::new();
    for n in 0..10 {
        keys.wake(Wake::News(n), now);
    }
    while let Some(key) = keys.take() {
        keys.done(key, Requeue::Idle, now);
    }
    assert_eq!((keys.len(), keys.next_timer()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn slots_are_bounded_by_kind_and_late_work_gives_its_slot_back() {
    let slots = Slots::wide(2);
    let hung: Vec<_> = (0..2)
        .map(|_| {
            let slots = slots.clone();
            tokio::spawn(async move { slots.run(Kind::Control, pending::<()>()).await })
        })
        .collect();
    tokio::task::yield_now().await;
    // Another kind is not held up, and this one is until the deadline.
    assert_eq!(slots.run(Kind::Disk, async { 1 }).await, Ok(1));
    let began = Instant::now();
    assert_eq!(slots.run(Kind::Control, async { 2 }).await, Ok(2));
    assert_eq!(began.elapsed(), Duration::from_secs(30));
    for task in hung {
        let late = task.await.unwrap().unwrap_err();
        assert_eq!(late.to_string(), "speaking to the VMM took longer than 30s");
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_slot_is_no_part_of_a_steps_deadline() {
    let slots = Slots::wide(1);
    let other = slots.clone();
    tokio::spawn(async move { other.run(Kind::Disk, pending::<()>()).await });
    tokio::task::yield_now().await;
    let deadline = Duration::from_secs(10);
    let took = |seconds| async move { tokio::time::sleep(Duration::from_secs(seconds)).await };
    let began = Instant::now();
    // Two at once wait half an hour for the one that hangs, the second for the first, too.
    let step = async {
        tokio::join!(
            slots.run(Kind::Disk, took(4)),
            slots.run(Kind::Disk, took(4)),
        )
    };
    let done = waits::timeout(deadline, step).await;
    assert_eq!(done, Some((Ok(()), Ok(()))));
    assert_eq!(began.elapsed(), Duration::from_secs(1800 + 8));
    // What it does itself is.
    let began = Instant::now();
    let step = slots.run(Kind::Disk, pending::<()>());
    assert_eq!(waits::timeout(deadline, step).await, None);
    assert_eq!(began.elapsed(), deadline);
}
