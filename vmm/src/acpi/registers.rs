//! The registers behind the tables, as a pure machine: no lock, no I/O.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use super::processors::{Processors, ProcessorsV1};
use crate::arch::layout::{
    PORT_CPUS, PORT_CPUS_DOWN, PORT_CPUS_UP, PORT_EVENTS, PORT_HOTPLUG_DOWN, PORT_HOTPLUG_EJECT,
    PORT_HOTPLUG_UP, PORT_RESET, PORT_SLEEP_CONTROL, RESET_VALUE,
};
use crate::snapshot::Refused;

bitflags! {
    /// The events of the Generic Event Device.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Event: u8 {
        /// The power button was pressed.
        const POWER_BUTTON = 1 << 0;
        /// A PCI slot was filled, or its unplug is requested.
        const PCI = 1 << 1;
        /// The generation id is another one: the machine goes on from a copy.
        const GENERATION = 1 << 2;
        /// A processor was plugged, or its unplug is requested.
        const PROCESSORS = 1 << 3;
    }
}

/// Sleep control register: ACPI 6.5, table 4.18.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0x7;
/// The type that `_S5_` names.
const S5: u8 = 5;

/// What the guest asked for by a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// To be switched off.
    PowerOff,
    /// To be reset.
    Reset,
    /// To have the devices in these slots taken out: one bit for each.
    Eject(u32),
    /// To have these processors taken out: one bit for each.
    EjectProcessors(u32),
}

/// [`Registers`], saved. Slots are one bit for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistersV1 {
    /// Events that the guest has not read: [`Event`].
    pub events: u8,
    /// Slots that were filled, which the guest has not read.
    pub up: u32,
    /// Slots whose unplug was requested, which the guest has not read.
    pub down: u32,
    /// Slots whose unplug was requested and that were not ejected since.
    pub ejectable: u32,
    /// The processors.
    pub processors: ProcessorsV1,
}

/// The slot of the host bridge, which neither comes nor goes.
const BRIDGE: u32 = 1;

/// Sleep, reset, events and hotplug.
#[derive(Debug, Default)]
pub struct Registers {
    events: u8,
    up: u32,
    down: u32,
    /// Slots whose unplug was requested and that were not ejected since.
    ejectable: u32,
    processors: Processors,
}

impl Registers {
    /// Those of a machine that is switched on with so many processors.
    #[must_use]
    pub fn new(processors: u8) -> Self {
        Self {
            processors: Processors::new(processors),
            ..Self::default()
        }
    }

    /// Whether a port is one of these registers.
    #[must_use]
    pub fn has(port: u16) -> bool {
        (PORT_SLEEP_CONTROL..=PORT_RESET).contains(&port)
            || (PORT_EVENTS..PORT_CPUS + 4).contains(&port)
    }

    /// Presses the power button; the caller raises the interrupt.
    pub fn press_power_button(&mut self) {
        self.events |= Event::POWER_BUTTON.bits();
    }

    /// Reports a device that was put into `slot`; the caller raises the interrupt.
    pub fn slot_filled(&mut self, slot: u8) {
        self.up |= bit(slot);
        self.ejectable &= !bit(slot);
        self.events |= Event::PCI.bits();
    }

    /// Requests the unplug of the device in `slot`; the caller raises the interrupt.
    pub fn request_unplug(&mut self, slot: u8) {
        self.down |= bit(slot);
        self.ejectable |= bit(slot);
        self.events |= Event::PCI.bits();
    }

    /// Reports that the generation id is another one; the caller raises the interrupt.
    pub fn generation_changed(&mut self) {
        self.events |= Event::GENERATION.bits();
    }

    /// The processors.
    #[must_use]
    pub fn processors(&self) -> Processors {
        self.processors
    }

    /// Has so many processors be there: see [`Processors::request`]. The caller has made
    /// those that are [missing](Processors::missing), and raises the interrupt.
    pub fn request_processors(&mut self, count: u8) {
        self.processors.request(count);
        self.events |= Event::PROCESSORS.bits();
    }

    /// What the guest has not heard of yet, and may eject.
    #[must_use]
    pub fn save(&self) -> RegistersV1 {
        RegistersV1 {
            events: self.events,
            up: self.up,
            down: self.down,
            ejectable: self.ejectable,
            processors: self.processors.save(),
        }
    }

    /// Takes over what was saved. The interrupt is the interrupt controller's to
    /// remember.
    ///
    /// # Errors
    /// When there is no such event, or no device ever in such a slot.
    pub fn restore(&mut self, state: &RegistersV1) -> Result<(), Refused> {
        let RegistersV1 {
            events,
            up,
            down,
            ejectable,
            ref processors,
        } = *state;
        if Event::from_bits(events).is_none() {
            return Err(Refused::because(format!("no such events: {events:#x}")));
        }
        if (up | down | ejectable) & BRIDGE != 0 {
            return Err(Refused::because("slot 0 is the host bridge's"));
        }
        let processors = Processors::restored(processors)?;
        *self = Self {
            events,
            up,
            down,
            ejectable,
            processors,
        };
        Ok(())
    }

    /// What the guest reads from a port. Reading the events or the hotplug bits
    /// clears them.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0);
        match (port, data.len()) {
            (PORT_EVENTS, 1) => data[0] = std::mem::take(&mut self.events),
            (PORT_HOTPLUG_UP, 4) => {
                data.copy_from_slice(&std::mem::take(&mut self.up).to_le_bytes());
            }
            (PORT_HOTPLUG_DOWN, 4) => {
                data.copy_from_slice(&std::mem::take(&mut self.down).to_le_bytes());
            }
            (PORT_CPUS_UP | PORT_CPUS_DOWN | PORT_CPUS, 4) => {
                data.copy_from_slice(&self.processors.read(port).to_le_bytes());
            }
            // The sleep status among them: no sleep but S5, and no waking from that one.
            _ => {}
        }
    }

    /// What the guest's write to a port asks for. It may eject only what it was asked
    /// for, once for each request: it can neither lose its root disk nor flood whoever
    /// takes the requests.
    #[must_use]
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<Request> {
        match (port, data) {
            (PORT_SLEEP_CONTROL, [value])
                if value & SLEEP_ENABLE != 0
                    && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == S5 =>
            {
                Some(Request::PowerOff)
            }
            (PORT_RESET, [RESET_VALUE]) => Some(Request::Reset),
            (PORT_HOTPLUG_EJECT, &[a, b, c, d]) => {
                let slots = u32::from_le_bytes([a, b, c, d]) & self.ejectable;
                self.ejectable &= !slots;
                (slots != 0).then_some(Request::Eject(slots))
            }
            (PORT_CPUS, &[a, b, c, d]) => {
                let processors = u32::from_le_bytes([a, b, c, d]);
                let ejected = self.processors.eject(processors);
                (ejected != 0).then_some(Request::EjectProcessors(ejected))
            }
            _ => None,
        }
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout::PORT_SLEEP_STATUS;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_copy_answers_as_the_first_does(
            filled in prop::collection::vec(1u8..32, 0..4),
            unplugged in prop::collection::vec(1u8..32, 0..4),
            pressed: bool,
            processors in 1u8..4,
            read in prop::sample::subsequence(&PORTS[..], 0..3),
        ) {
            let mut first = Registers::new(2);
            first.request_processors(processors);
            filled.into_iter().for_each(|slot| first.slot_filled(slot));
            unplugged.into_iter().for_each(|slot| first.request_unplug(slot));
            if pressed {
                first.press_power_button();
                first.generation_changed();
            }
            let ask = |registers: &mut Registers, (port, width): (u16, usize)| {
                let mut data = [0; 4];
                registers.read(port, &mut data[..width]);
                data
            };
            for port in read {
                ask(&mut first, port);
            }
            let json = serde_json::to_string(&first.save()).expect("JSON");
            let mut copy = Registers::default();
            copy.restore(&serde_json::from_str(&json).expect("a state")).expect("taken");
            prop_assert_eq!(copy.save(), first.save());
            for port in PORTS {
                prop_assert_eq!(ask(&mut copy, port), ask(&mut first, port));
            }
            for port in [PORT_HOTPLUG_EJECT, PORT_CPUS] {
                let eject = |registers: &mut Registers| registers.write(port, &[0xff; 4]);
                prop_assert_eq!(eject(&mut copy), eject(&mut first));
            }
        }
    }

    /// What can be read, and how wide it is.
    const PORTS: [(u16, usize); 6] = [
        (PORT_EVENTS, 1),
        (PORT_HOTPLUG_UP, 4),
        (PORT_HOTPLUG_DOWN, 4),
        (PORT_CPUS_UP, 4),
        (PORT_CPUS_DOWN, 4),
        (PORT_CPUS, 4),
    ];

    #[test]
    fn what_never_was_is_refused_and_changes_nothing() {
        let none = Registers::new(1).save();
        let refused = |state| {
            let mut registers = Registers::default();
            registers.press_power_button();
            let before = registers.save();
            let refused = registers.restore(&state).expect_err("not possible");
            assert_eq!(registers.save(), before);
            refused.to_string()
        };
        let saved = |change: fn(&mut RegistersV1)| {
            let mut state = none.clone();
            change(&mut state);
            state
        };
        let event = saved(|state| state.events = 16);
        assert_eq!(refused(event), "no such events: 0x10");
        let processors = saved(|state| state.processors.present = 0);
        assert_eq!(refused(processors), "the first processor never goes");
        for state in [
            saved(|state| state.up = 1),
            saved(|state| state.down = 3),
            saved(|state| state.ejectable = 1),
        ] {
            assert_eq!(refused(state), "slot 0 is the host bridge's");
        }
        let more = r#"{"events":0,"up":0,"down":0,"ejectable":0,"sleeping":1}"#;
        assert!(serde_json::from_str::<RegistersV1>(more).is_err());
    }

    #[test]
    fn s5_is_the_only_sleep() {
        let mut registers = Registers::default();
        assert_eq!(
            registers.write(PORT_SLEEP_CONTROL, &[S5 << 2 | SLEEP_ENABLE]),
            Some(Request::PowerOff)
        );
        assert_eq!(registers.write(PORT_SLEEP_CONTROL, &[S5 << 2]), None);
        assert_eq!(
            registers.write(PORT_SLEEP_CONTROL, &[3 << 2 | SLEEP_ENABLE]),
            None
        );
    }

    #[test]
    fn ports_are_known_to_the_last_byte() {
        for port in [
            PORT_SLEEP_CONTROL,
            PORT_SLEEP_STATUS,
            PORT_RESET,
            PORT_EVENTS,
            PORT_HOTPLUG_UP,
            PORT_HOTPLUG_DOWN,
            PORT_HOTPLUG_EJECT + 3,
            PORT_CPUS_UP,
            PORT_CPUS + 3,
        ] {
            assert!(Registers::has(port), "{port:#x}");
        }
        for port in [
            PORT_SLEEP_CONTROL - 1,
            PORT_RESET + 1,
            PORT_EVENTS - 1,
            PORT_CPUS + 4,
        ] {
            assert!(!Registers::has(port), "{port:#x}");
        }
    }

    #[test]
    fn unplugs_are_told_until_they_are_read() {
        let mut registers = Registers::default();
        registers.press_power_button();
        registers.request_unplug(1);
        registers.request_unplug(31);
        // One that has no bit.
        registers.request_unplug(32);
        let mut byte = [0xff];
        registers.read(PORT_EVENTS, &mut byte);
        assert_eq!(byte, [3]);
        let mut word = [0xff; 4];
        registers.read(PORT_HOTPLUG_DOWN, &mut word[..2]);
        assert_eq!(word, [0, 0, 0xff, 0xff], "halves read nothing");
        registers.read(PORT_HOTPLUG_DOWN, &mut word);
        assert_eq!(word, [2, 0, 0, 0x80]);
        registers.read(PORT_HOTPLUG_DOWN, &mut word);
        assert_eq!(word, [0; 4]);
        registers.read(PORT_SLEEP_STATUS, &mut byte);
        assert_eq!(byte, [0]);
        let both = registers.write(PORT_HOTPLUG_EJECT, &[0xff; 4]);
        assert_eq!(both, Some(Request::Eject(0x8000_0002)));
    }

    #[test]
    fn reset_takes_its_value_only() {
        let mut registers = Registers::default();
        assert_eq!(
            registers.write(PORT_RESET, &[RESET_VALUE]),
            Some(Request::Reset)
        );
        assert_eq!(registers.write(PORT_RESET, &[0]), None);
        assert_eq!(registers.write(PORT_RESET, &[1, 0]), None);
    }

    #[test]
    fn events_are_told_once() {
        let mut registers = Registers::default();
        registers.press_power_button();
        registers.slot_filled(3);
        let mut byte = [0xff];
        registers.read(PORT_EVENTS, &mut byte);
        assert_eq!(byte, [3]);
        registers.read(PORT_EVENTS, &mut byte);
        assert_eq!(byte, [0]);
        let mut word = [0; 4];
        registers.read(PORT_HOTPLUG_UP, &mut word);
        assert_eq!(word, [8, 0, 0, 0]);
        registers.read(PORT_HOTPLUG_UP, &mut word);
        assert_eq!(word, [0; 4]);
    }

    #[test]
    fn what_was_asked_for_is_ejected_once() {
        let mut registers = Registers::default();
        let all = [0xff; 4];
        assert_eq!(registers.write(PORT_HOTPLUG_EJECT, &all), None);
        registers.request_unplug(2);
        assert_eq!(registers.write(PORT_HOTPLUG_EJECT, &[4]), None);
        assert_eq!(registers.write(PORT_HOTPLUG_EJECT, &[8, 0, 0, 0]), None);
        assert_eq!(
            registers.write(PORT_HOTPLUG_EJECT, &all),
            Some(Request::Eject(4))
        );
        assert_eq!(registers.write(PORT_HOTPLUG_EJECT, &all), None);
        // What is put into the slot after the request was not asked for.
        registers.request_unplug(2);
        registers.slot_filled(2);
        assert_eq!(registers.write(PORT_HOTPLUG_EJECT, &all), None);
    }

    #[test]
    fn processors_are_told_of_and_ejected_like_slots() {
        let mut registers = Registers::new(2);
        registers.request_processors(1);
        let mut byte = [0xff];
        registers.read(PORT_EVENTS, &mut byte);
        assert_eq!(byte, [Event::PROCESSORS.bits()]);
        let mut word = [0xff; 4];
        registers.read(PORT_CPUS_DOWN, &mut word[..1]);
        assert_eq!(word[0], 0, "parts read nothing");
        registers.read(PORT_CPUS_DOWN, &mut word);
        assert_eq!(word, [2, 0, 0, 0]);
        assert_eq!(registers.write(PORT_CPUS, &[2]), None);
        let all = registers.write(PORT_CPUS, &[0xff; 4]);
        assert_eq!(all, Some(Request::EjectProcessors(2)));
        assert_eq!(registers.write(PORT_CPUS, &[0xff; 4]), None);
    }
}
