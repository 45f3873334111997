//! A device that takes its time to become quiet.

use super::*;

/// A device that the driver has brought up, and that stays busy when asked.
fn busy() -> Bench {
    let mut bench = Bench::new();
    *bench.probe.slow.lock().unwrap() = Some(Vec::new());
    bring_up(&mut bench);
    bench
}

fn bring_up(bench: &mut Bench) {
    bench.interrupts();
    bench.negotiate(1, 1);
    bench.set_up(0, 16);
    bench.set_up(1, 16);
    bench.put(0x14, 1, 0xf);
    assert_eq!(bench.probe.log(), ["activate"]);
}

impl Bench {
    /// It lets go of guest memory.
    fn done(&self, queues: &[QueueState]) {
        let all = std::mem::take(self.probe.slow.lock().unwrap().as_mut().unwrap());
        for quiet in &all {
            for queue in queues {
                quiet.report(*queue);
            }
        }
    }

    fn power_on(&mut self) {
        self.function.quiesce(Quiesce::PowerOn);
    }
}

const STATES: [QueueState; 2] = [
    QueueState {
        index: 0,
        next_available: 7,
        next_used: 7,
    },
    QueueState {
        index: 1,
        next_available: 65535,
        next_used: 65535,
    },
];

#[test]
fn a_driver_sees_the_reset_when_it_is_done() {
    let mut bench = busy();
    bench.put(0x14, 1, 0);
    assert_eq!(bench.status(), 0xf);
    // What it writes without waiting is lost, another reset too.
    bench.put(0x14, 1, 0);
    bench.put(0x14, 1, 1);
    bench.set_up(0, 16);
    assert_eq!((bench.status(), bench.function.is_quiet()), (0xf, false));
    assert_eq!(bench.probe.log(), ["reset"]);
    bench.done(&STATES);
    assert_eq!(bench.status(), 0);
    assert!(bench.function.is_quiet());
    bring_up(&mut bench);
    let given = bench.probe.given.lock().unwrap();
    let queues = &given.as_ref().unwrap().queues;
    assert!(queues.iter().all(|active| active.queue.next_avail() == 0));
}

#[test]
fn a_held_device_goes_on_with_its_queues_where_they_stood() {
    let mut bench = busy();
    bench.function.quiesce(Quiesce::Hold);
    assert!(!bench.function.is_quiet());
    bench.done(&STATES);
    assert!(bench.function.is_quiet());
    assert_eq!(bench.status(), 0xf, "the driver knows of nothing");
    bench.function.resume();
    assert_eq!(bench.probe.log(), ["hold", "resume"]);
    let given = bench.probe.given.lock().unwrap();
    let given = given.as_ref().unwrap();
    for (active, state) in given.queues.iter().zip(STATES) {
        assert_eq!(active.index, state.index);
        assert_eq!(active.queue.next_avail(), state.next_available);
        assert_eq!(active.queue.next_used(), state.next_used);
    }
}

#[test]
fn queues_that_were_broken_stay_alone() {
    for (reported, left) in [(&STATES[1..], &[1][..]), (&[], &[])] {
        let mut bench = busy();
        bench.function.quiesce(Quiesce::Hold);
        bench.done(reported);
        bench.function.resume();
        assert_eq!(bench.probe.log(), ["hold", "resume"]);
        let given = bench.probe.given.lock().unwrap();
        let queues = given.as_ref().unwrap().queues.iter();
        assert!(queues.map(|queue| queue.index).eq(left.iter().copied()));
    }
}

#[test]
fn a_hold_that_is_taken_back_ends_in_going_on() {
    let mut bench = busy();
    bench.function.quiesce(Quiesce::Hold);
    bench.function.resume();
    bench.function.quiesce(Quiesce::Hold);
    bench.function.resume();
    assert!(!bench.function.is_quiet());
    assert_eq!(bench.probe.log(), ["hold"]);
    bench.done(&STATES);
    assert!(!bench.function.is_quiet(), "it is at work");
    assert_eq!(bench.probe.log(), ["resume"]);
}

/// Devices keep for a hold what a reset must end.
#[test]
fn a_held_device_that_is_reset_learns_of_it() {
    for is_quiet in [false, true] {
        let mut bench = busy();
        bench.function.quiesce(Quiesce::Hold);
        if is_quiet {
            bench.done(&STATES);
            assert!(bench.function.is_quiet());
        }
        bench.power_on();
        if !is_quiet {
            bench.done(&STATES);
        }
        assert!(!bench.function.is_quiet());
        assert_eq!(bench.probe.log(), ["hold", "reset"]);
        bench.done(&[]);
        assert!(bench.function.is_quiet());
        assert_eq!(bench.status(), 0);
    }
}

#[test]
fn what_nobody_drives_is_quiet_at_once() {
    let mut bench = Bench::new();
    bench.function.quiesce(Quiesce::Hold);
    assert!(bench.function.is_quiet());
    bench.function.resume();
    bench.power_on();
    assert!(bench.function.is_quiet());
    assert!(bench.probe.log().is_empty());
    // It was held before its driver came.
    bring_up(&mut bench);
}

#[test]
fn the_machine_hears_when_a_device_has_become_quiet() {
    let mut bench = busy();
    bench.power_on();
    assert!(bench.bell.read().is_err());
    bench.done(&[]);
    assert!(bench.bell.read().is_ok());
    assert_eq!(bench.probe.log(), ["reset"]);
    // The driver's reset, begun before, counts for this one.
    bring_up(&mut bench);
    bench.put(0x14, 1, 0);
    bench.power_on();
    assert_eq!(bench.probe.log(), ["reset"]);
    bench.done(&[]);
    assert!(bench.function.is_quiet());
}
