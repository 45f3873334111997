//! Which register an exit of a vCPU reaches. What no device claims reads as all
//! ones and ignores writes, as on a PC.

use std::io;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::acpi::processors::Processors;
pub use crate::acpi::registers::Request;
use crate::acpi::registers::{Registers, RegistersV1};
use crate::arch::layout::{
    ECAM, ECAM_SIZE, PCI_WINDOW, PCI_WINDOW_SIZE, PORT_CONTROL_B, PORT_I8042, PORT_PCI_ADDRESS,
    PORT_PCI_WINDOW, PORT_PCI_WINDOW_SIZE, PORT_SERIAL, firmware,
};
use crate::board::Board;
use crate::pci::{PciRoot, SLOT_COUNT, Windows};
use crate::serial::Serial;
use crate::snapshot::Refused;

/// System control port B: neither a system error nor one of memory, and the output of the
/// timer's second channel is high, since a kernel that counts by it waits for that.
const CONTROL_B: u8 = 1 << 5;
/// Keyboard controller: pulse the reset line (the PC AT's way to reset).
const I8042_RESET: u8 = 0xfe;
const PORT_SERIAL_LAST: u16 = PORT_SERIAL + 7;
const PORT_PCI_LAST: u16 = PORT_PCI_ADDRESS + 7;

/// What an exit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// No access, or one that nothing claims.
    None,
    /// COM1.
    Serial,
    /// PCI configuration, by port or in memory.
    Config,
    /// The ACPI registers.
    Acpi,
    /// The keyboard controller.
    Keyboard,
    /// What firmware finds besides.
    Board,
    /// A BAR of the device in this slot.
    Slot(u8),
}

impl Target {
    const FIRST_SLOT: usize = 6;
    /// How many there are.
    pub const COUNT: usize = Self::FIRST_SLOT + SLOT_COUNT as usize;

    /// Its place among all.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::None => 0,
            Self::Serial => 1,
            Self::Config => 2,
            Self::Acpi => 3,
            Self::Keyboard => 4,
            Self::Board => 5,
            Self::Slot(slot) => Self::FIRST_SLOT + usize::from(slot % SLOT_COUNT),
        }
    }

    /// All, by their places.
    pub fn all() -> impl Iterator<Item = Self> {
        let fixed = [
            Self::None,
            Self::Serial,
            Self::Config,
            Self::Acpi,
            Self::Keyboard,
            Self::Board,
        ];
        fixed.into_iter().chain((0..SLOT_COUNT).map(Self::Slot))
    }
}

/// Everything that vCPUs reach by exits.
pub struct Bus {
    /// COM1.
    pub serial: Serial,
    /// The PCI bus.
    pub pci: PciRoot,
    /// In a machine with firmware.
    board: Option<Board>,
    /// The ports that PCI devices may have.
    pci_ports: RangeInclusive<u16>,
    registers: Mutex<Registers>,
    events: EventFd,
}

impl Bus {
    /// Puts the devices together.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new(serial: Serial) -> io::Result<Self> {
        let ports = PORT_PCI_WINDOW..=PORT_PCI_WINDOW + (PORT_PCI_WINDOW_SIZE - 1);
        let pci = PciRoot::new(windows(&ports));
        Self::of(serial, pci, None, ports)
    }

    /// The same on a board that firmware knows.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_board(serial: Serial) -> io::Result<Self> {
        let ports = firmware::PORT_PCI_WINDOW..=u16::MAX;
        let pci = PciRoot::q35(windows(&ports));
        Self::of(serial, pci, Some(Board::new()), ports)
    }

    fn of(
        serial: Serial,
        pci: PciRoot,
        board: Option<Board>,
        pci_ports: RangeInclusive<u16>,
    ) -> io::Result<Self> {
        Ok(Self {
            serial,
            pci,
            board,
            pci_ports,
            registers: Mutex::new(Registers::default()),
            events: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// What firmware finds, in a machine that has some.
    #[must_use]
    pub fn board(&self) -> Option<&Board> {
        self.board.as_ref()
    }

    /// What raises the Generic Event Device's interrupt.
    #[must_use]
    pub fn event_interrupt(&self) -> &EventFd {
        &self.events
    }

    /// Changes the ACPI registers and calls the guest.
    ///
    /// # Errors
    /// When the interrupt can't be raised.
    pub fn notify(&self, change: impl FnOnce(&mut Registers)) -> io::Result<()> {
        change(&mut self.registers());
        self.events.write(1)
    }

    /// The accesses of an `in`, or of as many rounds of a repeated `ins` as KVM hands
    /// over at once (Documentation/virt/kvm/api.rst, KVM_EXIT_IO): each reads `width`
    /// bytes at the same port.
    /// Returns what they are for.
    pub fn ports_read(&self, port: u16, width: usize, data: &mut [u8]) -> Target {
        let mut target = Target::None;
        for access in data.chunks_mut(width.max(1)) {
            target = self.port_read(port, access);
        }
        target
    }

    /// The same for `out` and `outs`, and what the guest asks for by them.
    pub fn ports_write(&self, port: u16, width: usize, data: &[u8]) -> (Target, Option<Request>) {
        let (mut target, mut slots, mut processors) = (Target::None, 0, 0);
        for access in data.chunks(width.max(1)) {
            let request;
            (target, request) = self.port_write(port, access);
            match request {
                None => {}
                Some(Request::Eject(more)) => slots |= more,
                Some(Request::EjectProcessors(more)) => processors |= more,
                // What would come after it, comes after the machine's end.
                end => return (target, end),
            }
        }
        // All rounds are at one port, so of one kind.
        let request = match (slots, processors) {
            (0, 0) => None,
            (0, processors) => Some(Request::EjectProcessors(processors)),
            (slots, _) => Some(Request::Eject(slots)),
        };
        (target, request)
    }

    /// One access of an `in` instruction. Returns what it is for.
    pub fn port_read(&self, port: u16, data: &mut [u8]) -> Target {
        match port {
            PORT_SERIAL..=PORT_SERIAL_LAST => {
                self.serial.read(register(port), data);
                Target::Serial
            }
            PORT_PCI_ADDRESS..=PORT_PCI_LAST => {
                self.pci.port_read(port, data);
                Target::Config
            }
            // What no BAR decodes is filled there too.
            port if self.pci_ports.contains(&port) => of_slot(self.pci.io_read(port, data)),
            PORT_CONTROL_B => {
                data.fill(CONTROL_B);
                Target::None
            }
            // No key waits, and the controller takes commands.
            PORT_I8042 => {
                data.fill(0);
                Target::Keyboard
            }
            port if Registers::has(port) => {
                self.registers().read(port, data);
                Target::Acpi
            }
            port => {
                if let Some(board) = self.board_at(port) {
                    board.port_read(port, data);
                    return Target::Board;
                }
                data.fill(0xff);
                Target::None
            }
        }
    }

    /// One access of an `out` instruction: what it is for, and what the guest asks for
    /// by it.
    pub fn port_write(&self, port: u16, data: &[u8]) -> (Target, Option<Request>) {
        let target = match port {
            PORT_SERIAL..=PORT_SERIAL_LAST => {
                self.serial.write(register(port), data);
                Target::Serial
            }
            PORT_PCI_ADDRESS..=PORT_PCI_LAST => {
                self.pci.port_write(port, data);
                Target::Config
            }
            port if self.pci_ports.contains(&port) => of_slot(self.pci.io_write(port, data)),
            PORT_I8042 => {
                let reset = data == [I8042_RESET];
                return (Target::Keyboard, reset.then_some(Request::Reset));
            }
            port if Registers::has(port) => {
                return (Target::Acpi, self.registers().write(port, data));
            }
            port => match self.board_at(port) {
                Some(board) => {
                    let is_off = board.port_write(port, data);
                    return (Target::Board, is_off.then_some(Request::PowerOff));
                }
                None => Target::None,
            },
        };
        (target, None)
    }

    /// A load from a guest-physical address that is not RAM. Returns what it is for.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) -> Target {
        if let Some(offset) = self.ecam_offset(address) {
            self.pci.ecam_read(offset, data);
            return Target::Config;
        }
        if let Some(board) = &self.board
            && board.memory_read(address, data)
        {
            return Target::Board;
        }
        // What no BAR decodes is filled there too.
        of_slot(self.pci.mmio_read(address, data))
    }

    /// A store to a guest-physical address that is not RAM. Returns what it is for.
    pub fn memory_write(&self, address: u64, data: &[u8]) -> Target {
        if let Some(offset) = self.ecam_offset(address) {
            self.pci.ecam_write(offset, data);
            return Target::Config;
        }
        if let Some(board) = &self.board
            && board.memory_write(address, data)
        {
            return Target::Board;
        }
        of_slot(self.pci.mmio_write(address, data))
    }

    /// Every device back to its state after power-on.
    pub fn reset(&self) {
        self.pci.reset();
        self.serial.reset();
        *self.registers() = Registers::default();
        if let Some(board) = &self.board {
            board.reset();
        }
    }

    /// How the processors stand.
    #[must_use]
    pub fn processors(&self) -> Processors {
        self.registers().processors()
    }

    /// Has so many processors be there, in a machine that is switched on.
    pub fn switch_on(&self, processors: u8) {
        *self.registers() = Registers::new(processors);
    }

    /// What the ACPI registers have.
    #[must_use]
    pub fn save_registers(&self) -> RegistersV1 {
        self.registers().save()
    }

    /// Takes over what ACPI registers had.
    ///
    /// # Errors
    /// See [`Registers::restore`].
    pub fn restore_registers(&self, state: &RegistersV1) -> Result<(), Refused> {
        self.registers().restore(state)
    }

    /// The board, if a port is one of its.
    fn board_at(&self, port: u16) -> Option<&Board> {
        self.board.as_ref().filter(|_| Board::has(port))
    }

    /// An address in ECAM as an offset.
    fn ecam_offset(&self, address: u64) -> Option<u64> {
        let base = match self.pci.placed_ecam() {
            None => ECAM,
            Some(0) => return None,
            Some(base) => base,
        };
        address
            .checked_sub(base)
            .filter(|offset| *offset < ECAM_SIZE)
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_slot(slot: Option<u8>) -> Target {
    slot.map_or(Target::None, Target::Slot)
}

/// Where BARs are placed, if their ports are these.
fn windows(ports: &RangeInclusive<u16>) -> Windows {
    Windows {
        low: PCI_WINDOW..PCI_WINDOW + PCI_WINDOW_SIZE,
        high: None,
        io: (*ports.start()).into()..u64::from(*ports.end()) + 1,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "less than eight")]
fn register(port: u16) -> u8 {
    (port - PORT_SERIAL) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout::{PORT_HOTPLUG_EJECT, PORT_RESET, RESET_VALUE};
    use crate::serial::Output;

    fn bus() -> Bus {
        let file = tempfile::tempfile().expect("file");
        Bus::new(Serial::new(Output::log(file).expect("log")).expect("serial")).expect("bus")
    }

    #[test]
    fn unclaimed_reads_all_ones() {
        let mut data = [0; 4];
        bus().port_read(0x80, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus().memory_read(0xd000_0000, &mut data);
        assert_eq!(data, [0xff; 4]);
        data.fill(0);
        bus().port_read(PORT_PCI_WINDOW, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn both_ways_to_configuration_space_meet() {
        let bus = bus();
        let mut by_ecam = [0; 4];
        bus.memory_read(ECAM, &mut by_ecam);
        assert_eq!(
            bus.port_write(PORT_PCI_ADDRESS, &0x8000_0000u32.to_le_bytes()),
            (Target::Config, None)
        );
        let mut by_port = [0; 4];
        bus.port_read(PORT_PCI_ADDRESS + 4, &mut by_port);
        assert_eq!(by_ecam, by_port);
        assert_ne!(by_port, [0xff; 4]);
    }

    #[test]
    fn an_nmi_has_no_cause_that_a_kernel_knows() {
        // `NMI_REASON_MASK` of arch/x86/include/asm/mach_traps.h.
        let mut reason = [0xff];
        bus().port_read(0x61, &mut reason);
        assert_eq!(reason[0] & 0xc0, 0);
    }

    #[test]
    fn both_reset_ports_reset() {
        let bus = bus();
        assert_eq!(bus.port_write(0x64, &[0xfe]).1, Some(Request::Reset));
        assert_eq!(bus.port_write(0x64, &[0xd1]), (Target::Keyboard, None));
        assert_eq!(
            bus.port_write(PORT_RESET, &[RESET_VALUE]),
            (Target::Acpi, Some(Request::Reset))
        );
    }

    #[test]
    fn each_access_of_a_string_is_one() {
        let bus = bus();
        // Into the UART by its loopback (PC16550D, section 8.7), and out of it again.
        assert_eq!(bus.ports_write(PORT_SERIAL + 4, 1, &[1 << 4]).1, None);
        assert_eq!(bus.ports_write(PORT_SERIAL, 1, b"abc").1, None);
        let mut read = [0; 3];
        bus.ports_read(PORT_SERIAL, 1, &mut read);
        assert_eq!(&read, b"abc");
        // The width is that of the access: two addresses, of which the last stays.
        let addresses = [0x8000_0800u32, 0x8000_1000].map(u32::to_le_bytes).concat();
        assert_eq!(bus.ports_write(PORT_PCI_ADDRESS, 4, &addresses).1, None);
        let mut read = [0; 8];
        bus.ports_read(PORT_PCI_ADDRESS, 4, &mut read);
        assert_eq!(
            read,
            [addresses[4..].to_vec(), addresses[4..].to_vec()].concat()[..]
        );
    }

    #[test]
    fn all_that_a_string_asks_for_is_done() {
        let bus = bus();
        let eject = |slots: &[u32]| {
            let data: Vec<u8> = slots.iter().flat_map(|slot| slot.to_le_bytes()).collect();
            bus.ports_write(PORT_HOTPLUG_EJECT, 4, &data).1
        };
        for slot in [1, 3] {
            bus.notify(|registers| registers.request_unplug(slot))
                .expect("raised");
        }
        assert_eq!(
            eject(&[1 << 1, 1 << 2, 1 << 3]),
            Some(Request::Eject(0b1010))
        );
        assert_eq!(eject(&[1 << 1]), None);
        let (_, reset) = bus.ports_write(PORT_RESET, 1, &[0, RESET_VALUE, 0]);
        assert_eq!(reset, Some(Request::Reset));
    }

    #[test]
    fn a_board_is_there_for_firmware_only() {
        let file = tempfile::tempfile().expect("file");
        let serial = Serial::new(Output::log(file).expect("log")).expect("serial");
        let firmware = Bus::with_board(serial).expect("bus");
        let mut data = [0; 4];
        for (port, width) in [(0x71, 1), (0x511, 1), (0x604, 2), (0x608, 4)] {
            let data = &mut data[..width];
            assert_eq!(bus().port_read(port, data), Target::None);
            assert_eq!(firmware.port_read(port, data), Target::Board);
        }
        let off = (Target::Board, Some(Request::PowerOff));
        assert_eq!(firmware.port_write(0x604, &[0, 0x20]), off);
        assert_eq!(bus().port_write(0x604, &[0, 0x20]), (Target::None, None));
        // ECAM is where firmware puts it, by the other way to configuration space.
        assert_eq!(firmware.memory_read(ECAM, &mut data), Target::None);
        firmware.port_write(PORT_PCI_ADDRESS, &0x8000_0060u32.to_le_bytes());
        firmware.port_write(PORT_PCI_ADDRESS + 4, &0xb000_0001u32.to_le_bytes());
        assert_eq!(firmware.memory_read(0xb000_0000, &mut data), Target::Config);
        assert_eq!(data, 0x29c0_8086u32.to_le_bytes());
        firmware.reset();
        assert_eq!(firmware.memory_read(0xb000_0000, &mut data), Target::None);
    }

    #[test]
    fn targets_have_a_place_each() {
        let places: Vec<_> = Target::all().map(Target::index).collect();
        assert_eq!(places, (0..Target::COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn a_change_raises_the_interrupt() {
        let bus = bus();
        bus.notify(Registers::press_power_button).expect("raised");
        assert_eq!(bus.event_interrupt().read().expect("raised"), 1);
    }
}
