//! Virtio 1.2 devices: what a device is ([`VirtioDevice`]), what it gets when the
//! driver is ready ([`Activation`]), and how it reports back ([`Interrupt`]).
//!
//! ```text
//!  vCPU exit ─► pci::PciRoot ─► virtio::pci::VirtioPciDevice ─ activate ─► device
//!                                  registers, MSI-X, doorbells               │ thread
//!  guest ─ doorbell (ioeventfd) ───────────────────────────────────────► queue::Ring
//!  guest ◄─ MSI-X (irqfd) ◄──────────── Interrupt ◄──────────────────────────┘
//! ```
//!
//! Devices know queues, guest memory and a back end; never KVM, never PCI. What
//! they read from guest memory is hostile: a chain is first collected into host
//! ranges ([`queue::Buffers`]), then parsed into an owned request, then executed.
//! A queue that breaks the rules sets DEVICE_NEEDS_RESET and is left alone.
//!
//! Specification: Virtual I/O Device (VIRTIO) Version 1.2, OASIS, 2022.

pub mod balloon;
pub mod blk;
pub mod counters;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
pub mod vsock;
pub mod worker;

#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use self::counters::Counters;
use crate::jail::Profile;
use crate::memory::Memory;

/// Feature bit: the device follows the non-legacy specification. Section 6.
pub const F_VERSION_1: u64 = 1 << 32;
/// Feature bit: indirect descriptors. Section 2.7.5.3.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit: `used_event` and `avail_event`. Sections 2.7.7 and 2.7.10.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// What a kind of device is, said once, beside its code: the transport, the sandbox,
/// the machine and the command line take it from here.
#[derive(Debug)]
pub struct Declaration {
    /// Its name, which no other kind has: of its threads, in messages, and its id where
    /// there is one at most.
    pub name: &'static str,
    /// Its number, which no other kind has. Virtio 1.2, section 5.
    pub device_type: u16,
    /// What it is to a PCI bus: base class, sub-class, programming interface. PCI Code
    /// and ID Assignment Specification, section 1.
    pub pci_class: [u8; 3],
    /// What it asks of the kernel, by the threads that do.
    pub profile: Profile,
    /// How many a machine has, and whether they come and go.
    pub plug: Plug,
}

/// How devices of a kind are plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plug {
    /// Any number, each with an id of its own; also while the guest runs.
    Hot,
    /// One at most, from the start to the end.
    Fixed,
}

/// Every kind of device. One that isn't in it can't be plugged.
pub static DECLARATIONS: [&Declaration; 5] = [
    &blk::DECLARATION,
    &net::DECLARATION,
    &rng::DECLARATION,
    &balloon::DECLARATION,
    &vsock::DECLARATION,
];

/// What each kind of device asks of the kernel.
pub fn profiles() -> Vec<&'static Profile> {
    let all = DECLARATIONS.iter();
    all.map(|declaration| &declaration.profile).collect()
}

/// How a device speaks to its driver. Cheap, callable from any thread.
pub trait Interrupt: Send + Sync {
    /// Notifies the driver that a queue has used buffers. Section 2.7.7: the caller
    /// has asked the ring whether the driver wants to know.
    fn queue(&self, index: u16);

    /// The event that [`Self::queue`] signals, for a back end in the kernel: none while
    /// the driver wants no interrupts of this queue. It stays the same until the driver
    /// gives the queue another vector: [`VirtioDevice::vector_changed`].
    fn event(&self, index: u16) -> Option<EventFd>;

    /// Notifies the driver that the device's configuration changed. Section 2.5.
    fn config_changed(&self);

    /// Sets DEVICE_NEEDS_RESET and notifies the driver. Section 2.1.2.
    fn needs_reset(&self);
}

/// One queue that the driver has enabled, its set-up checked.
pub struct ActiveQueue {
    /// Which of the device's queues.
    pub index: u16,
    /// Its rings.
    pub queue: Queue,
    /// What the driver rings. Nobody reads it but the device.
    pub doorbell: Arc<EventFd>,
}

/// What a device gets when the driver is ready.
pub struct Activation {
    /// Guest memory.
    pub memory: Memory,
    /// The features the driver accepted, a subset of those offered.
    pub features: u64,
    /// The queues that the driver enabled, in order; a device checks that those it
    /// needs are among them.
    pub queues: Vec<ActiveQueue>,
    /// The way back.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Whether a feature was negotiated.
    #[must_use]
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// A virtio device behind any transport.
///
/// The transport calls all of this under its own lock; a device's threads must
/// not wait for the transport.
pub trait VirtioDevice: Send {
    /// What it is.
    fn declaration(&self) -> &'static Declaration;

    /// Makes what its threads, confined as they will be, can't make for themselves. Called
    /// once, by the main thread, before the guest sees the device; `doorbells` has one
    /// for each queue. What it asks of the kernel is in the profile's `plug`.
    ///
    /// # Errors
    /// When the host has no resources for it; the device is then not plugged.
    fn plugged(&mut self, doorbells: &[Arc<EventFd>]) -> io::Result<()> {
        let _ = doorbells;
        Ok(())
    }

    /// The features it offers; the transport adds [`F_VERSION_1`].
    fn features(&self) -> u64;

    /// What it counts.
    fn counters(&self) -> Arc<dyn Counters>;

    /// The largest size of each queue, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads device configuration; what no field covers reads 0.
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration; read-only fields keep their value.
    fn config_write(&mut self, offset: u64, data: &[u8]);

    /// The driver set DRIVER_OK: starts the device's threads. Called by a vCPU's thread,
    /// as [`Self::reset`] is: what they ask of the kernel is in the profile's `vcpu`.
    ///
    /// # Errors
    /// When a queue is missing or a thread can't be made; the transport then sets
    /// DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// The driver gave a queue another vector, or none, after DRIVER_OK. It must do so
    /// before it enables the queue (section 4.1.4.3.2), but some come later, and then
    /// whatever holds the queue's [`Interrupt::event`] has an old one. Called by a vCPU's
    /// thread.
    ///
    /// # Errors
    /// When the back end can't be given the new one; the transport then sets
    /// DEVICE_NEEDS_RESET.
    fn vector_changed(&mut self, queue: u16, interrupt: &dyn Interrupt) -> io::Result<()> {
        let _ = (queue, interrupt);
        Ok(())
    }

    /// Stops and joins the device's threads, with all that is in flight completed
    /// or dropped: no guest memory is touched afterwards. Idempotent.
    fn reset(&mut self);
}

/// Copies a part of a configuration structure; what is past its end reads 0.
pub(crate) fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let tail = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..));
    if let Some(tail) = tail {
        for (byte, value) in data.iter_mut().zip(tail) {
            *byte = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::block::Backend;

    #[test]
    fn kinds_of_devices_are_told_apart() {
        let kinds = || DECLARATIONS.iter();
        let names: BTreeSet<_> = kinds().map(|kind| kind.name).collect();
        let numbers: BTreeSet<_> = kinds().map(|kind| kind.device_type).collect();
        assert_eq!(names.len(), DECLARATIONS.len(), "{names:?}");
        assert_eq!(numbers.len(), DECLARATIONS.len(), "{numbers:?}");
    }

    /// Bits by their numbers in virtio 1.2, as a driver counts them.
    fn bits(numbers: &[u32]) -> u64 {
        numbers.iter().map(|number| 1 << number).sum()
    }

    #[test]
    fn devices_offer_what_drivers_know_them_by() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = |read_only| {
            let file = tempfile::tempfile().expect("a file");
            let backend = Backend::from_file(file, read_only).expect("a disk");
            let options = blk::Options {
                queues: 3,
                ..blk::Options::default()
            };
            blk::Block::new(backend, &options).expect("a device")
        };
        let vsock = vsock::Options {
            cid: 3,
            path: folder.path().join("socket"),
        };
        let vsock = vsock::Vsock::new(vsock).expect("a device");
        for (device, features, queues) in [
            (
                Box::new(rng::Rng::new()) as Box<dyn VirtioDevice>,
                &[28, 29][..],
                1,
            ),
            (Box::new(balloon::Balloon::new()), &[2, 5, 28, 29], 3),
            (Box::new(vsock), &[0, 28, 29], 3),
            (Box::new(disk(true)), &[2, 5, 6, 9, 10, 12, 29], 3),
            (Box::new(disk(false)), &[2, 6, 9, 10, 12, 13, 14, 29], 3),
        ] {
            let name = device.declaration().name;
            assert_eq!(device.features(), bits(features), "{name}");
            let sizes = device.queue_sizes();
            assert_eq!(sizes.len(), queues, "{name}");
            let good = |size: &u16| size.is_power_of_two() && (16..=1024).contains(size);
            assert!(sizes.iter().all(good), "{name}: {sizes:?}");
        }
    }

    #[test]
    fn all_kinds_say_what_they_ask_of_the_kernel() {
        assert_eq!(profiles().len(), DECLARATIONS.len());
    }

    #[test]
    fn a_feature_is_there_when_all_of_it_was_taken() {
        let guest = testing::Guest::new(1);
        let activation = guest.activation(0b110, &Arc::default());
        let has = [0b100, 0b110, 0b111, 0b001].map(|feature| activation.has(feature));
        assert_eq!(has, [true, true, false, false]);
    }

    #[test]
    fn reads_past_the_configuration_give_zeroes() {
        let read = |offset, length: usize| {
            let mut data = vec![0xff; length];
            read_config(&[1, 2, 3, 4], offset, &mut data);
            data
        };
        assert_eq!(read(0, 4), [1, 2, 3, 4]);
        assert_eq!(read(1, 2), [2, 3]);
        assert_eq!(read(2, 4), [3, 4, 0, 0]);
        assert_eq!(read(4, 1), [0]);
        assert_eq!(read(u64::MAX, 2), [0, 0]);
    }

    #[test]
    fn every_kind_of_device_is_fuzzed() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("a manifest");
        for kind in DECLARATIONS {
            let target = format!("fuzz_targets/{}.rs", kind.name);
            assert!(fuzz.join(&target).is_file(), "no vmm/fuzz/{target}");
            let line = format!("path = \"{target}\"");
            assert!(manifest.contains(&line), "{target} is no binary");
        }
    }
}
