use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::SHARED;
use crate::virtio::testing::{FakeInterrupt, Guest};

/// Says what is done to it, and does as it is told.
struct Probe {
    said: Sender<String>,
    /// How `work` ends, in turn: `None` panics.
    ends: Vec<Option<io::Result<Until>>>,
}

impl Probe {
    fn say(&self, what: impl Into<String>) {
        let _ = self.said.send(what.into());
    }
}

impl Service for Probe {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        self.say("start");
        match activation.features {
            0 => Ok(()),
            _ => Err(io::ErrorKind::Other.into()),
        }
    }

    fn on_event(&mut self, token: u64, _: EventSet) {
        self.say(format!("event {token}"));
    }

    fn work(&mut self) -> io::Result<Until> {
        self.say("work");
        self.ends
            .pop()
            .unwrap_or(Some(Ok(Until::Event)))
            .expect("on purpose")
    }

    fn stop(&mut self, why: Why, _: &Quiet) {
        self.say(format!("{why:?}"));
    }
}

struct Bench {
    thread: DeviceThread,
    guest: Guest,
    bell: Arc<EventFd>,
}

impl Bench {
    fn new() -> Self {
        Self {
            thread: DeviceThread::spawn("test".into(), &SHARED).unwrap(),
            guest: Guest::new(1),
            bell: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()),
        }
    }

    fn probe(&self, ends: Vec<Option<io::Result<Until>>>) -> (Port, Receiver<String>) {
        let (said, heard) = channel();
        let port = self.thread.add(|events| {
            events.watch(self.bell.as_ref(), 5, EventSet::IN)?;
            Ok(Probe { said, ends })
        });
        (port.unwrap(), heard)
    }

    /// One that watches nothing.
    fn deaf_probe(&self, ends: Vec<Option<io::Result<Until>>>) -> (Port, Receiver<String>) {
        let (said, heard) = channel();
        let port = self.thread.add(|_| Ok(Probe { said, ends }));
        (port.unwrap(), heard)
    }
}

fn hear(heard: &Receiver<String>, expected: &[&str]) {
    for expected in expected {
        let said = heard.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(said, *expected);
    }
}

/// Stops a service and waits until that is done.
fn stop(port: &Port, why: Why) {
    let (said, heard) = channel();
    port.stop(why, Quiet::new(move |_| said.send(()).unwrap()));
    heard.recv_timeout(Duration::from_secs(30)).unwrap();
}

#[test]
fn a_service_works_at_once_and_after_each_event_and_while_there_is_more() {
    let bench = Bench::new();
    // From the last on.
    let (port, heard) = bench.probe(vec![Some(Ok(Until::Now)), Some(Ok(Until::Event))]);
    bench.bell.write(1).unwrap();
    hear(&heard, &["event 5"]);
    port.start(bench.guest.activation(0, &Arc::default()));
    hear(&heard, &["start", "work"]);
    bench.bell.write(1).unwrap();
    hear(&heard, &["event 5", "work", "work"]);
    stop(&port, Why::Hold);
    hear(&heard, &["Hold"]);
    bench.bell.write(1).unwrap();
    hear(&heard, &["event 5"]);
    drop(bench);
    assert!(heard.recv().is_err(), "nothing more, and it is gone");
}

/// Always has more to do, as of a driver whose ring never ends.
struct Endless;

impl Service for Endless {
    fn start(&mut self, _: Activation) -> io::Result<()> {
        Ok(())
    }
    fn on_event(&mut self, _: u64, _: EventSet) {}
    fn work(&mut self) -> io::Result<Until> {
        Ok(Until::Now)
    }
    fn stop(&mut self, _: Why, _: &Quiet) {}
}

#[test]
fn a_service_that_always_has_more_starves_nobody() {
    let bench = Bench::new();
    let endless = bench.thread.add(|_| Ok(Endless)).unwrap();
    endless.start(bench.guest.activation(0, &Arc::default()));
    let (port, heard) = bench.probe(Vec::new());
    port.start(bench.guest.activation(0, &Arc::default()));
    hear(&heard, &["start", "work"]);
    bench.bell.write(1).unwrap();
    hear(&heard, &["event 5", "work"]);
    stop(&endless, Why::Reset);
    stop(&port, Why::Reset);
    hear(&heard, &["Reset"]);
}

#[test]
fn a_service_that_has_work_later_is_called_then() {
    let bench = Bench::new();
    let start = Instant::now();
    let soon = start + Duration::from_millis(20);
    let never = Until::At(start + Duration::from_secs(3600));
    let (early, early_heard) = bench.deaf_probe(vec![Some(Ok(Until::At(soon)))]);
    let (late, late_heard) = bench.probe(vec![Some(Ok(never)), Some(Ok(never))]);
    late.start(bench.guest.activation(0, &Arc::default()));
    hear(&late_heard, &["start", "work"]);
    early.start(bench.guest.activation(0, &Arc::default()));
    hear(&early_heard, &["start", "work", "work"]);
    assert!(Instant::now() >= soon);
    // It waits, and hears events and orders all the same.
    assert!(late_heard.try_recv().is_err());
    bench.bell.write(1).unwrap();
    hear(&late_heard, &["event 5", "work"]);
    stop(&late, Why::Hold);
    hear(&late_heard, &["Hold"]);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_service_that_is_stopped_is_not_called_at_its_time() {
    let bench = Bench::new();
    let soon = Until::At(Instant::now() + Duration::from_millis(20));
    let (stopped, heard) = bench.probe(vec![Some(Ok(soon))]);
    stopped.start(bench.guest.activation(0, &Arc::default()));
    stop(&stopped, Why::Reset);
    // By when this one has its turn, that one would have had it.
    let later = Until::At(Instant::now() + Duration::from_millis(40));
    let (other, other_heard) = bench.deaf_probe(vec![Some(Ok(later))]);
    other.start(bench.guest.activation(0, &Arc::default()));
    hear(&other_heard, &["start", "work", "work"]);
    // On a busy host its time may have come before the stop, but not after.
    let said: Vec<String> = heard.try_iter().collect();
    assert_eq!(said.last().map(String::as_str), Some("Reset"), "{said:?}");
}

#[test]
fn a_service_that_fails_or_panics_harms_nobody_else() {
    let bench = Bench::new();
    let failing = [
        (0, vec![Some(Err(io::ErrorKind::Other.into()))]),
        (0, vec![None]),
        (1, vec![]),
    ];
    let (well, well_heard) = bench.probe(Vec::new());
    well.start(bench.guest.activation(0, &Arc::default()));
    hear(&well_heard, &["start", "work"]);
    for (features, ends) in failing {
        let bench_guest = Guest::new(1);
        let said = Arc::new(FakeInterrupt::default());
        let (sender, heard) = channel();
        let port = bench.thread.add(|_| Ok(Probe { said: sender, ends }));
        let port = port.unwrap();
        port.start(bench_guest.activation(features, &said));
        said.wait(|said| said.needs_reset == 1);
        stop(&port, Why::Reset);
        // It may be started again.
        port.start(bench_guest.activation(0, &said));
        let mut last = String::new();
        while last != "Reset" {
            last = heard.recv_timeout(Duration::from_secs(30)).unwrap();
        }
        hear(&heard, &["start", "work"]);
        assert_eq!(said.wait(|_| true).needs_reset, 1);
    }
    bench.bell.write(1).unwrap();
    hear(&well_heard, &["event 5", "work"]);
}

#[test]
fn a_thread_that_is_gone_is_told() {
    let bench = Bench::new();
    let (port, _heard) = bench.probe(Vec::new());
    let Bench { thread, guest, .. } = bench;
    drop(thread);
    let said = Arc::new(FakeInterrupt::default());
    port.start(guest.activation(0, &said));
    assert_eq!(said.wait(|_| true).needs_reset, 1);
    stop(&port, Why::Reset);
}
