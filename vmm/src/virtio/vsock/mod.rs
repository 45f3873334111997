//! The socket device: streams between programs in the guest and programs on the
//! host, without a network.
//!
//! On the host it is a Unix socket, as Firecracker has made it usual:
//! - A program that connects to `path` and says `CONNECT 52\n` reaches port 52 of
//!   the guest; it reads `OK <its own port>\n`, and then what the guest sends. A
//!   port where nobody listens ends the stream without a word.
//! - A program in the guest that connects to port 52 of CID 2 (the host) reaches
//!   whoever listens on the Unix socket `path_52`.
//!
//! Virtio 1.2, section 5.10. Streams only; the header is parsed here and not by
//! rust-vmm's `virtio-vsock`, whose packets are tied to its own descriptor chains.

mod connection;
mod hub;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::hub::{Hub, Parts};
use super::counters::{Counters, counters};
use super::thread::Port;
use super::{Declaration, F_EVENT_IDX, F_INDIRECT_DESC, Plug, Site, VirtioDevice, read_config};
use crate::jail::{Allow, Argument, Profile};
use crate::snapshot::Refused;

/// Feature bit: streams. Section 5.10.3.
const F_STREAM: u64 = 1 << 0;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;

/// The queue from the device to the driver. Section 5.10.2.
const RECEIVE: u16 = 0;
/// The queue from the driver to the device.
const TRANSMIT: u16 = 1;
/// The queue by which the driver hears what happened to the device.
const EVENT: u16 = 2;

/// The first address that is a guest's, and the last. Section 5.10.4.
const FIRST_CID: u32 = 3;
const LAST_CID: u32 = u32::MAX - 1;

/// How a socket device is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The guest's address, from 3 on.
    pub cid: u32,
    /// Where it listens on the host. Nothing may be there yet.
    pub path: PathBuf,
}

/// What its thread asks of the kernel.
pub(super) const THREAD: &[Allow] = &[
    Allow::any(libc::SYS_readv),
    Allow::any(libc::SYS_accept4),
    Allow::any(libc::SYS_connect),
    Allow::any(libc::SYS_recvfrom),
    Allow::any(libc::SYS_recvmsg),
    Allow::any(libc::SYS_sendto),
    Allow::any(libc::SYS_sendmsg),
    Allow::any(libc::SYS_shutdown),
    Allow::any(libc::SYS_getsockopt),
    // To programs on this host, and nowhere else.
    Allow::when(libc::SYS_socket, &[Argument::is(0, libc::AF_UNIX as u64)]),
    Allow::when(libc::SYS_ioctl, &[Argument::is(1, libc::FIONBIO)]),
];

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "vsock",
    device_type: 19,
    pci_class: [0x07, 0x80, 0x00],
    profile: Profile {
        thread: THREAD,
        ..Profile::NONE
    },
    plug: Plug::Fixed,
};

counters! {
    /// What a socket device counts, as the guest sees it.
    struct VsockCounters {
        /// Times that the driver rang.
        notifications,
        /// Connections made, from either side.
        connections,
        /// Packets for connections that there are none of, or can't be.
        refused,
        /// Packets to the guest.
        received_packets,
        /// Bytes of streams in them.
        received_bytes,
        /// Packets from the guest.
        transmitted_packets,
        /// Bytes of streams in them.
        transmitted_bytes,
    }
}

/// [`Vsock`], saved. Section 5.10.4. Nothing is kept of streams: their other ends are
/// programs on a host, which see them end with this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockV1 {
    /// The guest's address, which its driver knows.
    pub cid: u32,
}

/// A socket device.
pub struct Vsock {
    counters: Arc<VsockCounters>,
    cid: u32,
    path: PathBuf,
    listener: Arc<UnixListener>,
    /// Whether the path is this process's to remove.
    owns_path: Arc<AtomicBool>,
    /// Whether it goes on where another device was, whose streams are gone, and its driver
    /// hasn't been told.
    is_copy: Arc<AtomicBool>,
    port: Option<Port>,
}

impl Vsock {
    /// A device that listens at once; who connects before the guest has a driver
    /// waits for it.
    ///
    /// # Errors
    /// When the CID is below 3 or 2^32-1, or the path can't be listened at: taken,
    /// too long, no such folder.
    pub fn new(options: Options) -> io::Result<Self> {
        let listener = UnixListener::bind(&options.path)?;
        let made = Self::listening(&options, listener.into(), Arc::new(AtomicBool::new(true)));
        made.inspect_err(|_| drop(std::fs::remove_file(&options.path)))
    }

    /// A device at the socket of one in another process. The path is removed when this is
    /// dropped if `owns_path` says so by then.
    ///
    /// # Errors
    /// When the CID is below 3 or 2^32-1.
    pub fn listening(
        options: &Options,
        listener: OwnedFd,
        owns_path: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let Options { cid, path } = options.clone();
        let listener = UnixListener::from(listener);
        if !(FIRST_CID..=LAST_CID).contains(&cid) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a guest's CID is at least 3",
            ));
        }
        listener.set_nonblocking(true)?;
        Ok(Self {
            counters: Arc::default(),
            cid,
            path,
            listener: Arc::new(listener),
            owns_path,
            is_copy: Arc::default(),
            port: None,
        })
    }
}

impl Vsock {
    /// The socket that it listens at.
    #[must_use]
    pub fn listener(&self) -> Arc<UnixListener> {
        Arc::clone(&self.listener)
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        if !self.owns_path.load(Ordering::Relaxed) {
            return;
        }
        // Whoever removed it before us has done what was to do.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl VirtioDevice for Vsock {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn features(&self) -> u64 {
        F_STREAM | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.counters) as Arc<dyn Counters>
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // Receive, transmit, events.
        vec![QUEUE_SIZE; 3]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn config_write(&mut self, _: u64, _: &[u8]) {
        // All of it is read-only.
    }

    fn plugged(&mut self, site: &Site<'_>) -> io::Result<()> {
        let (cid, path) = (self.cid.into(), self.path.clone());
        let parts = Parts {
            cid,
            path,
            listener: Arc::clone(&self.listener),
            counters: Arc::clone(&self.counters),
            is_copy: Arc::clone(&self.is_copy),
        };
        let hub = |events| Hub::new(parts, site.doorbells, events);
        self.port = Some(site.shared.add(hub)?);
        Ok(())
    }

    fn port(&self) -> Option<&Port> {
        self.port.as_ref()
    }

    fn save(&self) -> Value {
        json!(VsockV1 { cid: self.cid })
    }

    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        let VsockV1 { cid } = VsockV1::deserialize(state)?;
        if cid != self.cid {
            let wrong = format!("its CID is {} here and {cid} there", self.cid);
            return Err(Refused::because(wrong));
        }
        self.is_copy.store(true, Ordering::SeqCst);
        Ok(())
    }
}
