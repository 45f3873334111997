//! Registers and capabilities, one by one.

use super::*;

#[test]
fn a_driver_knows_the_device_by_its_numbers() {
    let bench = Bench::new();
    // Vendor below device, 0x1040 and the kind's number. Section 4.1.2.
    for at in [0, 0x2c] {
        assert_eq!(bench.function.config.read_u32(at), 0x1042_1af4);
    }
    assert_eq!(bench.function.config.read_u32(8), 0x0180_0001);
}

#[test]
fn addresses_and_features_are_kept_by_halves() {
    let mut bench = Bench::new();
    bench.put(0x16, 2, 1);
    for (index, at) in (1..).zip([0x20, 0x28, 0x30]) {
        // The second write replaces all of the first.
        for value in [0xf0f0_f0f0, 0x1234_0000 + index] {
            bench.put(at, 4, value);
            bench.put(at + 4, 4, value + 8);
        }
    }
    for (index, at) in (1..).zip([0x20, 0x28, 0x30]) {
        assert_eq!(bench.get(at, 4), 0x1234_0000 + index);
        assert_eq!(bench.get(at + 4, 4), 0x1234_0008 + index);
    }
    for value in [3, 5] {
        for select in [0, 1] {
            bench.put(0x08, 4, select);
            bench.put(0x0c, 4, value + select);
        }
    }
    assert_eq!(bench.get(0x0c, 4), 6);
    bench.put(0x08, 4, 0);
    assert_eq!(bench.get(0x0c, 4), 5);
}

/// What a back end in the kernel signals.
#[test]
fn a_queue_has_an_event_while_its_driver_wants_interrupts() {
    let mut bench = Bench::new();
    assert!(bench.function.shared.event(1).is_none());
    bench.interrupts();
    assert!(bench.function.shared.event(1).is_some());
}

#[test]
fn event_indices_are_used_where_the_driver_takes_them() {
    let mut bench = Bench::new();
    bench.negotiate(1, 1);
    bench.set_up(0, 16);
    bench.put(0x14, 1, 0xf);
    let given = bench.probe.given.lock().unwrap().take().unwrap();
    assert!(!given.queues[0].queue.event_idx_enabled());
}

/// The bit that enables MSI-X is in the upper byte of its control word.
#[test]
fn msix_is_enabled_by_a_word_or_a_byte() {
    let mut bench = Bench::new();
    let control = bench.capability(0x11, None) + 2;
    let mut is_enabled = |at, data: &[u8]| {
        bench.function.config_write(at, data);
        bench.function.shared.msix.is_enabled()
    };
    assert!(is_enabled(control, &[0, 0x80]));
    assert!(!is_enabled(control + 1, &[0]));
    assert!(is_enabled(control + 1, &[0x80]));
    assert!(!is_enabled(control - 2, &[0; 4]));
}
