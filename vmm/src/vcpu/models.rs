//! Every order in which a vCPU's thread, the main loop and other vCPUs can meet:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --target-dir target/loom -p hearth-vmm --lib models::
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use loom::thread;

use super::mailbox::{CallError, Mailbox, Obeyed, Order};
use super::{Bell, Ending, Reports};
use crate::sync::{Condvar, Mutex};

/// Never comes: there is no time in a model.
fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// A processor that runs for ever, until it is kicked: `immediate_exit` stays set from a
/// kick until `KVM_RUN` was interrupted.
struct Guest {
    mailbox: Mailbox<u32>,
    immediate_exit: Mutex<bool>,
    kicked: Condvar,
}

impl Guest {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            mailbox: Mailbox::new(),
            immediate_exit: Mutex::new(false),
            kicked: Condvar::new(),
        })
    }

    fn order(&self, order: Order) {
        self.mailbox.order(order);
        if order != Order::Run {
            *self.immediate_exit.lock().expect("no panic") = true;
            self.kicked.notify_all();
        }
    }

    fn enter(&self) {
        let mut immediate_exit = self.immediate_exit.lock().expect("no panic");
        while !*immediate_exit {
            immediate_exit = self.kicked.wait(immediate_exit).expect("no panic");
        }
        *immediate_exit = false;
    }

    fn run(&self) {
        let mut entered = 0;
        while !self.mailbox.is_raised() || self.mailbox.obey(&mut entered, || ()) != Obeyed::End {
            entered += 1;
            self.enter();
        }
        self.mailbox.end(|| ());
    }
}

#[test]
fn no_order_is_lost_on_its_way_into_the_guest() {
    loom::model(|| {
        let guest = Guest::new();
        let thread = thread::spawn({
            let guest = Arc::clone(&guest);
            move || guest.run()
        });
        guest.order(Order::Run);
        guest.order(Order::Park);
        assert!(guest.mailbox.wait_parked(deadline()));
        assert!(guest.mailbox.is_parked() && !guest.mailbox.has_ended());
        guest.order(Order::End);
        thread.join().expect("ends");
        assert!(guest.mailbox.has_ended());
    });
}

#[test]
fn a_call_is_made_while_the_thread_is_parked() {
    loom::model(|| {
        let guest = Guest::new();
        let thread = thread::spawn({
            let guest = Arc::clone(&guest);
            move || guest.run()
        });
        guest.order(Order::Run);
        assert_eq!(
            guest.mailbox.call(|_| (), deadline()),
            Err(CallError::Running)
        );
        guest.order(Order::Park);
        let entered = guest.mailbox.call(|entered| *entered, deadline());
        assert!(entered.is_ok_and(|entered| entered <= 1), "{entered:?}");
        guest.order(Order::End);
        thread.join().expect("ends");
    });
}

#[test]
fn a_call_to_a_thread_that_ends_by_itself_comes_back() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::<u32>::new());
        let thread = thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || {
                // Crashes as soon as it runs.
                mailbox.obey(&mut 7, || ());
                mailbox.end(|| ());
            }
        });
        mailbox.order(Order::Run);
        mailbox.order(Order::Park);
        let called = mailbox.call(|seven| *seven, deadline());
        assert!(
            [Ok(7), Err(CallError::Ended)].contains(&called),
            "{called:?}"
        );
        mailbox.order(Order::End);
        thread.join().expect("ends");
    });
}

#[test]
fn every_report_is_taken_once_and_rung_for() {
    // Three threads have too many orders for all; those with up to two preemptions are
    // where lost wakes show.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let reports = Arc::new(Reports::new(Bell::new().expect("a model")));
        let vcpus = [1u32, 2].map(|slots| {
            let reports = Arc::clone(&reports);
            thread::spawn(move || {
                reports.eject(slots);
                reports.end(Ending::Crashed(slots.to_string()));
            })
        });
        let (mut ejected, mut endings) = (0, 0);
        while ejected != 3 || endings == 0 {
            reports.bell().poll();
            let taken = reports.take();
            assert_eq!(ejected & taken.ejected, 0, "a bit came twice");
            ejected |= taken.ejected;
            endings += u32::from(taken.ending.is_some());
        }
        for vcpu in vcpus {
            vcpu.join().expect("ends");
        }
        assert_eq!((reports.take().ending, endings), (None, 1));
    });
}
