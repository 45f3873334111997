//! A driver and programs on the host against the whole device.

mod streams;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use self::streams::ends;
use super::connection::BUFFER;
use super::packet::{HEADER_SIZE, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::virtio::quiet::QueueState;
use crate::virtio::quiet::Why;
use crate::virtio::testing::{FakeInterrupt, Guest, READ, SIZE, WRITE, quiesce, reset};

const CID: u32 = 7;
/// Where the driver's packets and its receive buffers are, a page or two each.
const OUT: u64 = 0x20_0000;
const IN: u64 = 0x40_0000;
const PAGE: u64 = 0x2_0000;

struct Bench {
    // Before the folder, so that the socket is removed while there is one.
    vsock: Vsock,
    guest: Guest,
    interrupt: Arc<FakeInterrupt>,
    folder: tempfile::TempDir,
    sent: usize,
    posted: usize,
    received: usize,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let mut vsock = Vsock::new(Options { cid: CID, path }).unwrap();
        let guest = Guest::new(3);
        let interrupt = Arc::new(FakeInterrupt::default());
        guest.start(&mut vsock, 0, &interrupt);
        Self {
            vsock,
            guest,
            interrupt,
            folder,
            sent: 0,
            posted: 0,
            received: 0,
        }
    }

    /// A program on the host connects to a port of the guest.
    fn dial(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.path().join("vsock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    /// A program on the host listens for the guest.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.folder.path().join(format!("vsock_{port}"))).unwrap()
    }

    /// The driver posts a receive buffer.
    fn post(&mut self, length: u32) {
        let at = IN + PAGE * (self.posted as u64 % 16);
        self.guest.offer(RECEIVE, &[(at, length, WRITE)]);
        self.posted += 1;
    }

    /// The driver posts a buffer and waits for the packet in it.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        if self.posted == self.received {
            self.post(44 + 0x1_0000);
        }
        self.received += 1;
        let received = self.received;
        self.interrupt.wait(|said| {
            assert_eq!(said.needs_reset, 0);
            self.guest.used(RECEIVE).len() >= received
        });
        let (_, length) = self.guest.used(RECEIVE)[received - 1];
        let at = IN + PAGE * ((received as u64 - 1) % 16);
        let bytes = self.guest.read(at, length as usize);
        let header = Header::from_bytes(bytes[..HEADER_SIZE].try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid), (2, u64::from(CID)));
        assert_eq!((header.kind, header.len + 44), (1, length));
        (header, bytes[HEADER_SIZE..].to_vec())
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        let at = OUT + PAGE * (self.sent as u64 % 16);
        self.sent += 1;
        self.guest.write(at, &header.to_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        self.guest.write(at + 44, payload);
        self.guest
            .offer(TRANSMIT, &[(at, 44, READ), (at + 44, length, READ)]);
        let sent = self.sent;
        self.interrupt
            .wait(|said| said.needs_reset > 0 || self.guest.used(TRANSMIT).len() >= sent);
    }

    /// The guest connects to a listening program.
    fn connect(&mut self, listener: &UnixListener, port: u32) -> (UnixStream, Header) {
        let request = header(Op::Request, 5000, port);
        self.send(request, &[]);
        let (response, _) = self.packet();
        assert_eq!(response.op, Op::Response as u16);
        assert_eq!((response.src_port, response.dst_port), (port, 5000));
        assert_eq!(response.buf_alloc, BUFFER);
        let (stream, _) = listener.accept().unwrap();
        (stream, header(Op::Data, 5000, port))
    }

    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.packet();
        assert_eq!(header.op, op as u16, "{header:?}");
        header
    }
}

/// From a port of the guest to one of the host, with a lot of room.
fn header(op: Op, from: u32, to: u32) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: 2,
        src_port: from,
        dst_port: to,
        kind: 1,
        op: op as u16,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn data(template: Header, length: u32) -> Header {
    Header {
        op: Op::Data as u16,
        len: length,
        ..template
    }
}

#[test]
fn a_program_on_the_host_reaches_the_guest() {
    let mut bench = Bench::new();
    let mut stream = bench.dial("CONNECT 52\nearly");
    let request = bench.expect(Op::Request);
    assert_eq!(request.dst_port, 52);
    let back = header(Op::Response, 52, request.src_port);
    bench.send(back, &[]);
    let greeting = format!("OK {}\n", request.src_port);
    let mut line = vec![0; greeting.len()];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(line, greeting.as_bytes());
    let (first, payload) = bench.packet();
    assert_eq!((first.op, &payload[..]), (5, &b"early"[..]));
    bench.send(data(back, 6), b"answer");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    // The guest closes: both half-closes, and the last word is ours.
    let close = Header {
        flags: SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
        ..header(Op::Shutdown, 52, request.src_port)
    };
    bench.send(close, &[]);
    bench.expect(Op::Reset);
    assert_eq!(stream.read(&mut answer).unwrap(), 0);
}

#[test]
fn a_program_in_the_guest_reaches_the_host() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, template) = bench.connect(&listener, 80);
    bench.send(data(template, 5), b"hello");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    stream.write_all(b"there").unwrap();
    let (_, payload) = bench.packet();
    assert_eq!(payload, b"there");
    // The host half-closes, and still reads.
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    bench.send(data(template, 4), b"more");
    stream.read_exact(&mut got[..4]).unwrap();
    drop(stream);
    let flags = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    assert_eq!(bench.expect(Op::Shutdown).flags, flags);
    // What was on its way is dropped; the guest has the last word.
    bench.send(data(template, 4), b"late");
    bench.send(header(Op::CreditRequest, 5000, 80), &[]);
    bench.expect(Op::CreditUpdate);
    bench.send(header(Op::Reset, 5000, 80), &[]);
    // And the same ports can be used again.
    bench.connect(&listener, 80);
    reset(&mut bench.vsock);
    let counted = bench.vsock.counters().list();
    let expected = [("connections", 2), ("refused", 0)];
    assert_eq!(counted[1..3], expected);
    assert_eq!(counted[4], ("received_bytes", 5));
    assert_eq!(counted[6], ("transmitted_bytes", 5 + 4 + 4));
}

#[test]
fn nobody_there_is_a_reset() {
    let mut bench = Bench::new();
    bench.send(header(Op::Request, 5000, 81), &[]);
    let reset = bench.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (81, 5000));
    let mut stream = bench.dial("CONNECT 53\n");
    let request = bench.expect(Op::Request);
    bench.send(header(Op::Reset, 53, request.src_port), &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn wrong_first_lines_end_the_stream() {
    let bench = Bench::new();
    for line in [
        "CONNECT\n",
        "HELLO 52\n",
        "CONNECT 52 52\n",
        &"x".repeat(40),
    ] {
        let mut stream = bench.dial(line);
        ends(&mut stream, line);
    }
    // Nor does one come any more.
    let mut stream = bench.dial("");
    stream.shutdown(Shutdown::Write).unwrap();
    ends(&mut stream, "nothing");
}

#[test]
fn packets_of_no_connection_are_answered_and_resets_are_not() {
    let mut bench = Bench::new();
    let good = header(Op::Data, 1, 2);
    bench.send(header(Op::Reset, 1, 1), &[]);
    for strange in [
        good,
        header(Op::Response, 1, 2),
        Header { op: 0, ..good },
        Header { op: 99, ..good },
        Header {
            kind: 2,
            op: 1,
            ..good
        },
        Header {
            dst_cid: 9,
            op: 1,
            ..good
        },
    ] {
        bench.send(strange, &[]);
        bench.post(44 + 64);
        let received = bench.received + 1;
        bench
            .interrupt
            .wait(|_| bench.guest.used(RECEIVE).len() >= received);
        let at = IN + PAGE * (bench.received as u64 % 16);
        let bytes = bench.guest.read(at, HEADER_SIZE);
        let answer = Header::from_bytes(bytes[..].try_into().unwrap());
        assert_eq!(answer, strange.reset_for(), "{strange:?}");
        bench.received += 1;
    }
}

#[test]
fn the_guest_is_held_to_its_credit() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, template) = bench.connect(&listener, 80);
    for _ in 1..SIZE {
        bench.post(44 + 64);
    }
    // The program doesn't read: the kernel takes some, then we, then nobody.
    let block = vec![7; 0x8000];
    let mut taken = 0;
    let broken_off = |bench: &mut Bench| {
        while bench.guest.used(RECEIVE).len() > bench.received {
            let (header, _) = bench.packet();
            if header.op == Op::Reset as u16 {
                return true;
            }
            assert_eq!(header.op, Op::CreditUpdate as u16);
        }
        false
    };
    while !broken_off(&mut bench) {
        bench.send(data(template, 0x8000), &block);
        taken += block.len();
        assert!(taken < 4 << 20, "there is no end to the buffer");
    }
    // What was handed on is there; what we held is lost with the connection.
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got.len() < taken);
    assert!(got.iter().all(|byte| *byte == 7));
}

#[test]
fn the_host_is_held_to_its_credit() {
    let mut bench = Bench::new();
    let mut stream = bench.dial("CONNECT 52\n0123456789");
    let request = bench.expect(Op::Request);
    let small = |op, taken| Header {
        buf_alloc: 4,
        fwd_cnt: taken,
        ..header(op, 52, request.src_port)
    };
    bench.send(small(Op::Response, 0), &[]);
    assert_eq!(bench.packet().1, b"0123");
    bench.expect(Op::CreditRequest);
    bench.send(small(Op::CreditUpdate, 4), &[]);
    assert_eq!(bench.packet().1, b"4567");
    bench.expect(Op::CreditRequest);
    // More taken than was ever sent, and less: no sense, no credit.
    bench.send(small(Op::CreditUpdate, 9), &[]);
    bench.expect(Op::CreditRequest);
    bench.send(small(Op::CreditUpdate, 0), &[]);
    bench.expect(Op::CreditRequest);
    bench.send(small(Op::CreditRequest, 8), &[]);
    bench.expect(Op::CreditUpdate);
    assert_eq!(bench.packet().1, b"89");
    stream.write_all(b"x").unwrap();
    assert_eq!(bench.packet().1, b"x");
}

#[test]
fn a_connection_that_exists_is_not_made_again() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, _) = bench.connect(&listener, 80);
    bench.send(header(Op::Request, 5000, 80), &[]);
    bench.expect(Op::Reset);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn small_buffers_cut_data() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, _) = bench.connect(&listener, 80);
    stream.write_all(&[3; 100]).unwrap();
    for length in [1, 60, 39] {
        bench.post(44 + length);
        assert_eq!(bench.packet().0.len, length);
    }
}

#[test]
fn answers_are_bounded_and_the_guest_waits() {
    let bench = Bench::new();
    let lost = header(Op::Data, 1, 2);
    bench.guest.write(OUT, &lost.to_bytes());
    bench.guest.describe(TRANSMIT, 0, &[(OUT, 44, READ, 0)]);
    // No receive buffer: as many answers as can wait, then no more is taken.
    let used = |queue| bench.guest.used(queue).len();
    for sent in 1..=64 {
        bench.guest.kick(TRANSMIT, 0);
        bench.interrupt.wait(|_| used(TRANSMIT) >= sent);
    }
    bench.guest.kick(TRANSMIT, 0);
    for round in 1..=65 {
        bench.guest.offer(RECEIVE, &[(IN, 100, WRITE)]);
        bench.interrupt.wait(|_| used(RECEIVE) >= round);
    }
    bench.interrupt.wait(|_| used(TRANSMIT) == 65);
}

#[test]
fn chains_that_are_no_packets_stop_the_device() {
    let end = 16 << 20;
    let long = Header {
        len: 100,
        ..header(Op::Data, 1, 2)
    };
    for (queue, chain) in [
        (TRANSMIT, &[(OUT, 43, READ)][..]),
        (TRANSMIT, &[(OUT, 44, READ), (OUT, 44, WRITE)]),
        (TRANSMIT, &[(OUT, 44, READ), (OUT, 99, READ)]),
        (TRANSMIT, &[(end - 20, 44, READ)]),
        (RECEIVE, &[(IN, 44, WRITE)]),
        (RECEIVE, &[(IN, 44, READ), (IN, 100, WRITE)]),
    ] {
        let mut bench = Bench::new();
        bench.guest.write(OUT, &long.to_bytes());
        if queue == RECEIVE {
            // Something to be received.
            bench.send(header(Op::Request, 1, 2), &[]);
        }
        bench.guest.offer(queue, chain);
        bench.interrupt.wait(|said| said.needs_reset == 1);
        // Programs see it as an end.
        reset(&mut bench.vsock);
    }
}

#[test]
fn the_socket_comes_and_goes_with_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let options = |cid| Options {
        cid,
        path: path.clone(),
    };
    assert!(Vsock::new(options(2)).is_err());
    assert!(Vsock::new(options(u32::MAX)).is_err());
    let vsock = Vsock::new(options(3)).unwrap();
    assert!(Vsock::new(options(4)).is_err(), "taken");
    let mut config = [0xff; 12];
    vsock.config_read(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    drop(vsock);
    assert!(!path.exists());
}

#[test]
fn a_reset_ends_all_streams_and_new_ones_wait() {
    let mut bench = Bench::new();
    let mut old = bench.dial("CONNECT 52\n");
    bench.expect(Op::Request);
    reset(&mut bench.vsock);
    assert_eq!(old.read(&mut [0; 8]).unwrap(), 0);
    let _new = bench.dial("CONNECT 53\n");
    bench.guest.start_over();
    bench.interrupt = Arc::default();
    (bench.posted, bench.received) = (0, 0);
    let activation = bench.guest.activation(0, &bench.interrupt);
    bench.vsock.activate(activation);
    assert_eq!(bench.expect(Op::Request).dst_port, 53);
}

/// Its streams live on, and what was said meanwhile is heard.
#[test]
fn a_held_device_keeps_its_streams() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, _) = bench.connect(&listener, 80);
    let held = quiesce(&mut bench.vsock, Why::Hold);
    assert_eq!(held.len(), 3);
    assert_eq!(Arc::strong_count(&bench.guest.memory), 1);
    stream.write_all(b"meanwhile").unwrap();
    let _new = bench.dial("CONNECT 53\n");
    let resumption = bench.guest.resumption(0, &bench.interrupt, &held);
    bench.vsock.activate(resumption);
    let mut heard = [false; 2];
    while heard != [true; 2] {
        let (header, payload) = bench.packet();
        heard[0] |= payload == b"meanwhile";
        heard[1] |= header.dst_port == 53;
    }
}

impl Bench {
    /// Another device, with nothing of the first but what was saved, over the same guest.
    fn copy(&mut self) {
        let state = self.vsock.save();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let mut copy = Vsock::new(Options { cid: CID, path }).unwrap();
        self.guest.move_on();
        self.guest.plug(&mut copy);
        copy.restore(&state).unwrap();
        (self.vsock, self.folder) = (copy, folder);
        self.interrupt = Arc::default();
    }

    fn goes_on(&mut self, held: &[QueueState]) {
        let resumption = self.guest.resumption(0, &self.interrupt, held);
        self.vsock.activate(resumption);
    }
}

#[test]
fn a_copy_has_its_driver_end_its_streams_once() {
    for is_waiting in [true, false] {
        let mut bench = Bench::new();
        let listener = bench.listen(80);
        let (_stream, data) = bench.connect(&listener, 80);
        let post = |bench: &Bench| {
            bench.guest.write(OUT, &[0xff; 4]);
            bench.guest.offer(EVENT, &[(OUT, 4, WRITE)]);
        };
        if is_waiting {
            post(&bench);
        }
        let held = quiesce(&mut bench.vsock, Why::Hold);
        bench.copy();
        bench.goes_on(&held);
        if !is_waiting {
            // Held once more before there was room to tell it.
            let held = quiesce(&mut bench.vsock, Why::Hold);
            bench.goes_on(&held);
            post(&bench);
        }
        bench.interrupt.wait(|said| said.queues.contains(&EVENT));
        assert_eq!(bench.guest.used(EVENT), [(0, 4)]);
        assert_eq!(bench.guest.read(OUT, 4), [0; 4]);
        // What it says before it has looked is answered like any stranger.
        bench.send(data, &[]);
        bench.expect(Op::Reset);
        post(&bench);
        let held = quiesce(&mut bench.vsock, Why::Hold);
        bench.goes_on(&held);
        let held = quiesce(&mut bench.vsock, Why::Hold);
        assert_eq!((held[2].next_available, held[2].next_used), (1, 1));
        assert_eq!(bench.interrupt.wait(|_| true).needs_reset, 0);
    }
}

#[test]
fn a_driver_that_starts_on_a_copy_has_no_streams_to_end() {
    let mut bench = Bench::new();
    reset(&mut bench.vsock);
    bench.copy();
    bench.guest.start_over();
    bench.guest.offer(EVENT, &[(OUT, 4, WRITE)]);
    let activation = bench.guest.activation(0, &bench.interrupt);
    bench.vsock.activate(activation);
    let held = quiesce(&mut bench.vsock, Why::Hold);
    assert_eq!(held[2].next_used, 0);
}

#[test]
fn a_guest_keeps_its_address() {
    let mut bench = Bench::new();
    let state = bench.vsock.save();
    assert_eq!(state, json!({ "cid": CID }));
    let refused = |bench: &mut Bench, state| {
        let refused = bench.vsock.restore(&state).expect_err("another's");
        assert!(!bench.vsock.is_copy.load(Ordering::SeqCst));
        refused.to_string()
    };
    let wrong = format!("its CID is {CID} here and 77 there");
    assert_eq!(refused(&mut bench, json!({"cid": 77})), wrong);
    refused(&mut bench, Value::Null);
    assert_eq!(bench.vsock.restore(&state), Ok(()));
}

/// Any packet, most of them for connections that may exist.
fn any_packet() -> impl Strategy<Value = (Header, usize)> {
    let ports = (0u32..3, 79u32..83);
    let credit = (any::<u32>(), any::<u32>());
    (0u16..9, ports, credit, 0u32..4, 0usize..5000).prop_map(|(op, ports, credit, flags, size)| {
        let (from, to) = ports;
        let packet = Header {
            op,
            flags,
            buf_alloc: credit.0,
            fwd_cnt: credit.1,
            len: u32::try_from(size).unwrap(),
            ..header(Op::Data, from, to)
        };
        (packet, size)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_packets_hang_or_break_the_device(packets in prop::collection::vec(any_packet(), 1..40)) {
        let mut bench = Bench::new();
        let _listeners = [bench.listen(80), bench.listen(81)];
        let _streams = [bench.dial("CONNECT 1\n"), bench.dial("CONNECT 2\nabc")];
        for (packet, size) in packets {
            while bench.posted - bench.guest.used(RECEIVE).len() < SIZE.into() {
                bench.post(44 + 300);
            }
            bench.send(packet, &vec![1; size]);
        }
        reset(&mut bench.vsock);
        bench.interrupt.wait(|said| {
            assert_eq!(said.needs_reset, 0);
            true
        });
    }

    #[test]
    fn no_table_hangs_or_breaks_the_device(
        table in prop::collection::vec((0u64..(17 << 20), 0u32..70_000, 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec((0u16..18, 0u16..2), 1..12),
    ) {
        let mut bench = Bench::new();
        for queue in [RECEIVE, TRANSMIT] {
            bench.guest.describe(queue, 0, &table);
        }
        for (head, queue) in heads {
            bench.guest.kick(queue, head);
        }
        reset(&mut bench.vsock);
    }
}
