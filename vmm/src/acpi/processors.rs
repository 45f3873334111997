//! Which processors are plugged, as a pure register machine, and the AML that reads it.
//!
//! Three registers of 32 bits at I/O ports, a bit for each processor:
//!
//! ```text
//!   PORT_CPUS_UP    read   plugged, and the guest has not heard of it: cleared by reading
//!   PORT_CPUS_DOWN  read   the unplug is requested: cleared by reading
//!   PORT_CPUS       read   there;  write  the guest lets go of these
//! ```
//!
//! The DSDT has a container (ACPI 6.5, section 5.6.7: `ACPI0010`) with a device for each
//! processor that there may ever be. Its `_STA` asks whether it is there (section 6.3.7)
//! and `_MAT` is its entry of the MADT (section 6.2.10). The Generic Event Device has
//! `CSCN` notify those of the first two registers: 1 "device check", 3 "eject request".

use acpi_tables::aml::{
    Acquire, And, Arg, BufferData, Device, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, If, Local, Method, MethodCall, Mutex, Name, Notify, ONE,
    OpRegion, OpRegionSpace, Path, Release, Return, ShiftLeft, Store, ZERO,
};
use acpi_tables::madt::{EnabledStatus, ProcessorLocalApic};
use acpi_tables::{Aml, AmlSink};
use serde::{Deserialize, Serialize};

use super::dsdt::{NOTIFY_DEVICE_CHECK, NOTIFY_EJECT_REQUEST};
use crate::arch::layout::{MAX_VCPUS, PORT_CPUS, PORT_CPUS_DOWN, PORT_CPUS_UP};
use crate::snapshot::Refused;

/// `_STA`: present, enabled, shown, functioning. Section 6.3.7.
const STATUS_THERE: u8 = 0xf;
/// The processor that boots, and never goes.
const FIRST: u32 = 1;

/// [`Processors`], saved. One bit for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessorsV1 {
    /// Those that are there.
    pub present: u32,
    /// Those that were plugged, which the guest has not read.
    pub up: u32,
    /// Those whose unplug was requested, which the guest has not read.
    pub down: u32,
    /// Those whose unplug was requested and that were not ejected since.
    pub ejectable: u32,
}

/// The registers, and what the machine has asked for by them. One bit for each processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processors {
    present: u32,
    up: u32,
    down: u32,
    /// Their unplug was requested, and they were not ejected since: part of `present`.
    ejectable: u32,
}

impl Processors {
    /// A machine that is switched on with so many.
    #[must_use]
    pub fn new(count: u8) -> Self {
        Self {
            present: first(count),
            ..Self::default()
        }
    }

    /// Those that are there.
    #[must_use]
    pub fn present(&self) -> u32 {
        self.present
    }

    /// Those that are there and shall stay.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.present & !self.ejectable
    }

    /// Those that are not there and are needed for `count` that stay: what the machine
    /// makes before it [requests](Self::request) that many.
    #[must_use]
    pub fn missing(&self, count: u8) -> u32 {
        self.staying(count) & !self.present
    }

    /// Those that are to stay of `count`: the lowest of the others come, or the highest go.
    fn staying(&self, count: u8) -> u32 {
        let count = u32::from(count.min(MAX_VCPUS));
        let mut staying = self.wanted();
        while staying.count_ones() < count {
            staying |= 1 << staying.trailing_ones();
        }
        while staying.count_ones() > count.max(1) {
            staying &= !(1 << staying.ilog2());
        }
        staying
    }

    /// Has `count` be there, at least one, as far as the guest lets go of the others; the
    /// caller raises the interrupt. What is to be unplugged and was not ejected yet is
    /// asked for again, or, if it shall stay after all, shown to the guest again: it may be
    /// about to forget it.
    pub fn request(&mut self, count: u8) {
        let staying = self.staying(count);
        self.up |= staying & !self.wanted();
        self.present |= staying;
        self.ejectable = self.present & !staying;
        self.down = self.ejectable;
    }

    /// What the guest reads from a port.
    pub(super) fn read(&mut self, port: u16) -> u32 {
        match port {
            PORT_CPUS_UP => std::mem::take(&mut self.up),
            PORT_CPUS_DOWN => std::mem::take(&mut self.down),
            PORT_CPUS => self.present,
            _ => 0,
        }
    }

    /// The guest lets go of these. Returns those that go: none that it was not asked for,
    /// each once.
    pub(super) fn eject(&mut self, processors: u32) -> u32 {
        let ejected = processors & self.ejectable;
        self.present &= !ejected;
        self.ejectable &= !ejected;
        self.down &= !ejected;
        self.up &= !ejected;
        ejected
    }

    pub(super) fn save(&self) -> ProcessorsV1 {
        ProcessorsV1 {
            present: self.present,
            up: self.up,
            down: self.down,
            ejectable: self.ejectable,
        }
    }

    /// What was saved.
    ///
    /// # Errors
    /// When the first is missing, or one was asked for that is not there.
    pub(super) fn restored(state: &ProcessorsV1) -> Result<Self, Refused> {
        let ProcessorsV1 {
            present,
            up,
            down,
            ejectable,
        } = *state;
        if present & FIRST == 0 || ejectable & FIRST != 0 {
            return Err(Refused::because("the first processor never goes"));
        }
        if up & !present != 0 || ejectable & !present != 0 || down & !ejectable != 0 {
            let wrong = format!("processors {present:#x} are there: not {up:#x}, {ejectable:#x}");
            return Err(Refused::because(wrong));
        }
        Ok(Self {
            present,
            up,
            down,
            ejectable,
        })
    }
}

/// The first `count` of all.
fn first(count: u8) -> u32 {
    1u32.checked_shl(count.into())
        .map_or(u32::MAX, |next| next - 1)
}

/// The container, with as many processors as there may ever be.
pub(super) struct Container {
    pub(super) most: u8,
}

impl Aml for Container {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &"ACPI0010");
        let uid = Name::new("_UID".into(), &ZERO);
        let region = OpRegion::new("CREG".into(), OpRegionSpace::SystemIO, &PORT_CPUS_UP, &12u8);
        let fields = Field::new(
            "CREG".into(),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            vec![
                FieldEntry::Named(*b"CPUU", 32),
                FieldEntry::Named(*b"CPUD", 32),
                FieldEntry::Named(*b"CPUS", 32),
            ],
        );
        let lock = Mutex::new("CLCK".into(), 0);
        let acquire = Acquire::new("CLCK".into(), 0xffff);
        let release = Release::new("CLCK".into());
        let bit = ShiftLeft::new(&Local(0), &ONE, &Arg(0));
        let there = Path::new("CPUS");
        // CSTA (n): whether the processor is there, as `_STA` says it.
        let masked = And::new(&Local(1), &there, &Local(0));
        let is_there = Equal::new(&Local(1), &Local(0));
        let status_there = Return::new(&STATUS_THERE);
        let if_there = If::new(&is_there, vec![&status_there]);
        let not_there = Return::new(&ZERO);
        let status = Method::new(
            "CSTA".into(),
            1,
            true,
            vec![&bit, &masked, &if_there, &not_there],
        );
        // CEJ0 (n): lets go of it.
        let let_go = Store::new(&there, &Local(0));
        let eject = Method::new(
            "CEJ0".into(),
            1,
            true,
            vec![&acquire, &bit, &let_go, &release],
        );
        let processors: Vec<Processor> = (0..self.most).map(Processor).collect();
        let notify: Vec<NotifyProcessor> = (0..self.most).map(NotifyProcessor).collect();
        let notify = Method::new(
            "CNTF".into(),
            2,
            true,
            notify.iter().map(|one| one as &dyn Aml).collect(),
        );
        let (plugged, going) = (Path::new("CPUU"), Path::new("CPUD"));
        let up = MethodCall::new("CNTF".into(), vec![&plugged, &NOTIFY_DEVICE_CHECK]);
        let down = MethodCall::new("CNTF".into(), vec![&going, &NOTIFY_EJECT_REQUEST]);
        let scan = Method::new("CSCN".into(), 0, true, vec![&acquire, &up, &down, &release]);
        let mut children: Vec<&dyn Aml> =
            vec![&hid, &uid, &region, &fields, &lock, &status, &eject];
        children.extend(processors.iter().map(|one| one as &dyn Aml));
        children.push(&notify);
        children.push(&scan);
        Device::new("CPUC".into(), children).to_aml_bytes(sink);
    }
}

/// The name of a processor's device object: `C000` to `C031`.
fn name(processor: u8) -> Path {
    Path::new(&format!("C{processor:03}"))
}

/// One processor: section 8.4.
struct Processor(u8);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let entry = |status| {
            let mut bytes = Vec::new();
            ProcessorLocalApic::new(self.0, self.0, status).to_aml_bytes(&mut bytes);
            BufferData::new(bytes)
        };
        let there = entry(EnabledStatus::Enabled);
        let to_come = entry(EnabledStatus::DisabledOnlineCapable);
        let is_there = || MethodCall::new("CSTA".into(), vec![&self.0 as &dyn Aml]);
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &self.0);
        let status = is_there();
        let status = Return::new(&status);
        let status = Method::new("_STA".into(), 0, true, vec![&status]);
        let called = is_there();
        let condition = Equal::new(&called, &STATUS_THERE);
        let (there, to_come) = (Return::new(&there), Return::new(&to_come));
        let then = If::new(&condition, vec![&there]);
        let entry = Method::new("_MAT".into(), 0, true, vec![&then, &to_come]);
        let eject = MethodCall::new("CEJ0".into(), vec![&self.0]);
        let eject = Method::new("_EJ0".into(), 1, true, vec![&eject]);
        let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &status, &entry];
        // The first one never goes.
        if self.0 > 0 {
            children.push(&eject);
        }
        Device::new(name(self.0), children).to_aml_bytes(sink);
    }
}

/// Notifies a processor when its bit is set in the first argument.
struct NotifyProcessor(u8);

impl Aml for NotifyProcessor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let bit = 1u32 << (self.0 % MAX_VCPUS);
        And::new(&Local(0), &Arg(0), &bit).to_aml_bytes(sink);
        If::new(
            &Equal::new(&Local(0), &bit),
            vec![&Notify::new(&name(self.0), &Arg(1))],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn more_come_and_are_told_of_once() {
        let mut processors = Processors::new(1);
        assert_eq!((processors.present(), processors.missing(3)), (1, 0b110));
        processors.request(3);
        assert_eq!(processors.missing(3), 0);
        let ports = [PORT_CPUS_UP, PORT_CPUS_UP, PORT_CPUS_DOWN, PORT_CPUS];
        let read = ports.map(|port| processors.read(port));
        assert_eq!(read, [0b110, 0, 0, 0b111]);
    }

    #[test]
    fn the_highest_go_when_the_guest_lets_go_of_them() {
        let mut processors = Processors::new(4);
        assert_eq!(processors.eject(u32::MAX), 0, "nobody asked for any");
        processors.request(2);
        assert_eq!((processors.present(), processors.wanted()), (0b1111, 0b11));
        assert_eq!(processors.read(PORT_CPUS_DOWN), 0b1100);
        // Asked for again, and so it is told again.
        processors.request(2);
        assert_eq!(processors.read(PORT_CPUS_DOWN), 0b1100);
        assert_eq!(processors.eject(0b111), 0b100);
        assert_eq!(processors.eject(0b111), 0, "once");
        assert_eq!(processors.read(PORT_CPUS), 0b1011);
        // The one that stayed shall stay, and the lowest that is missing comes.
        assert_eq!(processors.missing(3), 0b100);
        processors.request(3);
        assert_eq!((processors.wanted(), processors.present()), (0b111, 0b1111));
        processors.request(4);
        assert_eq!(processors.read(PORT_CPUS_UP), 0b1100);
        assert_eq!(processors.eject(u32::MAX), 0, "taken back");
    }

    #[test]
    fn there_is_always_one_and_never_more_than_bits() {
        let mut processors = Processors::new(2);
        processors.request(0);
        assert_eq!(processors.wanted(), 1);
        processors.request(u8::MAX);
        assert_eq!(processors.wanted(), u32::MAX);
        assert_eq!(Processors::new(32).present(), u32::MAX);
        assert_eq!(Processors::new(u8::MAX).present(), u32::MAX);
    }

    proptest! {
        #[test]
        fn whatever_a_guest_does_it_has_what_was_asked_for(
            steps in prop::collection::vec((1u8..=32, any::<u32>(), 0u16..4), 0..20),
        ) {
            let mut processors = Processors::new(1);
            for (count, ejected, port) in steps {
                let (before, missing) = (processors, processors.missing(count));
                processors.request(count);
                prop_assert_eq!(processors.present(), before.present() | missing);
                prop_assert_eq!(processors.wanted().count_ones(), u32::from(count));
                processors.read(PORT_CPUS_UP + 4 * port);
                let wanted = processors.wanted();
                let gone = processors.eject(ejected);
                prop_assert_eq!(gone & wanted, 0);
                prop_assert_eq!(processors.wanted(), wanted);
                prop_assert_eq!(Processors::restored(&processors.save()).ok(), Some(processors));
            }
        }
    }

    #[test]
    fn what_never_was_is_refused() {
        let good = Processors::new(2).save();
        for state in [
            ProcessorsV1 { present: 2, ..good },
            ProcessorsV1 { up: 4, ..good },
            ProcessorsV1 { down: 2, ..good },
            ProcessorsV1 {
                ejectable: 1,
                ..good
            },
            ProcessorsV1 {
                ejectable: 6,
                ..good
            },
        ] {
            assert!(Processors::restored(&state).is_err(), "{state:?}");
        }
    }
}
