//! What becomes of streams: when either side is slow, quiet, deaf, or gone.

use super::*;

/// The device closes the stream. With bytes unread the end may be a reset.
pub(super) fn ends(stream: &mut UnixStream, what: &str) {
    match stream.read(&mut [0; 8]) {
        Ok(got) => assert_eq!(got, 0, "{what}"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{what}"),
    }
}

#[test]
fn a_first_line_may_come_late_and_in_pieces() {
    let mut bench = Bench::new();
    let mut stream = bench.dial("");
    for piece in ["CONN", "ECT 5", "2\n"] {
        // By when this is answered, the device has looked at what came before.
        for _ in 0..2 {
            bench.send(header(Op::Request, 5000, 81), &[]);
            bench.expect(Op::Reset);
        }
        stream.write_all(piece.as_bytes()).unwrap();
    }
    assert_eq!(bench.expect(Op::Request).dst_port, 52);
}

#[test]
fn a_stream_that_was_quiet_is_heard() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    for _ in 0..8 {
        bench.post(44 + 0x1_0000);
    }
    let (mut stream, _) = bench.connect(&listener, 80);
    for _ in 0..3 {
        bench.send(header(Op::CreditRequest, 5000, 80), &[]);
        bench.expect(Op::CreditUpdate);
    }
    stream.write_all(b"at last").unwrap();
    assert_eq!(bench.packet().1, b"at last");
    // And an answer, with nothing else to wake for.
    bench.send(header(Op::Request, 5001, 81), &[]);
    bench.expect(Op::Reset);
}

#[test]
fn a_guest_that_has_said_all_may_listen_on() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, template) = bench.connect(&listener, 80);
    let ended = Header {
        flags: SHUTDOWN_SEND,
        ..header(Op::Shutdown, 5000, 80)
    };
    bench.send(ended, &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    stream.write_all(b"more").unwrap();
    assert_eq!(bench.packet().1, b"more");
    // It has not kept its word.
    bench.send(data(template, 4), b"late");
    bench.expect(Op::Reset);
}

#[test]
fn a_guest_may_say_that_it_hears_no_more() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, template) = bench.connect(&listener, 80);
    let deaf = Header {
        flags: SHUTDOWN_RECEIVE,
        ..header(Op::Shutdown, 5000, 80)
    };
    bench.send(deaf, &[]);
    bench.send(data(template, 5), b"still");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still");
    assert_eq!(
        stream.write(b"nobody").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    // That the program is gone it learns all the same.
    drop(stream);
    let flags = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    assert_eq!(bench.expect(Op::Shutdown).flags, flags);
}

#[test]
fn a_program_that_goes_without_having_read_is_told() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (stream, template) = bench.connect(&listener, 80);
    bench.send(data(template, 4), b"lost");
    drop(stream);
    bench.expect(Op::Reset);
}

#[test]
fn what_a_program_said_before_it_went_comes_first() {
    let mut bench = Bench::new();
    let stream = bench.dial("CONNECT 52\n0123456789");
    let request = bench.expect(Op::Request);
    let small = |op, taken| Header {
        buf_alloc: 4,
        fwd_cnt: taken,
        ..header(op, 52, request.src_port)
    };
    bench.send(small(Op::Response, 0), &[]);
    assert_eq!(bench.packet().1, b"0123");
    shut(stream);
    for (taken, part) in [(4, &b"4567"[..]), (8, b"89")] {
        bench.expect(Op::CreditRequest);
        bench.send(small(Op::CreditUpdate, taken), &[]);
        assert_eq!(bench.packet().1, part);
    }
    bench.expect(Op::Shutdown);
}

/// Goes having read all.
fn shut(mut stream: UnixStream) {
    let mut line = [0; 64];
    while !line.contains(&b'\n') {
        assert_ne!(stream.read(&mut line).unwrap(), 0);
    }
}

#[test]
fn nothing_more_is_taken_of_what_is_broken_off() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, template) = bench.connect(&listener, 80);
    // An answer to nothing; what comes before the reset has room is lost.
    bench.send(header(Op::Response, 5000, 80), &[]);
    bench.send(data(template, 4), b"late");
    bench.expect(Op::Reset);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

impl Bench {
    /// How much the device has handed on of what the guest sent on this connection.
    fn handed_on(&mut self) -> u32 {
        self.send(header(Op::CreditRequest, 5000, 80), &[]);
        self.expect(Op::CreditUpdate).fwd_cnt
    }

    /// Sends all that the program's socket and the device take; what comes after that
    /// is kept by the device. Returns how much it was.
    fn fill(&mut self, template: Header, chunk: &[u8]) -> u32 {
        let length = u32::try_from(chunk.len()).unwrap();
        let mut sent = 0;
        while sent + length - self.handed_on() <= BUFFER {
            self.send(data(template, length), chunk);
            sent += length;
        }
        sent
    }
}

#[test]
fn what_a_slow_program_does_not_take_is_kept_for_it() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, template) = bench.connect(&listener, 80);
    let chunk: Vec<u8> = (0..=250).cycle().take(0x3000).collect();
    let sent = bench.fill(template, &chunk);
    assert!(bench.handed_on() < sent);
    let mut got = vec![0; chunk.len()];
    for _ in 0..sent / 0x3000 {
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, chunk);
    }
    while bench.handed_on() < sent {}
    // What is said now goes straight on.
    bench.send(data(template, 2), b"ok");
    stream.read_exact(&mut got[..2]).unwrap();
    assert_eq!(&got[..2], b"ok");
}

#[test]
fn a_program_that_goes_without_its_bytes_is_told() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (stream, template) = bench.connect(&listener, 80);
    bench.fill(template, &[7; 0x3000]);
    drop(stream);
    bench.expect(Op::Reset);
}

#[test]
fn all_of_the_credit_may_be_used() {
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (mut stream, template) = bench.connect(&listener, 80);
    let all: Vec<u8> = (0..=250).cycle().take(BUFFER as usize).collect();
    bench.send(data(template, BUFFER), &all);
    let mut got = vec![0; all.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, all);
    let update = bench.expect(Op::CreditUpdate);
    assert_eq!(update.fwd_cnt, BUFFER);
}

/// The guest had the very ports before a program on the host asked for them.
#[test]
fn ports_that_are_taken_are_not_given_again() {
    let mut bench = Bench::new();
    let first = 1 << 30;
    let listener = bench.listen(first);
    bench.send(header(Op::Request, 52, first), &[]);
    bench.expect(Op::Response);
    let (mut stream, _) = listener.accept().unwrap();
    ends(&mut bench.dial("CONNECT 52\n"), "taken");
    // The one that there was goes on, and the next has the next port.
    stream.write_all(b"on").unwrap();
    assert_eq!(bench.packet().1, b"on");
    let _next = bench.dial("CONNECT 52\n");
    assert_eq!(bench.expect(Op::Request).src_port, first + 1);
}

#[test]
fn connections_are_bounded_and_one_that_ends_gives_way() {
    const MOST: usize = 256;
    let mut bench = Bench::new();
    let listener = bench.listen(80);
    let (stream, _) = bench.connect(&listener, 80);
    drop(stream);
    // In one word, or in two where its end is seen before its going.
    while bench.expect(Op::Shutdown).flags != SHUTDOWN_SEND | SHUTDOWN_RECEIVE {}
    // The guest has not said the last word, so this one counts until room is needed.
    let mut streams: Vec<_> = (1..MOST).map(|_| bench.dial("")).collect();
    streams.push(bench.dial("CONNECT 52\n"));
    assert_eq!(bench.expect(Op::Request).dst_port, 52);
    ends(&mut bench.dial(""), "one too many");
    bench.send(header(Op::Request, 5001, 80), &[]);
    bench.expect(Op::Reset);
    streams.remove(0);
    let _last = bench.dial("CONNECT 53\n");
    assert_eq!(bench.expect(Op::Request).dst_port, 53);
}
