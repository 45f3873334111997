//! A card that may only let so much pass.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::limit::Rate;

fn operations(per_second: u64, burst: u64) -> Limits {
    Limits {
        operations: Rate::new(per_second, burst),
        bytes: None,
    }
}

/// One packet takes more than what the next minute brings.
fn next_to_nothing() -> Limits {
    Limits {
        operations: None,
        bytes: Rate::new(1, 1),
    }
}

const FEATURES: u64 = F_CTRL_VQ | F_MQ;

impl TwoPairs {
    fn post(&self, queue: u16) {
        self.guest.offer(queue, &[(DATA, 1600, WRITE)]);
    }

    fn send(&self, queue: u16) {
        self.guest.offer(queue, &[(DATA, 112, READ)]);
    }

    fn wait_for(&self, queue: u16, count: usize) {
        self.interrupt
            .wait(|said| said.needs_reset > 0 || self.guest.used(queue).len() >= count);
        assert_eq!(self.guest.used(queue).len(), count, "queue {queue}");
    }
}

#[test]
fn packets_beyond_the_burst_pass_at_their_rate_each_way() {
    let bench = TwoPairs::new(FEATURES, 5);
    bench.serves();
    let sent = bench.guest.used(TRANSMIT).len();
    let handle = bench.net.handle();
    handle.set_limits(operations(100, 3)).unwrap();
    let start = Instant::now();
    for _ in 0..11 {
        bench.send(TRANSMIT);
    }
    bench.wait_for(TRANSMIT, sent + 11);
    assert!(start.elapsed() >= Duration::from_millis(80));
    // The other way has as much of its own.
    let start = Instant::now();
    for _ in 0..11 {
        bench.wires[0].send(&[0x11; 100]).unwrap();
        bench.post(RECEIVE);
    }
    bench.wait_for(RECEIVE, 11);
    assert!(start.elapsed() >= Duration::from_millis(70));
}

#[test]
fn all_pairs_draw_on_the_same_limits() {
    let bench = TwoPairs::new(FEATURES, 5);
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    bench.net.handle().set_limits(operations(100, 2)).unwrap();
    let start = Instant::now();
    for _ in 0..5 {
        for pair in [0, 1] {
            bench.send(2 * pair + TRANSMIT);
        }
    }
    for pair in [0, 1] {
        bench.wait_for(2 * pair + TRANSMIT, 5);
    }
    assert!(start.elapsed() >= Duration::from_millis(80));
}

#[test]
fn limits_that_are_lifted_hold_up_no_packet_any_more() {
    let bench = TwoPairs::new(FEATURES, 5);
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    let handle = bench.net.handle();
    for pair in [0, 1] {
        handle.set_limits(Limits::NONE).unwrap();
        handle.set_limits(next_to_nothing()).unwrap();
        let (receive, transmit) = (2 * pair + RECEIVE, 2 * pair + TRANSMIT);
        for _ in 0..2 {
            bench.wires[usize::from(pair)].send(&[0x11; 100]).unwrap();
            bench.post(receive);
            bench.send(transmit);
        }
        for queue in [receive, transmit] {
            // The first is larger than the burst, and passes.
            bench.wait_for(queue, 1);
        }
        std::thread::sleep(Duration::from_millis(20));
        // Nobody else is held up by that.
        assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
        for queue in [receive, transmit] {
            assert_eq!(bench.guest.used(queue).len(), 1);
        }
        handle.set_limits(Limits::NONE).unwrap();
        for queue in [receive, transmit] {
            bench.wait_for(queue, 2);
        }
    }
}

#[test]
fn a_hold_and_a_reset_do_not_wait_for_a_limit() {
    let mut bench = TwoPairs::new(FEATURES, 5);
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    let handle = bench.net.handle();
    handle.set_limits(next_to_nothing()).unwrap();
    for _ in 0..2 {
        bench.send(TRANSMIT);
    }
    bench.wait_for(TRANSMIT, 1);
    let held = quiesce(&mut bench.net, Why::Hold);
    let place = |queue: u16| {
        let queue = &held[usize::from(queue)];
        (queue.next_available, queue.next_used)
    };
    assert_eq!(place(TRANSMIT), (1, 1), "the other was not taken");
    let resumption = bench.guest.resumption(FEATURES, &bench.interrupt, &held);
    bench.net.activate(resumption);
    handle.set_limits(Limits::NONE).unwrap();
    bench.wait_for(TRANSMIT, 2);
    handle.set_limits(next_to_nothing()).unwrap();
    for pair in [0, 1] {
        bench.send(2 * pair + TRANSMIT);
        bench.send(2 * pair + TRANSMIT);
    }
    reset(&mut bench.net);
    assert_eq!(Arc::strong_count(&bench.guest.memory), 1);
}

#[test]
fn what_the_kernel_moves_has_no_limits() {
    let refused = |result: io::Result<()>| {
        let line = result.unwrap_err().to_string();
        assert!(
            line.contains("tc(8)") && line.contains("vhost=off"),
            "{line}"
        );
    };
    let link = FakeLink {
        socket: UnixDatagram::unbound().unwrap(),
        enabled: Arc::default(),
        offload: Arc::default(),
        changes: Arc::default(),
    };
    let limits = next_to_nothing();
    let net = Net::new(link, Options { limits, ..OPTIONS }).unwrap();
    let handle = Handle {
        is_in_kernel: true,
        ..net.handle()
    };
    refused(handle.set_limits(Limits::NONE));
    refused(net.in_kernel(Vec::new()).map(|_| ()));
}
