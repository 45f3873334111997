//! What a back end asks for by itself: that its configuration be read again. All else is
//! refused.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use ::vhost::vhost_user::message::BackendReq;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendFlags, recvmsg, send};

use super::wire::{HEADER, Header, MAX_BODY, wrong};

/// The most messages that are read at once: somebody else has a word, too.
const BATCH: usize = 16;

/// What a back end said.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The device's configuration is another one.
    pub config_changed: bool,
    /// There may be more.
    pub more: bool,
}

/// Our side of it.
pub(super) struct Channel {
    socket: UnixStream,
    /// Whether it may want to hear that something was done.
    acknowledges: bool,
    /// What was received of the next message.
    received: Vec<u8>,
}

impl Channel {
    pub(super) fn new(socket: UnixStream, acknowledges: bool) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            acknowledges,
            received: Vec::new(),
        })
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Reads what is there.
    pub(super) fn read(&mut self) -> io::Result<Heard> {
        let mut heard = Heard::default();
        for _ in 0..BATCH {
            let Some(header) = self.next()? else {
                return Ok(heard);
            };
            let is_known = header.request == BackendReq::CONFIG_CHANGE_MSG as u32;
            heard.config_changed |= is_known;
            if header.wants_reply() && self.acknowledges {
                self.answer(header.request, !is_known)?;
            }
        }
        heard.more = true;
        Ok(heard)
    }

    /// The next message, once all of it is there.
    fn next(&mut self) -> io::Result<Option<Header>> {
        loop {
            let head = self.received.first_chunk::<HEADER>();
            let header = head.map(|head| Header::parse(*head)).transpose()?;
            let wanted = HEADER + header.map_or(0, |header| header.size);
            let has = self.received.len();
            if let Some(header) = header
                && has == wanted
            {
                self.received.clear();
                return Ok(Some(header));
            }
            let mut bytes = [0; HEADER + MAX_BODY];
            // Descriptors that come along are closed.
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut part = [IoSliceMut::new(&mut bytes[..wanted - has])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut part, &mut control, flags) {
                // Its end of this is closed; the other connection says whether it is gone.
                Ok(received) if received.bytes == 0 => return Ok(None),
                Ok(received) => self.received.extend_from_slice(&bytes[..received.bytes]),
                Err(Errno::AGAIN | Errno::CONNRESET) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn answer(&self, request: u32, failed: bool) -> io::Result<()> {
        let value = u64::from(failed).to_ne_bytes();
        let header = Header::reply(request, value.len());
        let message = [&header.to_bytes()[..], &value].concat();
        match send(&self.socket, &message, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == message.len() => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            // It asks, and doesn't read what it is answered.
            Ok(_) | Err(Errno::AGAIN) => Err(wrong("more than it reads answers to")),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours, true).unwrap(), theirs)
    }

    const CHANGED: u32 = BackendReq::CONFIG_CHANGE_MSG as u32;

    #[test]
    fn a_change_is_heard_and_what_is_unknown_refused() {
        let (mut channel, mut theirs) = pair();
        assert_eq!(channel.read().unwrap(), Heard::default());
        let other = Header::request(3, true, 16).to_bytes();
        theirs.write_all(&other).unwrap();
        theirs.write_all(&[0; 16]).unwrap();
        assert!(!channel.read().unwrap().config_changed);
        let mut answer = [0; HEADER + 8];
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..HEADER], Header::reply(3, 8).to_bytes());
        assert_eq!(answer[HEADER], 1);
        // In two parts.
        let message = Header::request(CHANGED, true, 0).to_bytes();
        theirs.write_all(&message[..5]).unwrap();
        assert!(!channel.read().unwrap().config_changed);
        theirs.write_all(&message[5..]).unwrap();
        let heard = channel.read().unwrap();
        assert!(heard.config_changed && !heard.more);
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(answer[HEADER..], [0; 8]);
        drop(theirs);
        assert_eq!(channel.read().unwrap(), Heard::default());
    }

    #[test]
    fn a_flood_is_read_in_parts_and_garbage_is_an_error() {
        let (mut channel, mut theirs) = pair();
        let message = Header::request(CHANGED, false, 0).to_bytes();
        for _ in 0..BATCH + 1 {
            theirs.write_all(&message).unwrap();
        }
        assert!(channel.read().unwrap().more);
        let rest = channel.read().unwrap();
        assert!(rest.config_changed && !rest.more);
        theirs.write_all(&[0xff; HEADER]).unwrap();
        assert!(channel.read().is_err());
    }
}
