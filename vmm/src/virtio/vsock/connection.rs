//! One connection: a Unix stream on the host, a port on each side, and credit both
//! ways.
//!
//! ```text
//!  host connects ─► Greeting ─"CONNECT port"─► Requested ─RESPONSE─┐
//!  guest connects ─REQUEST─► (stream to path_port) ─RESPONSE──────► Connected
//!                                                                   │ both ends closed
//!  Gone ◄── RST, either way ◄────────── Closing ◄─ SHUTDOWN ◄───────┘
//! ```
//!
//! Virtio 1.2, section 5.10.6: a side sends no more than the other said it takes
//! (5.10.6.3), and half-closes are sent as SHUTDOWN (5.10.6.5).

#![allow(unsafe_code, reason = "readv(2) and writev(2) on guest memory")]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use bitflags::bitflags;
use vmm_sys_util::epoll::EventSet;

use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::memory::Segments;

/// Bytes from the guest that we hold while the host's program doesn't read: what
/// the guest sees as our `buf_alloc`, and the most that a connection allocates.
pub(super) const BUFFER: u32 = 64 * 1024;

/// The most bytes of one packet to the guest.
const MAX_PAYLOAD: usize = 64 * 1024;

/// Bytes handed on after which the guest gets a credit update, if no packet went there anyway.
const UPDATE: u32 = BUFFER / 4;

/// The longest first line: `CONNECT 4294967295` and the end of line.
const MAX_GREETING: usize = 32;

/// The ports of a connection: no two have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host's program has not yet said which port it wants.
    Greeting,
    /// The guest has not yet answered.
    Requested,
    /// Bytes flow.
    Connected,
    /// All is said from our side; the guest has the last word.
    Closing,
    /// To be dropped.
    Gone,
}

bitflags! {
    /// Packets to be sent.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Pending: u8 {
        const RESET = 1;
        const REQUEST = 2;
        const RESPONSE = 4;
        const CREDIT_UPDATE = 8;
    }
}

/// A connection.
pub(super) struct Connection {
    stream: UnixStream,
    pub(super) key: Key,
    pub(super) phase: Phase,
    pending: Pending,
    /// What epoll said and no system call has denied since.
    readable: bool,
    hung_up: bool,
    /// The host's program sends no more.
    ended: bool,
    /// Shutdown flags sent to the guest, and received from it.
    told_shutdown: u32,
    guest_shutdown: u32,
    /// Bytes from the guest that the host's program has not taken.
    backlog: VecDeque<u8>,
    /// Bytes handed on to the host's program, and how many the guest knows of.
    forwarded: u32,
    told_forwarded: u32,
    /// Bytes sent to the guest, and what it takes: its `buf_alloc` and `fwd_cnt`.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    /// The guest was asked for credit and has not said anything since.
    asked: bool,
    /// Is in the queue of those that may have something to send.
    pub(super) queued: bool,
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> i32 {
        self.stream.as_raw_fd()
    }
}

impl Connection {
    fn new(stream: UnixStream, key: Key, phase: Phase, pending: Pending) -> Self {
        Self {
            stream,
            key,
            phase,
            pending,
            readable: true,
            hung_up: false,
            ended: false,
            told_shutdown: 0,
            guest_shutdown: 0,
            backlog: VecDeque::new(),
            forwarded: 0,
            told_forwarded: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            asked: false,
            queued: false,
        }
    }

    /// A program on the host has connected; it speaks first.
    pub(super) fn from_host(stream: UnixStream, host_port: u32) -> Self {
        let key = Key {
            host_port,
            guest_port: 0,
        };
        Self::new(stream, key, Phase::Greeting, Pending::empty())
    }

    /// The guest has connected to a program on the host.
    pub(super) fn from_guest(stream: UnixStream, key: Key, request: &Header) -> Self {
        let mut connection = Self::new(stream, key, Phase::Connected, Pending::RESPONSE);
        connection.take_credit(request);
        connection
    }

    /// What epoll says. Returns the port that the host's program asks for, when it
    /// has just done so.
    pub(super) fn on_event(&mut self, events: EventSet) -> Option<u32> {
        self.readable |= events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        self.hung_up |= events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.readable |= self.hung_up;
        if self.phase == Phase::Greeting {
            return self.greet();
        }
        if events.contains(EventSet::OUT) {
            self.flush();
        }
        None
    }

    /// Reads the first line, once all of it is there, and not a byte more.
    fn greet(&mut self) -> Option<u32> {
        let mut line = [0; MAX_GREETING];
        // SAFETY: the pointer and length are those of `line`.
        let peeked = unsafe {
            libc::recv(
                self.stream.as_raw_fd(),
                line.as_mut_ptr().cast(),
                line.len(),
                libc::MSG_PEEK,
            )
        };
        let got = match usize::try_from(peeked) {
            Ok(got) if got > 0 => &line[..got],
            Err(_) if would_block() => return None,
            _ => {
                self.phase = Phase::Gone;
                return None;
            }
        };
        let end = got.iter().position(|byte| *byte == b'\n');
        let port = end.and_then(|end| parse_greeting(&got[..end]));
        match (end, port) {
            (Some(end), Some(port)) => {
                // These bytes are there, as they were just seen.
                let mut seen = [0; MAX_GREETING];
                if self.stream.read_exact(&mut seen[..=end]).is_ok() {
                    self.key.guest_port = port;
                    self.phase = Phase::Requested;
                    self.pending |= Pending::REQUEST;
                    return Some(port);
                }
                self.phase = Phase::Gone;
            }
            (None, _) if got.len() < MAX_GREETING && !self.hung_up => {}
            _ => self.phase = Phase::Gone,
        }
        None
    }

    /// A packet from the guest.
    pub(super) fn receive(&mut self, header: &Header, payload: &mut Segments) {
        self.take_credit(header);
        match (Op::of(header.op), self.phase) {
            (Some(Op::Reset), _) => self.phase = Phase::Gone,
            // Broken off, and the guest is about to hear of it.
            _ if self.pending.contains(Pending::RESET) => {}
            (Some(Op::Response), Phase::Requested) => {
                self.phase = Phase::Connected;
                let answer = format!("OK {}\n", self.key.host_port);
                // The first bytes of a stream always find room.
                if self.stream.write_all(answer.as_bytes()).is_err() {
                    self.reset();
                }
            }
            (Some(Op::Data), Phase::Connected) if self.guest_shutdown & SHUTDOWN_SEND == 0 => {
                self.take(payload);
            }
            // On its way when we said that nobody is there any more.
            (Some(Op::Data), Phase::Closing) => {}
            (Some(Op::CreditUpdate), Phase::Connected | Phase::Closing) => {}
            (Some(Op::CreditRequest), Phase::Connected | Phase::Closing) => {
                self.pending |= Pending::CREDIT_UPDATE;
            }
            (Some(Op::Shutdown), Phase::Connected | Phase::Closing) => {
                self.guest_shutdown |= header.flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
                self.settle();
            }
            _ => self.reset(),
        }
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        self.asked = false;
    }

    /// Resets the connection; the guest gets an RST.
    pub(super) fn reset(&mut self) {
        self.pending = Pending::RESET;
    }

    /// Hands the guest's bytes on, and keeps what the host's program doesn't take
    /// yet. A guest that sends more than it was allowed to is cut off.
    fn take(&mut self, payload: &mut Segments) {
        if payload.length() + self.backlog.len() > BUFFER as usize {
            return self.reset();
        }
        if self.backlog.is_empty() {
            match send(&self.stream, payload) {
                Ok(count) => {
                    self.forward(count);
                    payload.trim_front(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.reset(),
            }
        }
        let mut rest = vec![0; payload.length()];
        payload.copy_out(0, &mut rest);
        self.backlog.extend(rest);
    }

    /// Hands on what was kept.
    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match self.stream.write(self.backlog.as_slices().0) {
                // It is never 0, nor interrupted, as it doesn't wait.
                Ok(count) if count > 0 => {
                    self.backlog.drain(..count);
                    self.forward(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return self.reset(),
            }
        }
        self.settle();
    }

    fn forward(&mut self, count: usize) {
        // At most a buffer's worth.
        let count = u32::try_from(count).unwrap_or(BUFFER);
        self.forwarded = self.forwarded.wrapping_add(count);
        if self.forwarded.wrapping_sub(self.told_forwarded) >= UPDATE {
            self.pending |= Pending::CREDIT_UPDATE;
        }
    }

    /// Passes on the guest's half-closes, once all it sent is handed on.
    fn settle(&mut self) {
        if self.guest_shutdown == 0 || !self.backlog.is_empty() {
            return;
        }
        // A stream that is closed already is closed enough.
        if self.guest_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
            // Section 5.10.6.5: the last word of a clean end.
            self.reset();
        } else if self.guest_shutdown == SHUTDOWN_SEND {
            let _ = self.stream.shutdown(Shutdown::Write);
        } else {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
    }

    /// The next packet for the guest, if there is one; data are read into `room`.
    pub(super) fn next(&mut self, room: &mut Segments) -> Option<Header> {
        if self.pending.contains(Pending::RESET) {
            self.phase = Phase::Gone;
            return Some(self.header(Op::Reset));
        }
        for (pending, op) in [
            (Pending::REQUEST, Op::Request),
            (Pending::RESPONSE, Op::Response),
            (Pending::CREDIT_UPDATE, Op::CreditUpdate),
        ] {
            if self.pending.contains(pending) {
                self.pending -= pending;
                return Some(self.header(op));
            }
        }
        if self.phase == Phase::Requested && self.hung_up {
            // The host's program did not wait.
            self.reset();
            return self.next(room);
        }
        if self.phase != Phase::Connected {
            return None;
        }
        if !self.ended
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && let Some(header) = self.read(room)
        {
            return Some(header);
        }
        self.shutdown()
    }

    /// Bytes that the guest takes now. What it says may make no sense: then none.
    fn credit(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(on_the_way)
    }

    /// Data from the host's program, or the request for credit.
    fn read(&mut self, room: &mut Segments) -> Option<Header> {
        if !self.readable {
            return None;
        }
        let credit = usize::try_from(self.credit()).unwrap_or(MAX_PAYLOAD);
        if credit == 0 {
            let ask = !std::mem::replace(&mut self.asked, true);
            return ask.then(|| self.header(Op::CreditRequest));
        }
        room.truncate(credit.min(MAX_PAYLOAD));
        match receive(&self.stream, room) {
            Ok(0) => {
                self.ended = true;
                None
            }
            Ok(count) => {
                let len = u32::try_from(count).unwrap_or(0);
                self.sent = self.sent.wrapping_add(len);
                Some(Header {
                    len,
                    ..self.header(Op::Data)
                })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            Err(_) => {
                self.reset();
                self.next(room)
            }
        }
    }

    /// Tells the guest of the host's half-closes.
    fn shutdown(&mut self) -> Option<Header> {
        // Nobody reads on for a guest that doesn't want to hear more.
        let deaf = self.guest_shutdown & SHUTDOWN_RECEIVE != 0;
        let mut flags = 0;
        if self.ended || (deaf && self.hung_up) {
            flags |= SHUTDOWN_SEND;
            if self.hung_up {
                flags |= SHUTDOWN_RECEIVE;
                self.phase = Phase::Closing;
                self.backlog.clear();
            }
        }
        if flags & !self.told_shutdown == 0 {
            return None;
        }
        self.told_shutdown |= flags;
        Some(Header {
            flags,
            ..self.header(Op::Shutdown)
        })
    }

    /// A header, but for the addresses.
    fn header(&mut self, op: Op) -> Header {
        self.told_forwarded = self.forwarded;
        Header {
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            op: op as u16,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }
}

/// The port in `CONNECT port`.
fn parse_greeting(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let (word, port) = line.trim_end_matches('\r').split_once(' ')?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    (word.eq_ignore_ascii_case("connect") && digits).then(|| port.parse().ok())?
}

fn would_block() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// Sends what the socket takes, and no SIGPIPE.
fn send(stream: &UnixStream, payload: &Segments) -> io::Result<usize> {
    // SAFETY: a `msghdr` of zeroes is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = payload.as_slice().as_ptr().cast_mut();
    message.msg_iovlen = payload.as_slice().len();
    // SAFETY: the segments are valid guest memory (see `Segments`), which sendmsg
    // only reads.
    let sent = unsafe {
        libc::sendmsg(
            stream.as_raw_fd(),
            &raw const message,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what is there.
fn receive(stream: &UnixStream, room: &Segments) -> io::Result<usize> {
    let list = room.as_slice();
    let count = i32::try_from(list.len()).unwrap_or(i32::MAX);
    // SAFETY: the segments are valid guest memory (see `Segments`).
    let got = unsafe { libc::readv(stream.as_raw_fd(), list.as_ptr(), count) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_a_word_and_a_port() {
        for (line, port) in [
            ("CONNECT 52", Some(52)),
            ("connect 4294967295\r", Some(u32::MAX)),
            ("CONNECT 4294967296", None),
            ("CONNECT -1", None),
            ("CONNECT +1", None),
            ("CONNECT ", None),
            ("CONNECT", None),
            ("GET 1", None),
            ("\u{fffd}", None),
        ] {
            assert_eq!(parse_greeting(line.as_bytes()), port, "{line}");
        }
    }
}
