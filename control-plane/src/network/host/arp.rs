//! Whether guests answer ARP: what EC2's instance status check asks as well.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-system-instance-status-check.html>;
//! RFC 826; packet(7).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tokio::time::Instant;

use crate::model::EniId;

/// How long the guests have to answer. A busy one under emulation takes some
/// tenths of a second.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one wait for an answer is at most, in milliseconds.
const TURN: i64 = 100;

const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethernet, IPv4, and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
/// An Ethernet header and an ARP packet for IPv4.
const FRAME: usize = 14 + 28;

/// Whom to ask.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The interface.
    pub(super) eni: EniId,
    /// Its tap's index and MAC address, and the router's address on it: who asks.
    pub(super) ifindex: u32,
    pub(super) tap_mac: [u8; 6],
    pub(super) router: Ipv4Addr,
    /// The guest's.
    pub(super) mac: [u8; 6],
    pub(super) address: Ipv4Addr,
}

impl Target {
    /// "Who has this address?", from the router.
    fn question(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(FRAME);
        frame.extend_from_slice(&[0xff; 6]);
        frame.extend_from_slice(&self.tap_mac);
        frame.extend_from_slice(&ETHERTYPE_ARP.to_be_bytes());
        frame.extend_from_slice(&KIND);
        frame.extend_from_slice(&REQUEST);
        frame.extend_from_slice(&self.tap_mac);
        frame.extend_from_slice(&self.router.octets());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&self.address.octets());
        frame
    }

    /// Whether a frame is the guest's answer: its address, by its own MAC.
    fn is_answered_by(&self, frame: &[u8]) -> bool {
        frame.get(12..14) == Some(&ETHERTYPE_ARP.to_be_bytes())
            && frame.get(14..20) == Some(&KIND)
            && frame.get(20..22) == Some(&REPLY)
            && frame.get(22..28) == Some(&self.mac)
            && frame.get(28..32) == Some(&self.address.octets())
    }
}

/// Asks all of them at once, in the calling thread's namespace, and returns
/// those who answer.
pub(super) fn ask(targets: Vec<Target>) -> io::Result<BTreeSet<EniId>> {
    let socket = open()?;
    for target in &targets {
        // A tap that is gone or that nobody has open does not answer, that is all.
        if let Err(error) = send(&socket, target) {
            tracing::debug!(%error, interface = %target.eni, "asking for its address");
        }
    }
    let mut waiting: BTreeMap<u32, Target> = targets.into_iter().map(|t| (t.ifindex, t)).collect();
    let mut answered = BTreeSet::new();
    let deadline = Instant::now() + PATIENCE;
    let mut frame = [0; FRAME];
    while !waiting.is_empty() && Instant::now() < deadline {
        let Some((length, ifindex)) = receive(&socket, &mut frame)? else {
            continue;
        };
        // Who answers is known by the tap: nobody can do it for another.
        let theirs = waiting
            .get(&ifindex)
            .is_some_and(|target| target.is_answered_by(&frame[..length]));
        if theirs && let Some(target) = waiting.remove(&ifindex) {
            answered.insert(target.eni);
        }
    }
    Ok(answered)
}

fn address(ifindex: u32) -> io::Result<libc::sockaddr_ll> {
    Ok(libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: ETHERTYPE_ARP.to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff; 8],
    })
}

const ADDRESS_LENGTH: libc::socklen_t = {
    let length = size_of::<libc::sockaddr_ll>();
    assert!(length < 128);
    #[allow(clippy::cast_possible_truncation)] // as just asserted
    {
        length as libc::socklen_t
    }
};

/// A socket that hears ARP on every link of the namespace.
fn open() -> io::Result<OwnedFd> {
    let protocol = i32::from(ETHERTYPE_ARP.to_be());
    // SAFETY: no memory is passed.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::milliseconds(TURN),
    )?;
    Ok(socket)
}

fn send(socket: &OwnedFd, target: &Target) -> io::Result<()> {
    let frame = target.question();
    let to = address(target.ifindex)?;
    // SAFETY: the frame and the address are live for the call, with their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const to).cast(),
            ADDRESS_LENGTH,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The next frame's length in `frame`, which may cut it short, and the link it
/// came from; `None` when there was none for a while.
fn receive(socket: &OwnedFd, frame: &mut [u8; FRAME]) -> io::Result<Option<(usize, u32)>> {
    let mut from = address(0)?;
    let mut length = ADDRESS_LENGTH;
    // SAFETY: the frame, the address and its length are live and writable for the
    // call, and the kernel writes within the lengths given.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            frame.as_mut_ptr().cast(),
            frame.len(),
            0,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    match usize::try_from(received) {
        Ok(received) => Ok(u32::try_from(from.sll_ifindex)
            .ok()
            .map(|ifindex| (received.min(FRAME), ifindex))),
        Err(_) => match io::Error::last_os_error() {
            e if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
            {
                Ok(None)
            }
            // Of a link that went down.
            e if e.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
            e => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_answer_counts() {
        let target = Target {
            eni: EniId::from_random(1),
            ifindex: 3,
            tap_mac: [6; 6],
            router: [172, 31, 0, 1].into(),
            mac: [2, 0, 0, 0, 0, 9],
            address: [172, 31, 0, 9].into(),
        };
        let question = target.question();
        assert_eq!(question.len(), FRAME);
        assert!(!target.is_answered_by(&question));
        // The answer: the question with the two sides swapped.
        let mut answer = question.clone();
        answer[0..6].copy_from_slice(&target.tap_mac);
        answer[6..12].copy_from_slice(&target.mac);
        answer[20..22].copy_from_slice(&REPLY);
        answer[22..28].copy_from_slice(&target.mac);
        answer[28..32].copy_from_slice(&target.address.octets());
        answer[32..38].copy_from_slice(&target.tap_mac);
        answer[38..42].copy_from_slice(&target.router.octets());
        assert!(target.is_answered_by(&answer));
        for at in [13, 15, 21, 27, 31] {
            let mut other = answer.clone();
            other[at] ^= 1;
            assert!(!target.is_answered_by(&other), "{at}");
        }
        assert!(!target.is_answered_by(&answer[..30]));
    }
}
