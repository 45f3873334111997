//! A disk that may only do so much.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::limit::Rate;

fn operations(per_second: u64, burst: u64) -> Limits {
    Limits {
        operations: Rate::new(per_second, burst),
        bytes: None,
    }
}

/// One request takes more than all that the next half hour brings.
fn next_to_nothing() -> Limits {
    Limits {
        operations: None,
        bytes: Rate::new(1, 1),
    }
}

impl Bench {
    /// A read that nobody has answered yet.
    fn ask(&self, length: u32) {
        self.header(0, 0);
        let chain = [
            (HEADER, 16, READ),
            (DATA, length, WRITE),
            (STATUS, 1, WRITE),
        ];
        self.guest.offer(0, &chain);
    }

    /// Waits until so many are answered, in as many interrupts as the device likes.
    fn answered(&mut self, count: usize) {
        self.returned += count;
        let wanted = self.returned;
        self.interrupt
            .wait(|said| said.needs_reset > 0 || self.guest.used(0).len() >= wanted);
        assert_eq!(self.guest.used(0).len(), wanted);
    }
}

#[test]
fn requests_beyond_the_burst_come_at_their_rate() {
    on_both(ALL, false, |bench| {
        bench.block.handle().set_limits(operations(100, 3));
        let start = Instant::now();
        for _ in 0..11 {
            bench.ask(512);
            bench.answered(1);
        }
        assert!(start.elapsed() >= Duration::from_millis(80));
        // Several at once too.
        let start = Instant::now();
        for _ in 0..5 {
            bench.ask(512);
        }
        bench.answered(5);
        assert!(start.elapsed() >= Duration::from_millis(10));
    });
}

#[test]
fn a_limit_that_is_lifted_holds_up_nobody_any_more() {
    on_both(ALL, false, |bench| {
        let handle = bench.block.handle();
        handle.set_limits(next_to_nothing());
        // The first is larger than the burst, and passes.
        bench.ask(4096);
        bench.answered(1);
        bench.ask(4096);
        // It has no data, but it comes behind.
        let chain = [(HEADER, 16, READ), (STATUS, 1, WRITE)];
        bench.guest.offer(0, &chain);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bench.guest.used(0).len(), 1);
        handle.set_limits(Limits::NONE);
        bench.answered(2);
    });
}

#[test]
fn a_hold_and_a_reset_do_not_wait_for_a_limit() {
    on_both(ALL, false, |bench| {
        let handle = bench.block.handle();
        handle.set_limits(next_to_nothing());
        bench.ask(4096);
        bench.answered(1);
        bench.ask(4096);
        let held = quiesce(&mut bench.block, Why::Hold);
        let place = (held[0].next_available, held[0].next_used);
        assert_eq!(place, (1, 1), "the other was not taken");
        let resumption = bench.guest.resumption(ALL, &bench.interrupt, &held);
        bench.block.activate(resumption);
        handle.set_limits(Limits::NONE);
        bench.answered(1);
        handle.set_limits(next_to_nothing());
        bench.ask(4096);
        bench.ask(4096);
        reset(&mut bench.block);
        assert_eq!(Arc::strong_count(&bench.guest.memory), 1);
    });
}
