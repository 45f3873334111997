//! A driver against the whole device, with a pair of datagram sockets as the link.

mod limits;
mod packets;
mod turns;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::virtio::quiet::Why;
use crate::virtio::testing::{FakeInterrupt, Guest, NEXT, READ, SIZE, WRITE, quiesce, reset};

const DATA: u64 = 0x20_0000;

struct FakeLink {
    socket: UnixDatagram,
    enabled: Arc<AtomicBool>,
    offload: Arc<Mutex<Option<Offload>>>,
    /// How often it was asked for a change.
    changes: Arc<AtomicUsize>,
}

impl AsFd for FakeLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for FakeLink {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Link for FakeLink {
    fn set_offload(&self, offload: Offload) -> io::Result<()> {
        *self.offload.lock().unwrap() = Some(offload);
        self.changes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        self.enabled.store(enabled, Ordering::SeqCst);
        self.changes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

struct Bench {
    guest: Guest,
    interrupt: Arc<FakeInterrupt>,
    net: Net,
    wire: UnixDatagram,
    offload: Arc<Mutex<Option<Offload>>>,
    changes: Arc<AtomicUsize>,
}

const OPTIONS: Options = Options {
    mac: [2, 0, 0, 0, 0, 1],
    mtu: 1500,
    limits: Limits::NONE,
};

impl Bench {
    fn new(features: u64) -> Self {
        let (wire, socket) = UnixDatagram::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let (offload, changes) = (Arc::default(), Arc::default());
        let link = FakeLink {
            socket,
            enabled: Arc::new(AtomicBool::new(true)),
            offload: Arc::clone(&offload),
            changes: Arc::clone(&changes),
        };
        let mut net = Net::new(link, OPTIONS).unwrap();
        let guest = Guest::new(2);
        let interrupt = Arc::new(FakeInterrupt::default());
        guest.start(&mut net, features, &interrupt);
        Self {
            guest,
            interrupt,
            net,
            wire,
            offload,
            changes,
        }
    }

    fn returned(&self, queue: u16, count: usize) -> Vec<(u32, u32)> {
        self.interrupt.wait(|said| {
            said.needs_reset > 0
                || said.queues.contains(&queue) && self.guest.used(queue).len() >= count
        });
        self.guest.used(queue)
    }
}

#[test]
fn a_packet_goes_out_as_it_is() {
    let bench = Bench::new(0);
    let packet: Vec<u8> = (0..112).collect();
    bench.guest.write(DATA, &packet);
    let chain = [(DATA, 5, READ), (DATA + 5, 7, READ), (DATA + 12, 100, READ)];
    let head = bench.guest.offer(TRANSMIT, &chain);
    let mut got = [0; 200];
    assert_eq!(bench.wire.recv(&mut got).unwrap(), 112);
    assert_eq!(got[..112], packet);
    assert_eq!(bench.returned(TRANSMIT, 1), vec![(head.into(), 0)]);
}

#[test]
fn a_packet_comes_in_whole() {
    let bench = Bench::new(0);
    bench
        .guest
        .offer(RECEIVE, &[(DATA, 12, WRITE), (DATA + 0x1000, 1600, WRITE)]);
    bench.wire.send(&[0x33; 1012]).unwrap();
    assert_eq!(bench.returned(RECEIVE, 1), vec![(0, 1012)]);
    let mut header = [0x33; 12];
    header[10..].copy_from_slice(&[1, 0]);
    assert_eq!(bench.guest.read(DATA, 12), header);
    assert_eq!(bench.guest.read(DATA + 0x1000, 1000), [0x33; 1000]);
    assert_eq!(bench.guest.read(DATA + 0x1000 + 1000, 8), [0; 8]);
}

#[test]
fn a_large_packet_spans_buffers() {
    let bench = Bench::new(F_MRG_RXBUF);
    // Starved at first: 1000 bytes are less than the largest packet.
    bench.wire.send(&[0x44; 1412]).unwrap();
    for at in 0..4 {
        bench
            .guest
            .offer(RECEIVE, &[(DATA + at * 0x1000, 500, WRITE)]);
    }
    let used = bench.returned(RECEIVE, 3);
    assert_eq!(used, vec![(0, 500), (1, 500), (2, 412)]);
    assert_eq!(bench.guest.read(DATA + 10, 2), [3, 0]);
    assert_eq!(bench.guest.read(DATA + 0x2000, 412), [0x44; 412]);
    // What was left of the room serves the next, once there is more.
    bench.wire.send(&[0x55; 20]).unwrap();
    for at in 4..8 {
        bench
            .guest
            .offer(RECEIVE, &[(DATA + at * 0x1000, 500, WRITE)]);
    }
    let used = bench.returned(RECEIVE, 4);
    assert_eq!(used[3], (3, 20));
    assert_eq!(bench.guest.read(DATA + 0x3000 + 10, 2), [1, 0]);
}

#[test]
fn many_packets_each_way() {
    let mut bench = Bench::new(0);
    for round in 0..40u64 {
        let at = DATA + (round % 8) * 0x1000;
        let byte = round.to_le_bytes()[0];
        bench.guest.offer(RECEIVE, &[(at, 1600, WRITE)]);
        bench.wire.send(&[byte; 700]).unwrap();
        let wanted = usize::try_from(round).unwrap() + 1;
        assert_eq!(bench.returned(RECEIVE, wanted).len(), wanted);
        bench.guest.offer(TRANSMIT, &[(at, 700, READ)]);
        let mut got = [0; 800];
        assert_eq!(bench.wire.recv(&mut got).unwrap(), 700);
        assert_eq!(got[12..700], [byte; 688]);
    }
    reset(&mut bench.net);
    // Nobody touches it any more.
    assert_eq!(Arc::strong_count(&bench.guest.memory), 1);
    reset(&mut bench.net);
    let counted = bench.net.counters().list();
    assert!(counted[0].1 > 0, "{counted:?}");
    let expected = [
        ("received_packets", 40),
        ("received_bytes", 40 * 688),
        ("transmitted_packets", 40),
        ("transmitted_bytes", 40 * 688),
        ("transmit_errors", 0),
    ];
    assert_eq!(counted[1..], expected);
}

#[test]
fn chains_that_break_the_rules_stop_the_device() {
    for (queue, chain) in [
        (TRANSMIT, &[(DATA, 11, READ)][..]),
        (TRANSMIT, &[(DATA, 100, READ), (DATA, 100, WRITE)]),
        (TRANSMIT, &[(DATA, 0, READ)]),
        (TRANSMIT, &[(16 << 20, 64, READ)]),
        (RECEIVE, &[(DATA, 11, WRITE)]),
        (RECEIVE, &[(DATA, 64, READ), (DATA, 1600, WRITE)]),
        (RECEIVE, &[((16 << 20) - 8, 64, WRITE)]),
    ] {
        let bench = Bench::new(F_MRG_RXBUF);
        bench.guest.offer(queue, chain);
        bench.interrupt.wait(|said| said.needs_reset == 1);
        assert!(bench.guest.used(queue).is_empty());
    }
    let bench = Bench::new(0);
    bench
        .guest
        .describe(RECEIVE, 0, &[(DATA, 64, NEXT | WRITE, 0)]);
    bench.guest.kick(RECEIVE, 0);
    bench.interrupt.wait(|said| said.needs_reset == 1);
}

#[test]
fn the_same_buffer_posted_for_ever_is_bounded() {
    let bench = Bench::new(F_MRG_RXBUF);
    bench.guest.describe(RECEIVE, 0, &[(DATA, 12, WRITE, 0)]);
    for _ in 0..10 * SIZE {
        bench.guest.kick(RECEIVE, 0);
    }
    bench.interrupt.wait(|said| said.needs_reset == 1);
}

#[test]
fn offloads_are_those_the_driver_takes() {
    let offload = |features| {
        let bench = Bench::new(features);
        // By when it serves, it has said so.
        bench.guest.offer(TRANSMIT, &[(DATA, 60, READ)]);
        bench.returned(TRANSMIT, 1);
        bench.offload.lock().unwrap().unwrap()
    };
    assert_eq!(offload(0), Offload::empty());
    assert_eq!(offload(F_GUEST_TSO4), Offload::empty());
    let all = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;
    assert_eq!(offload(all), Offload::all());
    let four = F_GUEST_CSUM | F_GUEST_TSO4;
    assert_eq!(offload(four), Offload::CHECKSUM | Offload::TSO4);
    let six = F_GUEST_CSUM | F_GUEST_TSO6;
    assert_eq!(offload(six), Offload::CHECKSUM | Offload::TSO6);
}

#[test]
fn configuration_is_what_was_asked_for() {
    let bench = Bench::new(0);
    let mut config = [0xff; 16];
    bench.net.config_read(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5, 0, 0, 0, 0]);
    let link = || FakeLink {
        socket: UnixDatagram::unbound().unwrap(),
        enabled: Arc::default(),
        offload: Arc::default(),
        changes: Arc::default(),
    };
    let small = Options { mtu: 67, ..OPTIONS };
    assert!(Net::new(link(), small).is_err());
    let mac = [1, 0, 0, 0, 0, 0];
    assert!(Net::new(link(), Options { mac, ..OPTIONS }).is_err());
    let smallest = Options { mtu: 68, ..OPTIONS };
    assert!(Net::new(link(), smallest).is_ok());
    for (pairs, is_right) in [(0, false), (1, true), (16, true), (17, false)] {
        let links = (0..pairs).map(|_| link()).collect();
        let made = Net::with_pairs(links, OPTIONS);
        assert_eq!(made.is_ok(), is_right, "{pairs} pairs");
    }
    let alone = Net::new(link(), OPTIONS).unwrap();
    assert!(alone.in_kernel(Vec::new()).is_err());
}

#[test]
fn features_are_those_of_a_card_with_a_tap() {
    let bits = |numbers: &[u32]| numbers.iter().map(|number| 1 << number).sum::<u64>();
    let one = bits(&[0, 1, 3, 5, 7, 8, 11, 12, 15, 16, 28, 29]);
    assert_eq!(Bench::new(0).net.features(), one);
    let control = bits(&[17, 22]);
    assert_eq!(TwoPairs::with(0, 5, 2).net.features(), one | control);
    assert_eq!(Bench::new(0).net.queue_sizes(), [256; 2]);
}

/// A card with two pairs of queues, not plugged.
struct Card {
    net: Net,
    wires: Vec<UnixDatagram>,
    enabled: Vec<Arc<AtomicBool>>,
    changes: Arc<AtomicUsize>,
}

impl Card {
    fn new() -> Self {
        let mut wires = Vec::new();
        let mut enabled = Vec::new();
        let changes = Arc::default();
        let links: Vec<_> = (0..2)
            .map(|_| {
                let (wire, socket) = UnixDatagram::pair().unwrap();
                socket.set_nonblocking(true).unwrap();
                wires.push(wire);
                enabled.push(Arc::new(AtomicBool::new(true)));
                FakeLink {
                    socket,
                    enabled: Arc::clone(&enabled[enabled.len() - 1]),
                    offload: Arc::default(),
                    changes: Arc::clone(&changes),
                }
            })
            .collect();
        Self {
            net: Net::with_pairs(links, OPTIONS).unwrap(),
            wires,
            enabled,
            changes,
        }
    }
}

/// A guest that drives one.
struct TwoPairs {
    guest: Guest,
    interrupt: Arc<FakeInterrupt>,
    net: Net,
    wires: Vec<UnixDatagram>,
    enabled: Vec<Arc<AtomicBool>>,
    changes: Arc<AtomicUsize>,
}

/// Its control queue.
const CONTROL: u16 = 4;

impl TwoPairs {
    fn new(features: u64, queues: u16) -> Self {
        Self::with(features, queues, queues.into())
    }

    /// Of the queues, the driver enables the first few.
    fn with(features: u64, queues: u16, enabled_queues: usize) -> Self {
        let card = Card::new();
        let mut bench = Self {
            guest: Guest::new(queues),
            interrupt: Arc::default(),
            net: card.net,
            wires: card.wires,
            enabled: card.enabled,
            changes: card.changes,
        };
        bench.guest.plug(&mut bench.net);
        let mut activation = bench.guest.activation(features, &bench.interrupt);
        activation.queues.truncate(enabled_queues);
        bench.net.activate(activation);
        bench
    }

    /// Another card, with nothing of the first but what was saved, over the same guest.
    fn copy(&mut self) {
        let mut card = Card::new();
        self.guest.plug(&mut card.net);
        card.net.restore(&self.net.save()).unwrap();
        self.net = card.net;
        self.wires = card.wires;
        self.enabled = card.enabled;
        self.changes = card.changes;
    }

    /// Waits until the device serves its first pair, which it does once all is set up.
    fn serves(&self) {
        self.guest.offer(TRANSMIT, &[(DATA, 60, READ)]);
        assert_eq!(self.wires[0].recv(&mut [0; 100]).unwrap(), 60);
        self.interrupt.wait(|said| said.queues.contains(&TRANSMIT));
    }

    fn enabled(&self) -> Vec<bool> {
        let load = |flag: &Arc<AtomicBool>| flag.load(Ordering::SeqCst);
        self.enabled.iter().map(load).collect()
    }

    /// A command on the control queue, and its answer.
    fn command(&self, bytes: &[u8]) -> u8 {
        self.guest.write(DATA, bytes);
        self.guest.write(DATA + 0x1000, &[0xee]);
        let length = u32::try_from(bytes.len()).unwrap();
        let done = self.guest.used(CONTROL).len() + 1;
        self.guest.offer(
            CONTROL,
            &[
                (DATA, 2, READ),
                (DATA + 2, length - 2, READ),
                (DATA + 0x1000, 1, WRITE),
            ],
        );
        self.interrupt
            .wait(|said| said.needs_reset > 0 || self.guest.used(CONTROL).len() >= done);
        self.guest.read(DATA + 0x1000, 1)[0]
    }
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let bench = TwoPairs::new(F_CTRL_VQ | F_MQ, 5);
    assert_eq!(bench.net.queue_sizes().len(), 5);
    let mut config = [0; 10];
    bench.net.config_read(0, &mut config);
    assert_eq!(config[8..], [2, 0]);
    bench.serves();
    assert_eq!(bench.enabled(), [true, false], "it begins with one");
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    assert_eq!(bench.enabled(), [true, true]);
    for (pair, wire) in (0u16..).zip(&bench.wires) {
        let (receive, transmit) = (2 * pair, 2 * pair + 1);
        let at = DATA + 0x8000 * (1 + u64::from(pair));
        bench.guest.offer(receive, &[(at, 1600, WRITE)]);
        wire.send(&[0x11; 100]).unwrap();
        bench.guest.offer(transmit, &[(at + 0x4000, 60, READ)]);
        assert_eq!(wire.recv(&mut [0; 100]).unwrap(), 60);
        bench
            .interrupt
            .wait(|said| said.queues.contains(&receive) && said.queues.contains(&transmit));
        assert_eq!(bench.guest.used(receive), [(0, 100)]);
    }
    assert_eq!(bench.command(&[4, 0, 1, 0]), 0);
    assert_eq!(bench.enabled(), [true, false]);
    for wrong in [
        &[4, 0, 0, 0][..],
        &[4, 0, 3, 0],
        &[4, 0, 1, 1],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[4, 0, 1, 0, 0],
        &[4, 0, 1],
    ] {
        assert_eq!(bench.command(wrong), 1, "{wrong:?}");
    }
    assert_eq!(bench.enabled(), [true, false]);
    assert_eq!(bench.interrupt.wait(|_| true).needs_reset, 0);
}

#[test]
fn a_driver_of_one_pair_gets_one() {
    // Without the feature the control queue is the third; here it isn't there.
    let bench = TwoPairs::with(0, 5, 2);
    bench.serves();
    assert_eq!(bench.enabled(), [true, false]);
    bench.guest.offer(TRANSMIT, &[(DATA, 60, READ)]);
    assert_eq!(bench.wires[0].recv(&mut [0; 100]).unwrap(), 60);
    // Pairs that were not set up can't be used.
    let mut bench = TwoPairs::with(F_CTRL_VQ, 5, 3);
    bench.guest.write(DATA, &[4, 0, 2, 0]);
    let chain = [(DATA, 4, READ), (DATA + 0x1000, 1, WRITE)];
    bench.guest.offer(2, &chain);
    bench.interrupt.wait(|said| said.queues.contains(&2));
    assert_eq!(bench.guest.read(DATA + 0x1000, 1), [1]);
    // A reset and another driver: from the beginning.
    reset(&mut bench.net);
    bench.guest.start_over();
    let activation = bench.guest.activation(F_CTRL_VQ | F_MQ, &bench.interrupt);
    bench.net.activate(activation);
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    assert_eq!(bench.enabled(), [true, true]);
    // A command without room for its answer is none.
    bench.guest.offer(CONTROL, &[(DATA, 4, READ)]);
    bench.interrupt.wait(|said| said.needs_reset == 1);
}

/// Without a driver's knowledge: buffers that waited for packets wait on, and as many
/// pairs are in use.
#[test]
fn a_held_card_goes_on_where_it_was() {
    let features = F_CTRL_VQ | F_MQ;
    let mut bench = TwoPairs::new(features, 5);
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    bench.guest.offer(RECEIVE, &[(DATA, 1600, WRITE)]);
    bench.guest.offer(RECEIVE, &[(DATA + 0x2000, 1600, WRITE)]);
    bench.wires[0].send(&[0x11; 100]).unwrap();
    bench.interrupt.wait(|said| said.queues.contains(&RECEIVE));
    for _ in 0..20 {
        let held = quiesce(&mut bench.net, Why::Hold);
        let places: Vec<_> = held.iter().map(|queue| queue.index).collect();
        assert_eq!(places, [0, 1, 2, 3, 4]);
        assert_eq!((held[0].next_available, held[0].next_used), (1, 1));
        assert_eq!(held[4].next_available, 1, "a command");
        assert_eq!(Arc::strong_count(&bench.guest.memory), 1);
        assert_eq!(bench.enabled(), [true, true]);
        let resumption = bench.guest.resumption(features, &bench.interrupt, &held);
        bench.net.activate(resumption);
    }
    bench.wires[0].send(&[0x22; 100]).unwrap();
    bench
        .interrupt
        .wait(|_| bench.guest.used(RECEIVE).len() == 2);
    assert_eq!(bench.guest.read(DATA + 0x2000 + 12, 88), [0x22; 88]);
    for pair in 0..2 {
        bench.guest.offer(2 * pair + 1, &[(DATA, 60, READ)]);
        let wire = &bench.wires[usize::from(pair)];
        assert_eq!(wire.recv(&mut [0; 100]).unwrap(), 60);
    }
    assert_eq!(bench.enabled(), [true, true]);
    // A reset begins with one again.
    reset(&mut bench.net);
    bench.guest.start_over();
    let activation = bench.guest.activation(features, &bench.interrupt);
    bench.net.activate(activation);
    bench.serves();
    assert_eq!(bench.enabled(), [true, false]);
}

#[test]
fn a_copy_uses_as_many_pairs() {
    let features = F_CTRL_VQ | F_MQ;
    for pairs in [1, 2] {
        let mut bench = TwoPairs::new(features, 5);
        assert_eq!(bench.command(&[4, 0, pairs, 0]), 0);
        bench.guest.offer(RECEIVE, &[(DATA, 1600, WRITE)]);
        let held = quiesce(&mut bench.net, Why::Hold);
        bench.copy();
        assert_eq!(bench.net.save()["pairs_in_use"], json!(pairs));
        let resumption = bench.guest.resumption(features, &bench.interrupt, &held);
        bench.net.activate(resumption);
        bench.serves();
        assert_eq!(bench.enabled(), [true, pairs == 2]);
        bench.wires[0].send(&[0x22; 100]).unwrap();
        bench
            .interrupt
            .wait(|_| bench.guest.used(RECEIVE).len() == 1);
        assert_eq!(bench.guest.read(DATA + 12, 88), [0x22; 88]);
        assert_eq!(bench.command(&[4, 0, 3 - pairs, 0]), 0);
        assert_eq!(bench.enabled(), [true, pairs == 1]);
        assert_eq!(bench.net.save()["pairs_in_use"], json!(3 - pairs));
    }
}

#[test]
fn another_card_is_refused() {
    let mut bench = TwoPairs::new(F_CTRL_VQ | F_MQ, 5);
    let saved = bench.net.save();
    for (field, value, why) in [
        (
            "mac",
            json!([2, 0, 0, 0, 0, 0xab]),
            "its address is 02:00:00:00:00:01 here and 02:00:00:00:00:ab there",
        ),
        ("mtu", json!(9001), "its MTU is 1500 here and 9001 there"),
        (
            "pairs",
            json!(1),
            "it has 2 pairs of queues here and 1 there",
        ),
    ] {
        let mut state = saved.clone();
        state[field] = value;
        let refused = bench.net.restore(&state).expect_err("another card");
        assert_eq!(refused.to_string(), why);
    }
    let refused = bench.net.restore(&json!({})).expect_err("nothing");
    assert_eq!(refused.to_string(), "missing field `mac`");
    assert_eq!(bench.net.restore(&saved), Ok(()));
}

#[test]
fn pairs_that_are_not_there_are_not_in_use() {
    let mut bench = TwoPairs::new(F_CTRL_VQ | F_MQ, 5);
    let saved = bench.net.save();
    let with = |field: &str, value: Value| {
        let mut state = saved.clone();
        state[field] = value;
        state
    };
    for in_use in [0, 3] {
        let refused = bench.net.restore(&with("pairs_in_use", json!(in_use)));
        assert_eq!(
            refused.expect_err("not possible").to_string(),
            format!("of 2 pairs of queues, {in_use} can't be in use")
        );
    }
    // Nor are those that the driver has not set up: a packet there would be lost.
    bench.serves();
    let held = quiesce(&mut bench.net, Why::Hold);
    bench.copy();
    bench.net.restore(&with("pairs_in_use", json!(2))).unwrap();
    let mut resumption = bench.guest.resumption(0, &bench.interrupt, &held);
    resumption.queues.truncate(2);
    bench.net.activate(resumption);
    bench.guest.offer(TRANSMIT, &[(DATA, 60, READ)]);
    assert_eq!(bench.wires[0].recv(&mut [0; 100]).unwrap(), 60);
    assert_eq!(bench.enabled(), [true, false]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_table_hangs_or_breaks_the_device(
        table in prop::collection::vec((0u64..(17 << 20), 0u32..70_000, 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec((0u16..18, 0u16..2), 1..12),
        mergeable in any::<bool>(),
    ) {
        let mut bench = Bench::new(if mergeable { F_MRG_RXBUF } else { 0 });
        bench.wire.set_nonblocking(true).unwrap();
        for queue in [RECEIVE, TRANSMIT] {
            bench.guest.describe(queue, 0, &table);
        }
        for (head, queue) in heads {
            bench.guest.kick(queue, head);
            // A full socket is fine too.
            let _ = bench.wire.send(&[7; 900]);
        }
        reset(&mut bench.net);
    }
}
