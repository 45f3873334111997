//! The network device: pairs of queues, each between a [`Link`] and guest memory.
//!
//! ```text
//!  receive, transmit ─ pump or kernel ─ link 0      control queue: how many
//!  receive, transmit ─ pump or kernel ─ link 1 ...  pairs the driver uses now
//! ```
//!
//! The packets are moved by the kernel ([`Vhost`]) where the device was given that, or
//! else by a thread for each pair, straight from the link into guest memory. The first
//! thread sees to all of that ([`control`]); with the kernel's help, it is the only one.
//!
//! Virtio 1.2, section 5.1. A card with one link has no control queue.

mod budget;
mod control;
mod counted;
mod kernel;
mod pairs;
mod pump;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hearth_vmm_api::MAX_PAIRS;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::control::{Control, Parts};
use self::counted::Counted;
use self::pump::{OwnPump, Pump};
use super::counters::Counters;
use super::limit::{Limiter, Limits};
use super::thread::{DeviceThread, Port};
use super::{
    ActiveQueue, Declaration, F_EVENT_IDX, F_INDIRECT_DESC, Plug, Site, VirtioDevice, read_config,
};
use crate::jail::{Allow, Argument, Profile};
use crate::net::{Link, Offload, Vhost};
use crate::snapshot::Refused;

pub use self::kernel::KERNEL_FEATURES;

/// Feature bits. Section 5.1.3.
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;

/// Status bit: the link is up. Section 5.1.4.
const LINK_UP: u16 = 1;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;

/// The first pair's queue from the device to the driver. Section 5.1.2: the others
/// follow, and the control queue comes last.
const RECEIVE: u16 = 0;
/// The first pair's queue from the driver to the device.
#[cfg(test)]
const TRANSMIT: u16 = 1;

/// Entries of the control queue: a driver sends one command at a time.
const CONTROL_SIZE: u16 = 16;
/// The most commands before the thread looks whether it must stop.
const CONTROL_BATCH: usize = 16;

/// Bytes of `struct virtio_net_hdr_v1`.
const HEADER_SIZE: usize = 12;
/// Where `num_buffers` is in it.
const NUM_BUFFERS: usize = 10;

/// The largest packet with its headers where TCP segmentation is left to the guest
/// (section 5.1.6.3.1), and a VLAN tag.
const LARGEST: usize = 65562 + 4;

/// The smallest MTU that IPv4 allows (RFC 791), and virtio (section 5.1.4.1).
const SMALLEST_MTU: u16 = 68;

/// How a network device is made.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The MTU that the driver reads, in bytes without the Ethernet header.
    pub mtu: u16,
    /// How much may pass in each direction, over all pairs.
    pub limits: Limits,
}

/// The limits of both directions. All pairs draw on them.
#[derive(Clone)]
struct Limiters {
    receive: Arc<Limiter>,
    transmit: Arc<Limiter>,
}

impl Limiters {
    fn both(&self) -> [&Limiter; 2] {
        [&self.receive, &self.transmit]
    }
}

/// The type of the ioctls of the kernel's virtio back ends, `VHOST_VIRTIO` of
/// `linux/vhost.h`.
const VHOST: u8 = 0xaf;

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "net",
    device_type: 1,
    pci_class: [0x02, 0x00, 0x00],
    profile: Profile {
        thread: &[
            Allow::any(libc::SYS_readv),
            // How many pairs of queues take part, what the driver takes, and the rings
            // where they are the kernel's.
            Allow::when(
                libc::SYS_ioctl,
                &[
                    Argument::is(1, libc::TUNSETQUEUE),
                    Argument::is(1, libc::TUNSETOFFLOAD),
                    Argument::ioctl_of(VHOST),
                ],
            ),
        ],
        // A tap taken over, and what its vhost can. No tap is attached to by name: a
        // descriptor whose tap the host deleted is free for another one, and TUNSETIFF lets
        // anybody have one that has no owner.
        plug: &[Allow::when(
            libc::SYS_ioctl,
            &[
                Argument::is(1, libc::TUNSETVNETHDRSZ),
                Argument::is(1, libc::TUNGETIFF),
                Argument::ioctl_of(VHOST),
            ],
        )],
    },
    plug: Plug::Hot,
};

/// The queues of one pair.
type ReceiveTransmit<'a> = [&'a ActiveQueue; 2];

/// [`Net`], saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetV1 {
    /// The hardware address, which the driver read once, as it did what follows.
    pub mac: [u8; 6],
    /// In bytes, without the Ethernet header.
    pub mtu: u16,
    /// How many pairs of queues there are.
    pub pairs: usize,
    /// How many of them the driver uses: the first so many.
    pub pairs_in_use: usize,
}

/// A network device.
pub struct Net {
    counted: Arc<Counted>,
    /// How many pairs its driver uses, which its first thread sees to.
    in_use: Arc<AtomicUsize>,
    links: Vec<Arc<dyn Link>>,
    /// The kernel's half of each pair, or nothing.
    kernel: Vec<Arc<Vhost>>,
    options: Options,
    limiters: Limiters,
    /// The first thread's service.
    port: Option<Port>,
    threads: Vec<DeviceThread>,
}

impl Net {
    /// A device on a link.
    ///
    /// # Errors
    /// When the MTU is below 68 or the address is a multicast one.
    pub fn new(link: impl Link + 'static, options: Options) -> io::Result<Self> {
        Self::with_pairs(vec![link], options)
    }

    /// A device with a pair of queues for each link, which are queues of one tap.
    ///
    /// # Errors
    /// As [`Self::new`], and when there are no links or more than [`MAX_PAIRS`].
    pub fn with_pairs<L>(links: Vec<L>, options: Options) -> io::Result<Self>
    where
        L: Link + 'static,
    {
        let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if options.mtu < SMALLEST_MTU {
            return wrong("an MTU is at least 68 bytes");
        }
        if options.mac[0] & 1 != 0 {
            return wrong("a network card can't have a multicast address");
        }
        if links.is_empty() || links.len() > MAX_PAIRS {
            return wrong("a network card has 1 to 16 queue pairs");
        }
        let limiter = || Arc::new(Limiter::new(options.limits, Instant::now()));
        let links = links
            .into_iter()
            .map(|link| Arc::new(link) as Arc<dyn Link>);
        Ok(Self {
            counted: Arc::new(Counted::new(false)),
            // Section 5.1.6.5.5: as many as a driver begins with.
            in_use: Arc::new(AtomicUsize::new(1)),
            links: links.collect(),
            kernel: Vec::new(),
            options,
            limiters: Limiters {
                receive: limiter(),
                transmit: limiter(),
            },
            port: None,
            threads: Vec::new(),
        })
    }

    /// Leaves the packets to the kernel, wherever the driver takes what that needs.
    ///
    /// # Errors
    /// When there is not one for each pair, or there are limits.
    pub fn in_kernel(mut self, vhosts: Vec<Vhost>) -> io::Result<Self> {
        if self.options.limits != Limits::NONE {
            return Err(no_limits());
        }
        if vhosts.len() != self.links.len() {
            let wrong = "each pair of queues needs a vhost-net of its own";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
        }
        self.kernel = vhosts.into_iter().map(Arc::new).collect();
        self.counted.moved(true);
        Ok(self)
    }

    /// A way to reach it later.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            links: self.links.clone(),
            limiters: self.limiters.clone(),
            is_in_kernel: !self.kernel.is_empty(),
        }
    }

    fn pair_count(&self) -> u16 {
        // At most `MAX_PAIRS`.
        u16::try_from(self.links.len()).unwrap_or(1)
    }

    /// `struct virtio_net_config`. Section 5.1.4.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.options.mac);
        config[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        config[8..10].copy_from_slice(&self.pair_count().to_le_bytes());
        config[10..].copy_from_slice(&self.options.mtu.to_le_bytes());
        config
    }
}

/// Reaches a network device while the machine runs.
#[derive(Clone)]
pub struct Handle {
    links: Vec<Arc<dyn Link>>,
    limiters: Limiters,
    is_in_kernel: bool,
}

impl Handle {
    /// The queues of the tap, open once more.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn files(&self) -> io::Result<Vec<OwnedFd>> {
        let links = self.links.iter();
        links
            .map(|link| link.as_fd().try_clone_to_owned())
            .collect()
    }

    /// Changes how much may pass in each direction, from now on.
    ///
    /// # Errors
    /// When the kernel has the packets to move.
    pub fn set_limits(&self, limits: Limits) -> io::Result<()> {
        if self.is_in_kernel {
            return Err(no_limits());
        }
        for limiter in self.limiters.both() {
            limiter.change(limits, Instant::now());
        }
        Ok(())
    }
}

/// Why an interface can't have limits.
pub const NO_LIMITS: &str = "with vhost-net the kernel moves the packets, and has no limits: limit \
                             the tap with tc(8) on the host, or make the interface with vhost=off";

fn no_limits() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, NO_LIMITS)
}

/// What the driver takes: segmentation only with checksums (section 5.1.3.1).
fn offload(features: u64) -> Offload {
    let mut offload = Offload::empty();
    if features & F_GUEST_CSUM != 0 {
        offload |= Offload::CHECKSUM;
        offload.set(Offload::TSO4, features & F_GUEST_TSO4 != 0);
        offload.set(Offload::TSO6, features & F_GUEST_TSO6 != 0);
    }
    offload
}

/// The room for any packet that the link has for such a driver, in bytes with header.
fn largest(offload: Offload, mtu: u16) -> usize {
    if offload.intersects(Offload::TSO4 | Offload::TSO6) {
        LARGEST
    } else {
        // Ethernet header, VLAN tag, and a tap whose MTU is larger than the flag says.
        HEADER_SIZE + 18 + usize::from(mtu).max(1500)
    }
}

impl VirtioDevice for Net {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn features(&self) -> u64 {
        let guest = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;
        let host = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6;
        let rest = F_MAC | F_MTU | F_STATUS | F_MRG_RXBUF;
        let several = if self.pair_count() > 1 {
            F_CTRL_VQ | F_MQ
        } else {
            0
        };
        guest | host | rest | several | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.counted) as Arc<dyn Counters>
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * self.links.len()];
        if self.pair_count() > 1 {
            sizes.push(CONTROL_SIZE);
        }
        sizes
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn config_write(&mut self, _: u64, _: &[u8]) {
        // All fields are read-only in a modern device.
    }

    fn plugged(&mut self, site: &Site<'_>) -> io::Result<()> {
        // Pairs in the kernel take next to nothing of a thread: one does for all.
        let own = if self.kernel.is_empty() {
            1
        } else {
            self.links.len()
        };
        let thread = |suffix: String| {
            let name = format!("{}{suffix}", DECLARATION.name);
            DeviceThread::spawn(name, &DECLARATION.profile)
        };
        let first = thread(String::new())?;
        let mut ports = Vec::new();
        for (pair, link) in self.links.iter().enumerate().skip(own) {
            let (link, counters) = (Arc::clone(link), &self.counted.counters);
            let pump = Pump::new(link, self.options.mtu, counters, &self.limiters);
            let bells = site.doorbells.get(2 * pair..2 * pair + 2);
            let bells = bells.ok_or_else(|| io::Error::other("a pair has two doorbells"))?;
            let next = thread(format!("-q{pair}"))?;
            ports.push(next.add(|events| OwnPump::new(pump, bells, &events))?);
            self.threads.push(next);
        }
        let parts = Parts {
            links: self.links.clone(),
            kernel: self.kernel.clone(),
            ports,
            mtu: self.options.mtu,
            limiters: self.limiters.clone(),
            counted: Arc::clone(&self.counted),
            in_use: Arc::clone(&self.in_use),
        };
        self.port = Some(first.add(|events| Control::new(parts, site.doorbells, events))?);
        for (queue, limiter) in self.limiters.both().into_iter().enumerate() {
            let of_pairs = site.doorbells.iter().take(2 * self.links.len());
            let bells: Vec<_> = of_pairs.skip(queue).step_by(2).cloned().collect();
            limiter.wake_with(&bells);
        }
        // Ended before the threads that it gives orders to.
        self.threads.insert(0, first);
        Ok(())
    }

    fn port(&self) -> Option<&Port> {
        self.port.as_ref()
    }

    fn save(&self) -> Value {
        json!(NetV1 {
            mac: self.options.mac,
            mtu: self.options.mtu,
            pairs: self.links.len(),
            pairs_in_use: self.in_use.load(Ordering::SeqCst),
        })
    }

    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        let saved = NetV1::deserialize(state)?;
        let refuse = |wrong: String| Err(Refused::because(wrong));
        let Options { mac, mtu, .. } = self.options;
        if mac != saved.mac {
            let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
            let (here, there) = (text(mac), text(saved.mac));
            return refuse(format!("its address is {here} here and {there} there"));
        }
        if mtu != saved.mtu {
            let there = saved.mtu;
            return refuse(format!("its MTU is {mtu} here and {there} there"));
        }
        let (pairs, in_use) = (self.links.len(), saved.pairs_in_use);
        if pairs != saved.pairs {
            let there = saved.pairs;
            return refuse(format!(
                "it has {pairs} pairs of queues here and {there} there"
            ));
        }
        if !(1..=pairs).contains(&in_use) {
            let wrong = format!("of {pairs} pairs of queues, {in_use} can't be in use");
            return refuse(wrong);
        }
        self.in_use.store(in_use, Ordering::SeqCst);
        Ok(())
    }
}

fn find(queues: &[ActiveQueue], index: u16) -> Option<&ActiveQueue> {
    queues.iter().find(|queue| queue.index == index)
}
