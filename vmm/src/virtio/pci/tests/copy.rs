//! Devices on a bus, and a driver that doesn't notice when both are others.

use std::fs::File;
use std::time::{Duration, Instant};

use super::*;
use crate::block::Backend;
use crate::pci::{BusV1, PciRoot, Windows};
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::Balloon;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{READ, WRITE};

const RNG: u64 = 1;
const DISK: u64 = 3;
/// Which of the guest's queues is the first of a device.
const QUEUES: [(u64, u16); 2] = [(RNG, 0), (DISK, 1)];
const DATA: u64 = 0x20_0000;

/// A machine's bus, and what is outside of it.
struct Machine {
    root: PciRoot,
    interrupts: FakeInterrupts,
}

impl Machine {
    fn new(guest: &Guest, disk: &File, slots: [u64; 2]) -> Self {
        let interrupts = FakeInterrupts::default();
        let backplane = backplane(guest, &interrupts);
        let root = PciRoot::new(Windows {
            low: 0xc000_0000..0xc010_0000,
            high: None,
            io: 0x1000..0x2000,
        });
        let backend = Backend::from_file(disk.try_clone().unwrap(), false).unwrap();
        let disk = blk::Block::new(backend, &blk::Options::default()).unwrap();
        let devices: [(u64, Box<dyn VirtioDevice>); 3] = [
            (slots[0], Box::new(Rng::new())),
            (slots[1], Box::new(disk)),
            (4, Box::new(Balloon::new())),
        ];
        for (slot, device) in devices {
            let function = VirtioPciDevice::new(device, &backplane).unwrap();
            let slot = u8::try_from(slot).unwrap();
            root.add(Some(slot), Box::new(function)).unwrap();
        }
        Self { root, interrupts }
    }

    fn config(&self, slot: u64, register: u8) -> u32 {
        let mut data = [0; 4];
        let at = slot << 15 | u64::from(register);
        self.root.ecam_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, slot: u64, at: u64, width: usize, value: u32) {
        let base = u64::from(self.config(slot, register::BAR0) & !0xf);
        let data = &value.to_le_bytes()[..width];
        self.root.mmio_write(base + at, data).expect("it decodes");
    }

    fn get(&self, slot: u64, at: u64, width: usize) -> u32 {
        let base = u64::from(self.config(slot, register::BAR0) & !0xf);
        let mut data = [0; 4];
        let found = self.root.mmio_read(base + at, &mut data[..width]);
        found.expect("it decodes");
        u32::from_le_bytes(data)
    }

    /// Plays the driver until DRIVER_OK.
    fn bring_up(&self, slot: u64, queue: u16) {
        self.root.ecam_write(slot << 15 | 4, &[7, 0]);
        self.put(slot, 0x14, 1, 3);
        self.put(slot, 0x08, 4, 1);
        self.put(slot, 0x0c, 4, 1);
        self.put(slot, 0x14, 1, 0xb);
        self.put(slot, 0x18, 2, 16);
        for (at, address) in [
            (0x20, Guest::table(queue)),
            (0x28, Guest::available(queue)),
            (0x30, Guest::used_ring(queue)),
        ] {
            self.put(slot, at, 4, u32::try_from(address.0).unwrap());
        }
        self.put(slot, 0x1c, 2, 1);
        self.put(slot, 0x14, 1, 0xf);
        assert_eq!(self.get(slot, 0x14, 1), 0xf);
    }

    /// Offers a chain, rings at the port, and waits until it is returned.
    fn request(&self, guest: &Guest, slot: u64, queue: u16, chain: &[(u64, u32, u16)]) {
        let count = guest.used(queue).len() + 1;
        guest.offer(queue, chain);
        let port = self.config(slot, register::BAR0 + 8) & !3;
        let rung = self.root.io_write(u16::try_from(port).unwrap(), &[0, 0]);
        rung.expect("it decodes");
        until(|| guest.used(queue).len() == count);
    }

    fn hold(&self) {
        self.root.hold();
        until(|| self.root.settle().busy == 0);
    }
}

/// Waits, with a deadline that no working device comes near.
fn until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to be");
        std::thread::yield_now();
    }
}

fn disk() -> File {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    disk
}

/// A write of a sector, or a read: header, data, status. Virtio 1.2, section 5.2.6.
fn sector(guest: &Guest, is_write: bool) -> [(u64, u32, u16); 3] {
    let mut header = [0; 16];
    header[0] = is_write.into();
    header[8] = 5;
    guest.write(DATA, &header);
    let data = if is_write { READ } else { WRITE };
    [
        (DATA, 16, READ),
        (DATA + 0x1000, 512, data),
        (DATA + 0x2000, 1, WRITE),
    ]
}

#[test]
fn a_driver_goes_on_with_other_devices() {
    let (guest, disk) = (Guest::new(2), disk());
    let first = Machine::new(&guest, &disk, [RNG, DISK]);
    for (slot, queue) in QUEUES {
        first.bring_up(slot, queue);
    }
    first.request(&guest, RNG, 0, &[(DATA + 0x4000, 64, WRITE)]);
    guest.write(DATA + 0x1000, &[0x5a; 512]);
    first.request(&guest, DISK, 1, &sector(&guest, true));
    first.hold();
    let json = serde_json::to_string(&first.root.save().unwrap()).unwrap();
    drop(first);

    let copy = Machine::new(&guest, &disk, [RNG, DISK]);
    let state: BusV1 = serde_json::from_str(&json).unwrap();
    copy.root.restore(&state).unwrap();
    assert_eq!(copy.root.save().unwrap(), state);
    let ports = copy.interrupts.doorbells();
    let rng = copy.config(RNG, register::BAR0 + 8) & !3;
    assert!(ports.contains(&Doorbell::Port(u16::try_from(rng).unwrap(), 0)));
    copy.root.resume();
    for slot in [RNG, DISK] {
        assert_eq!(copy.get(slot, 0x14, 1), 0xf);
    }
    guest.write(DATA + 0x1000, &[0; 512]);
    copy.request(&guest, DISK, 1, &sector(&guest, false));
    assert_eq!(guest.read(DATA + 0x1000, 512), [0x5a; 512]);
    copy.request(&guest, RNG, 0, &[(DATA + 0x5000, 64, WRITE)]);
    assert_ne!(guest.read(DATA + 0x5000, 64), [0; 64]);
    // And once more.
    copy.hold();
    let again = Machine::new(&guest, &disk, [RNG, DISK]);
    again.root.restore(&copy.root.save().unwrap()).unwrap();
    again.root.resume();
    again.request(&guest, RNG, 0, &[(DATA + 0x5000, 64, WRITE)]);
    assert_eq!(again.get(RNG, 0x14, 1), 0xf);
}

#[test]
fn a_bus_of_other_devices_is_refused() {
    let (guest, disk) = (Guest::new(2), disk());
    let first = Machine::new(&guest, &disk, [RNG, DISK]);
    first.bring_up(RNG, 0);
    let at_work = first.root.save().expect_err("at work").to_string();
    assert_eq!(at_work, "PCI slot 1: its device is at work");
    first.hold();
    let state = first.root.save().unwrap();
    let other = Machine::new(&guest, &disk, [DISK, RNG]);
    let refused = other.root.restore(&state).expect_err("others").to_string();
    let why =
        "PCI slot 1: it is another device: register 0x0 is 0x10421af4 here and 0x10441af4 there";
    assert_eq!(refused, why);
    // A machine that was refused can still be taken down, and starts anew.
    other.root.reset();
    until(|| other.root.settle().busy == 0);
    other.bring_up(DISK, 0);
    other.request(&guest, DISK, 0, &[(DATA, 64, WRITE)]);
}
