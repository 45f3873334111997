//! A bus that goes on where another was.

use super::*;
use crate::snapshot::Refused;
use crate::snapshot::testing::{changed, changes};

/// A bus with devices in these slots.
fn with(slots: &[u8]) -> (PciRoot, Log) {
    let (root, log) = root();
    for slot in slots {
        root.add(Some(*slot), Probe::boxed(&log)).unwrap();
    }
    (root, log)
}

fn refused(root: &PciRoot, state: &BusV1) -> String {
    root.restore(state).expect_err("refused").to_string()
}

/// What the copy's devices have heard of their BARs.
fn moves(log: &Log) -> Vec<String> {
    let log = log.lock().unwrap();
    let moves = log.iter().filter(|said| said.starts_with("moved"));
    moves.cloned().collect()
}

/// A write that a guest makes, of which most keep its BARs apart.
fn access() -> impl Strategy<Value = (u64, u8, Vec<u8>)> {
    let slot = prop::sample::select(vec![0u64, 2, 5]);
    let command = (0u8..8).prop_map(|command| (register::COMMAND, vec![command, 0]));
    let place = |bar: u8, at: u32| {
        let place = move |page: u32| (at + (page << 12)).to_le_bytes().to_vec();
        (0u32..8).prop_map(move |page| (register::BAR0 + 4 * bar, place(page)))
    };
    let any = (any::<u8>(), prop::collection::vec(any::<u8>(), 1..5));
    let write = prop_oneof![command, place(0, 0), place(2, 0xc000_0000), any];
    (slot, write).prop_map(|(slot, (register, data))| (slot, register, data))
}

proptest! {
    #[test]
    fn a_copy_reads_as_the_first_does(
        accesses in prop::collection::vec(access(), 0..24),
        address: u32,
    ) {
        let (first, _) = with(&[2, 5]);
        for (slot, register, data) in accesses {
            first.ecam_write(ecam(slot, register), &data);
        }
        first.port_write(CONFIG_ADDRESS, &address.to_le_bytes());
        let state = match first.save() {
            Ok(state) => state,
            Err(refused) => {
                prop_assert!(refused.to_string().contains("decodes"), "{}", refused);
                return Ok(());
            }
        };
        let json = serde_json::to_string(&state).unwrap();
        let (copy, log) = with(&[2, 5]);
        copy.restore(&serde_json::from_str(&json).unwrap()).unwrap();
        prop_assert_eq!(copy.save().unwrap(), state);
        for slot in 0..7 {
            for register in (0..=252).step_by(4) {
                let at = ecam(slot, register);
                prop_assert_eq!(read32(&copy, at), read32(&first, at));
            }
        }
        for port in CONFIG_ADDRESS..CONFIG_ADDRESS + 8 {
            let (mut here, mut there) = ([0; 4], [0; 4]);
            copy.port_read(port, &mut here);
            first.port_read(port, &mut there);
            prop_assert_eq!(here, there);
        }
        for place in moves(&log) {
            prop_assert!(place.contains("Some"), "{}", place);
        }
    }

    #[test]
    fn no_state_breaks_the_bus(changes in changes(), command: u8) {
        let (first, _) = with(&[2, 5]);
        first.ecam_write(ecam(5, register::COMMAND), &[command, 0]);
        let state = serde_json::to_value(first.save().unwrap()).unwrap();
        let (copy, log) = with(&[2, 5]);
        if let Ok(state) = serde_json::from_value(changed(state, changes)) {
            let _ = copy.restore(&state);
        }
        for slot in [0, 2, 5] {
            read32(&copy, ecam(slot, register::BAR0));
        }
        copy.reset();
        copy.add(None, Probe::boxed(&log)).unwrap();
        copy.save().unwrap();
    }
}

#[test]
fn devices_learn_where_their_bars_decode() {
    let (first, _) = with(&[2, 5]);
    first.ecam_write(ecam(2, register::COMMAND), &[3, 0]);
    first.ecam_write(ecam(5, register::BAR0 + 12), &0x10f0u32.to_le_bytes());
    first.ecam_write(ecam(5, register::COMMAND), &[1, 0]);
    let (copy, log) = with(&[2, 5]);
    copy.restore(&first.save().unwrap()).unwrap();
    let expected = [
        "moved 0 Some(1000000000)",
        "moved 2 Some(c0000000)",
        "moved 3 Some(1000)",
        "moved 3 Some(10f0)",
    ];
    assert_eq!(moves(&log), expected);
    assert_eq!(copy.io_write(0x10f0, &[0; 2]), Some(5));
    assert_eq!(copy.io_write(0x1004, &[0; 2]), None, "it is elsewhere");
}

/// What came and went before says where a BAR was placed.
#[test]
fn bars_were_placed_where_they_were() {
    let (first, _) = with(&[1, 2]);
    first.remove(1).unwrap();
    first.settle();
    first.ecam_write(ecam(2, register::COMMAND), &[2, 0]);
    let (copy, log) = with(&[2]);
    let bar = ecam(2, register::BAR0 + 8);
    assert_eq!(read32(&copy, bar), 0xc000_0000);
    copy.restore(&first.save().unwrap()).unwrap();
    assert_eq!(read32(&copy, bar), 0xc000_1000);
    // The next one comes where the first bus would put it.
    copy.add(Some(3), Probe::boxed(&log)).unwrap();
    assert_eq!(read32(&copy, ecam(3, register::BAR0 + 8)), 0xc000_0000);
    copy.reset();
    assert_eq!(read32(&copy, bar), 0xc000_1000);
}

#[test]
fn what_is_at_work_or_leaves_is_not_saved() {
    let (root, log) = root();
    let probe = Probe::boxed(&log);
    let is_quiet = Arc::clone(&probe.is_quiet);
    root.add(Some(4), probe).unwrap();
    let state = root.save().unwrap();
    is_quiet.store(false, Ordering::SeqCst);
    let busy = Err(Refused::because("PCI slot 4: its device is at work"));
    assert_eq!(root.save(), busy);
    assert_eq!(root.restore(&state), busy.clone().map(|_| ()));
    root.remove(4).unwrap();
    assert_eq!(root.save(), busy);
    is_quiet.store(true, Ordering::SeqCst);
    root.settle();
    assert_eq!(root.save().unwrap().slots.len(), 1, "the bridge");
}

#[test]
fn another_bus_is_refused() {
    let (first, _) = with(&[2, 5]);
    let good = first.save().unwrap();
    for (slots, why) in [
        (&[2u8][..], "PCI slot 5: it is empty here and taken there"),
        (&[2, 5, 7], "PCI slot 7: it is taken here and empty there"),
    ] {
        assert_eq!(refused(&with(slots).0, &good), why);
    }
    for (change, why) in [
        (
            (|state| state.slots[1].slot = 255) as fn(&mut BusV1),
            "PCI slot 255: it is empty here and taken there",
        ),
        (
            |state| state.last_slot = 200,
            "its last slot for devices is 200, and here it is 31",
        ),
        (
            |state| state.slots[1].slot = 5,
            "PCI slot 5: it is there twice",
        ),
        (
            |state| state.slots[1].homes.truncate(2),
            "PCI slot 2: it has 3 BARs here and 2 there",
        ),
        (
            |state| state.slots[1].homes[1] = 0xc000_8000,
            "PCI slot 2: BAR 2 can't be placed at 0xc0008000",
        ),
        (
            |state| state.slots[1].homes[0] += 4,
            "PCI slot 2: BAR 0 can't be placed at 0x1000000004",
        ),
        (
            |state| state.slots[2].homes[0] = state.slots[1].homes[0],
            "PCI slot 5: BAR 0 can't be placed at 0x1000000000",
        ),
        (
            |state| state.slots[1].config.registers[0] = 0x5679_1234,
            "PCI slot 2: it is another device: register 0x0 is 0x56781234 here and 0x56791234 there",
        ),
        (
            |state| state.slots[1].function = serde_json::json!({}),
            "PCI slot 2: there is nothing behind its header",
        ),
    ] {
        let mut state = good.clone();
        change(&mut state);
        assert_eq!(refused(&with(&[2, 5]).0, &state), why);
    }
    with(&[2, 5]).0.restore(&good).unwrap();
}

/// Where the bus lets a guest put them, and a copy doesn't.
#[test]
fn a_bar_that_decodes_elsewhere_is_neither_saved_nor_taken() {
    // Command, register and value of the device in slot 5.
    for (command, register, value, why) in [
        (
            2,
            register::BAR0 + 8,
            0xd000_0000u32,
            "BAR 2 decodes at 0xd0000000, outside of its window",
        ),
        (
            2,
            register::BAR0 + 8,
            0xc000_0000,
            "BAR 2 decodes at 0xc0000000, where another does",
        ),
        (
            2,
            register::BAR0 + 4,
            0xffff_ffff,
            "BAR 0 decodes at 0xffffffff00001000, outside of its window",
        ),
        (
            1,
            register::BAR0 + 12,
            0x3f8,
            "BAR 3 decodes at 0x3f8, outside of its window",
        ),
    ] {
        let (root, _) = with(&[2, 5]);
        root.ecam_write(ecam(2, register::COMMAND), &[3, 0]);
        root.ecam_write(ecam(5, register), &value.to_le_bytes());
        let mut state = root.save().expect("it doesn't decode");
        root.ecam_write(ecam(5, register::COMMAND), &[command, 0]);
        let why = Err(Refused::because(format!("PCI slot 5: {why}")));
        assert_eq!(root.save().map(|_| ()), why);
        state.slots[2].config.registers[1] |= u32::from(command);
        let (copy, log) = with(&[2, 5]);
        assert_eq!(copy.restore(&state), why);
        assert!(moves(&log).is_empty());
    }
    // A BAR of 64 bits may be in both windows of memory.
    let (root, _) = with(&[2]);
    for (register, value) in [(0, 0xc000_4000u32), (4, 0)] {
        root.ecam_write(ecam(2, register::BAR0 + register), &value.to_le_bytes());
    }
    root.ecam_write(ecam(2, register::COMMAND), &[2, 0]);
    with(&[2]).0.restore(&root.save().unwrap()).unwrap();
}
