//! The network device: pairs of queues, each between a [`Link`] and guest memory.
//!
//! ```text
//!  receive, transmit ─ pump or kernel ─ link 0      control queue: how many
//!  receive, transmit ─ pump or kernel ─ link 1 ...  pairs the driver uses now
//! ```
//!
//! The packets are moved by the kernel ([`Vhost`]) where the device was given that, or
//! else by a thread for each pair, straight from the link into guest memory.
//!
//! Virtio 1.2, section 5.1. A card with one link has neither the control queue nor
//! its thread.

mod control;
mod kernel;
mod pump;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use hearth_vmm_api::MAX_PAIRS;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::control::{Control, Pairs};
use self::kernel::KernelPair;
use self::pump::Pump;
use super::counters::{Counters, counters};
use super::queue::Ring;
use super::worker::{self, Worker};
use super::{
    Activation, ActiveQueue, Declaration, F_EVENT_IDX, F_INDIRECT_DESC, Interrupt, Plug,
    VirtioDevice, read_config,
};
use crate::jail::{Allow, Argument, Profile};
use crate::net::{Link, Offload, Vhost};

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
}

/// The type of the ioctls of the kernel's virtio back ends, `VHOST_VIRTIO` of
/// `linux/vhost.h`.
const VHOST: u8 = 0xaf;
/// `VHOST_NET_SET_BACKEND`: `_IOW(0xaf, 0x30, struct vhost_vring_file)`.
const VHOST_NET_SET_BACKEND: u64 = 0x4008_af30;

/// What it is.
pub static DECLARATION: Declaration = Declaration {
    name: "net",
    device_type: 1,
    pci_class: [0x02, 0x00, 0x00],
    profile: Profile {
        thread: &[
            Allow::any(libc::SYS_readv),
            // How many pairs of queues take part.
            Allow::when(
                libc::SYS_ioctl,
                &[
                    Argument::is(1, libc::TUNSETQUEUE),
                    Argument::is(1, VHOST_NET_SET_BACKEND),
                ],
            ),
        ],
        // What the driver takes is the tap's to know, and the rings are the kernel's.
        vcpu: &[Allow::when(
            libc::SYS_ioctl,
            &[
                Argument::ioctl_of(VHOST),
                Argument::is(1, libc::TUNSETOFFLOAD),
            ],
        )],
        // A tap taken over. Its vhost is asked what a vCPU's thread may, too. No tap is
        // attached to by name: a descriptor whose tap the host deleted is free for another
        // one, and TUNSETIFF lets anybody have one that has no owner.
        plug: &[Allow::when(
            libc::SYS_ioctl,
            &[
                Argument::is(1, libc::TUNSETVNETHDRSZ),
                Argument::is(1, libc::TUNGETIFF),
            ],
        )],
    },
    plug: Plug::Hot,
};

counters! {
    /// What a network device counts, as the guest sees it. Bytes are those of packets
    /// without virtio's header.
    pub(super) struct NetCounters {
        /// Times that the driver rang.
        notifications,
        /// Packets to the guest.
        received_packets,
        /// Their bytes.
        received_bytes,
        /// Packets from the guest.
        transmitted_packets,
        /// Their bytes.
        transmitted_bytes,
        /// Packets from the guest that the link refused.
        transmit_errors,
    }
}

/// What a device counts whose packets the kernel moves: they don't come by here.
struct Uncounted;

impl Counters for Uncounted {
    fn list(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// The queues of one pair.
type ReceiveTransmit<'a> = [&'a ActiveQueue; 2];

/// A network device.
pub struct Net {
    counters: Arc<NetCounters>,
    pairs: Arc<Pairs>,
    /// The kernel's half of each pair, or nothing.
    kernel: Vec<Arc<Vhost>>,
    options: Options,
    workers: Vec<Worker>,
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
        let links = links
            .into_iter()
            .map(|link| Arc::new(link) as Arc<dyn Link>);
        Ok(Self {
            counters: Arc::default(),
            pairs: Arc::new(Pairs::new(links.collect())),
            kernel: Vec::new(),
            options,
            workers: Vec::new(),
        })
    }

    /// Leaves the packets to the kernel, wherever the driver takes what that needs.
    ///
    /// # Errors
    /// When there is not one for each pair.
    pub fn in_kernel(mut self, vhosts: Vec<Vhost>) -> io::Result<Self> {
        if vhosts.len() != self.pairs.links().len() {
            let wrong = "each pair of queues needs a vhost-net of its own";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
        }
        self.kernel = vhosts.into_iter().map(Arc::new).collect();
        Ok(self)
    }

    fn pair_count(&self) -> u16 {
        // At most `MAX_PAIRS`.
        u16::try_from(self.pairs.links().len()).unwrap_or(1)
    }

    /// The pairs that the driver has set up.
    fn live<'a>(&self, activation: &'a Activation) -> io::Result<Vec<ReceiveTransmit<'a>>> {
        let multiqueue = activation.has(F_MQ);
        let pairs = if multiqueue { self.pair_count() } else { 1 };
        let find = |index| find(&activation.queues, index);
        // A driver may leave out pairs that it doesn't use, but the first.
        let live: Vec<_> = (0..pairs)
            .map(|pair| RECEIVE + 2 * pair)
            .map_while(|receive| Some([find(receive)?, find(receive + 1)?]))
            .collect();
        if live.is_empty() {
            return Err(io::Error::other("a network queue is not enabled"));
        }
        Ok(live)
    }

    fn pumps(
        &self,
        activation: &Activation,
        live: &[ReceiveTransmit<'_>],
    ) -> io::Result<Vec<Pump>> {
        let needed = largest(offload(activation.features), self.options.mtu);
        live.iter()
            .zip(self.pairs.links())
            .map(|(queues, link)| {
                let (link, counters) = (Arc::clone(link), Arc::clone(&self.counters));
                Pump::new(link, activation, *queues, needed, counters)
            })
            .collect()
    }

    /// All pairs as the kernel shall serve them, or none where it can't.
    fn kernel_pairs(
        &self,
        activation: &Activation,
        live: &[ReceiveTransmit<'_>],
        broken: &EventFd,
    ) -> io::Result<Vec<KernelPair>> {
        let halves = self.kernel.iter().zip(self.pairs.links());
        let pairs: Vec<_> = live
            .iter()
            .zip(halves)
            .map(|(queues, (vhost, link))| {
                KernelPair::new(vhost, link, activation, *queues, broken)
            })
            .collect::<io::Result<_>>()?;
        let all: Option<Vec<_>> = pairs.into_iter().collect();
        Ok(all.unwrap_or_default())
    }

    /// The control queue, if the driver has it. `live` pairs can be used.
    fn control(&self, activation: &Activation, live: usize) -> io::Result<Option<Worker>> {
        if !activation.has(F_CTRL_VQ) {
            return Ok(None);
        }
        let multiqueue = activation.has(F_MQ);
        let index = 2 * if multiqueue { self.pair_count() } else { 1 };
        let Some(active) = find(&activation.queues, index) else {
            return Ok(None);
        };
        let ring = Ring::new(&active.queue, Arc::clone(&activation.memory));
        let interrupt = Arc::clone(&activation.interrupt);
        let mut control = Control {
            ring: ring.map_err(io::Error::other)?,
            index,
            pairs: Arc::clone(&self.pairs),
            live,
            interrupt: Arc::clone(&interrupt),
        };
        let doorbell = Arc::clone(&active.doorbell);
        let counters = Arc::clone(&self.counters);
        Worker::start(&DECLARATION, "-control", interrupt, move |stop| {
            worker::serve(&stop, &doorbell, &counters.notifications, || {
                control.serve().map_err(io::Error::other)
            })
        })
        .map(Some)
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
        if !self.kernel.is_empty() {
            return Arc::new(Uncounted);
        }
        Arc::clone(&self.counters) as Arc<dyn Counters>
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * self.pairs.links().len()];
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

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        // All are watched while they are enabled: a tap's queue that is not can't
        // be. Then, section 5.1.6.5.5, the driver begins with one.
        self.pairs.enable(self.pairs.links().len())?;
        let offload = offload(activation.features);
        for link in self.pairs.links() {
            link.set_offload(offload)?;
        }
        let live = self.live(&activation)?;
        let broken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let in_kernel = self.kernel_pairs(&activation, &live, &broken)?;
        let pumps = match in_kernel.is_empty() {
            true => self.pumps(&activation, &live)?,
            false => Vec::new(),
        };
        self.pairs.enable(1)?;
        // On failure, what has begun is stopped by the reset to come.
        if !in_kernel.is_empty() {
            self.pairs.hand_over(in_kernel)?;
            let interrupt = Arc::clone(&activation.interrupt);
            self.workers.push(kernel::watch(broken, interrupt)?);
        }
        for pump in pumps {
            let interrupt = Arc::clone(&activation.interrupt);
            let worker = Worker::start(&DECLARATION, "", interrupt, move |stop| pump.serve(&stop));
            self.workers.push(worker?);
        }
        self.workers.extend(self.control(&activation, live.len())?);
        Ok(())
    }

    fn vector_changed(&mut self, queue: u16, interrupt: &dyn Interrupt) -> io::Result<()> {
        self.pairs.set_call(queue, interrupt.event(queue).as_ref())
    }

    fn reset(&mut self) {
        // All are asked before the first is waited for.
        for worker in &self.workers {
            worker.request_stop();
        }
        self.workers.clear();
        self.pairs.take_back();
    }
}

fn find(queues: &[ActiveQueue], index: u16) -> Option<&ActiveQueue> {
    queues.iter().find(|queue| queue.index == index)
}
