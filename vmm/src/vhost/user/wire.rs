//! One side of a connection, with a deadline for every message: whoever is at the other
//! end may be slow, hung or hostile.
//!
//! The `vhost` crate has a front end, too. It asks again for as long as nothing comes, so
//! that a thread that called it could be had back by nobody; of it, only the messages are
//! used here.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};

use crate::epoll::Until;

/// Bytes of a message's header: request, flags, bytes of what follows; each of 32 bits, in
/// the order of the host.
pub(super) const HEADER: usize = 12;
/// The most bytes of what follows it, of any message that we know.
pub(super) const MAX_BODY: usize = 512;
/// The most descriptors that come or go with one: one for each region of memory.
const MAX_FILES: usize = 16;

/// The version, in the lowest two bits of the flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// By which a thread that waits for a back end is told to give up.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<OwnedFd>);

impl Cancel {
    /// One that was not called for yet.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(event)))
    }

    /// From here on, nobody waits any more.
    pub fn call(&self) {
        // Fails only when the counter is full, and then it is called already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    /// Bytes that follow.
    pub(super) size: usize,
}

impl Header {
    pub(super) fn request(request: u32, wants_reply: bool, size: usize) -> Self {
        Self {
            request,
            flags: VERSION | if wants_reply { NEED_REPLY } else { 0 },
            size,
        }
    }

    /// Of the answer to it.
    pub(super) fn reply(request: u32, size: usize) -> Self {
        Self {
            request,
            flags: VERSION | REPLY,
            size,
        }
    }

    pub(super) fn is_reply(self) -> bool {
        self.flags & REPLY != 0
    }

    pub(super) fn wants_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let size = u32::try_from(self.size).unwrap_or(u32::MAX);
        let words = [self.request, self.flags, size];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// # Errors
    /// When the version or the size is none.
    pub(super) fn parse(bytes: [u8; HEADER]) -> io::Result<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let flags = u32::from_ne_bytes([e, f, g, h]);
        let size = usize::try_from(u32::from_ne_bytes([i, j, k, l])).ok();
        match size.filter(|size| *size <= MAX_BODY) {
            Some(size) if flags & VERSION_MASK == VERSION => Ok(Self {
                request: u32::from_ne_bytes([a, b, c, d]),
                flags,
                size,
            }),
            _ => Err(wrong("a message that is none")),
        }
    }
}

/// The back end doesn't keep to the protocol.
pub(super) fn wrong(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the back end sent {what}"),
    )
}

fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the back end closed the connection",
    )
}

/// Connects to a back end. Nobody waits: one that has too many waiting is an error.
///
/// # Errors
/// When nobody listens there, or may be reached.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A connection.
pub(super) struct Wire {
    socket: UnixStream,
    cancel: Cancel,
}

impl Wire {
    pub(super) fn new(socket: UnixStream, cancel: Cancel) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, cancel })
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Waits for an event of the socket.
    fn wait(&self, what: PollFlags, until: Until) -> io::Result<()> {
        loop {
            let mut fds = [
                PollFd::new(&self.socket, what),
                PollFd::new(&*self.cancel.0, PollFlags::IN),
            ];
            let left = until.left();
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            if !fds[1].revents().is_empty() {
                return Err(io::Error::other("the device is gone"));
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            if until.is_over() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the back end doesn't answer",
                ));
            }
        }
    }

    /// Whether the back end has closed its side, or is gone: it has let go of all that it
    /// was given.
    pub(super) fn is_closed(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        polled.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Says that there will be no more: a back end that is at work then closes its side.
    pub(super) fn hang_up(&self) {
        // It fails where the other side is gone.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    pub(super) fn send(
        &self,
        header: Header,
        body: &[u8],
        files: &[BorrowedFd<'_>],
        until: Until,
    ) -> io::Result<()> {
        let message = [&header.to_bytes(), body].concat();
        let mut sent = 0;
        while sent < message.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // With the first byte.
            if sent == 0
                && !files.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(files))
            {
                return Err(io::Error::other("too many descriptors"));
            }
            let part = [IoSlice::new(&message[sent..])];
            match sendmsg(&self.socket, &part, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, until)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(closed()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) fn receive_all(
        &self,
        mut bytes: &mut [u8],
        files: &mut Vec<OwnedFd>,
        until: Until,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut part = [IoSliceMut::new(bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let count = match recvmsg(&self.socket, &mut part, &mut control, flags) {
                Ok(received) if received.bytes == 0 => return Err(closed()),
                Ok(received) => received.bytes,
                Err(Errno::AGAIN) => {
                    self.wait(PollFlags::IN, until)?;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Err(closed()),
                Err(error) => return Err(error.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    files.extend(more);
                }
            }
            if files.len() > MAX_FILES {
                return Err(wrong("too many descriptors"));
            }
            bytes = &mut bytes[count..];
        }
        Ok(())
    }

    /// Waits for the answer to a request, of at most so many bytes.
    pub(super) fn receive(
        &self,
        request: u32,
        most: usize,
        until: Until,
    ) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let (mut header, mut files) = ([0; HEADER], Vec::new());
        self.receive_all(&mut header, &mut files, until)?;
        let header = Header::parse(header)?;
        if header.request != request || !header.is_reply() || header.size > most {
            return Err(wrong("another answer than was asked for"));
        }
        let mut body = vec![0; header.size];
        self.receive_all(&mut body, &mut files, until)?;
        Ok((body, files))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may start threads")]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Wire, UnixStream, Cancel) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let cancel = Cancel::new().unwrap();
        (Wire::new(ours, cancel.clone()).unwrap(), theirs, cancel)
    }

    fn soon() -> Until {
        Until::At(Instant::now() + Duration::from_millis(20))
    }

    fn later() -> Until {
        Until::At(Instant::now() + Duration::from_secs(30))
    }

    #[test]
    fn a_message_is_what_the_protocol_says() {
        let (wire, mut theirs, _) = pair();
        let header = Header::request(24, true, 3);
        wire.send(header, b"abc", &[], later()).unwrap();
        let mut bytes = [0; 15];
        theirs.read_exact(&mut bytes).unwrap();
        let words = [24u32, 1 | 1 << 3, 3].map(u32::to_ne_bytes).concat();
        assert_eq!(bytes[..12], words);
        assert_eq!(&bytes[12..], b"abc");
        assert_eq!(Header::parse(header.to_bytes()).unwrap(), header);
    }

    #[test]
    fn descriptors_come_along() {
        let (wire, theirs, _) = pair();
        let back = Wire::new(theirs, Cancel::new().unwrap()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let header = Header::reply(31, 1);
        back.send(header, b"x", &[file.as_fd()], later()).unwrap();
        let (body, files) = wire.receive(31, 8, later()).unwrap();
        assert_eq!((body, files.len()), (b"x".to_vec(), 1));
        let many = vec![file.as_fd(); 4 * MAX_FILES];
        assert!(back.send(header, b"x", &many, later()).is_err());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (wire, theirs, cancel) = pair();
        let error = wire.receive(1, 8, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let header = Header::request(1, false, MAX_BODY);
        let full = std::iter::repeat_with(|| wire.send(header, &[0; MAX_BODY], &[], soon()))
            .take(10_000)
            .find_map(Result::err);
        assert_eq!(full.unwrap().kind(), io::ErrorKind::TimedOut);
        assert!(!wire.is_closed());
        let waits = std::thread::spawn(move || (wire.receive(1, 8, Until::Event), wire));
        cancel.call();
        let (answer, wire) = waits.join().unwrap();
        assert_eq!(answer.unwrap_err().to_string(), "the device is gone");
        drop(theirs);
        assert!(wire.is_closed());
    }

    #[test]
    fn a_back_end_that_is_gone_is_told_from_one_that_is_slow() {
        let (wire, theirs, _) = pair();
        wire.hang_up();
        assert!(!wire.is_closed(), "it may still be at work");
        drop(theirs);
        assert!(wire.is_closed());
        let error = wire.receive(1, 8, later()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (wire, theirs, _) = pair();
        drop(theirs);
        let header = Header::request(1, false, 0);
        let error = wire.send(header, &[], &[], later()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nobody_listens_there() {
        let folder = tempfile::tempdir().unwrap();
        let error = connect(&folder.path().join("socket")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let long = Path::new("/").join("x".repeat(200));
        assert!(connect(&long).is_err());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_an_answer_or_an_error(bytes: Vec<u8>, request in 0u32..48) {
            let (wire, mut theirs, _) = pair();
            theirs.write_all(&bytes).unwrap();
            drop(theirs);
            if let Ok((body, _)) = wire.receive(request, 72, later()) {
                prop_assert!(body.len() <= 72);
            }
        }
    }
}
