//! What passes between a process that hands its machine over and the one that takes it,
//! on a socket that the second one made (`run::take_over` has the whole exchange).
//!
//! A message is its length (64 bits, little endian) and JSON, and open files come with its
//! first byte; guest memory is runs of pages ([`Ram::send`]), the state a length and a
//! sealed state. What is said after that is single bytes ([`Word`]): none can come by
//! halves.
//!
//! [`Ram::send`]: crate::memory::Ram::send

#![allow(unsafe_code, reason = "SO_PASSCRED, SCM_CREDENTIALS")]

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, send, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::listener::Peer;

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
    /// What a reset boots: the kernel, and the initial RAM disk if there is one.
    Software,
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

/// Has the kernel say with each byte from here on who sent it, to [`Word::wait`]. Whoever
/// hears messages with open files must have heard the last of them.
///
/// # Errors
/// As setsockopt(2).
pub fn ask_who(stream: &UnixStream) -> io::Result<()> {
    let yes: libc::c_int = 1;
    // SAFETY: the pointer is to a live value of the size that is said.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const yes).cast(),
            libc::socklen_t::try_from(size_of_val(&yes)).map_err(io::Error::other)?,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One byte, and who sent it: unix(7), `SCM_CREDENTIALS`. rustix can't say it of a process
/// that has no id here.
fn receive_byte(stream: &UnixStream) -> io::Result<Option<(u8, Option<Peer>)>> {
    let mut byte = 0;
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let mut space = [0u64; 8];
    // SAFETY: all zeros are a value of this plain structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space);
    // SAFETY: everything that the structure points to is alive, and as long as it says.
    let count =
        unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    match count {
        0 => return Ok(None),
        1.. => {}
        _ => return Err(io::Error::last_os_error()),
    }
    // SAFETY: the kernel has filled the structure in; its first header is null or within.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let sent = header.filter(|header| {
        header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_CREDENTIALS
    });
    let sent = sent.and_then(|header| {
        // SAFETY: that is what is behind a header of this type; it may lie anywhere.
        let sent = unsafe {
            libc::CMSG_DATA(header)
                .cast::<libc::ucred>()
                .read_unaligned()
        };
        let pid = u32::try_from(sent.pid).ok()?;
        Some(Peer { pid, uid: sent.uid })
    });
    Ok(Some((byte, sent)))
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

    /// Waits until it has been said, and by whom, if the kernel [says so](ask_who).
    ///
    /// # Errors
    /// As [`Self::is_said`], and when it isn't said in time.
    pub fn wait(self, stream: &UnixStream) -> io::Result<Option<Peer>> {
        loop {
            match receive_byte(stream) {
                Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Some((byte, who))) if byte == self as u8 => return Ok(who),
                Ok(Some(_)) => return Err(wrong("another word than the one that was due")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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
            (Message::Software, 2),
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
    fn the_kernel_says_who_said_a_word() {
        let (one, mut other) = UnixStream::pair().expect("sockets");
        Word::Ready.say(&one).expect("said");
        assert_eq!(Word::Ready.wait(&other).expect("said"), None);
        ask_who(&other).expect("asked");
        // What is only read doesn't mind.
        send_state(&mut one.try_clone().expect("a socket"), b"state").expect("sent");
        assert_eq!(receive_state(&mut other).expect("received"), b"state");
        Word::Yours.say(&one).expect("said");
        let who = Word::Yours.wait(&other).expect("said").expect("who");
        assert_eq!(who.pid, std::process::id());
        assert_eq!(who.uid, rustix::process::geteuid().as_raw());
        Word::Yours.say(&one).expect("said");
        assert!(Word::Taken.wait(&other).is_err());
        drop(one);
        assert!(Word::Taken.wait(&other).is_err());
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
