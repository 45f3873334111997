//! A type 0 configuration header as a register machine: bytes, and a mask of the
//! bits that software may write. BAR sizing falls out of the mask.
//!
//! PCI Local Bus 3.0, chapter 6.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::snapshot::Refused;

/// Bytes of a conventional function's configuration space.
pub const CONFIG_SPACE_SIZE: usize = 256;

/// BARs of a type 0 header.
pub const BAR_COUNT: u8 = 6;

/// Registers of the type 0 header, by offset. Section 6.1, figure 6-1.
pub mod register {
    /// Vendor ID, 16 bits.
    pub const VENDOR_ID: u8 = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE_ID: u8 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u8 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u8 = 0x06;
    /// Revision ID, 8 bits; the three bytes of the class code follow.
    pub const REVISION_ID: u8 = 0x08;
    /// First of six base address registers, 32 bits each.
    pub const BAR0: u8 = 0x10;
    /// Subsystem vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: u8 = 0x2c;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM_ID: u8 = 0x2e;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: u8 = 0x34;
    /// Interrupt line, 8 bits: scratch for software.
    pub const INTERRUPT_LINE: u8 = 0x3c;
}

bitflags! {
    /// Command register. Section 6.2.2.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// I/O BARs decode.
        const IO_SPACE = 1 << 0;
        /// Memory BARs decode.
        const MEMORY_SPACE = 1 << 1;
        /// The function may issue memory writes, MSI-X messages among them.
        const BUS_MASTER = 1 << 2;
        /// The function may not assert INTx. Ours never do.
        const INTERRUPT_DISABLE = 1 << 10;
    }
}

/// Status register bit 4: there is a capability list. Section 6.2.3.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// First byte behind the header, where capabilities begin.
const FIRST_CAPABILITY: usize = 0x40;

/// What a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class, programming interface. Appendix D.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// What a BAR's addresses are addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Guest-physical memory.
    Memory,
    /// I/O ports.
    Io,
}

/// How a BAR decodes. Section 6.2.5.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Anywhere below 4 GiB; one register.
    Memory32,
    /// Anywhere; two registers.
    Memory64,
    /// Ports; one register, whose upper half is hardwired to zero, as a PC has no
    /// ports above 64 Ki.
    Io,
}

impl BarKind {
    /// Which space it decodes in.
    #[must_use]
    pub const fn space(self) -> Space {
        match self {
            Self::Memory32 | Self::Memory64 => Space::Memory,
            Self::Io => Space::Io,
        }
    }

    /// How many registers it takes.
    const fn width(self) -> u8 {
        match self {
            Self::Memory32 | Self::Io => 1,
            Self::Memory64 => 2,
        }
    }

    /// The low bits of its register, which say what it is and are no address: their
    /// value and their mask.
    const fn low_bits(self) -> (u8, u8) {
        match self {
            Self::Memory32 => (0b0000, 0b1111),
            Self::Memory64 => (0b0100, 0b1111),
            Self::Io => (0b01, 0b11),
        }
    }
}

/// One BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// The space it decodes in, and its registers.
    pub kind: BarKind,
    /// Bytes: a power of two, at least 16 of memory, 4 to 256 ports.
    pub size: u64,
}

/// Why a layout of BARs or capabilities can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The BAR's size or register is unusable.
    #[error("BAR {0} is not possible: its size must be a power of two and its register free")]
    Bar(u8),
    /// The capability list has no room for this one.
    #[error("no room in configuration space for a capability of {0} bytes")]
    Capability(usize),
}

/// [`ConfigSpace`], saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigSpaceV1 {
    /// All of it, as software reads it, in registers of 32 bits. What software can't
    /// write says whose it is.
    pub registers: Vec<u32>,
}

/// A type 0 configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    data: [u8; CONFIG_SPACE_SIZE],
    writable: [u8; CONFIG_SPACE_SIZE],
    bars: [Option<Bar>; BAR_COUNT as usize],
    last_capability: usize,
    free: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            data: [0; CONFIG_SPACE_SIZE],
            writable: [0; CONFIG_SPACE_SIZE],
            bars: [None; BAR_COUNT as usize],
            last_capability: usize::from(register::CAPABILITIES),
            free: FIRST_CAPABILITY,
        };
        space.put(register::VENDOR_ID, &identity.vendor.to_le_bytes());
        space.put(register::DEVICE_ID, &identity.device.to_le_bytes());
        let [base, sub, interface] = identity.class;
        space.put(
            register::REVISION_ID,
            &[identity.revision, interface, sub, base],
        );
        space.put(
            register::SUBSYSTEM_VENDOR_ID,
            &identity.subsystem_vendor.to_le_bytes(),
        );
        space.put(register::SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        space.allow(register::COMMAND, &Command::all().bits().to_le_bytes());
        space.allow(register::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Declares a BAR; it decodes nowhere until it is placed and enabled.
    ///
    /// # Errors
    /// When the size is not a power of two, doesn't fit the kind, or the register is
    /// taken.
    pub fn add_bar(&mut self, index: u8, bar: Bar) -> Result<(), LayoutError> {
        let width = bar.kind.width();
        let sizes = match bar.kind {
            BarKind::Memory32 => 16..=1 << 31,
            BarKind::Memory64 => 16..=1 << 63,
            BarKind::Io => 4..=256,
        };
        if !(bar.size.is_power_of_two() && sizes.contains(&bar.size))
            || index + width > BAR_COUNT
            || (0..index + width).any(|taken| self.covers(taken, index, width))
        {
            return Err(LayoutError::Bar(index));
        }
        self.bars[usize::from(index)] = Some(bar);
        let mask = (!(bar.size - 1)).to_le_bytes();
        let bytes = match bar.kind {
            BarKind::Memory32 => 4,
            BarKind::Memory64 => 8,
            BarKind::Io => 2,
        };
        let at = bar_register(index);
        self.put(at, &[bar.kind.low_bits().0]);
        self.allow(at, &mask[..bytes]);
        Ok(())
    }

    /// Whether the BAR declared at `declared` uses one of `width` registers from
    /// `index` on.
    fn covers(&self, declared: u8, index: u8, width: u8) -> bool {
        self.bars[usize::from(declared)].is_some_and(|bar| {
            let end = declared + bar.kind.width();
            declared < index + width && index < end
        })
    }

    /// Appends a capability. `body` follows the two bytes of ID and next pointer;
    /// `writable` is its mask, short masks meaning read-only for the rest.
    /// Returns its offset. Section 6.7.
    ///
    /// # Errors
    /// When configuration space is full.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u8, LayoutError> {
        let offset = self.free;
        let length = 2 + body.len();
        let full = LayoutError::Capability(length);
        if offset + length > CONFIG_SPACE_SIZE || writable.len() > body.len() {
            return Err(full);
        }
        let at = u8::try_from(offset).map_err(|_| full)?;
        self.data[offset] = id;
        self.data[offset + 2..offset + length].copy_from_slice(body);
        self.writable[offset + 2..offset + 2 + writable.len()].copy_from_slice(writable);
        // The list's head is a pointer at 0x34, every other link the second byte
        // of the capability before.
        let link = if self.last_capability == usize::from(register::CAPABILITIES) {
            self.last_capability
        } else {
            self.last_capability + 1
        };
        self.data[link] = at;
        self.last_capability = offset;
        self.data[usize::from(register::STATUS)] |= STATUS_CAPABILITIES;
        self.free = (offset + length).next_multiple_of(4);
        Ok(at)
    }

    /// Reads registers as software does; past the end reads 0.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = self.data.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes registers as software does: only writable bits change.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for (byte, at) in data.iter().zip(usize::from(offset)..) {
            if let (Some(old), Some(mask)) = (self.data.get_mut(at), self.writable.get(at)) {
                *old = (*old & !mask) | (byte & mask);
            }
        }
    }

    /// All registers.
    #[must_use]
    pub fn save(&self) -> ConfigSpaceV1 {
        let registers = self.data.chunks_exact(REGISTER_SIZE);
        ConfigSpaceV1 {
            registers: registers.map(register_value).collect(),
        }
    }

    /// Takes over what software has written. What it can't have written must be what is
    /// there.
    ///
    /// # Errors
    /// When it is the configuration space of another function.
    pub fn restore(&mut self, state: &ConfigSpaceV1) -> Result<(), Refused> {
        let count = state.registers.len();
        if count != CONFIG_SPACE_SIZE / REGISTER_SIZE {
            let wrong = format!("configuration space doesn't have {count} registers");
            return Err(Refused::because(wrong));
        }
        let own = self.data.chunks_exact(REGISTER_SIZE).map(register_value);
        let masks = self.writable.chunks_exact(REGISTER_SIZE);
        let masks = masks.map(register_value);
        for (index, ((saved, own), mask)) in state.registers.iter().zip(own).zip(masks).enumerate()
        {
            if (saved ^ own) & !mask != 0 {
                return Err(Refused::because(format!(
                    "it is another device: register {:#x} is {own:#x} here and {saved:#x} there",
                    index * REGISTER_SIZE,
                )));
            }
        }
        let bytes = state.registers.iter().flat_map(|value| value.to_le_bytes());
        for (own, saved) in self.data.iter_mut().zip(bytes) {
            *own = saved;
        }
        Ok(())
    }

    /// A 16-bit register.
    #[must_use]
    pub fn read_u16(&self, offset: u8) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// A 32-bit register.
    #[must_use]
    pub fn read_u32(&self, offset: u8) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.read_u16(register::COMMAND))
    }

    /// The BAR declared at a register.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<Bar> {
        self.bars.get(usize::from(index)).copied().flatten()
    }

    /// The address a BAR holds, whether or not it decodes.
    #[must_use]
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let bar = self.bar(index)?;
        let low = self.read_u32(bar_register(index)) & !u32::from(bar.kind.low_bits().1);
        let high = match bar.kind {
            BarKind::Memory32 | BarKind::Io => 0,
            BarKind::Memory64 => self.read_u32(bar_register(index + 1)),
        };
        Some(u64::from(high) << 32 | u64::from(low))
    }

    /// Places a BAR, as firmware would.
    pub fn set_bar_address(&mut self, index: u8, address: u64) {
        let Some(bar) = self.bar(index) else { return };
        let bytes = address.to_le_bytes();
        let width = 4 * usize::from(bar.kind.width());
        self.write(bar_register(index), &bytes[..width]);
    }

    /// Where a BAR decodes now: its address if its space is enabled.
    #[must_use]
    pub fn decoded(&self, index: u8) -> Option<u64> {
        let enable = match self.bar(index)?.kind.space() {
            Space::Memory => Command::MEMORY_SPACE,
            Space::Io => Command::IO_SPACE,
        };
        self.command()
            .contains(enable)
            .then(|| self.bar_address(index))
            .flatten()
    }

    /// Clears every bit that software may write: command, BARs, capabilities.
    pub fn reset(&mut self) {
        for (byte, mask) in self.data.iter_mut().zip(&self.writable) {
            *byte &= !mask;
        }
    }

    /// What is there after power-on, whatever software may write of it.
    pub(super) fn put(&mut self, offset: u8, bytes: &[u8]) {
        let at = usize::from(offset);
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Lets software write these bits.
    pub(super) fn allow(&mut self, offset: u8, mask: &[u8]) {
        let at = usize::from(offset);
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

/// Bytes of the registers that configuration space is saved in.
const REGISTER_SIZE: usize = 4;

fn register_value(bytes: &[u8]) -> u32 {
    let bytes = bytes.iter().rev();
    bytes.fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// The register of a BAR.
fn bar_register(index: u8) -> u8 {
    register::BAR0 + 4 * index
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [0x01, 0x80, 0x00],
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        })
    }

    #[test]
    fn header_says_what_the_function_is() {
        let space = space();
        assert_eq!(space.read_u32(0), 0x1042_1af4);
        assert_eq!(space.read_u32(8), 0x0180_0001);
        assert_eq!(space.read_u16(register::SUBSYSTEM_ID), 0x40);
        assert_eq!(space.read_u16(register::STATUS), 0);
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = space();
        space.write(0, &[0xff; 4]);
        assert_eq!(space.read_u32(0), 0x1042_1af4);
    }

    #[test]
    fn a_64_bit_bar_sizes() {
        let mut space = space();
        let bar = Bar {
            kind: BarKind::Memory64,
            size: 0x8000,
        };
        space.add_bar(0, bar).unwrap();
        space.write(register::BAR0, &[0xff; 4]);
        space.write(register::BAR0 + 4, &[0xff; 4]);
        assert_eq!(space.read_u32(register::BAR0), 0xffff_8004);
        assert_eq!(space.read_u32(register::BAR0 + 4), 0xffff_ffff);
        space.set_bar_address(0, 0x12_3456_8000);
        assert_eq!(space.bar_address(0), Some(0x12_3456_8000));
        assert_eq!(space.decoded(0), None);
        space.write(register::COMMAND, &[0x02, 0]);
        assert_eq!(space.decoded(0), Some(0x12_3456_8000));
    }

    #[test]
    fn an_io_bar_sizes() {
        let mut space = space();
        let kind = BarKind::Io;
        space.add_bar(5, Bar { kind, size: 8 }).unwrap();
        let at = register::BAR0 + 20;
        space.write(at, &[0xff; 4]);
        assert_eq!(space.read_u32(at), 0xfff9);
        space.set_bar_address(5, 0x1238);
        assert_eq!(space.read_u32(at), 0x1239);
        assert_eq!(space.bar_address(5), Some(0x1238));
        space.write(register::COMMAND, &[0x02, 0]);
        assert_eq!(space.decoded(5), None, "memory is another space");
        space.write(register::COMMAND, &[0x01, 0]);
        assert_eq!(space.decoded(5), Some(0x1238));
        space.reset();
        assert_eq!(space.read_u32(at), 1);
    }

    #[test]
    fn impossible_bars_are_refused() {
        let mut space = space();
        let bar = |kind, size| Bar { kind, size };
        assert!(space.add_bar(0, bar(BarKind::Memory32, 24)).is_err());
        assert!(space.add_bar(0, bar(BarKind::Memory32, 1 << 32)).is_err());
        assert!(space.add_bar(5, bar(BarKind::Memory64, 4096)).is_err());
        assert!(space.add_bar(5, bar(BarKind::Io, 2)).is_err());
        assert!(space.add_bar(5, bar(BarKind::Io, 512)).is_err());
        assert!(space.add_bar(BAR_COUNT, bar(BarKind::Io, 4)).is_err());
        space.add_bar(2, bar(BarKind::Memory64, 4096)).unwrap();
        assert!(space.add_bar(3, bar(BarKind::Memory32, 4096)).is_err());
        assert!(space.add_bar(1, bar(BarKind::Memory64, 4096)).is_err());
        space.add_bar(1, bar(BarKind::Memory32, 4096)).unwrap();
    }

    #[test]
    fn bars_beside_each_other_are_possible_and_on_each_other_not() {
        let bar = |kind| Bar { kind, size: 0x1000 };
        let mut space = space();
        space.add_bar(2, bar(BarKind::Memory64)).unwrap();
        space.add_bar(0, bar(BarKind::Memory64)).unwrap();
        space.add_bar(5, bar(BarKind::Memory32)).unwrap();
        space.add_bar(4, bar(BarKind::Memory32)).unwrap();
        for taken in 0..6 {
            assert!(space.add_bar(taken, bar(BarKind::Memory32)).is_err());
        }
    }

    #[test]
    fn capabilities_fill_the_space_to_its_last_byte() {
        let mut space = space();
        let at = space.add_capability(0x09, &[1; 14], &[]).unwrap();
        let rest = CONFIG_SPACE_SIZE - usize::from(at) - 16 - 2;
        assert!(space.add_capability(0x09, &vec![2; rest + 1], &[]).is_err());
        space.add_capability(0x09, &vec![2; rest], &[]).unwrap();
        assert!(space.add_capability(0x09, &[], &[]).is_err());
        let mut last = [0];
        space.read(0xff, &mut last);
        assert_eq!(last, [2]);
    }

    #[test]
    fn capabilities_are_linked_in_order() {
        let mut space = space();
        let first = space.add_capability(0x09, &[1, 2, 3], &[]).unwrap();
        let second = space.add_capability(0x11, &[0; 10], &[0x00, 0xc0]).unwrap();
        assert_eq!(first, 0x40);
        assert_eq!(space.data[usize::from(register::CAPABILITIES)], first);
        assert_eq!(space.data[usize::from(first) + 1], second);
        assert_eq!(space.data[usize::from(second) + 1], 0);
        assert_eq!(space.read_u16(register::STATUS), 0x10);
        space.write(second + 2, &[0xff, 0xff]);
        assert_eq!(space.read_u16(second + 2), 0xc000);
        assert!(space.add_capability(0x09, &[0; 240], &[]).is_err());
    }

    #[test]
    fn another_functions_space_is_refused_and_changes_nothing() {
        let mut other = space();
        other.put(register::DEVICE_ID, &[0x41]);
        other.write(register::COMMAND, &[7, 0]);
        let mut space = space();
        space.write(register::INTERRUPT_LINE, &[9]);
        let refused = |space: &mut ConfigSpace, state: &ConfigSpaceV1| {
            let before = space.data;
            let refused = space.restore(state).expect_err("another's");
            assert_eq!(space.data, before);
            refused.to_string()
        };
        assert_eq!(
            refused(&mut space, &other.save()),
            "it is another device: register 0x0 is 0x10421af4 here and 0x10411af4 there"
        );
        let mut state = space.save();
        state.registers.pop();
        assert_eq!(
            refused(&mut space, &state),
            "configuration space doesn't have 63 registers"
        );
        let mut state = space.save();
        // The upper half of an interrupt line's register is pin and latencies.
        state.registers[0x3c / 4] |= 1 << 8;
        refused(&mut space, &state);
    }

    proptest! {
        #[test]
        fn a_copy_reads_as_the_first_does(
            writes in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 1..5)), 0..64)
        ) {
            let made = || {
                let mut space = space();
                space.add_bar(0, Bar { kind: BarKind::Memory64, size: 0x4000 }).unwrap();
                space.add_bar(2, Bar { kind: BarKind::Io, size: 4 }).unwrap();
                space.add_capability(0x11, &[7; 10], &[0, 0xc0]).unwrap();
                space
            };
            let mut first = made();
            for (offset, bytes) in writes {
                first.write(offset, &bytes);
            }
            let json = serde_json::to_string(&first.save()).unwrap();
            let mut copy = made();
            copy.restore(&serde_json::from_str(&json).unwrap()).unwrap();
            prop_assert_eq!(copy.save(), first.save());
            prop_assert_eq!(copy.data, first.data);
            for bar in [0, 2] {
                prop_assert_eq!(copy.decoded(bar), first.decoded(bar));
            }
        }

        #[test]
        fn no_write_changes_a_read_only_bit(
            writes in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 1..5)), 0..64)
        ) {
            let mut space = space();
            space.add_bar(0, Bar { kind: BarKind::Memory64, size: 0x4000 }).unwrap();
            space.add_capability(0x11, &[7; 10], &[0, 0xc0]).unwrap();
            let before = space.clone();
            for (offset, bytes) in writes {
                space.write(offset, &bytes);
            }
            for at in 0..CONFIG_SPACE_SIZE {
                prop_assert_eq!(space.data[at] & !space.writable[at], before.data[at] & !before.writable[at]);
            }
            space.reset();
            prop_assert_eq!(space.bar_address(0), Some(0));
        }
    }
}
