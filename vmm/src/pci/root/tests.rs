mod state;

use super::*;
use crate::pci::Quiesce;
use crate::pci::config::{Bar, BarKind, ConfigSpace, Identity, register};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Log = Arc<Mutex<Vec<String>>>;

struct Probe {
    config: ConfigSpace,
    log: Log,
    is_quiet: Arc<AtomicBool>,
}

impl Probe {
    fn boxed(log: &Log) -> Box<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: 0x5678,
            ..Identity::default()
        });
        let mut add = |index, kind, size| config.add_bar(index, Bar { kind, size }).unwrap();
        add(0, BarKind::Memory64, 0x1000);
        add(2, BarKind::Memory32, 0x1000);
        add(3, BarKind::Io, 4);
        Box::new(Self {
            config,
            log: Arc::clone(log),
            is_quiet: Arc::new(AtomicBool::new(true)),
        })
    }
    fn say(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }
}

impl PciDevice for Probe {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(bar + 1);
        self.say(format!("read {bar} {offset:x}"));
    }
    fn bar_write(&mut self, bar: u8, offset: u64, _: &[u8]) {
        self.say(format!("write {bar} {offset:x}"));
    }
    fn bar_moved(&mut self, bar: u8, address: Option<u64>) {
        self.say(format!("moved {bar} {address:x?}"));
    }
    fn quiesce(&mut self, for_what: Quiesce) {
        if for_what == Quiesce::PowerOn {
            self.config.reset();
        }
        self.say(format!("{for_what:?}"));
    }
    fn is_quiet(&mut self) -> bool {
        self.is_quiet.load(Ordering::SeqCst)
    }
    fn resume(&mut self) {
        self.say("resume".into());
    }
}

fn root() -> (PciRoot, Log) {
    let root = PciRoot::new(Windows {
        low: 0xc000_0000..0xc000_8000,
        high: Some(0x10_0000_0000..0x10_0000_8000),
        io: 0x1000..0x1100,
    });
    (root, Log::default())
}

fn ecam(slot: u64, register: u8) -> u64 {
    slot << 15 | u64::from(register)
}

fn read32(root: &PciRoot, offset: u64) -> u32 {
    let mut data = [0; 4];
    root.ecam_read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn an_empty_bus_has_a_host_bridge() {
    let (root, _) = root();
    assert_eq!(read32(&root, ecam(0, 8)) >> 16, 0x0600);
    assert_eq!(read32(&root, ecam(1, 0)), u32::MAX);
    assert_eq!(read32(&root, ECAM_SIZE + 5), u32::MAX);
    assert_eq!(read32(&root, 1 << 12), u32::MAX, "no function 1");
    assert_eq!(read32(&root, 0x100), 0, "no extended capability");
    assert_eq!(root.remove(0).err(), Some(Error::SlotEmpty(0)));
}

#[test]
fn ports_reach_the_same_registers() {
    let (root, log) = root();
    assert_eq!(root.add(Some(3), Probe::boxed(&log)), Ok(3));
    let mut data = [0; 2];
    root.port_write(CONFIG_ADDRESS, &(0x8000_1800u32).to_le_bytes());
    root.port_read(CONFIG_DATA + 2, &mut data);
    assert_eq!(u16::from_le_bytes(data), 0x5678);
    root.port_write(CONFIG_ADDRESS, &0x1800u32.to_le_bytes());
    root.port_read(CONFIG_DATA, &mut data);
    assert_eq!(data, [0xff; 2], "not enabled");
}

/// PCI 3.0, section 3.2.2.3.2: the address register is one of four bytes, and selects
/// what is on this bus alone.
#[test]
fn the_address_register_is_whole_and_selects_one_function() {
    let (root, log) = root();
    root.add(Some(3), Probe::boxed(&log)).unwrap();
    let read = |port, length: usize| {
        let mut data = [0; 4];
        root.port_read(port, &mut data[..length]);
        data[..length].to_vec()
    };
    let select = |address: u32| root.port_write(CONFIG_ADDRESS, &address.to_le_bytes());
    select(0x8000_1800);
    assert_eq!(read(CONFIG_ADDRESS, 4), [0, 0x18, 0, 0x80]);
    root.port_write(CONFIG_ADDRESS, &[0, 0]);
    assert_eq!(
        read(CONFIG_ADDRESS, 4),
        [0, 0x18, 0, 0x80],
        "a half is no write"
    );
    assert_eq!(read(CONFIG_ADDRESS, 2), [0xff; 2], "and reads nothing");
    assert_eq!(read(CONFIG_ADDRESS + 1, 4), [0xff; 4]);
    assert_eq!(read(CONFIG_DATA, 4), [0x34, 0x12, 0x78, 0x56]);
    assert_eq!(read(CONFIG_DATA + 3, 1), [0x56]);
    assert_eq!(read(CONFIG_DATA + 4, 4), [0xff; 4], "past the data");
    assert_eq!(read(CONFIG_DATA + 1, 2), [0xff; 2], "not aligned");
    assert_eq!(read(CONFIG_DATA, 3), [0xff; 3], "no length that there is");
    for (what, address) in [
        ("another bus", 0x8001_1800u32),
        ("another function", 0x8000_1900),
        ("another slot", 0x8000_1000),
    ] {
        select(address);
        assert_eq!(read(CONFIG_DATA, 4), [0xff; 4], "{what}");
    }
    root.reset();
    assert_eq!(read(CONFIG_ADDRESS, 4), [0; 4]);
}

#[test]
fn no_device_comes_where_the_guest_expects_none() {
    let (root, log) = root();
    root.keep_to(2);
    assert_eq!(root.last_slot(), 2);
    let add = |slot| root.add(slot, Probe::boxed(&log));
    assert_eq!(add(Some(3)), Err(Error::SlotTaken(3)));
    assert_eq!((add(None), add(None)), (Ok(1), Ok(2)));
    assert_eq!(add(None), Err(Error::BusFull(2)));
    root.remove(1).unwrap();
    root.settle();
    assert_eq!(add(None), Ok(1), "a slot that is free again");
}

#[test]
fn slots_are_given_from_the_first_and_never_the_bridges() {
    let (root, log) = root();
    assert_eq!(
        root.add(Some(0), Probe::boxed(&log)),
        Err(Error::SlotTaken(0))
    );
    assert_eq!(
        root.add(Some(32), Probe::boxed(&log)),
        Err(Error::SlotTaken(32))
    );
    assert_eq!(root.add(None, Probe::boxed(&log)), Ok(1));
    assert_eq!(
        root.add(Some(1), Probe::boxed(&log)),
        Err(Error::SlotTaken(1))
    );
    assert_eq!(root.add(None, Probe::boxed(&log)), Ok(2));
}

#[test]
fn bars_are_placed_and_follow_the_guest() {
    let (root, log) = root();
    root.add(Some(1), Probe::boxed(&log)).unwrap();
    assert_eq!(
        root.mmio_write(0x10_0000_0010, &[0; 4]),
        None,
        "not enabled yet"
    );
    root.ecam_write(ecam(1, register::COMMAND), &[2, 0]);
    assert!(root.mmio_write(0x10_0000_0010, &[0; 4]).is_some());
    assert_eq!(
        root.mmio_write(0x10_0000_0ffe, &[0; 4]),
        None,
        "past the end"
    );
    let mut data = [0; 1];
    assert!(root.mmio_read(0xc000_0001, &mut data).is_some());
    assert_eq!(data, [3]);
    root.ecam_write(ecam(1, register::BAR0), &0xd000_0000u32.to_le_bytes());
    assert_eq!(root.mmio_write(0x10_0000_0010, &[0; 4]), None);
    assert!(root.mmio_write(0x10_d000_0010, &[0; 4]).is_some());
    root.reset();
    assert_eq!(root.mmio_write(0x10_d000_0010, &[0; 4]), None);
    assert_eq!(read32(&root, ecam(1, register::BAR0)), 4);
    assert_eq!(read32(&root, ecam(1, register::BAR0 + 4)), 0x10);
    let log = log.lock().unwrap();
    assert!(log.contains(&"moved 0 Some(10d0000000)".into()), "{log:?}");
    assert_eq!(log.last().map(String::as_str), Some("PowerOn"));
}

#[test]
fn ports_follow_the_guest_inside_the_window() {
    let (root, log) = root();
    root.add(Some(1), Probe::boxed(&log)).unwrap();
    root.add(Some(2), Probe::boxed(&log)).unwrap();
    let bar = register::BAR0 + 12;
    assert_eq!(read32(&root, ecam(2, bar)), 0x1005);
    let mut data = [0; 2];
    root.ecam_write(ecam(2, register::COMMAND), &[2, 0]);
    assert_eq!(root.io_read(0x1004, &mut data), None, "not enabled yet");
    assert_eq!(data, [0xff; 2]);
    root.ecam_write(ecam(2, register::COMMAND), &[1, 0]);
    assert!(root.io_read(0x1006, &mut data).is_some());
    assert_eq!(data, [4; 2]);
    assert_eq!(root.io_read(0x1007, &mut data), None, "past the end");
    assert_eq!(root.mmio_read(0x1004, &mut data), None, "another space");
    root.ecam_write(ecam(2, bar), &0x10fcu32.to_le_bytes());
    assert_eq!(root.io_write(0x1004, &[0; 2]), None);
    assert!(root.io_write(0x10fc, &[0; 2]).is_some());
    // What the bridge doesn't forward: fixed ports, and the last of all.
    log.lock().unwrap().clear();
    for elsewhere in [0u32, 0x3f8, 0xcf8, 0xffc, 0x1100, 0xffff_ffff] {
        root.ecam_write(ecam(2, bar), &elsewhere.to_le_bytes());
        assert_eq!(read32(&root, ecam(2, bar)), elsewhere & 0xfffc | 1);
        let port = u16::try_from(elsewhere & 0xfffc).unwrap();
        assert_eq!(root.io_write(port, &[0; 2]), None);
    }
    assert_eq!(log.lock().unwrap().as_slice(), ["moved 3 None"]);
    root.reset();
    assert_eq!(read32(&root, ecam(2, bar)), 0x1005);
}

#[test]
fn removal_unbinds_and_frees() {
    let (root, log) = root();
    for _ in 0..50 {
        let slot = root.add(None, Probe::boxed(&log)).unwrap();
        assert_eq!(slot, 1);
        root.ecam_write(ecam(1, register::COMMAND), &[3, 0]);
        root.remove(slot).unwrap();
        assert_eq!(root.settle().gone, 1 << slot);
        let said: Vec<_> = log.lock().unwrap().drain(..).collect();
        let gone = ["moved 0 None", "moved 2 None", "moved 3 None", "PowerOn"];
        assert_eq!(said[2], "moved 3 Some(1000)");
        assert_eq!(said[3..], gone);
        assert_eq!(read32(&root, ecam(1, 0)), u32::MAX);
    }
    assert_eq!(root.remove(1).err(), Some(Error::SlotEmpty(1)));
}

#[test]
fn a_full_window_refuses_and_leaks_nothing() {
    let (root, log) = root();
    let slots: Vec<_> = (0..8)
        .map(|_| root.add(None, Probe::boxed(&log)).unwrap())
        .collect();
    assert_eq!(slots, root.slots());
    let full = root.add(None, Probe::boxed(&log));
    assert_eq!(full, Err(Error::WindowFull(0x1000)));
    root.remove(4).unwrap();
    assert_eq!(root.settle().gone, 1 << 4);
    assert_eq!(root.add(None, Probe::boxed(&log)), Ok(4));
    assert_eq!(
        root.add(Some(4), Probe::boxed(&log)),
        Err(Error::SlotTaken(4))
    );
    assert_eq!(
        root.add(Some(32), Probe::boxed(&log)),
        Err(Error::SlotTaken(32))
    );
}

proptest! {
    #[test]
    fn no_access_breaks_the_bus(
        accesses in prop::collection::vec((0u8..6, any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)), 0..128)
    ) {
        let (root, log) = root();
        root.add(None, Probe::boxed(&log)).unwrap();
        for (kind, at, bytes) in accesses {
            let mut data = bytes.clone();
            let [low, high, ..] = at.to_le_bytes();
            match kind {
                0 => root.ecam_write(at % (2 * ECAM_SIZE), &bytes),
                1 => root.ecam_write(ecam(1, low), &bytes),
                2 => root.port_write(0xcf8 + u16::from(high & 7), &bytes),
                3 => { root.mmio_write(at, &bytes); }
                4 => { root.io_write(u16::from_le_bytes([low, high]), &bytes); }
                _ => { root.io_read(u16::from_le_bytes([low, high]), &mut data); root.port_read(0xcf8 + u16::from(high & 7), &mut data); root.mmio_read(at, &mut data); }
            }
        }
        prop_assert_eq!(read32(&root, ecam(1, 0)), 0x5678_1234);
        root.reset();
        prop_assert_eq!(read32(&root, ecam(1, register::BAR0 + 4)), 0x10);
        prop_assert_eq!(read32(&root, ecam(1, register::BAR0 + 12)), 0x1001);
    }
}
