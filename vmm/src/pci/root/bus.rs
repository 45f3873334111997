//! The bus itself: 32 slots of one function each, the host bridge in slot 0.

mod state;

use std::ops::Range;

use super::{CONFIG_ADDRESS, CONFIG_DATA, Error, SLOT_COUNT, Windows};
use crate::pci::config::{BAR_COUNT, BarKind, CONFIG_SPACE_SIZE, ConfigSpace, Space};
use crate::pci::window::Window;
use crate::pci::{PciDevice, Quiesce};

pub use self::state::{BusV1, SlotV1};

/// Bit 31 of the address register: accesses of the data register are for the bus.
const CONFIG_ENABLE: u32 = 1 << 31;

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

/// What is in a slot.
pub(super) struct Function {
    device: Box<dyn PciDevice>,
    bars: Vec<Placed>,
}

/// A device that was taken out of its slot, and is quiet.
pub(super) type Gone = (u8, Box<dyn PciDevice>);

/// Where an access goes.
pub(super) struct Found<'a> {
    pub(super) slot: u8,
    pub(super) device: &'a mut dyn PciDevice,
    pub(super) bar: u8,
    pub(super) offset: u64,
}

/// Everything behind the lock.
pub(super) struct Bus {
    /// Devices are in none behind it.
    last_slot: u8,
    slots: [Option<Function>; SLOT_COUNT as usize],
    /// What was taken out and still touches guest memory, by slot: the guest sees it no
    /// more, and the slot is not free yet.
    leaving: Vec<(u8, Function)>,
    places: Places,
    address: u32,
}

/// From where BARs are placed.
struct Places {
    low: Window,
    high: Option<Window>,
    io: Window,
}

impl Places {
    fn new(windows: Windows) -> Self {
        Self {
            low: Window::new(windows.low),
            high: windows.high.map(Window::new),
            io: Window::new(windows.io),
        }
    }

    /// Where BARs of a kind are placed.
    fn window(&mut self, kind: BarKind) -> &mut Window {
        match (kind, &mut self.high) {
            (BarKind::Io, _) => &mut self.io,
            (BarKind::Memory64, Some(high)) => high,
            (BarKind::Memory32 | BarKind::Memory64, _) => &mut self.low,
        }
    }
}

impl Function {
    /// Tells the device where its BARs decode now, if that changed. Of all ports, the
    /// bridge forwards `io`.
    fn update_bars(&mut self, io: &Range<u64>) {
        for bar in &mut self.bars {
            let forwarded = |at: &u64| bar.kind.space() == Space::Memory || io.contains(at);
            let decoded = self.device.config().decoded(bar.index).filter(forwarded);
            if decoded != bar.decoded {
                bar.decoded = decoded;
                self.device.bar_moved(bar.index, decoded);
            }
        }
    }

    /// Its BARs decode nowhere any more.
    fn unmap(&mut self) {
        for bar in &mut self.bars {
            if bar.decoded.take().is_some() {
                self.device.bar_moved(bar.index, None);
            }
        }
    }

    fn power_on(&mut self) {
        self.unmap();
        self.device.quiesce(Quiesce::PowerOn);
        for bar in &self.bars {
            self.device
                .config_mut()
                .set_bar_address(bar.index, bar.home);
        }
    }
}

impl Bus {
    /// A bus with its host bridge.
    pub(super) fn new(windows: Windows, bridge: Box<dyn PciDevice>) -> Self {
        let mut slots = [const { None }; SLOT_COUNT as usize];
        slots[0] = Some(Function {
            device: bridge,
            bars: Vec::new(),
        });
        Self {
            last_slot: SLOT_COUNT - 1,
            slots,
            leaving: Vec::new(),
            places: Places::new(windows),
            address: 0,
        }
    }

    pub(super) fn keep_to(&mut self, last_slot: u8) {
        self.last_slot = last_slot.clamp(1, SLOT_COUNT - 1);
    }

    pub(super) fn last_slot(&self) -> u8 {
        self.last_slot
    }

    pub(super) fn add(
        &mut self,
        slot: Option<u8>,
        mut device: Box<dyn PciDevice>,
    ) -> Result<u8, Error> {
        let slot = self.free_slot(slot)?;
        let bars = self.place(device.config_mut())?;
        self.slots[usize::from(slot)] = Some(Function { device, bars });
        Ok(slot)
    }

    pub(super) fn remove(&mut self, slot: u8) -> Result<(), Error> {
        let mut function = match slot {
            1..SLOT_COUNT => self.slots[usize::from(slot)].take(),
            _ => None,
        }
        .ok_or(Error::SlotEmpty(slot))?;
        function.unmap();
        function.device.quiesce(Quiesce::PowerOn);
        self.leaving.push((slot, function));
        Ok(())
    }

    /// Which slots still touch guest memory, one bit for each, and what has left.
    pub(super) fn settle(&mut self) -> (u32, Vec<Gone>) {
        let mut busy = 0;
        for (slot, function) in self.slots.iter_mut().enumerate() {
            if let Some(function) = function
                && !function.device.is_quiet()
            {
                busy |= 1 << slot;
            }
        }
        let is_quiet = |(_, function): &mut (u8, Function)| function.device.is_quiet();
        let mut gone = Vec::new();
        for (slot, function) in self.leaving.extract_if(.., is_quiet).collect::<Vec<_>>() {
            for bar in &function.bars {
                self.give_back(bar);
            }
            gone.push((slot, function.device));
        }
        let leaving = self.leaving.iter();
        (leaving.fold(busy, |busy, (slot, _)| busy | 1 << slot), gone)
    }

    /// Takes out all that is not quiet.
    pub(super) fn abandon(&mut self) -> Vec<Box<dyn PciDevice>> {
        let slots = self.slots.iter_mut();
        let busy = slots.filter_map(|slot| slot.take_if(|function| !function.device.is_quiet()));
        let busy: Vec<_> = busy
            .chain(self.leaving.drain(..).map(|(_, it)| it))
            .collect();
        busy.into_iter().map(|function| function.device).collect()
    }

    pub(super) fn hold(&mut self) {
        for function in self.slots.iter_mut().flatten() {
            function.device.quiesce(Quiesce::Hold);
        }
    }

    pub(super) fn resume(&mut self) {
        for function in self.slots.iter_mut().flatten() {
            function.device.resume();
        }
    }

    /// Slots that hold a device, without the host bridge.
    pub(super) fn taken(&self) -> Vec<u8> {
        (1..SLOT_COUNT)
            .filter(|slot| self.slots[usize::from(*slot)].is_some())
            .collect()
    }

    pub(super) fn reset(&mut self) {
        self.address = 0;
        for function in self.slots.iter_mut().flatten() {
            function.power_on();
        }
    }

    pub(super) fn port_read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if port == CONFIG_ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        } else if let Some((slot, register)) = self.port_target(port) {
            self.config_read(slot, register, data);
        }
    }

    pub(super) fn port_write(&mut self, port: u16, data: &[u8]) {
        if port == CONFIG_ADDRESS {
            // Only a whole write is one of the address register; 0xCF9 as a byte
            // is a reset register on PCs, and none of ours.
            if let Ok(bytes) = <[u8; 4]>::try_from(data) {
                self.address = u32::from_le_bytes(bytes);
            }
        } else if let Some((slot, register)) = self.port_target(port) {
            self.config_write(slot, register, data);
        }
    }

    fn free_slot(&self, wanted: Option<u8>) -> Result<u8, Error> {
        let is_leaving = |slot| self.leaving.iter().any(|(leaving, _)| *leaving == slot);
        let free = |slot: &u8| {
            let is_empty = matches!(self.slots.get(usize::from(*slot)), Some(None));
            is_empty && (1..=self.last_slot).contains(slot) && !is_leaving(*slot)
        };
        match wanted {
            Some(slot) => Some(slot).filter(free).ok_or(Error::SlotTaken(slot)),
            None => {
                let mut slots = 1..=self.last_slot;
                slots.find(free).ok_or(Error::BusFull(self.last_slot))
            }
        }
    }

    /// Places all BARs of a function, or none.
    fn place(&mut self, config: &mut ConfigSpace) -> Result<Vec<Placed>, Error> {
        let mut placed = Vec::new();
        for index in 0..BAR_COUNT {
            let Some(bar) = config.bar(index) else {
                continue;
            };
            let Some(home) = self.places.window(bar.kind).allocate(bar.size) else {
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
        self.places.window(bar.kind).free(bar.home);
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

    pub(super) fn config_read(&mut self, slot: u8, register: u16, data: &mut [u8]) {
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

    pub(super) fn config_write(&mut self, slot: u8, register: u16, data: &[u8]) {
        let Some(Some(function)) = self.slots.get_mut(usize::from(slot)) else {
            return;
        };
        if let Some(offset) = conventional(register, data.len()) {
            function.device.config_write(offset, data);
            function.update_bars(&self.places.io.range());
        }
    }

    /// The function whose BAR decodes all of an access. A guest that lets BARs
    /// overlap gets the lower slot.
    pub(super) fn find(&mut self, space: Space, address: u64, length: usize) -> Option<Found<'_>> {
        let length = length as u64;
        (0..).zip(&mut self.slots).find_map(|(slot, function)| {
            let function = function.as_mut()?;
            let mut bars = function.bars.iter().filter(|bar| bar.kind.space() == space);
            let (bar, offset) = bars.find_map(|bar| {
                let offset = address.checked_sub(bar.decoded?)?;
                let inside = offset.checked_add(length)? <= bar.size;
                inside.then_some((bar.index, offset))
            })?;
            Some(Found {
                slot,
                device: function.device.as_mut(),
                bar,
                offset,
            })
        })
    }
}

/// The register as an 8-bit offset if the access is one that PCI has: 1, 2 or 4
/// bytes, aligned, in conventional space.
fn conventional(register: u16, length: usize) -> Option<u8> {
    let aligned = matches!(length, 1 | 2 | 4) && usize::from(register) % length == 0;
    u8::try_from(register).ok().filter(|_| aligned)
}
