//! How often a driver has a link changed, which takes a lock of the whole host.

use std::time::{Duration, Instant};

use super::*;

const ALL: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;

/// What a driver that asks without end may have had since: its 64, and 4 a second.
fn allowed(since: Instant) -> usize {
    64 + usize::try_from(since.elapsed().as_millis() / 250).unwrap()
}

#[test]
fn the_same_again_changes_nothing() {
    let features = ALL | F_CTRL_VQ | F_MQ;
    let mut bench = TwoPairs::new(features, 5);
    for _ in 0..3 {
        bench.serves();
        let changes = bench.changes.load(Ordering::SeqCst);
        assert_eq!(changes, 2, "one pair, and its offloads");
        reset(&mut bench.net);
        bench.guest.start_over();
        let activation = bench.guest.activation(features, &bench.interrupt);
        bench.net.activate(activation);
    }
    assert_eq!(bench.command(&[4, 0, 1, 0]), 0);
    assert_eq!(bench.changes.load(Ordering::SeqCst), 2);
}

#[test]
fn a_driver_that_starts_over_and_over_leaves_the_offloads_at_what_it_always_takes() {
    let start = Instant::now();
    let mut bench = Bench::new(0);
    let mut start_with = |features| {
        reset(&mut bench.net);
        let activation = bench.guest.activation(features, &bench.interrupt);
        bench.net.activate(activation);
        // By when it is done with that, it has started.
        reset(&mut bench.net);
        bench.offload.lock().unwrap().unwrap()
    };
    assert_eq!(start_with(ALL), Offload::all());
    let mut raised = 0;
    for _ in 0..200 {
        assert_eq!(start_with(F_GUEST_CSUM), Offload::CHECKSUM);
        // Less than it takes is right too.
        match start_with(ALL) {
            Offload::CHECKSUM => {}
            offload => {
                assert_eq!(offload, Offload::all());
                raised += 1;
            }
        }
    }
    assert!(raised < allowed(start), "{raised} times");
    let changes = bench.changes.load(Ordering::SeqCst);
    assert!(changes <= 3 + 2 * raised, "{changes} for {raised}");
}

#[test]
fn a_driver_that_switches_without_end_is_answered_late() {
    let start = Instant::now();
    let bench = TwoPairs::new(F_CTRL_VQ | F_MQ, 5);
    for _ in 0..66 {
        for pairs in [2, 1] {
            assert_eq!(bench.command(&[4, 0, pairs, 0]), 0);
            assert_eq!(bench.enabled(), [true, pairs == 2]);
        }
    }
    assert!(allowed(start) >= 66, "{:?}", start.elapsed());
    assert_eq!(bench.changes.load(Ordering::SeqCst), 2 + 2 * 66);
}

/// The first pair shares the thread of the control queue.
#[test]
fn packets_and_a_reset_do_not_wait_for_the_answer() {
    let mut bench = TwoPairs::new(F_CTRL_VQ | F_MQ, 5);
    // Returns how many were answered before one that isn't, for a while.
    let unanswered = || {
        let done = bench.guest.used(CONTROL).len();
        bench.guest.write(DATA, &[4, 0, 2, 0]);
        let chain = [(DATA, 4, READ), (DATA + 0x1000, 1, WRITE)];
        bench.guest.offer(CONTROL, &chain);
        let limit = Instant::now() + Duration::from_millis(50);
        while Instant::now() < limit {
            if bench.guest.used(CONTROL).len() > done {
                return None;
            }
            std::thread::yield_now();
        }
        Some(done)
    };
    let before = loop {
        if let Some(before) = unanswered() {
            break before;
        }
        assert_eq!(bench.command(&[4, 0, 1, 0]), 0);
    };
    for _ in 0..3 {
        bench.serves();
    }
    reset(&mut bench.net);
    let answered = bench.guest.used(CONTROL).len() > before;
    assert_eq!(bench.enabled(), [true, answered]);
}
