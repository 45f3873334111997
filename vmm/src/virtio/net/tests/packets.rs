//! Packets and the room for them.

use super::*;

/// The interrupts of a queue until a reset, after which there are no more.
fn interrupts(bench: &mut Bench, queue: u16) -> usize {
    reset(&mut bench.net);
    let said = bench.interrupt.wait(|_| true).queues;
    said.iter().filter(|index| **index == queue).count()
}

#[test]
fn packets_that_go_out_together_are_told_once() {
    let mut bench = Bench::new(0);
    bench
        .guest
        .describe(TRANSMIT, 0, &[(DATA, 12, READ, 0), (DATA, 60, READ, 0)]);
    bench
        .guest
        .write(Guest::available(TRANSMIT).0 + 4, &[0, 0, 1, 0]);
    bench.guest.set_available(TRANSMIT, 2);
    bench.guest.ring(TRANSMIT);
    // A header is packet enough.
    for length in [12, 60] {
        assert_eq!(bench.wire.recv(&mut [0; 100]).unwrap(), length);
    }
    assert_eq!(bench.returned(TRANSMIT, 2).len(), 2);
    assert_eq!(interrupts(&mut bench, TRANSMIT), 1);
}

#[test]
fn packets_that_come_in_together_are_told_once_and_runts_are_none() {
    let mut bench = Bench::new(0);
    for length in [100, 11, 200] {
        bench.wire.send(&vec![0x44; length]).unwrap();
    }
    let buffers = [(DATA, 1600, WRITE, 0), (DATA + 0x1000, 1600, WRITE, 0)];
    bench.guest.describe(RECEIVE, 0, &buffers);
    bench
        .guest
        .write(Guest::available(RECEIVE).0 + 4, &[0, 0, 1, 0]);
    bench.guest.set_available(RECEIVE, 2);
    bench.guest.ring(RECEIVE);
    assert_eq!(bench.returned(RECEIVE, 2), [(0, 100), (1, 200)]);
    assert_eq!(interrupts(&mut bench, RECEIVE), 1);
}

#[test]
fn a_card_without_room_goes_on_when_the_driver_rings() {
    let bench = Bench::new(F_MRG_RXBUF);
    bench.wire.send(&[0x44; 100]).unwrap();
    // By when this is out, the card has looked at the link.
    bench.guest.offer(TRANSMIT, &[(DATA, 60, READ)]);
    assert_eq!(bench.wire.recv(&mut [0; 100]).unwrap(), 60);
    while bench.guest.read(Guest::used_ring(RECEIVE).0, 2) != [0, 0] {
        std::thread::yield_now();
    }
    let buffers = [(DATA, 12, WRITE), (DATA + 0x1000, 1600, WRITE)];
    for buffer in buffers {
        bench.guest.offer(RECEIVE, &[buffer]);
    }
    assert_eq!(bench.returned(RECEIVE, 2), [(0, 12), (1, 88)]);
}

#[test]
fn as_many_buffers_as_the_queue_has_entries_are_right() {
    let bench = Bench::new(F_MRG_RXBUF);
    bench.wire.send(&[0x44; 100]).unwrap();
    // Only all of them are room for the largest packet.
    for _ in 0..SIZE {
        bench.guest.offer(RECEIVE, &[(DATA, 96, WRITE)]);
    }
    assert_eq!(bench.returned(RECEIVE, 2), [(0, 96), (1, 4)]);
    assert_eq!(bench.interrupt.wait(|_| true).needs_reset, 0);
}

#[test]
fn room_is_wanted_for_the_largest_packet() {
    for (offload, mtu, room) in [
        (Offload::empty(), 68, 12 + 18 + 1500),
        (Offload::CHECKSUM, 1500, 12 + 18 + 1500),
        (Offload::CHECKSUM, 9000, 12 + 18 + 9000),
        (Offload::CHECKSUM | Offload::TSO4, 1500, 65566),
        (Offload::CHECKSUM | Offload::TSO6, 1500, 65566),
    ] {
        assert_eq!(largest(offload, mtu), room, "{offload:?}, {mtu}");
    }
}
