//! Bus 0 as vCPUs and the machine reach it: one lock, and the ways in.

mod bus;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::bus::Bus;
use super::PciDevice;
use super::bridge::HostBridge;
use super::config::Space;
use super::q35::{Ecam, LPC_SLOT, Lpc, Mch};
use crate::snapshot::Refused;

pub use self::bus::{BusV1, SlotV1};

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

/// Where BARs may be placed, as `_CRS` of the bridge says.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Below 4 GiB, for 32-bit BARs and, without `high`, for all.
    pub low: Range<u64>,
    /// Above 4 GiB, for 64-bit BARs.
    pub high: Option<Range<u64>>,
    /// Ports, for I/O BARs, aligned to 256. The bridge forwards no others: an I/O BAR
    /// that the guest moves elsewhere decodes nowhere, and shadows nothing.
    pub io: Range<u64>,
}

/// Why a device can't be added or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// All slots are taken; how many there are.
    #[error("all device slots of the PCI bus are taken, {0}")]
    BusFull(u8),
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

/// How devices fare that shall be quiet, one bit for each slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Those that may still touch guest memory.
    pub busy: u32,
    /// Those that were removed and are gone since the last time.
    pub gone: u32,
}

/// The root of the bus. All methods take `&self` and may be called from any vCPU.
pub struct PciRoot {
    bus: Mutex<Bus>,
    /// Where firmware has put ECAM, if that is its to do.
    ecam: Option<Ecam>,
}

impl PciRoot {
    /// A bus with its host bridge in slot 0.
    #[must_use]
    pub fn new(windows: Windows) -> Self {
        Self {
            bus: Mutex::new(Bus::new(windows, Box::new(HostBridge::new()))),
            ecam: None,
        }
    }

    /// The same with the bridges of QEMU's "q35", for firmware that knows that one: the
    /// host bridge, and the LPC bridge in the last slot.
    #[must_use]
    pub fn q35(windows: Windows) -> Self {
        let (bridge, ecam) = Mch::new();
        let mut bus = Bus::new(windows, Box::new(bridge));
        // It has no BARs, and the slot is free.
        let _ = bus.add(Some(LPC_SLOT), Box::new(Lpc::new()));
        Self {
            bus: Mutex::new(bus),
            ecam: Some(ecam),
        }
    }

    /// Where firmware has put ECAM; 0 while it has not. None: it is where the machine has
    /// it.
    #[must_use]
    pub fn placed_ecam(&self) -> Option<u64> {
        self.ecam.as_ref().map(|ecam| ecam.load(Ordering::Relaxed))
    }

    /// Has devices be in the slots up to this one only, of 1 to 31: those in which the
    /// guest expects them to come and go. Before any is added.
    pub fn keep_to(&self, last_slot: u8) {
        self.lock().keep_to(last_slot);
    }

    /// The last slot for devices.
    #[must_use]
    pub fn last_slot(&self) -> u8 {
        self.lock().last_slot()
    }

    /// Puts a device in a slot, or in the first free one, and places its BARs.
    /// For a hot-added device the caller notifies the guest afterwards.
    ///
    /// # Errors
    /// When the slot or all slots are taken, or the windows are full; the device
    /// is then dropped.
    pub fn add(&self, slot: Option<u8>, device: Box<dyn PciDevice>) -> Result<u8, Error> {
        self.lock().add(slot, device)
    }

    /// Takes a device out, after the guest has let go of it (or when it must). The guest
    /// sees it no more; it is gone when [`Self::settle`] says so.
    ///
    /// # Errors
    /// When the slot is empty or holds the host bridge.
    pub fn remove(&self, slot: u8) -> Result<(), Error> {
        self.lock().remove(slot)
    }

    /// How the devices fare that were removed, reset or held. To be called when one of
    /// them has rung.
    pub fn settle(&self) -> Settled {
        let (busy, gone) = self.lock().settle();
        let slots = gone.iter().fold(0, |slots, (slot, _)| slots | 1 << slot);
        // Without the lock: their threads are joined.
        drop(gone);
        Settled { busy, gone: slots }
    }

    /// Has every device let go of guest memory, and keep what the guest knows.
    pub fn hold(&self) {
        self.lock().hold();
    }

    /// Leaves devices that aren't quiet as they are, for good, so that whoever drops the
    /// bus doesn't wait for them.
    pub fn abandon(&self) {
        for device in self.lock().abandon() {
            std::mem::forget(device);
        }
    }

    /// Has every device that was held go on.
    pub fn resume(&self) {
        self.lock().resume();
    }

    /// The bus and what is on it, once all is held ([`Self::hold`]) and quiet.
    ///
    /// # Errors
    /// When a device is not quiet, or the guest has put a BAR where [`Self::restore`]
    /// takes none: outside of its window, or on another.
    pub fn save(&self) -> Result<BusV1, Refused> {
        self.lock().save()
    }

    /// Takes over what was saved, on a bus with the same devices in the same slots that
    /// no guest has seen yet. They are held then, until [`Self::resume`]. What pended and
    /// is not masked is sent to the interrupt controller, so that one comes first.
    ///
    /// # Errors
    /// When it is not the state of such a bus. This one is then good for nothing but
    /// being reset or dropped.
    pub fn restore(&self, state: &BusV1) -> Result<(), Refused> {
        self.lock().restore(state)
    }

    /// Slots that hold a device, without the host bridge.
    #[must_use]
    pub fn slots(&self) -> Vec<u8> {
        self.lock().taken()
    }

    /// Returns every device and the bus to their state after power-on, for a reset
    /// of the machine: devices, when they are quiet. BARs go back to where they were
    /// placed at first.
    pub fn reset(&self) {
        self.lock().reset();
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
        self.lock().port_read(port, data);
    }

    /// Writes one of ports 0xCF8 to 0xCFF.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        self.lock().port_write(port, data);
    }

    /// Reads from whichever I/O BAR decodes `port`; if none, `data` reads all ones.
    /// Returns its slot.
    pub fn io_read(&self, port: u16, data: &mut [u8]) -> Option<u8> {
        self.read(Space::Io, port.into(), data)
    }

    /// Writes to whichever I/O BAR decodes `port`. Returns its slot.
    pub fn io_write(&self, port: u16, data: &[u8]) -> Option<u8> {
        self.write(Space::Io, port.into(), data)
    }

    /// Reads from whichever memory BAR decodes `address`; if none, `data` reads all
    /// ones. Returns its slot.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> Option<u8> {
        self.read(Space::Memory, address, data)
    }

    /// Writes to whichever memory BAR decodes `address`. Returns its slot.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Option<u8> {
        self.write(Space::Memory, address, data)
    }

    fn read(&self, space: Space, address: u64, data: &mut [u8]) -> Option<u8> {
        let mut bus = self.lock();
        let Some(found) = bus.find(space, address, data.len()) else {
            data.fill(0xff);
            return None;
        };
        found.device.bar_read(found.bar, found.offset, data);
        Some(found.slot)
    }

    fn write(&self, space: Space, address: u64, data: &[u8]) -> Option<u8> {
        let mut bus = self.lock();
        let found = bus.find(space, address, data.len())?;
        found.device.bar_write(found.bar, found.offset, data);
        Some(found.slot)
    }

    fn lock(&self) -> MutexGuard<'_, Bus> {
        // Registers are never left half-written, so poison means nothing.
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
