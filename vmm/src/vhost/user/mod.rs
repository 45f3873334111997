//! vhost-user: a back end in another process serves a device's queues. It maps guest memory
//! and has the driver's doorbells and interrupts; this process only says where all that is.
//!
//! ```text
//!   open ──► Session ─ start ──► the back end serves ─ base, of each queue ──► at rest
//!   (features, queues, configuration)                                           │ start
//! ```
//!
//! The back end is trusted with guest memory, and with nothing of this process: whatever
//! it sends is bounded, and each answer has a deadline but one: that a queue is at rest.
//!
//! QEMU, `docs/interop/vhost-user.rst`.

mod channel;
mod wire;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::vhost::vhost_user::message::{
    FrontendReq, VhostUserMemoryRegion, VhostUserProtocolFeatures as Protocol, VhostUserVringAddr,
};
use virtio_queue::QueueT;
use vm_memory::{ByteValued, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use self::channel::Channel;
use self::wire::{Header, Wire};
use super::{Vring, logged_features, logged_rings, rings};
use crate::epoll::Until;
use crate::memory::{Log, Memory};

pub use self::wire::{Cancel, connect};

/// How long a back end has for an answer: it does nothing but write it. But for the first
/// ones on a busy host, a millisecond is enough.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of the configuration of a disk, as far as we know it: up to the alignment of
/// write-zeroes. Virtio 1.2, section 5.2.4.
pub const CONFIG_SIZE: usize = 60;

/// Among the features, but not one of virtio: there are protocol features.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// What a back end must know.
const NEEDED: Protocol = Protocol::CONFIG;
/// What of the rest is used where it knows it.
const USED: Protocol = Protocol::MQ
    .union(Protocol::LOG_SHMFD)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::INFLIGHT_SHMFD);

/// What a back end has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The device's features, all that it said.
    pub features: u64,
    /// The most queues.
    pub queues: u16,
    /// The device's configuration.
    pub config: [u8; CONFIG_SIZE],
}

/// Where a back end notes which requests it has taken and not done: kept here while there
/// is none, and given to the next one.
#[derive(Debug)]
pub struct Inflight {
    file: File,
    /// `VhostUserInflight`: size, offset, queues, their size.
    description: [u8; INFLIGHT_SIZE],
}

/// Bytes of `VhostUserInflight`, padded.
const INFLIGHT_SIZE: usize = 24;

/// A queue to serve, as of its first start or as it was left.
pub struct Served<'a> {
    /// Which of the device's queues.
    pub index: u16,
    /// Its rings and events.
    pub vring: Vring<'a>,
    /// The next chain to take.
    pub base: u16,
}

/// A back end that has said what it is.
pub struct Session {
    wire: Wire,
    offer: Offer,
    protocol: Protocol,
    channel: Option<Channel>,
    /// Whether it was given guest memory.
    has_memory: bool,
    /// Whether it was given a queue to serve.
    serves: bool,
    /// Where it marks what it writes.
    log: Option<Arc<Log>>,
    /// By when it must have said what it is.
    opens_until: Option<Instant>,
}

fn unfit(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.into())
}

/// In the order of the host.
fn words(words: [u32; 2]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&words[0].to_ne_bytes());
    bytes[4..].copy_from_slice(&words[1].to_ne_bytes());
    bytes
}

impl Session {
    /// Asks a back end what it is, which has so long for all of that. It must have these
    /// features of virtio.
    ///
    /// # Errors
    /// When it doesn't answer, is none, or lacks something that is needed.
    pub fn open(
        socket: UnixStream,
        needed: u64,
        cancel: Cancel,
        patience: Duration,
    ) -> io::Result<Self> {
        let mut session = Self {
            wire: Wire::new(socket, cancel)?,
            offer: Offer {
                features: 0,
                queues: 1,
                config: [0; CONFIG_SIZE],
            },
            protocol: Protocol::empty(),
            channel: None,
            has_memory: false,
            serves: false,
            log: None,
            opens_until: Some(Instant::now() + patience),
        };
        let features = session.get_u64(FrontendReq::GET_FEATURES)?;
        if features & needed != needed {
            let lacks = needed & !features;
            return Err(unfit(format!(
                "the back end lacks features of virtio: {lacks:#x}"
            )));
        }
        if features & F_PROTOCOL_FEATURES == 0 {
            return Err(unfit("the back end has no protocol features"));
        }
        let has = session.get_u64(FrontendReq::GET_PROTOCOL_FEATURES)?;
        let has = Protocol::from_bits_truncate(has);
        if !has.contains(NEEDED) {
            return Err(unfit(
                "the back end doesn't say what the disk is (VHOST_USER_PROTOCOL_F_CONFIG)",
            ));
        }
        let protocol = has & (USED | NEEDED);
        let bits = protocol.bits().to_ne_bytes();
        session.set(FrontendReq::SET_PROTOCOL_FEATURES, &bits, &[])?;
        session.protocol = protocol;
        session.set(FrontendReq::SET_OWNER, &[], &[])?;
        let queues = match protocol.contains(Protocol::MQ) {
            true => session.get_u64(FrontendReq::GET_QUEUE_NUM)?,
            false => 1,
        };
        if protocol.contains(Protocol::BACKEND_REQ) {
            let (ours, theirs) = UnixStream::pair()?;
            let theirs = [theirs.as_fd()];
            session.set(FrontendReq::SET_BACKEND_REQ_FD, &[], &theirs)?;
            let acknowledges = protocol.contains(Protocol::REPLY_ACK);
            session.channel = Some(Channel::new(ours, acknowledges)?);
        }
        session.offer = Offer {
            features,
            queues: u16::try_from(queues).unwrap_or(u16::MAX),
            config: session.config()?,
        };
        session.opens_until = None;
        match session.offer.queues {
            0 => Err(unfit("the back end has no queues")),
            _ => Ok(session),
        }
    }

    /// What it said that it has.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Its socket: readable out of turn when it is gone.
    #[must_use]
    pub fn socket(&self) -> &UnixStream {
        self.wire.socket()
    }

    /// Where it asks for something, if it may.
    #[must_use]
    pub fn channel(&self) -> Option<&UnixStream> {
        self.channel.as_ref().map(Channel::socket)
    }

    /// Answers what it asks for. Returns whether its configuration changed, and whether
    /// there may be more.
    ///
    /// # Errors
    /// When it breaks the protocol, or is gone.
    pub fn read_channel(&mut self) -> io::Result<channel::Heard> {
        match &mut self.channel {
            Some(channel) => channel.read(),
            None => Ok(channel::Heard::default()),
        }
    }

    /// Whether it can mark what it writes.
    #[must_use]
    pub fn can_log(&self) -> bool {
        self.protocol.contains(Protocol::LOG_SHMFD)
    }

    /// Whether it was given guest memory, and may use it until it is gone.
    #[must_use]
    pub fn has_memory(&self) -> bool {
        self.has_memory
    }

    /// Whether it was given a queue to serve, and may have taken something of it.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.serves
    }

    /// Whether it is gone, and has let go of guest memory with that.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.wire.is_closed()
    }

    /// Says that there is nothing more to do: it is to let go of all that it has.
    pub fn hang_up(&self) {
        self.wire.hang_up();
    }

    fn until(&self) -> Until {
        let usual = Instant::now() + PATIENCE;
        Until::At(self.opens_until.map_or(usual, |end| end.min(usual)))
    }

    /// Tells it something, and waits until that is done, if it can say so.
    fn set(&self, request: FrontendReq, body: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let (until, request) = (self.until(), request as u32);
        let wants_reply = self.protocol.contains(Protocol::REPLY_ACK);
        let header = Header::request(request, wants_reply, body.len());
        self.wire.send(header, body, files, until)?;
        if !wants_reply {
            return Ok(());
        }
        let (answer, _) = self.wire.receive(request, 8, until)?;
        match answer.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "the back end refused request {request}"
            ))),
        }
    }

    /// Asks it something, whose answer is so long.
    fn get(
        &self,
        request: FrontendReq,
        body: &[u8],
        most: usize,
        until: Until,
    ) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let request = request as u32;
        let header = Header::request(request, false, body.len());
        self.wire.send(header, body, &[], until)?;
        self.wire.receive(request, most, until)
    }

    fn get_u64(&self, request: FrontendReq) -> io::Result<u64> {
        let (answer, _) = self.get(request, &[], 8, self.until())?;
        let bytes = <[u8; 8]>::try_from(answer);
        let bytes = bytes.map_err(|_| wire::wrong("a short answer"))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// The device's configuration as it is now.
    ///
    /// # Errors
    /// When it can't say.
    pub fn config(&self) -> io::Result<[u8; CONFIG_SIZE]> {
        // Offset, size and flags, and room for the answer.
        let mut body = [0; 12 + CONFIG_SIZE];
        let size = u32::try_from(CONFIG_SIZE).unwrap_or(0);
        body[4..8].copy_from_slice(&size.to_ne_bytes());
        let until = self.until();
        let (answer, _) = self.get(FrontendReq::GET_CONFIG, &body, body.len(), until)?;
        let config = answer.get(12..).map(<[u8; CONFIG_SIZE]>::try_from);
        match (config, answer.get(..8)) {
            (Some(Ok(config)), Some(head)) if head == &body[..8] => Ok(config),
            _ => Err(wire::wrong("no configuration of a disk")),
        }
    }

    /// Gives it guest memory and queues, and has it serve them. Where it notes what it has
    /// taken is taken over from the last one, or made here and kept.
    ///
    /// # Errors
    /// When it refuses, or guest memory can't be shared. It may have been given some of
    /// it then.
    pub fn start(
        &mut self,
        memory: &Memory,
        features: u64,
        queues: &[Served<'_>],
        inflight: &mut Option<Inflight>,
    ) -> io::Result<()> {
        let log = memory.log();
        if log.is_some() && !self.can_log() {
            return Err(unfit(NO_LOG));
        }
        let is_logged = log.is_some();
        let features = logged_features(features | F_PROTOCOL_FEATURES, is_logged);
        let bits = features.to_ne_bytes();
        self.set(FrontendReq::SET_FEATURES, &bits, &[])?;
        self.give_memory(memory)?;
        if let Some(log) = &log {
            self.give_log(log)?;
        }
        // It stays there for as long as it may be written to.
        self.log = log;
        self.give_inflight(queues, inflight)?;
        self.serves = true;
        for Served { index, vring, base } in queues {
            let index = u32::from(*index);
            let set = |request, value: u32| self.set(request, &words([index, value]), &[]);
            set(FrontendReq::SET_VRING_NUM, vring.queue.size().into())?;
            set(FrontendReq::SET_VRING_BASE, (*base).into())?;
            let rings = logged_rings(rings(vring.queue), is_logged);
            let rings = VhostUserVringAddr::from_config_data(index, &rings);
            self.set(FrontendReq::SET_VRING_ADDR, rings.as_slice(), &[])?;
            self.set_event(FrontendReq::SET_VRING_CALL, index, vring.call)?;
            self.set_event(FrontendReq::SET_VRING_ERR, index, vring.error)?;
            // Last: what was rung before is looked at now.
            self.set_event(FrontendReq::SET_VRING_KICK, index, vring.kick)?;
            set(FrontendReq::SET_VRING_ENABLE, 1)?;
        }
        Ok(())
    }

    fn set_event(&self, request: FrontendReq, index: u32, event: &EventFd) -> io::Result<()> {
        let event = borrow(event);
        let index = u64::from(index).to_ne_bytes();
        self.set(request, &index, &[event])
    }

    /// Replaces what interrupts the driver.
    ///
    /// # Errors
    /// When it refuses.
    pub fn set_call(&self, index: u16, call: &EventFd) -> io::Result<()> {
        self.set_event(FrontendReq::SET_VRING_CALL, index.into(), call)
    }

    fn give_memory(&mut self, memory: &Memory) -> io::Result<()> {
        let mut regions = Vec::new();
        let mut files = Vec::new();
        for region in memory.regions() {
            let file = region.file_offset();
            let file = file.ok_or_else(|| unfit("guest memory isn't shared"))?;
            let (start, size) = (region.start(), region.size());
            // Rings are told by their addresses here as memory is: those of the guest do
            // as well, and say less of this process.
            let region = VhostUserMemoryRegion::new(start, size, start, file.start());
            regions.extend_from_slice(region.as_slice());
            files.push(file.file().as_fd());
        }
        let count = u32::try_from(files.len()).map_err(io::Error::other)?;
        let body = [&words([count, 0])[..], &regions].concat();
        self.has_memory = true;
        self.set(FrontendReq::SET_MEM_TABLE, &body, &files)
    }

    fn give_log(&self, log: &Log) -> io::Result<()> {
        let (file, size) = log.file().ok_or_else(|| unfit("the log isn't shared"))?;
        let body = [size.to_ne_bytes(), [0; 8]].concat();
        let request = FrontendReq::SET_LOG_BASE as u32;
        let until = self.until();
        let header = Header::request(request, false, body.len());
        self.wire.send(header, &body, &[file.as_fd()], until)?;
        // Always answered; by what, implementations differ.
        self.wire.receive(request, 16, until).map(drop)
    }

    fn give_inflight(
        &self,
        queues: &[Served<'_>],
        inflight: &mut Option<Inflight>,
    ) -> io::Result<()> {
        if !self.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            return Ok(());
        }
        let known = match inflight.take() {
            Some(known) => known,
            None => self.get_inflight(queues)?,
        };
        let known = inflight.insert(known);
        let file = [known.file.as_fd()];
        self.set(FrontendReq::SET_INFLIGHT_FD, &known.description, &file)
    }

    fn get_inflight(&self, queues: &[Served<'_>]) -> io::Result<Inflight> {
        let mut description = [0; INFLIGHT_SIZE];
        let last = queues.iter().map(|served| served.index).max();
        let size = queues.iter().map(|served| served.vring.queue.size()).max();
        let count = last.unwrap_or(0).saturating_add(1);
        description[16..18].copy_from_slice(&count.to_ne_bytes());
        description[18..20].copy_from_slice(&size.unwrap_or(1).to_ne_bytes());
        let until = self.until();
        let (answer, mut files) = self.get(
            FrontendReq::GET_INFLIGHT_FD,
            &description,
            INFLIGHT_SIZE,
            until,
        )?;
        let body = description.get_mut(..answer.len());
        match (files.pop(), files.is_empty(), body) {
            (Some(file), true, Some(body)) if answer.len() >= 20 => {
                body.copy_from_slice(&answer);
                Ok(Inflight {
                    file: file.into(),
                    description,
                })
            }
            _ => Err(wire::wrong("no place for what is in flight")),
        }
    }

    /// Has it leave a queue alone. Waits until it does, for as long as it is there: until
    /// then it may write to guest memory.
    ///
    /// # Errors
    /// When it is gone, or breaks the protocol.
    pub fn stop(&self, index: u16) -> io::Result<()> {
        let body = words([index.into(), 0]);
        let request = FrontendReq::GET_VRING_BASE;
        let (answer, _) = self.get(request, &body, 8, Until::Event)?;
        match answer.len() {
            8 => Ok(()),
            _ => Err(wire::wrong("a short answer")),
        }
    }
}

/// Why what is written can't be followed.
pub const NO_LOG: &str = "the back end of a disk can't mark what it writes \
                          (VHOST_USER_PROTOCOL_F_LOG_SHMFD): save without \"follow\"";

#[allow(unsafe_code, reason = "an eventfd as one that is borrowed")]
fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: it is open for as long as the event is.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
