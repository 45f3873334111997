//! Every order in which who writes guest memory and who takes the marks of it can meet:
//! `vcpu/models.rs` says how to run this.
//!
//! What must hold is that a page is never lost: what a copy of it has missed is marked
//! for the next one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::dirty::{PAGE, Tracker};

/// Pages of guest memory, each of a word: as the guest's own memory, nothing orders them.
struct Guest {
    pages: [AtomicU64; 2],
    tracker: Tracker,
}

impl Guest {
    fn new() -> Arc<Self> {
        let guest = Self {
            pages: [AtomicU64::new(0), AtomicU64::new(0)],
            tracker: Tracker::default(),
        };
        guest.tracker.begin(2 * PAGE, false).expect("a log");
        Arc::new(guest)
    }

    /// What each door of this process does.
    fn write(&self, page: usize) {
        self.pages[page].store(1, Ordering::Relaxed);
        self.tracker.mark(page as u64 * PAGE, 8);
    }

    fn read(&self, page: usize) -> u64 {
        self.pages[page].load(Ordering::Relaxed)
    }
}

#[test]
fn what_a_copy_has_missed_is_in_the_next() {
    loom::model(|| {
        let guest = Guest::new();
        let writer = thread::spawn({
            let guest = Arc::clone(&guest);
            move || guest.write(0)
        });
        let taken = guest.tracker.take();
        let copied = guest.read(0);
        if taken.contains(0) {
            assert_eq!(copied, 1, "marked, and not there yet");
        }
        writer.join().expect("no panic");
        let left = guest.tracker.take();
        assert!(copied == 1 || left.contains(0), "lost");
    });
}

#[test]
fn two_writers_lose_neither_ones_mark() {
    loom::model(|| {
        let guest = Guest::new();
        let writers: Vec<_> = (0..2)
            .map(|page| {
                let guest = Arc::clone(&guest);
                thread::spawn(move || guest.write(page))
            })
            .collect();
        let mut taken = guest.tracker.take();
        for writer in writers {
            writer.join().expect("no panic");
        }
        let left = guest.tracker.take();
        for page in 0..2 {
            let at = page * PAGE;
            assert_ne!(taken.contains(at), left.contains(at), "once");
        }
        taken.merge(&left);
        assert_eq!(taken.count(), 2);
    });
}

#[test]
fn who_stops_asking_disturbs_nobody_that_writes() {
    loom::model(|| {
        let guest = Guest::new();
        let writer = thread::spawn({
            let guest = Arc::clone(&guest);
            move || guest.write(1)
        });
        guest.tracker.end();
        writer.join().expect("no panic");
        assert_eq!(guest.tracker.take().count(), 0);
        assert_eq!(guest.read(1), 1);
    });
}
