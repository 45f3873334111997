//! Bus 0: 32 slots of one function each, the host bridge in slot 0.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PciDevice;
use super::config::{BAR_COUNT, BarKind, CONFIG_SPACE_SIZE, ConfigSpace, Identity};
use super::window::Window;

/// Slots of the bus.
pub const SLOT_COUNT: u8 = 32;

/// Bytes of configuration space that ECAM gives each function. PCIe 2.0, 7.2.2.
const ECAM_FUNCTION_SIZE: u64 = 4096;

/// Bytes of ECAM for one bus: 32 slots, 8 functions each.
pub const ECAM_SIZE: u64 = ECAM_FUNCTION_SIZE * 8 * 32;

/// Port of the address register. PCI Local Bus 3.0, section 3.2.2.3.2.
pub const CONFIG_ADDRESS: u16 = 0xcf8;

/// First port of the data register.
pub const CONFIG_DATA: u16 = 0xcfc;

/// Bit 31 of the address register: accesses of the data register are for the bus.
const CONFIG_ENABLE: u32 = 1 << 31;

/// Where BARs may be placed, as `_CRS` of the bridge tells the guest.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Below 4 GiB, for 32-bit BARs and, without `high`, for all.
    pub low: Range<u64>,
    /// Above 4 GiB, for 64-bit BARs.
    pub high: Option<Range<u64>>,
}

/// Why a device can't be added or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// All slots are taken.
    #[error("all 31 device slots of the PCI bus are taken")]
    BusFull,
    /// That slot is taken, or not a slot for devices.
    #[error("PCI slot {0} is not free")]
    SlotTaken(u8),
    /// Nothing is in that slot.
    #[error("PCI slot {0} is empty")]
    SlotEmpty(u8),
    /// No window has room.
    #[error("no room for a PCI BAR of {0} bytes")]
    WindowFull(u64),
}

/// One BAR as placed by us and as decoded now.
#[derive(Debug, Clone, Copy)]
struct Placed {
    index: u8,
    size: u64,
    kind: BarKind,
    /// What we chose: the value after reset, and what the window gets back.
    home: u64,
    decoded: Option<u64>,
}

struct Function {
    device: Box<dyn PciDevice>,
    bars: Vec<Placed>,
}

struct Bus {
    slots: [Option<Function>; SLOT_COUNT as usize],
    low: Window,
    high: Option<Window>,
    address: u32,
}

/// The root of the bus. All methods take `&self` and may be called from any vCPU.
pub struct PciRoot {
    bus: Mutex<Bus>,
}

/// The host bridge: nothing but its header.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // The generic PCIe host bridge of pci.ids, for which no system has quirks.
        // Class 06:00 is "host bridge", appendix D.
        Self(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            class: [0x06, 0x00, 0x00],
            ..Identity::default()
        }))
    }
}

impl PciDevice for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn bar_read(&mut self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn bar_write(&mut self, _: u8, _: u64, _: &[u8]) {}
    fn bar_moved(&mut self, _: u8, _: Option<u64>) {}
    fn reset(&mut self) {
        self.0.reset();
    }
}

impl PciRoot {
    /// A bus with its host bridge in slot 0.
    #[must_use]
    pub fn new(windows: Windows) -> Self {
        let mut slots = [const { None }; SLOT_COUNT as usize];
        slots[0] = Some(Function {
            device: Box::new(HostBridge::new()) as Box<dyn PciDevice>,
            bars: Vec::new(),
        });
        Self {
            bus: Mutex::new(Bus {
                slots,
                low: Window::new(windows.low),
                high: windows.high.map(Window::new),
                address: 0,
            }),
        }
    }

    /// Puts a device in a slot, or in the first free one, and places its BARs.
    /// For a hot-added device the caller notifies the guest afterwards.
    ///
    /// # Errors
    /// When the slot or all slots are taken, or the windows are full; the device
    /// is then dropped.
    pub fn add(&self, slot: Option<u8>, mut device: Box<dyn PciDevice>) -> Result<u8, Error> {
        let mut bus = self.lock();
        let slot = bus.free_slot(slot)?;
        let bars = bus.place(device.config_mut())?;
        bus.slots[usize::from(slot)] = Some(Function { device, bars });
        Ok(slot)
    }

    /// Takes a device out, after the guest has let go of it (or when it must). Its
    /// threads have been joined, its doorbells unbound; its vectors go back when
    /// it is dropped.
    ///
    /// # Errors
    /// When the slot is empty or holds the host bridge.
    pub fn remove(&self, slot: u8) -> Result<Box<dyn PciDevice>, Error> {
        let mut bus = self.lock();
        let mut function = match slot {
            1..SLOT_COUNT => bus.slots[usize::from(slot)].take(),
            _ => None,
        }
        .ok_or(Error::SlotEmpty(slot))?;
        for bar in &function.bars {
            if bar.decoded.is_some() {
                function.device.bar_moved(bar.index, None);
            }
            bus.give_back(bar);
        }
        function.device.reset();
        Ok(function.device)
    }

    /// Slots that hold a device, without the host bridge.
    #[must_use]
    pub fn slots(&self) -> Vec<u8> {
        let bus = self.lock();
        (1..SLOT_COUNT)
            .filter(|slot| bus.slots[usize::from(*slot)].is_some())
            .collect()
    }

    /// Returns every device and the bus to their state after power-on, for a reset
    /// of the machine. BARs go back to where they were placed at first.
    pub fn reset(&self) {
        let mut bus = self.lock();
        bus.address = 0;
        for function in bus.slots.iter_mut().flatten() {
            function.reset();
        }
    }

    /// Reads ECAM; `offset` counts from its base.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        match ecam_target(offset) {
            Some((slot, register)) => self.lock().config_read(slot, register, data),
            None => data.fill(0xff),
        }
    }

    /// Writes ECAM; `offset` counts from its base.
    pub fn ecam_write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = ecam_target(offset) {
            self.lock().config_write(slot, register, data);
        }
    }

    /// Reads one of ports 0xCF8 to 0xCFF.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        let mut bus = self.lock();
        data.fill(0xff);
        if port == CONFIG_ADDRESS && data.len() == 4 {
            data.copy_from_slice(&bus.address.to_le_bytes());
        } else if let Some((slot, register)) = bus.port_target(port) {
            bus.config_read(slot, register, data);
        }
    }

    /// Writes one of ports 0xCF8 to 0xCFF.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        let mut bus = self.lock();
        if port == CONFIG_ADDRESS {
            // Only a whole write is one of the address register; 0xCF9 as a byte
            // is a reset register on PCs, and none of ours.
            if let Ok(bytes) = <[u8; 4]>::try_from(data) {
                bus.address = u32::from_le_bytes(bytes);
            }
        } else if let Some((slot, register)) = bus.port_target(port) {
            bus.config_write(slot, register, data);
        }
    }

    /// Reads from whichever BAR decodes `address`. Returns whether one did; if
    /// none, `data` reads all ones.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        let mut bus = self.lock();
        match bus.find(address, data.len()) {
            Some((function, bar, offset)) => {
                function.device.bar_read(bar, offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes to whichever BAR decodes `address`. Returns whether one did.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        let mut bus = self.lock();
        match bus.find(address, data.len()) {
            Some((function, bar, offset)) => {
                function.device.bar_write(bar, offset, data);
                true
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bus> {
        // Registers are never left half-written, so poison tells nothing.
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot and register behind an ECAM offset; other buses and functions are
/// empty.
fn ecam_target(offset: u64) -> Option<(u8, u16)> {
    let function = offset / ECAM_FUNCTION_SIZE;
    if offset >= ECAM_SIZE || !function.is_multiple_of(8) {
        return None;
    }
    let slot = u8::try_from(function / 8).ok()?;
    let register = u16::try_from(offset % ECAM_FUNCTION_SIZE).ok()?;
    Some((slot, register))
}

impl Function {
    /// Tells the device where its BARs decode now, if that changed.
    fn update_bars(&mut self) {
        for bar in &mut self.bars {
            let decoded = self.device.config().decoded(bar.index);
            if decoded != bar.decoded {
                bar.decoded = decoded;
                self.device.bar_moved(bar.index, decoded);
            }
        }
    }

    fn reset(&mut self) {
        for bar in &mut self.bars {
            if bar.decoded.take().is_some() {
                self.device.bar_moved(bar.index, None);
            }
        }
        self.device.reset();
        for bar in &self.bars {
            self.device
                .config_mut()
                .set_bar_address(bar.index, bar.home);
        }
    }
}

impl Bus {
    fn free_slot(&self, wanted: Option<u8>) -> Result<u8, Error> {
        let free =
            |slot: &u8| matches!(self.slots.get(usize::from(*slot)), Some(None)) && *slot > 0;
        match wanted {
            Some(slot) => Some(slot).filter(free).ok_or(Error::SlotTaken(slot)),
            None => (1..SLOT_COUNT).find(free).ok_or(Error::BusFull),
        }
    }

    /// Places all BARs of a function, or none.
    fn place(&mut self, config: &mut ConfigSpace) -> Result<Vec<Placed>, Error> {
        let mut placed = Vec::new();
        for index in 0..BAR_COUNT {
            let Some(bar) = config.bar(index) else {
                continue;
            };
            let address = match (&mut self.high, bar.kind) {
                (Some(high), BarKind::Memory64) => high.allocate(bar.size),
                _ => self.low.allocate(bar.size),
            };
            let Some(home) = address else {
                for bar in &placed {
                    self.give_back(bar);
                }
                return Err(Error::WindowFull(bar.size));
            };
            config.set_bar_address(index, home);
            placed.push(Placed {
                index,
                size: bar.size,
                kind: bar.kind,
                home,
                decoded: None,
            });
        }
        Ok(placed)
    }

    fn give_back(&mut self, bar: &Placed) {
        match (&mut self.high, bar.kind) {
            (Some(high), BarKind::Memory64) => high.free(bar.home),
            _ => self.low.free(bar.home),
        }
    }

    /// The slot and register that the address register selects for `port`.
    fn port_target(&self, port: u16) -> Option<(u8, u16)> {
        let byte = port.checked_sub(CONFIG_DATA).filter(|byte| *byte < 4)?;
        let [register, function, bus, _] = self.address.to_le_bytes();
        if self.address & CONFIG_ENABLE == 0 || bus != 0 || function & 7 != 0 {
            return None;
        }
        Some((function >> 3, u16::from(register & 0xfc) + byte))
    }

    fn config_read(&mut self, slot: u8, register: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(Some(function)) = self.slots.get_mut(usize::from(slot)) else {
            return;
        };
        match conventional(register, data.len()) {
            Some(offset) => function.device.config_read(offset, data),
            // Extended space without a capability reads 0, PCIe 2.0, 7.9.
            None if usize::from(register) >= CONFIG_SPACE_SIZE => data.fill(0),
            None => {}
        }
    }

    fn config_write(&mut self, slot: u8, register: u16, data: &[u8]) {
        let Some(Some(function)) = self.slots.get_mut(usize::from(slot)) else {
            return;
        };
        if let Some(offset) = conventional(register, data.len()) {
            function.device.config_write(offset, data);
            function.update_bars();
        }
    }

    /// The function whose BAR decodes all of an access. A guest that lets BARs
    /// overlap gets the lower slot.
    fn find(&mut self, address: u64, length: usize) -> Option<(&mut Function, u8, u64)> {
        let length = length as u64;
        self.slots.iter_mut().flatten().find_map(|function| {
            let (bar, offset) = function.bars.iter().find_map(|bar| {
                let offset = address.checked_sub(bar.decoded?)?;
                let inside = offset.checked_add(length)? <= bar.size;
                inside.then_some((bar.index, offset))
            })?;
            Some((function, bar, offset))
        })
    }
}

/// The register as an 8-bit offset if the access is one that PCI has: 1, 2 or 4
/// bytes, aligned, in conventional space.
fn conventional(register: u16, length: usize) -> Option<u8> {
    let aligned = matches!(length, 1 | 2 | 4) && usize::from(register) % length == 0;
    u8::try_from(register).ok().filter(|_| aligned)
}

#[cfg(test)]
mod tests {
    use super::super::config::{Bar, register};
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    type Log = Arc<Mutex<Vec<String>>>;

    struct Probe {
        config: ConfigSpace,
        log: Log,
    }

    impl Probe {
        fn boxed(log: &Log) -> Box<Self> {
            let mut config = ConfigSpace::new(Identity {
                vendor: 0x1234,
                device: 0x5678,
                ..Identity::default()
            });
            let bar = |kind| Bar { kind, size: 0x1000 };
            config.add_bar(0, bar(BarKind::Memory64)).unwrap();
            config.add_bar(2, bar(BarKind::Memory32)).unwrap();
            Box::new(Self {
                config,
                log: Arc::clone(log),
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
        fn reset(&mut self) {
            self.config.reset();
            self.say("reset".into());
        }
    }

    fn root() -> (PciRoot, Log) {
        let root = PciRoot::new(Windows {
            low: 0xc000_0000..0xc000_8000,
            high: Some(0x10_0000_0000..0x10_0000_8000),
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

    #[test]
    fn bars_are_placed_and_follow_the_guest() {
        let (root, log) = root();
        root.add(Some(1), Probe::boxed(&log)).unwrap();
        assert!(!root.mmio_write(0x10_0000_0010, &[0; 4]), "not enabled yet");
        root.ecam_write(ecam(1, register::COMMAND), &[2, 0]);
        assert!(root.mmio_write(0x10_0000_0010, &[0; 4]));
        assert!(!root.mmio_write(0x10_0000_0ffe, &[0; 4]), "past the end");
        let mut data = [0; 1];
        assert!(root.mmio_read(0xc000_0001, &mut data));
        assert_eq!(data, [3]);
        root.ecam_write(ecam(1, register::BAR0), &0xd000_0000u32.to_le_bytes());
        assert!(!root.mmio_write(0x10_0000_0010, &[0; 4]));
        assert!(root.mmio_write(0x10_d000_0010, &[0; 4]));
        root.reset();
        assert!(!root.mmio_write(0x10_d000_0010, &[0; 4]));
        assert_eq!(read32(&root, ecam(1, register::BAR0)), 4);
        assert_eq!(read32(&root, ecam(1, register::BAR0 + 4)), 0x10);
        let log = log.lock().unwrap();
        assert!(log.contains(&"moved 0 Some(10d0000000)".into()), "{log:?}");
        assert_eq!(log.last().map(String::as_str), Some("reset"));
    }

    #[test]
    fn removal_unbinds_and_frees() {
        let (root, log) = root();
        for _ in 0..50 {
            let slot = root.add(None, Probe::boxed(&log)).unwrap();
            assert_eq!(slot, 1);
            root.ecam_write(ecam(1, register::COMMAND), &[2, 0]);
            drop(root.remove(slot).unwrap());
            let said: Vec<_> = log.lock().unwrap().drain(..).collect();
            assert_eq!(said[2..], ["moved 0 None", "moved 2 None", "reset"]);
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
            accesses in prop::collection::vec((0u8..5, any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)), 0..128)
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
                    _ => { root.port_read(0xcf8 + u16::from(high & 7), &mut data); root.mmio_read(at, &mut data); }
                }
            }
            prop_assert_eq!(read32(&root, ecam(1, 0)), 0x5678_1234);
            root.reset();
            prop_assert_eq!(read32(&root, ecam(1, register::BAR0 + 4)), 0x10);
        }
    }
}
