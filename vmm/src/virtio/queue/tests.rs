//! The ring and its segments, driven by hand.

use super::*;
use crate::virtio::testing::{Guest, INDIRECT, NEXT, READ, SIZE, WRITE};
use proptest::prelude::*;
use std::sync::Arc;
use vm_memory::GuestAddress;

const DATA: u64 = 0x10_0000;

fn ring(guest: &Guest, event_idx: bool) -> Ring {
    let mut queue = guest.queue(0);
    queue.set_event_idx(event_idx);
    Ring::new(&queue, Arc::clone(&guest.memory)).unwrap()
}

fn put(guest: &Guest, at: GuestAddress, offset: u64, value: u16) {
    guest.write(at.0 + offset, &value.to_le_bytes());
}

fn get(guest: &Guest, at: GuestAddress, offset: u64) -> u16 {
    let bytes = guest.read(at.0 + offset, 2);
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn returns(ring: &mut Ring, heads: std::ops::Range<u16>) {
    heads.for_each(|head| ring.push_used(head, 0));
}

#[test]
fn the_flag_holds_interrupts_back() {
    let guest = Guest::new(1);
    let mut ring = ring(&guest, false);
    assert!(!ring.wants_interrupt(), "nothing was returned");
    ring.push_used(0, 0);
    assert!(ring.wants_interrupt());
    put(&guest, Guest::available(0), 0, 1);
    ring.push_used(0, 0);
    assert!(!ring.wants_interrupt());
}

#[test]
fn the_used_event_says_when() {
    let guest = Guest::new(1);
    let mut ring = ring(&guest, true);
    let event = 4 + 2 * u64::from(SIZE);
    put(&guest, Guest::available(0), event, 2);
    returns(&mut ring, 0..2);
    assert!(!ring.wants_interrupt(), "0 and 1 are not 2");
    returns(&mut ring, 2..5);
    assert!(ring.wants_interrupt(), "2 is among them");
    ring.push_used(5, 0);
    assert!(!ring.wants_interrupt(), "2 is past");
    put(&guest, Guest::available(0), event, 5);
    ring.push_used(6, 0);
    assert!(!ring.wants_interrupt(), "5 was the last one of before");
}

#[test]
fn doorbells_are_asked_for_and_not() {
    let guest = Guest::new(1);
    let mut buffers = Buffers::default();
    let mut plain = ring(&guest, false);
    plain.disable_notification();
    assert_eq!(get(&guest, Guest::used_ring(0), 0), 1);
    assert!(!plain.enable_notification());
    assert_eq!(get(&guest, Guest::used_ring(0), 0), 0);
    guest.offer(0, &[(DATA, 16, READ)]);
    assert!(plain.enable_notification());
    let mut events = ring(&guest, true);
    assert_eq!(events.pop(&mut buffers), Ok(Some(0)));
    assert!(!events.enable_notification());
    let avail_event = 4 + 8 * u64::from(SIZE);
    assert_eq!(get(&guest, Guest::used_ring(0), avail_event), 1);
}

#[test]
fn what_is_returned_shows_when_it_is_published() {
    let guest = Guest::new(1);
    let mut ring = ring(&guest, true);
    for round in 0..5 {
        for head in 1..=5 {
            ring.push_used(head, u32::from(head) * 10);
        }
        assert_eq!(get(&guest, Guest::used_ring(0), 2), round * 5);
        ring.publish();
    }
    assert_eq!(get(&guest, Guest::used_ring(0), 2), 25);
    // The last five: positions 20 to 24, behind the ring's end.
    let last = guest.used(0).split_off(20);
    assert_eq!(last, [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]);
}

/// What popping says of descriptors from 0 on.
fn pop(guest: &Guest, descriptors: &[(u64, u32, u16, u16)]) -> Result<[usize; 2], Broken> {
    guest.describe(0, 0, descriptors);
    guest.kick(0, 0);
    let mut buffers = Buffers::default();
    let popped = ring(guest, false).pop(&mut buffers)?;
    assert_eq!(popped, Some(0));
    Ok([buffers.readable.length(), buffers.writable.length()])
}

/// Writes an indirect table.
fn table(guest: &Guest, at: u64, descriptors: &[(u64, u32, u16, u16)]) {
    let bytes: Vec<u8> = descriptors
        .iter()
        .flat_map(|(address, length, flags, next)| {
            let mut one = address.to_le_bytes().to_vec();
            one.extend(length.to_le_bytes());
            one.extend(flags.to_le_bytes());
            one.extend(next.to_le_bytes());
            one
        })
        .collect();
    guest.write(at, &bytes);
}

#[test]
fn chains_are_followed_to_their_end() {
    let chain = [(DATA, 7, NEXT, 2), (0, 0, 0, 0), (DATA, 9, WRITE, 77)];
    assert_eq!(pop(&Guest::new(1), &chain), Ok([7, 9]));
    // An indirect table at an odd address, behind a direct descriptor.
    let guest = Guest::new(1);
    let inner = [(DATA, 1, NEXT, 2), (0, 0, 0, 0), (DATA, 2, WRITE, 0)];
    table(&guest, DATA + 5, &inner);
    let chain = [(DATA, 4, NEXT, 1), (DATA + 5, 48, INDIRECT, 0)];
    assert_eq!(pop(&guest, &chain), Ok([5, 2]));
    // Empty buffers are no segments, wherever they say they are.
    let chain = [(u64::MAX, 0, NEXT, 1), (DATA, 1, WRITE, 0)];
    assert_eq!(pop(&Guest::new(1), &chain), Ok([0, 1]));
}

#[test]
fn what_a_device_wrote_is_marked_when_it_returns_the_chain() {
    let guest = Guest::new(1);
    let mut ring = ring(&guest, false);
    let mut buffers = Buffers::default();
    let indirect = 0x8_0000;
    let entries = [(DATA + 0x3000, 16, NEXT, 1), (DATA + 0x5fff, 2, WRITE, 0)];
    table(&guest, indirect, &entries);
    guest.memory.begin_tracking().unwrap();
    guest.offer(0, &[(DATA, 16, READ), (DATA + 0x1000, 0x1001, WRITE)]);
    guest.offer(0, &[(indirect, 32, INDIRECT)]);
    // Of what the guest itself wrote.
    let _ = guest.memory.take_dirty();
    for (returned, wanted) in [(0, &[0x1000, 0x2000][..]), (2, &[0x5000, 0x6000])] {
        let head = ring.pop(&mut buffers).unwrap().expect("a chain");
        assert_eq!(head, returned);
        assert_eq!(guest.memory.take_dirty().count(), 0, "not before");
        ring.push_used(head, 0);
        ring.publish();
        let dirty = guest.memory.take_dirty();
        assert!(dirty.contains(Guest::used_ring(0).0));
        let pages: Vec<_> = dirty.runs(DATA, 0x10_0000).collect();
        assert_eq!(pages, [(wanted[0], wanted[1] + 0x1000)]);
    }
    // The driver has broken its own rules meanwhile: what can't be is left out.
    guest.offer(0, &[(DATA + 1, u32::MAX - 1, WRITE), (0x8000, 2, WRITE)]);
    let _ = guest.memory.take_dirty();
    ring.push_used(3, 0);
    let dirty = guest.memory.take_dirty();
    assert!(dirty.contains(DATA) && dirty.contains(guest.memory.size() - 1));
    assert!(!dirty.contains(0x8000));
}

#[test]
fn chains_that_break_the_rules_are_told_apart() {
    let end = 16 << 20;
    for (chain, broken) in [
        (&[(DATA, 1, NEXT, 0)][..], Broken::Chain),
        (&[(DATA, 1, NEXT, SIZE)], Broken::Chain),
        (&[(DATA, 1, NEXT, u16::MAX)], Broken::Chain),
        (
            &[(DATA, 1, WRITE | NEXT, 1), (DATA, 1, READ, 0)],
            Broken::Order,
        ),
        (&[(end, 1, READ, 0)], Broken::Address),
        (&[(end - 1, 2, READ, 0)], Broken::Address),
        (&[(u64::MAX, 2, READ, 0)], Broken::Address),
        (&[(DATA, 0, INDIRECT, 0)], Broken::Chain),
        (&[(DATA, 17, INDIRECT, 0)], Broken::Chain),
        (&[(DATA, 16, INDIRECT | NEXT, 1)], Broken::Chain),
        (&[(end - 8, 16, INDIRECT, 0)], Broken::Address),
        (&[(DATA, u32::MAX - 15, INDIRECT, 0)], Broken::TooLong),
    ] {
        assert_eq!(pop(&Guest::new(1), chain), Err(broken), "{chain:?}");
    }
    // A table within a table, a loop in one, a way out of one.
    for (inner, broken) in [
        ((DATA, 16, INDIRECT, 0), Broken::Chain),
        ((DATA, 16, NEXT, 0), Broken::Chain),
        ((DATA, 16, NEXT, 1), Broken::Chain),
    ] {
        let guest = Guest::new(1);
        table(&guest, DATA, &[inner]);
        assert_eq!(pop(&guest, &[(DATA, 16, INDIRECT, 0)]), Err(broken));
    }
    // More than there can be, or past the table.
    let guest = Guest::new(1);
    guest.set_available(0, SIZE + 1);
    assert_eq!(
        ring(&guest, false).pop(&mut Buffers::default()),
        Err(Broken::Ring)
    );
    let guest = Guest::new(1);
    guest.kick(0, SIZE);
    assert_eq!(
        ring(&guest, false).pop(&mut Buffers::default()),
        Err(Broken::Chain)
    );
}

#[test]
fn a_chain_of_more_than_four_gigabytes_is_refused() {
    let guest = Guest::new(1);
    let chain = [(DATA, 257 * 16, INDIRECT, 0)];
    for flags in [READ, WRITE] {
        let mut inner = vec![(0, 16 << 20, flags | NEXT, 1); 257];
        for (next, descriptor) in (1..).zip(&mut inner) {
            descriptor.3 = next;
        }
        inner[256].2 = flags;
        table(&guest, DATA, &inner);
        assert_eq!(pop(&guest, &chain), Err(Broken::Chain));
        // One byte less than 2^32 is right.
        inner[255].1 -= 1;
        inner[256].1 = 0;
        table(&guest, DATA, &inner);
        let lengths = pop(&guest, &chain).unwrap();
        assert_eq!(lengths.iter().sum::<usize>(), 0xffff_ffff);
    }
}

#[test]
fn a_chain_can_be_put_back() {
    let guest = Guest::new(1);
    guest.offer(0, &[(DATA, 16, READ)]);
    let mut ring = ring(&guest, true);
    let mut buffers = Buffers::default();
    for _ in 0..3 {
        assert_eq!(ring.pop(&mut buffers), Ok(Some(0)));
        assert_eq!(buffers.readable.length(), 16);
        ring.unpop();
    }
    assert!(ring.enable_notification());
}

#[test]
fn a_full_ring_is_taken_and_a_fuller_one_is_not() {
    for (waiting, taken) in [(SIZE, Ok(Some(0))), (SIZE + 1, Err(Broken::Ring))] {
        let guest = Guest::new(1);
        guest.describe(0, 0, &[(DATA, 16, READ, 0)]);
        guest.set_available(0, waiting);
        let mut ring = ring(&guest, false);
        assert_eq!(ring.size(), SIZE);
        assert_eq!(ring.pop(&mut Buffers::default()), taken);
    }
}

#[test]
fn indices_wrap() {
    let guest = Guest::new(1);
    let mut ring = ring(&guest, true);
    let mut buffers = Buffers::default();
    guest.describe(0, 0, &[(DATA, 16, READ, 0)]);
    for _ in 0..0x1_0010u32 {
        guest.kick(0, 0);
        assert_eq!(ring.pop(&mut buffers), Ok(Some(0)));
        ring.push_used(0, 0);
        ring.wants_interrupt();
    }
    assert_eq!(get(&guest, Guest::used_ring(0), 2), 0x10);
}

proptest! {
    #[test]
    fn segments_are_one_run_of_bytes(
        lengths in prop::collection::vec(0u32..40, 1..8),
        front in 0usize..200,
        keep in 0usize..200,
        at in 0usize..200,
    ) {
        let guest = Guest::new(1);
        let chain: Vec<_> = (0u64..).zip(&lengths)
            .map(|(index, length)| (DATA + index * 0x1000, *length, WRITE))
            .collect();
        let mut model: Vec<u8> = (0u8..).take(lengths.iter().sum::<u32>() as usize).collect();
        guest.offer(0, &chain);
        let mut buffers = Buffers::default();
        ring(&guest, false).pop(&mut buffers).unwrap();
        let segments = &mut buffers.writable;
        prop_assert_eq!(segments.copy_in(0, &model), model.len());
        segments.trim_front(front);
        model.drain(..front.min(model.len()));
        segments.truncate(keep);
        model.truncate(keep);
        if let Some(last) = segments.split_last() {
            last.write(0xee);
            model.pop();
        }
        prop_assert_eq!(segments.length(), model.len());
        let mut read = vec![0; 300];
        let got = segments.copy_out(at, &mut read);
        let expected = model.get(at..).unwrap_or_default();
        prop_assert_eq!(&read[..got], expected);
    }
}
