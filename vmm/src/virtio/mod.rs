//! Virtio 1.2 devices: what a device is ([`VirtioDevice`]), what it gets when the
//! driver is ready ([`Activation`]), and how it reports back ([`Interrupt`]).
//!
//! ```text
//!  vCPU exit ─► pci::PciRoot ─► virtio::pci::VirtioPciDevice ─ activate, quiesce ─► mailbox
//!                                  registers, MSI-X, doorbells                         │
//!  guest ─ doorbell (ioeventfd) ─────────────────────────► queue::Ring, a device's thread
//!  guest ◄─ MSI-X (irqfd) ◄──────────── Interrupt ◄──────────────────────────┘
//! ```
//!
//! A vCPU that starts or resets a device sends a message and goes on: the device's
//! threads were made when it was plugged, and say when they have let go of guest memory
//! ([`quiet`]). However long a disk takes, nobody but its own driver waits for it.
//!
//! Devices know queues, guest memory and a back end; never KVM, never PCI. What
//! they read from guest memory is hostile: a chain is first collected into host
//! ranges ([`queue::Buffers`]), then parsed into an owned request, then executed.
//! A queue that breaks the rules sets DEVICE_NEEDS_RESET and is left alone.
//!
//! Specification: Virtual I/O Device (VIRTIO) Version 1.2, OASIS, 2022.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod counters;
pub mod limit;
pub mod mem;
pub mod net;
pub mod pci;
pub mod queue;
pub mod quiet;
pub mod rng;
pub mod thread;
pub mod vhost_user_blk;
pub mod vsock;

#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::sync::Arc;

use serde_json::Value;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use self::counters::Counters;
use self::quiet::{Quiet, Why};
use self::thread::{DeviceThread, Port};
use crate::jail::Profile;
use crate::memory::Memory;
use crate::snapshot::Refused;

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
    /// Its number: by which a driver knows what it is, whoever is behind it. Virtio 1.2,
    /// section 5.
    pub device_type: u16,
    /// What it is to a PCI bus: base class, sub-class, programming interface. PCI Code
    /// and ID Assignment Specification, section 1.
    pub pci_class: [u8; 3],
    /// What it asks of the kernel, by the threads that do. Devices that are
    /// [`Plug::Fixed`] are served by one thread, whose profile is [`SHARED`].
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
pub static DECLARATIONS: &[&Declaration] = &[
    &blk::DECLARATION,
    &net::DECLARATION,
    &rng::DECLARATION,
    &balloon::DECLARATION,
    &vsock::DECLARATION,
    &console::DECLARATION,
    &vhost_user_blk::DECLARATION,
    &mem::DECLARATION,
];

/// What the thread asks of the kernel that serves all devices that are [`Plug::Fixed`]:
/// what the socket device does, as the others need nothing.
pub static SHARED: Profile = Profile {
    thread: vsock::THREAD,
    ..Profile::NONE
};

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
    /// gives the queue another vector: [`VirtioDevice::vectors_changed`].
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
    /// Its rings, and where they stand.
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
    /// The machine was held ([`Why::Hold`]) and goes on: the driver knows of nothing, and
    /// what it has set beside the queues still holds.
    pub resumed: bool,
}

impl Activation {
    /// Whether a feature was negotiated.
    #[must_use]
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// Where a device is plugged.
pub struct Site<'a> {
    /// One for each of its queues: these are what its activations will bring.
    pub doorbells: &'a [Arc<EventFd>],
    /// The thread of the devices that are [`Plug::Fixed`].
    pub shared: &'a DeviceThread,
}

/// A virtio device behind any transport: its registers, and the way to its threads.
///
/// The transport calls all of this under its own lock, mostly from a vCPU's thread, so
/// none of it waits: it makes no system call but to ring a bell.
pub trait VirtioDevice: Send {
    /// What it is.
    fn declaration(&self) -> &'static Declaration;

    /// Makes its threads and what they need. Called once, by the main thread, confined,
    /// before the guest sees the device. What it asks of the kernel is in the profile's
    /// `plug`.
    ///
    /// # Errors
    /// When the host has no resources for it; the device is then not plugged.
    fn plugged(&mut self, site: &Site<'_>) -> io::Result<()>;

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

    /// The way to the service on its thread that is all of it at work, from when it is
    /// plugged; none: it sees to its activations itself.
    fn port(&self) -> Option<&Port>;

    /// The driver set DRIVER_OK, or the machine goes on: has the device's threads serve
    /// its queues. One that can't sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) {
        match self.port() {
            Some(port) => port.start(activation),
            None => activation.interrupt.needs_reset(),
        }
    }

    /// The driver gave a queue another vector, or none, after DRIVER_OK. It must do so
    /// before it enables the queue (section 4.1.4.3.2), but some come later, and then
    /// whatever holds a queue's [`Interrupt::event`] has an old one. A back end that
    /// can't be given the new one sets DEVICE_NEEDS_RESET.
    fn vectors_changed(&mut self) {
        if let Some(port) = self.port() {
            port.vectors_changed();
        }
    }

    /// Has the device's threads let go of guest memory, after an activation. Whoever
    /// has a part in it keeps a clone of `quiet` for as long as it takes.
    fn quiesce(&mut self, why: Why, quiet: Quiet) {
        if let Some(port) = self.port() {
            port.stop(why, quiet);
        }
    }

    /// What it keeps beside its queues, while it is held or nobody drives it: a structure
    /// with its version in its name, or null for nothing.
    fn save(&self) -> Value {
        Value::Null
    }

    /// Takes over what was saved, before anybody drives it: [`Activation::resumed`]
    /// follows, or a new driver.
    ///
    /// # Errors
    /// When there is no such state of this device.
    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        nothing(state)
    }
}

/// Refuses what is saved of a device that keeps nothing beside its queues.
fn nothing(state: &Value) -> Result<(), Refused> {
    match state {
        Value::Null => Ok(()),
        _ => Err(Refused::because("it keeps nothing beside its queues")),
    }
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
    use crate::serial::{Output, Serial};

    #[test]
    fn kinds_of_devices_are_told_apart() {
        let kinds = || DECLARATIONS.iter();
        let names: BTreeSet<_> = kinds().map(|kind| kind.name).collect();
        let numbers: BTreeSet<_> = kinds().map(|kind| kind.device_type).collect();
        assert_eq!(names.len(), DECLARATIONS.len(), "{names:?}");
        // A disk is a disk, whoever serves it.
        assert_eq!(numbers.len() + 1, DECLARATIONS.len(), "{numbers:?}");
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
        let serial = Serial::new(Output::Stdout).expect("a UART");
        let port = serial.console_port().expect("a port");
        let memory = testing::Guest::new(1).memory;
        let mem = mem::Mem::new(memory);
        for (device, features, queues) in [
            (
                Box::new(rng::Rng::new()) as Box<dyn VirtioDevice>,
                &[28, 29][..],
                1,
            ),
            (Box::new(balloon::Balloon::new()), &[2, 5, 28, 29], 3),
            (Box::new(vsock), &[0, 28, 29], 3),
            (Box::new(console::Console::new(port)), &[28, 29], 2),
            (Box::new(mem), &[1, 28, 29], 1),
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
    fn the_shared_thread_may_what_its_devices_do() {
        let fixed = DECLARATIONS.iter().filter(|kind| kind.plug == Plug::Fixed);
        for kind in fixed {
            let own = &mut kind.profile.thread.iter();
            assert!(
                own.all(|call| SHARED.thread.contains(call)),
                "{}",
                kind.name
            );
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
