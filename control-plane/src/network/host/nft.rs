//! Hands scripts to nft, and knows whether another hand was there since.

use std::io::{self, IoSlice, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
};

/// The number of transactions that a namespace's ruleset has seen.
pub(super) type Generation = u32;

/// What the rules were brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Brought {
    /// The generation that is ours; `None` when another's transaction came
    /// between, so that nobody knows.
    pub(super) generation: Option<Generation>,
    /// Whether the increment did not do, and all was replaced.
    pub(super) replaced: bool,
}

/// Brings the rules in the calling thread's namespace to what `whole` makes of
/// any: by the increment from `before`, if nothing has changed the rules since.
pub(super) fn bring(
    before: Option<Generation>,
    increment: Option<&str>,
    whole: &str,
) -> io::Result<Brought> {
    let now = generation()?;
    let mut replaced = true;
    if let (Some(before), Some(increment)) = (before, increment) {
        if before == now {
            if increment.is_empty() {
                let generation = Some(now);
                return Ok(Brought {
                    generation,
                    replaced: false,
                });
            }
            match apply(increment) {
                Ok(()) => replaced = false,
                Err(error) => tracing::warn!(%error, "an increment failed; replacing the table"),
            }
        } else {
            tracing::warn!("the rules were changed by another program; replacing the table");
        }
    }
    if replaced {
        apply(whole)?;
    }
    // A transaction is one generation, and one that fails is none.
    let ours = now.wrapping_add(1).max(1);
    Ok(Brought {
        generation: (generation()? == ours).then_some(ours),
        replaced,
    })
}

/// Asks for the generation in the calling thread's namespace.
///
/// `NFT_MSG_GETGEN` of `include/uapi/linux/netfilter/nf_tables.h`: one small
/// message, however many rules there are.
pub(super) fn generation() -> io::Result<Generation> {
    const NFT_MSG_NEWGEN: u8 = 15;
    const NFT_MSG_GETGEN: u8 = 16;
    const NFTA_GEN_ID: u16 = 1;
    const HEADERS: usize = 20;
    let subsystem = libc::NFNL_SUBSYS_NFTABLES.to_ne_bytes()[0];
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    // struct nlmsghdr: length, type, flags, sequence, port; struct nfgenmsg:
    // family, version, resource. NLM_F_REQUEST is 1.
    let mut request = [0; HEADERS];
    request[..4].copy_from_slice(&20_u32.to_ne_bytes());
    let kind = u16::from(subsystem) << 8 | u16::from(NFT_MSG_GETGEN);
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&1_u16.to_ne_bytes());
    socket::sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(&request)],
        &[],
        MsgFlags::empty(),
        Some(&NetlinkAddr::new(0, 0)),
    )?;
    let mut answer = [0; 512];
    let length = socket::recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    let odd = || io::Error::other("the kernel's answer about its rules makes no sense");
    let field = |at: usize| -> Option<[u8; 2]> { answer.get(at..at + 2)?.try_into().ok() };
    let kind = field(4).map(u16::from_ne_bytes).ok_or_else(odd)?;
    if kind != u16::from(subsystem) << 8 | u16::from(NFT_MSG_NEWGEN) {
        return Err(odd());
    }
    let mut at = HEADERS;
    while let (Some(length), Some(kind)) = (field(at), field(at + 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        if u16::from_ne_bytes(kind) == NFTA_GEN_ID {
            let value = answer.get(at + 4..at + 8).ok_or_else(odd)?;
            return Ok(u32::from_be_bytes(value.try_into().map_err(|_| odd())?));
        }
        // Attributes are aligned to four bytes and have a header of four.
        at += length.max(4).next_multiple_of(4);
    }
    Err(odd())
}

/// Applies a script as one transaction in the calling thread's namespace.
pub(super) fn apply(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // nft reads all of its input before it writes a word, so the pipes can't
    // block each other.
    let sent = match child.stdin.take() {
        Some(mut input) => input.write_all(script.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output()?;
    if output.status.success() {
        return sent;
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = error.lines().take(4).collect();
    Err(io::Error::other(format!("nft: {}", lines.join(" | "))))
}

/// Deletes a table, there or not.
pub(super) fn delete(table: &str) -> io::Result<()> {
    apply(&format!("table inet {table}\ndelete table inet {table}\n"))
}
