//! What lies between the queues, the listening socket and the connections.

#![allow(unsafe_code, reason = "readv(2) and writev(2) on guest memory")]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, Key, Phase};
use super::packet::{HEADER_SIZE, HOST_CID, Header, Op, STREAM};
use super::{EVENT, RECEIVE, TRANSMIT, VsockCounters};
use crate::epoll::Until;
use crate::memory::Segments;
use crate::virtio::queue::{Broken, Buffers, Ring};
use crate::virtio::quiet::{Quiet, Why};
use crate::virtio::thread::{Events, Service};
use crate::virtio::{Activation, ActiveQueue, Interrupt};

/// The most connections: each costs a file descriptor and up to a buffer.
const MAX_CONNECTIONS: usize = 256;

/// The most answers to packets of no connection that wait for room; with so many,
/// the guest's next packets wait too.
const MAX_ANSWERS: usize = 64;

/// The most packets of one direction before the other has its turn.
const BATCH: usize = 64;

/// The first port that programs on the host are seen to connect from.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Tokens: the doorbells' are those of their queues, 0 to 2, and those of connections
/// follow the listener's.
const LISTENER: u64 = 3;
const FIRST_CONNECTION: u64 = 4;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, the only event there is: the driver ends its
/// streams and reads its CID again. Section 5.10.6.7.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();
/// Bytes of an event.
const EVENT_SIZE: u32 = 4;

/// What the device is made of.
pub(super) struct Parts {
    pub(super) cid: u64,
    pub(super) path: PathBuf,
    pub(super) listener: Arc<UnixListener>,
    pub(super) counters: Arc<VsockCounters>,
    /// Whether it goes on where another was, which only the next start asks.
    pub(super) is_copy: Arc<AtomicBool>,
}

/// The device on its thread.
pub(super) struct Hub {
    cid: u64,
    path: PathBuf,
    listener: Arc<UnixListener>,
    counters: Arc<VsockCounters>,
    is_copy: Arc<AtomicBool>,
    /// The driver is to hear that the streams it knows of are gone.
    reset_due: bool,
    events: Events,
    /// From start to stop.
    serving: Option<Serving>,
    connections: Vec<Option<Connection>>,
    by_key: BTreeMap<Key, usize>,
    /// Places of connections that may have something for the guest.
    ready: VecDeque<usize>,
    /// Answers to packets of no connection.
    answers: VecDeque<Header>,
    next_host_port: u32,
    /// What there is to do: programs that connect, packets from and to the guest.
    due: Due,
}

/// The driver's queues.
struct Serving {
    interrupt: Arc<dyn Interrupt>,
    receive: Ring,
    transmit: Ring,
    event: Ring,
}

#[derive(Clone, Copy)]
struct Due {
    accept: bool,
    transmit: bool,
    receive: bool,
}

impl Due {
    const ALL: Self = Self {
        accept: true,
        transmit: true,
        receive: true,
    };
}

impl Serving {
    /// Has the driver end its streams. Returns whether that is still due: with no room,
    /// its next buffer rings.
    fn send_reset(&mut self) -> Result<bool, Broken> {
        let mut buffers = Buffers::default();
        let head = match self.event.pop(&mut buffers)? {
            None if self.event.enable_notification() => self.event.pop(&mut buffers)?,
            head => head,
        };
        let Some(head) = head else {
            return Ok(true);
        };
        let written = buffers.writable.copy_in(0, &TRANSPORT_RESET);
        if written < TRANSPORT_RESET.len() || buffers.readable.length() > 0 {
            return Err(Broken::Request);
        }
        self.event.push_used(head, EVENT_SIZE);
        if self.event.wants_interrupt() {
            self.interrupt.queue(EVENT);
        }
        Ok(false)
    }
}

impl Hub {
    /// # Errors
    /// When a doorbell or the listener can't be watched.
    pub(super) fn new(
        parts: Parts,
        doorbells: &[Arc<EventFd>],
        events: Events,
    ) -> io::Result<Self> {
        let Parts {
            cid,
            path,
            listener,
            counters,
            is_copy,
        } = parts;
        events.watch_doorbells(doorbells)?;
        events.watch(listener.as_ref(), LISTENER, EventSet::IN)?;
        Ok(Self {
            cid,
            path,
            listener,
            counters,
            is_copy,
            reset_due: false,
            events,
            serving: None,
            connections: Vec::new(),
            by_key: BTreeMap::new(),
            ready: VecDeque::new(),
            answers: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            due: Due::ALL,
        })
    }

    /// Moves packets.
    fn serve(&mut self, serving: &mut Serving) -> Result<bool, Broken> {
        if self.reset_due {
            self.reset_due = serving.send_reset()?;
        }
        if std::mem::take(&mut self.due.accept) {
            self.accept();
        }
        if self.due.transmit {
            self.due.transmit = self.take(serving)?;
        }
        if self.due.receive || !self.answers.is_empty() || !self.ready.is_empty() {
            self.due.receive = self.feed(serving)?;
        }
        // Answers that wait for room keep the guest's packets waiting, and then
        // the doorbell of the receive queue comes first. Tests don't see whether the
        // thread waits or looks again, as long as it comes back.
        let stuck = self.answers.len() >= MAX_ANSWERS && !self.due.receive;
        Ok(self.due.receive || (self.due.transmit && !stuck))
    }

    /// Takes packets from the guest. Returns whether there are more.
    fn take(&mut self, serving: &mut Serving) -> Result<bool, Broken> {
        serving.transmit.disable_notification();
        let mut more = true;
        let mut buffers = Buffers::default();
        for _ in 0..BATCH {
            if self.answers.len() >= MAX_ANSWERS {
                break;
            }
            let Some(head) = serving.transmit.pop(&mut buffers)? else {
                more = serving.transmit.enable_notification();
                break;
            };
            let packet = &mut buffers.readable;
            let mut bytes = [0; HEADER_SIZE];
            if packet.copy_out(0, &mut bytes) < HEADER_SIZE || buffers.writable.length() > 0 {
                return Err(Broken::Request);
            }
            packet.trim_front(HEADER_SIZE);
            let header = Header::from_bytes(&bytes);
            let length = usize::try_from(header.len).map_err(|_| Broken::Request)?;
            if length > packet.length() {
                return Err(Broken::Request);
            }
            packet.truncate(length);
            self.counters.transmitted_packets.add(1);
            self.counters.transmitted_bytes.add_length(length);
            self.dispatch(&header, packet);
            serving.transmit.push_used(head, 0);
        }
        if serving.transmit.wants_interrupt() {
            serving.interrupt.queue(TRANSMIT);
        }
        Ok(more)
    }

    /// A packet from the guest to its connection, or to a new one.
    fn dispatch(&mut self, header: &Header, payload: &mut Segments) {
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let addressed =
            header.src_cid == self.cid && header.dst_cid == HOST_CID && header.kind == STREAM;
        let op = Op::of(header.op);
        let place = self.by_key.get(&key).copied().filter(|_| addressed);
        match (place, op) {
            (Some(place), _) => {
                if let Some(connection) = self.connections.get_mut(place).and_then(Option::as_mut) {
                    connection.receive(header, payload);
                }
                self.settle(place);
            }
            // A reset of nothing needs no answer, and gets none.
            (None, Some(Op::Reset)) => {}
            (None, Some(Op::Request)) if addressed && self.connect(key, header).is_ok() => {}
            (None, _) => {
                self.counters.refused.add(1);
                self.answers.push_back(header.reset_for());
            }
        }
    }

    /// The guest wants a program on the host: the one that listens at the path with
    /// `_` and the port behind it.
    fn connect(&mut self, key: Key, request: &Header) -> io::Result<()> {
        self.make_room()?;
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", key.host_port));
        let stream = connect(Path::new(&path))?;
        self.add(Connection::from_guest(stream, key, request))
    }

    /// Programs on the host have connected.
    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            // With no room the program sees the end of its stream.
            let room = self.make_room();
            if room.and_then(|()| stream.set_nonblocking(true)).is_err() {
                continue;
            }
            let port = self.next_host_port;
            self.next_host_port = port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            // Nor can it be helped if it can't be watched.
            let _ = self.add(Connection::from_host(stream, port));
        }
    }

    /// Sees to it that there is room for one more: a connection that only waits for
    /// the guest's last word gives way.
    fn make_room(&mut self) -> io::Result<()> {
        if self.connections.iter().flatten().count() < MAX_CONNECTIONS {
            return Ok(());
        }
        let closing = self.connections.iter().position(|connection| {
            connection
                .as_ref()
                .is_some_and(|connection| connection.phase == Phase::Closing)
        });
        let place = closing.ok_or(io::ErrorKind::QuotaExceeded)?;
        self.remove(place);
        Ok(())
    }

    fn add(&mut self, connection: Connection) -> io::Result<()> {
        let place = match self.connections.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.connections.push(None);
                self.connections.len() - 1
            }
        };
        let all = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
        let token = FIRST_CONNECTION + place as u64;
        self.events.watch(&connection, token, all)?;
        if connection.phase != Phase::Greeting {
            self.by_key.insert(connection.key, place);
        }
        self.connections[place] = Some(connection);
        self.counters.connections.add(1);
        self.settle(place);
        Ok(())
    }

    /// Closing its file descriptor takes it out of the epoll set too.
    fn remove(&mut self, place: usize) {
        if let Some(connection) = self.connections.get_mut(place).and_then(Option::take)
            && self.by_key.get(&connection.key) == Some(&place)
        {
            self.by_key.remove(&connection.key);
        }
        self.ready.retain(|ready| *ready != place);
    }

    fn on_connection(&mut self, token: u64, events: EventSet) {
        let place = token
            .checked_sub(FIRST_CONNECTION)
            .and_then(|place| usize::try_from(place).ok());
        let Some(place) = place else { return };
        let Some(connection) = self.connections.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        if connection.on_event(events).is_some() {
            let key = connection.key;
            if self.by_key.contains_key(&key) {
                // The guest connected from that port to that very port of ours.
                return self.remove(place);
            }
            self.by_key.insert(key, place);
        }
        self.settle(place);
    }

    /// After anything has happened to a connection: it is gone, or may have
    /// something for the guest.
    fn settle(&mut self, place: usize) {
        match self.connections.get_mut(place).and_then(Option::as_mut) {
            Some(connection) if connection.phase == Phase::Gone => self.remove(place),
            Some(connection) if !connection.queued => {
                connection.queued = true;
                self.ready.push_back(place);
            }
            _ => {}
        }
    }

    /// Gives the guest packets, as long as there are some and room for them.
    /// Returns whether there may be more of both.
    fn feed(&mut self, serving: &mut Serving) -> Result<bool, Broken> {
        let mut more = true;
        let mut buffers = Buffers::default();
        let mut front = Segments::default();
        for _ in 0..BATCH {
            if self.answers.is_empty() && self.ready.is_empty() {
                more = false;
                break;
            }
            let Some(head) = serving.receive.pop(&mut buffers)? else {
                // Starved: the driver's next buffer rings, unless it is there now.
                more = serving.receive.enable_notification();
                break;
            };
            let room = &mut buffers.writable;
            if room.length() <= HEADER_SIZE || buffers.readable.length() > 0 {
                return Err(Broken::Request);
            }
            room.split_front(HEADER_SIZE, &mut front);
            let Some(header) = self.next(room) else {
                serving.receive.unpop();
                more = false;
                break;
            };
            front.copy_in(0, &header.to_bytes());
            self.counters.received_packets.add(1);
            self.counters.received_bytes.add(header.len.into());
            // The payload is no longer than a packet's.
            let header_size = u32::try_from(HEADER_SIZE).unwrap_or(0);
            serving.receive.push_used(head, header_size + header.len);
        }
        if serving.receive.wants_interrupt() {
            serving.interrupt.queue(RECEIVE);
        }
        Ok(more)
    }

    /// The next packet for the guest: answers first, then connections in turn.
    fn next(&mut self, room: &mut Segments) -> Option<Header> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        while let Some(place) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(place).and_then(Option::as_mut) else {
                continue;
            };
            match connection.next(room) {
                Some(header) => {
                    let gone = connection.phase == Phase::Gone;
                    self.ready.push_back(place);
                    if gone {
                        self.remove(place);
                    }
                    return Some(Header {
                        src_cid: HOST_CID,
                        dst_cid: self.cid,
                        kind: STREAM,
                        ..header
                    });
                }
                None => connection.queued = false,
            }
        }
        None
    }
}

impl Service for Hub {
    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation {
            memory,
            queues,
            interrupt,
            resumed,
            ..
        } = activation;
        let [receive, transmit, event]: [ActiveQueue; 3] = queues
            .try_into()
            .map_err(|_| io::Error::other("a socket queue is not enabled"))?;
        let ring = |active: &ActiveQueue| {
            Ring::new(&active.queue, Arc::clone(&memory)).map_err(io::Error::other)
        };
        let mut receive = ring(&receive)?;
        receive.disable_notification();
        self.serving = Some(Serving {
            interrupt,
            receive,
            transmit: ring(&transmit)?,
            event: ring(&event)?,
        });
        self.due = Due::ALL;
        // A driver that starts has no streams yet.
        let is_copy = self.is_copy.swap(false, Ordering::SeqCst);
        self.reset_due = resumed && (self.reset_due || is_copy);
        Ok(())
    }

    fn on_event(&mut self, token: u64, events: EventSet) {
        match token {
            LISTENER => self.due.accept = true,
            bell if bell < LISTENER => {
                self.counters.notifications.add(1);
                self.due.receive |= bell == u64::from(RECEIVE);
                self.due.transmit |= bell == u64::from(TRANSMIT);
            }
            connection => self.on_connection(connection, events),
        }
    }

    fn work(&mut self) -> io::Result<Until> {
        let Some(mut serving) = self.serving.take() else {
            return Ok(Until::Event);
        };
        let more = self.serve(&mut serving);
        self.serving = Some(serving);
        more.map(Until::more).map_err(io::Error::other)
    }

    /// Connections outlive a machine that is held; a driver that starts again has none.
    fn stop(&mut self, why: Why, quiet: &Quiet) {
        if why == Why::Reset {
            self.connections.clear();
            self.by_key.clear();
            self.ready.clear();
            self.answers.clear();
        }
        if let Some(serving) = self.serving.take() {
            quiet.report(serving.receive.state(RECEIVE));
            quiet.report(serving.transmit.state(TRANSMIT));
            quiet.report(serving.event.state(EVENT));
        }
    }
}

/// Connects without ever waiting: a program with a full backlog has no room.
fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: a `sockaddr_un` of zeroes is a valid one.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or(0);
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: the pointer and length are those of `address`.
    let result = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(fd))
}
