//! What passes between a process that hands its machine over and the one that takes it,
//! on a socket that the second one made (`run::take_over` has the whole exchange).
//!
//! A message is its length (64 bits, little endian) and JSON, and open files come with its
//! first byte; guest memory is runs of pages ([`Ram::send`]), the state a length and a
//! sealed state. What is said after that is single bytes ([`Word`]): none can come by
//! halves.
//!
//! [`Ram::send`]: crate::memory::Ram::send

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, send, sendmsg,
};
use serde::{Deserialize, Serialize};

/// The largest message in bytes: it names one thing.
const MAX_MESSAGE: u64 = 4096;
/// The largest state in bytes, as in a file.
const MAX_STATE: u64 = 16 << 20;
/// The most open files with one message: the queues of an interface, regions of memory.
const MAX_FILES: usize = 32;

/// What comes with open files, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// A listening socket, by the flag that names its path.
    Socket(String),
    /// What a device is made of, by its id.
    Device(String),
    /// Guest memory that is shared, a file for each region.
    Memory,
    /// That was all. Whether the machine runs once it is taken.
    Prepared {
        /// It was paused for this alone.
        runs: bool,
    },
}

/// What is said about the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// By who takes it: all of it is here, and could run.
    Ready = b'r',
    /// By who hands it over: from here on it never runs there again.
    Yours = b'y',
    /// By who took it: it runs, or is held as it was.
    Taken = b't',
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends a message.
///
/// # Errors
/// When nobody is there, or takes it in time.
pub fn say(stream: &mut UnixStream, message: &Message, files: &[OwnedFd]) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = (json.len() as u64).to_le_bytes();
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(wrong("too many open files for one message"));
    }
    let (first, rest) = length.split_at(1);
    let flags = SendFlags::NOSIGNAL;
    sendmsg(&*stream, &[IoSlice::new(first)], &mut ancillary, flags)?;
    stream.write_all(rest)?;
    stream.write_all(&json)
}

/// Receives a message, and what came with it.
///
/// # Errors
/// When nobody is there, nothing comes in time, or it is no message.
pub fn hear(stream: &mut UnixStream) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut length = [0; 8];
    let mut first = [IoSliceMut::new(&mut length[..1])];
    let flags = RecvFlags::CMSG_CLOEXEC;
    if recvmsg(&*stream, &mut first, &mut ancillary, flags)?.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut files = Vec::new();
    for one in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = one {
            files.extend(some);
        }
    }
    stream.read_exact(&mut length[1..])?;
    let json = read(stream, u64::from_le_bytes(length), MAX_MESSAGE)?;
    Ok((serde_json::from_slice(&json)?, files))
}

/// Sends a state.
///
/// # Errors
/// As [`say`].
pub fn send_state(stream: &mut UnixStream, state: &[u8]) -> io::Result<()> {
    stream.write_all(&(state.len() as u64).to_le_bytes())?;
    stream.write_all(state)
}

/// Receives a state, still sealed.
///
/// # Errors
/// As [`hear`].
pub fn receive_state(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    read(stream, u64::from_le_bytes(length), MAX_STATE)
}

fn read(stream: &mut UnixStream, length: u64, most: u64) -> io::Result<Vec<u8>> {
    if length > most {
        return Err(wrong("a message that is too long"));
    }
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

impl Word {
    /// Says it, without waiting.
    ///
    /// # Errors
    /// When nobody is there.
    pub fn say(self, stream: &UnixStream) -> io::Result<()> {
        send(
            stream,
            &[self as u8],
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        Ok(())
    }

    /// Whether it has been said; waits for that if `flags` don't say otherwise. False:
    /// not yet.
    ///
    /// # Errors
    /// When who should say it is gone, or says something else.
    pub fn is_said(self, stream: &UnixStream, flags: RecvFlags) -> io::Result<bool> {
        let mut byte = [0];
        match recv(stream, &mut byte, flags) {
            Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == [self as u8] => Ok(true),
            Ok(_) => Err(wrong("another word than the one that was due")),
            Err(rustix::io::Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => Ok(false),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_with_its_files() {
        let (mut one, mut other) = UnixStream::pair().expect("sockets");
        let files: Vec<OwnedFd> = (0..MAX_FILES)
            .map(|_| tempfile::tempfile().expect("a file").into())
            .collect();
        let messages = [
            (Message::Socket("--socket".to_owned()), 1),
            (Message::Device("disk0".to_owned()), MAX_FILES),
            (Message::Memory, 0),
            (Message::Prepared { runs: true }, 0),
        ];
        for (message, count) in &messages {
            say(&mut one, message, &files[..*count]).expect("said");
        }
        send_state(&mut one, b"state").expect("sent");
        Word::Ready.say(&one).expect("said");
        for (message, count) in messages {
            let (heard, files) = hear(&mut other).expect("heard");
            assert_eq!((heard, files.len()), (message, count));
        }
        assert_eq!(receive_state(&mut other).expect("received"), b"state");
        let flags = RecvFlags::DONTWAIT;
        assert!(Word::Ready.is_said(&other, flags).expect("said"));
        assert!(!Word::Yours.is_said(&other, flags).expect("not yet"));
        Word::Taken.say(&one).expect("said");
        assert!(Word::Yours.is_said(&other, flags).is_err());
        drop(one);
        assert!(Word::Yours.is_said(&other, flags).is_err());
    }

    #[test]
    fn what_is_cut_short_or_has_no_end_is_refused() {
        let said = |bytes: &[u8]| {
            let (mut one, other) = UnixStream::pair().expect("sockets");
            one.write_all(bytes).expect("sent");
            other
        };
        let mut whole = 8u64.to_le_bytes().to_vec();
        whole.extend(b"\"memory\"");
        assert!(hear(&mut said(&whole)).is_ok());
        for end in 0..whole.len() {
            assert!(hear(&mut said(&whole[..end])).is_err());
        }
        for length in [MAX_MESSAGE + 1, MAX_STATE + 1, u64::MAX] {
            let bytes = length.to_le_bytes();
            assert!(hear(&mut said(&bytes)).is_err());
            assert!(receive_state(&mut said(&bytes)).is_err());
        }
    }
}
