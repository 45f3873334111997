//! The network device: one pair of queues on one thread, straight between a
//! [`Link`] and guest memory.
//!
//! Virtio 1.2, section 5.1.

mod pump;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use self::pump::Pump;
use super::worker::Worker;
use super::{Activation, DeviceType, F_EVENT_IDX, F_INDIRECT_DESC, VirtioDevice, read_config};
use crate::net::{Link, Offload};

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

/// Status bit: the link is up. Section 5.1.4.
const LINK_UP: u16 = 1;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;

/// The queue from the device to the driver. Section 5.1.2.
const RECEIVE: u16 = 0;
/// The queue from the driver to the device.
const TRANSMIT: u16 = 1;

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
    /// The MTU that the driver is told, in bytes without the Ethernet header.
    pub mtu: u16,
}

/// A network device.
pub struct Net {
    link: Arc<dyn Link>,
    options: Options,
    worker: Option<Worker>,
}

impl Net {
    /// A device on a link.
    ///
    /// # Errors
    /// When the MTU is below 68 or the address is a multicast one.
    pub fn new(link: impl Link + 'static, options: Options) -> io::Result<Self> {
        let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if options.mtu < SMALLEST_MTU {
            return wrong("an MTU is at least 68 bytes");
        }
        if options.mac[0] & 1 != 0 {
            return wrong("a network card can't have a multicast address");
        }
        Ok(Self {
            link: Arc::new(link),
            options,
            worker: None,
        })
    }

    /// `struct virtio_net_config`. Section 5.1.4.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.options.mac);
        config[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
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

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        let guest = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;
        let host = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6;
        let rest = F_MAC | F_MTU | F_STATUS | F_MRG_RXBUF;
        guest | host | rest | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn config_write(&mut self, _: u64, _: &[u8]) {
        // All fields are read-only in a modern device.
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.worker = None;
        let offload = offload(activation.features);
        self.link.set_offload(offload)?;
        let needed = if offload.intersects(Offload::TSO4 | Offload::TSO6) {
            LARGEST
        } else {
            // Ethernet header, VLAN tag, and a tap that is larger than we were told.
            HEADER_SIZE + 18 + usize::from(self.options.mtu).max(1500)
        };
        let pump = Pump::new(Arc::clone(&self.link), activation, needed)?;
        self.worker = Some(Worker::start("net", move |stop| pump.run(&stop))?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}
