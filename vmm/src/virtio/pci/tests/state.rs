//! A function that goes on where another was.

use serde_json::{Value, json};

use super::*;
use crate::snapshot::Refused;
use crate::snapshot::testing::{changed, changes};

/// All that a function is, held: configuration space, and what is behind it.
fn save(bench: &mut Bench) -> (String, Value) {
    assert!(bench.function.is_quiet());
    let config = serde_json::to_string(&bench.function.config.save()).unwrap();
    (config, bench.function.save().unwrap())
}

fn restore(bench: &mut Bench, (config, state): &(String, Value)) -> Result<(), Refused> {
    let config = serde_json::from_str(config).unwrap();
    bench.function.config.restore(&config).unwrap();
    // As it comes out of a file.
    let state: Value = serde_json::from_str(&state.to_string()).unwrap();
    PciDevice::restore(&mut bench.function, &state)
}

/// A function that its driver has brought up, held with its queues at these places.
fn held() -> Bench {
    let mut bench = Bench::new();
    *bench.probe.slow.lock().unwrap() = Some(Vec::new());
    bench.interrupts();
    bench.negotiate(1 << 29 | 1, 1);
    bench.set_up(0, 16);
    bench.set_up(1, 32);
    bench.put(0x14, 1, 0xf);
    bench.function.quiesce(Quiesce::Hold);
    let asked = std::mem::take(bench.probe.slow.lock().unwrap().as_mut().unwrap());
    for quiet in asked {
        for (index, at) in [(0, 7), (1, 65535)] {
            quiet.report(QueueState {
                index,
                next_available: at,
                next_used: at - 2,
            });
        }
    }
    bench
}

/// All that a driver can read, without what reading changes.
fn reads(bench: &mut Bench) -> Vec<u32> {
    let mut read = Vec::new();
    for queue in 0..4 {
        bench.put(0x16, 2, queue);
        let wide = (0x20..0x38).step_by(4).map(|at| (at, 4));
        let narrow = [0x10, 0x12, 0x18, 0x1a, 0x1c, 0x1e].map(|at| (at, 2));
        for (at, width) in wide.chain(narrow).chain([(0x14, 1), (0x15, 1)]) {
            read.push(bench.get(at, width));
        }
    }
    for half in 0..3 {
        bench.put(0x00, 4, half);
        bench.put(0x08, 4, half);
        read.extend([bench.get(0x04, 4), bench.get(0x0c, 4)]);
    }
    let pages = [0x2000, 0x4000, 0x5000].into_iter();
    let pages = pages.flat_map(|page| (page..page + 0x40).step_by(4));
    read.extend(pages.map(|at| bench.get(at, 4)));
    read.push(bench.get(0x1000, 1));
    read
}

#[test]
fn a_copy_goes_on_with_the_queues_where_they_stood() {
    let state = save(&mut held());
    let mut copy = Bench::new();
    restore(&mut copy, &state).unwrap();
    assert!(copy.probe.log().is_empty(), "it is held");
    assert!(copy.function.is_quiet());
    assert_eq!(copy.interrupts.route(1).map(|route| route.1), Some(false));
    copy.function.resume();
    assert_eq!(copy.probe.log(), ["resume"]);
    let given = copy.probe.given.lock().unwrap().take().unwrap();
    assert!(given.resumed);
    assert_eq!(given.features, F_VERSION_1 | F_EVENT_IDX | 1);
    let queues = given.queues.iter().map(|active| &active.queue);
    let stand = queues.map(|queue| (queue.size(), queue.next_avail(), queue.next_used()));
    assert!(stand.eq([(16, 7, 5), (32, 65535, 65533)]));
    let signals = |copy: &Bench| [0, 1, 2].map(|vector| copy.interrupts.signals(vector));
    assert_eq!(signals(&copy), [0; 3], "nothing was pending");
    given.interrupt.queue(1);
    assert_eq!(signals(&copy), [0, 0, 1]);
    assert_eq!(
        restore(&mut copy, &state),
        Err(Refused::because("it is driven already"))
    );
}

#[test]
fn a_copy_that_is_held_can_be_reset_and_held_again() {
    let state = save(&mut held());
    let mut copy = Bench::new();
    restore(&mut copy, &state).unwrap();
    copy.function.quiesce(Quiesce::Hold);
    assert_eq!(save(&mut copy), state);
    copy.function.quiesce(Quiesce::PowerOn);
    assert!(copy.function.is_quiet());
    assert_eq!(copy.status(), 0);
    assert_eq!(copy.probe.log(), ["reset"]);
    let mut copy = Bench::new();
    restore(&mut copy, &state).unwrap();
    copy.put(0x14, 1, 0);
    assert_eq!(copy.status(), 0, "the driver's reset");
    copy.negotiate(1, 1);
    copy.put(0x14, 1, 0xf);
    assert_eq!(copy.probe.log(), ["reset", "activate"]);
}

#[test]
fn what_is_at_work_is_not_saved() {
    let mut bench = Bench::new();
    bench.negotiate(1, 1);
    bench.put(0x14, 1, 0xf);
    let at_work = Err(Refused::because("it is at work"));
    assert_eq!(bench.function.save(), at_work);
}

/// A driver that asks for what can't be is at rest, and learns it from the copy too.
#[test]
fn a_device_that_could_not_start_is_saved() {
    let mut bench = Bench::new();
    bench.negotiate(1, 1);
    bench.set_up(0, 3);
    bench.put(0x14, 1, 0xf);
    assert_eq!(bench.status(), 0x4f);
    bench.function.quiesce(Quiesce::Hold);
    let state = save(&mut bench);
    let mut copy = Bench::new();
    restore(&mut copy, &state).unwrap();
    copy.function.resume();
    assert_eq!(reads(&mut copy), reads(&mut bench));
    assert!(copy.probe.log().is_empty());
}

#[test]
fn what_never_was_is_refused() {
    let good = save(&mut held());
    let idle = save(&mut Bench::new());
    let memory = 16u64 << 20;
    for (state, place, value, why) in [
        (
            &good,
            "/kind",
            json!("net"),
            "it is a blk here and a net there",
        ),
        (
            &good,
            "/msix/enabled",
            json!(false),
            "MSI-X is not as its control says: 0x8002",
        ),
        (
            &good,
            "/msix/vectors",
            json!([]),
            "it has 3 interrupt vectors here and 0 there",
        ),
        (
            &good,
            "/shared/status",
            json!(0x1f),
            "device status can't be 0x1f",
        ),
        (&good, "/shared/isr", json!(4), "ISR status can't be 0x4"),
        (
            &good,
            "/shared/queue_vectors",
            json!([1]),
            "it has 2 queues here and 1 there",
        ),
        (
            &good,
            "/shared/queue_vectors/1",
            json!(3),
            "there is no vector 3",
        ),
        (
            &good,
            "/shared/config_vector",
            json!(3),
            "there is no vector 3",
        ),
        (
            &good,
            "/common/queues",
            json!([]),
            "it has 2 queues here and 0 there",
        ),
        (
            &good,
            "/common/features",
            json!(F_VERSION_1 | 4),
            "its features 0x4 are not offered here",
        ),
        (
            &good,
            "/common/features",
            json!(1),
            "its driver is a legacy one",
        ),
        (
            &good,
            "/shared/status",
            json!(0x7),
            "it has a driver and no features",
        ),
        (
            &good,
            "/shared/status",
            json!(0xb),
            "it has queues and no driver",
        ),
        (&good, "/held", Value::Null, "it has a driver and no queues"),
        (&idle, "/held", json!([]), "it has queues and no driver"),
        (
            &good,
            "/held/0/index",
            json!(1),
            "queue 1 stands there twice",
        ),
        (&good, "/held/0/index", json!(2), "queue 2 is not enabled"),
        (
            &good,
            "/common/queues/1/enabled",
            json!(false),
            "queue 1 is not enabled",
        ),
        (
            &good,
            "/device",
            json!(7),
            "it keeps nothing beside its queues",
        ),
    ] {
        let mut state = state.clone();
        *state.1.pointer_mut(place).expect(place) = value;
        let mut copy = Bench::new();
        assert_eq!(
            restore(&mut copy, &state),
            Err(Refused::because(why)),
            "{place}"
        );
        copy.function.resume();
        assert!(copy.probe.log().is_empty(), "{place}");
    }
    for (field, value) in [
        ("size", 0),
        ("size", 3),
        ("size", 128),
        ("desc", 8),
        ("desc", memory),
        ("driver", 0),
        ("driver", 1),
        ("driver", memory - 2),
        ("device", 2),
        ("device", u64::MAX - 3),
    ] {
        let mut state = good.clone();
        state.1["common"]["queues"][1][field] = json!(value);
        let why = "queue 1 is too large, misaligned or outside of memory";
        let refused = restore(&mut Bench::new(), &state);
        assert_eq!(refused, Err(Refused::because(why)), "{field} {value:#x}");
    }
    let mut more = good.clone();
    more.1["common"]["queues"][0]["reset"] = json!(true);
    let refused = restore(&mut Bench::new(), &more).expect_err("not known");
    assert!(refused.to_string().contains("unknown field `reset`"));
}

proptest! {
    #[test]
    fn a_copy_reads_as_the_first_does(
        up: bool,
        accesses in prop::collection::vec(
            (0u8..4, 0u64..0x8100, prop::collection::vec(any::<u8>(), 1..9)), 0..100)
    ) {
        let mut first = Bench::new();
        if up {
            first.interrupts();
            first.negotiate(1, 1);
            first.set_up(0, 16);
            first.put(0x14, 1, 0xf);
        }
        for (kind, at, bytes) in accesses {
            match kind {
                0 => first.function.bar_write(0, at, &bytes),
                1 => first.function.bar_write(0, 0x4000 + at % 0x40, &bytes),
                2 => first.function.config_write(at.to_le_bytes()[0], &bytes[..1]),
                _ => first.function.bar_write(0, at % 0x40, &bytes),
            }
        }
        first.function.quiesce(Quiesce::Hold);
        let state = save(&mut first);
        let mut copy = Bench::new();
        restore(&mut copy, &state).unwrap();
        prop_assert_eq!(save(&mut copy), state);
        prop_assert_eq!(reads(&mut copy), reads(&mut first));
    }

    #[test]
    fn no_state_breaks_the_function(changes in changes()) {
        let (config, state) = save(&mut held());
        let mut copy = Bench::new();
        let _ = restore(&mut copy, &(config, changed(state, changes)));
        copy.function.resume();
        reads(&mut copy);
        copy.function.quiesce(Quiesce::PowerOn);
        prop_assert!(copy.function.is_quiet());
        prop_assert_eq!(copy.status(), 0);
    }
}
