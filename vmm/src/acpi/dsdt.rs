//! DSDT: the devices that a kernel can't find by itself, and what it does when one
//! of them calls.
//!
//! An event reaches the guest as one edge on [`GSI_EVENTS`]. The Generic Event
//! Device (ACPI 6.5, section 5.6.9) then runs `_EVT`, which reads the event byte
//! once (that clears it) and notifies the generation counter, the power button, or walks
//! the hotplug bits and notifies the slots: 1 "device check", 3 "eject request". In this
//! order: a copy that is given a disk has other random numbers before it finds that. Linux
//! answers an eject with `_EJ0`, which writes the slot's bit to the eject port.

use acpi_tables::aml::{
    Acquire, AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Equal, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local,
    Memory32Fixed, Method, MethodCall, Mutex, Name, Notify, ONE, OpRegion, OpRegionSpace, Package,
    Path, Release, ResourceTemplate, Scope, ShiftLeft, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::processors::Container;
use super::registers::Event;
use super::{Hardware, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Resources};
use crate::arch::layout::{
    ECAM, ECAM_SIZE, GENERATION, GSI_EVENTS, GSI_SERIAL, PORT_EVENTS, PORT_HOTPLUG_UP,
    PORT_PCI_ADDRESS, PORT_SERIAL, PORT_SLEEP_CONTROL,
};

/// The last slot of a bus. Slot 0 is the host bridge and never goes.
const LAST_SLOT: u8 = 31;
/// A device came. ACPI 6.5, table 5.166.
pub(super) const NOTIFY_DEVICE_CHECK: u8 = 1;
/// A device shall go.
pub(super) const NOTIFY_EJECT_REQUEST: u8 = 3;
/// The power button was pressed: section 4.8.2.2.1.2.
const NOTIFY_BUTTON: u8 = 0x80;
/// The generation id has changed: the specification's own number.
const NOTIFY_GENERATION: u8 = 0x80;

pub(super) fn build(hardware: Hardware, resources: &Resources) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = Vec::new();
    let root = PciRoot {
        resources,
        last_slot: hardware.last_slot.unwrap_or(LAST_SLOT).min(LAST_SLOT),
    };
    let container = hardware.most_vcpus.map(|most| Container { most });
    let events = EventDevice {
        has_processors: container.is_some(),
    };
    let board = Board(resources);
    let mut devices: Vec<&dyn Aml> = vec![
        &board,
        &root,
        &Serial,
        &PowerButton,
        &GenerationCounter,
        &events,
    ];
    devices.extend(container.iter().map(|container| container as &dyn Aml));
    Scope::new("_SB_".into(), devices).to_aml_bytes(&mut body);
    // S5 is sleep type 5; the others are not offered.
    Name::new("_S5_".into(), &Package::new(vec![&5u8, &ZERO])).to_aml_bytes(&mut body);
    dsdt.append_slice(&body);
    dsdt
}

/// What is taken and belongs to no device: a kernel trusts ECAM only when it is
/// reserved here (PCI Firmware 3.3, section 4.1.2).
struct Board<'a>(&'a Resources);

impl Aml for Board<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "ECAM lies below 4 GiB")]
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ecam = Memory32Fixed::new(true, ECAM as u32, ECAM_SIZE as u32);
        let sleep = IO::new(PORT_SLEEP_CONTROL, PORT_SLEEP_CONTROL, 1, 0x20);
        let mut taken: Vec<&dyn Aml> = Vec::new();
        if self.0.has_ecam {
            taken.push(&ecam);
        }
        taken.push(&sleep);
        Device::new(
            "MBRD".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(taken)),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The name of a slot's device object: `S00_` to `S31_`.
fn slot_name(slot: u8) -> Path {
    Path::new(&format!("S{slot:02}_"))
}

/// A slot that can be filled and emptied while the guest runs.
struct Slot(u8);

impl Aml for Slot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            slot_name(self.0),
            vec![
                &Name::new("_ADR".into(), &(u32::from(self.0) << 16)),
                &Name::new("_SUN".into(), &self.0),
                &Method::new(
                    "_EJ0".into(),
                    1,
                    true,
                    vec![&MethodCall::new("PCEJ".into(), vec![&Path::new("_SUN")])],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Notifies a slot when its bit is set in the first argument.
struct NotifySlot(u8);

impl Aml for NotifySlot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let bit = 1u32 << self.0;
        And::new(&Local(0), &Arg(0), &bit).to_aml_bytes(sink);
        If::new(
            &Equal::new(&Local(0), &bit),
            vec![&Notify::new(&slot_name(self.0), &Arg(1))],
        )
        .to_aml_bytes(sink);
    }
}

/// The PCI host bridge: PCI Firmware 3.3, section 4.
struct PciRoot<'a> {
    resources: &'a Resources,
    /// The last slot in which devices come and go.
    last_slot: u8,
}

impl Aml for PciRoot<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
        let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
        let uid = Name::new("_UID".into(), &ZERO);
        let segment = Name::new("_SEG".into(), &ZERO);
        let bus = Name::new("_BBN".into(), &ZERO);
        let numbers = AddressSpace::new_bus_number(0u16, 0u16);
        let address = IO::new(PORT_PCI_ADDRESS, PORT_PCI_ADDRESS, 1, 8);
        let (first, last) = self.resources.ports;
        let ports = AddressSpace::new_io(first, last, None);
        let not_cached = || AddressSpaceCacheable::NotCacheable;
        let below =
            self.resources.windows.iter().map(|(first, last)| {
                AddressSpace::new_memory(not_cached(), true, *first, *last, None)
            });
        let below: Vec<_> = below.collect();
        let above = self
            .resources
            .window_64
            .map(|(first, last)| AddressSpace::new_memory(not_cached(), true, first, last, None));
        let mut windows: Vec<&dyn Aml> = vec![&numbers, &address, &ports];
        windows.extend(below.iter().map(|one| one as &dyn Aml));
        windows.extend(above.iter().map(|one| one as &dyn Aml));
        let resources = Name::new("_CRS".into(), &ResourceTemplate::new(windows));
        let region = OpRegion::new(
            "PHPR".into(),
            OpRegionSpace::SystemIO,
            &PORT_HOTPLUG_UP,
            &12u8,
        );
        let fields = Field::new(
            "PHPR".into(),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            vec![
                FieldEntry::Named(*b"PCIU", 32),
                FieldEntry::Named(*b"PCID", 32),
                FieldEntry::Named(*b"B0EJ", 32),
            ],
        );
        let lock = Mutex::new("BLCK".into(), 0);
        let acquire = Acquire::new("BLCK".into(), 0xffff);
        let release = Release::new("BLCK".into());
        let bit = ShiftLeft::new(&Local(0), &ONE, &Arg(0));
        let ejected = Path::new("B0EJ");
        let eject_store = Store::new(&ejected, &Local(0));
        let eject = Method::new(
            "PCEJ".into(),
            1,
            true,
            vec![&acquire, &bit, &eject_store, &release],
        );
        let slots: Vec<Slot> = (1..=self.last_slot).map(Slot).collect();
        let notify: Vec<NotifySlot> = (1..=self.last_slot).map(NotifySlot).collect();
        let notify_slots = Method::new(
            "DVNT".into(),
            2,
            true,
            notify.iter().map(|one| one as &dyn Aml).collect(),
        );
        let pciu = Path::new("PCIU");
        let pcid = Path::new("PCID");
        let up = MethodCall::new("DVNT".into(), vec![&pciu, &NOTIFY_DEVICE_CHECK]);
        let down = MethodCall::new("DVNT".into(), vec![&pcid, &NOTIFY_EJECT_REQUEST]);
        let scan = Method::new("PCNT".into(), 0, true, vec![&acquire, &up, &down, &release]);

        let mut children: Vec<&dyn Aml> = vec![
            &hid, &cid, &uid, &segment, &bus, &resources, &region, &fields, &lock, &eject,
        ];
        children.extend(slots.iter().map(|slot| slot as &dyn Aml));
        children.push(&notify_slots);
        children.push(&scan);
        Device::new("PCI0".into(), children).to_aml_bytes(sink);
    }
}

/// The 16550.
struct Serial;

impl Aml for Serial {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_DDN".into(), &"COM1"),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Interrupt::new(true, true, false, false, GSI_SERIAL),
                        &IO::new(PORT_SERIAL, PORT_SERIAL, 1, 8),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The control-method power button: section 4.8.2.2.1.2.
struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "PWRB".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
                &Name::new("_UID".into(), &ZERO),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Where the generation id lies. Microsoft's "Virtual Machine Generation ID" (2012)
/// leaves `_HID` to the hypervisor and has drivers look for `_CID`; `ADDR` is the
/// address in two halves, of which ours has a zero for the upper, and `Notify` 0x80 says that the id is another one.
struct GenerationCounter;

impl Aml for GenerationCounter {
    #[expect(clippy::cast_possible_truncation, reason = "a half is what is wanted")]
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (low, high) = (GENERATION as u32, (GENERATION >> 32) as u32);
        Device::new(
            "VGEN".into(),
            vec![
                &Name::new("_HID".into(), &"HRTH0001"),
                &Name::new("_CID".into(), &"VM_Gen_Counter"),
                &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The Generic Event Device.
struct EventDevice {
    /// Whether there are processors that come and go.
    has_processors: bool,
}

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let power: u8 = Event::POWER_BUTTON.bits();
        let pci: u8 = Event::PCI.bits();
        let generation: u8 = Event::GENERATION.bits();
        let processors: u8 = Event::PROCESSORS.bits();
        let status = Path::new("ESTS");
        let button = Path::new("\\_SB_.PWRB");
        let counter = Path::new("\\_SB_.VGEN");
        let take = Store::new(&Local(0), &status);
        let is = |bit| And::new(&Local(1), &Local(0), bit);
        let [is_power, is_pci] = [&power, &pci].map(|bit| is(bit));
        let [is_generation, is_processors] = [&generation, &processors].map(|bit| is(bit));
        let was = |bit| Equal::new(&Local(1), bit);
        let [was_power, was_pci] = [&power, &pci].map(|bit| was(bit));
        let [was_generation, was_processors] = [&generation, &processors].map(|bit| was(bit));
        let press = Notify::new(&button, &NOTIFY_BUTTON);
        let scan_slots = MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
        let count = Notify::new(&counter, &NOTIFY_GENERATION);
        let scan_processors = MethodCall::new("\\_SB_.CPUC.CSCN".into(), vec![]);
        let on_power = If::new(&was_power, vec![&press]);
        let on_pci = If::new(&was_pci, vec![&scan_slots]);
        let on_generation = If::new(&was_generation, vec![&count]);
        let on_processors = If::new(&was_processors, vec![&scan_processors]);
        let mut handler: Vec<&dyn Aml> = vec![
            &take,
            &is_generation,
            &on_generation,
            &is_power,
            &on_power,
            &is_pci,
            &on_pci,
        ];
        if self.has_processors {
            handler.extend([&is_processors as &dyn Aml, &on_processors]);
        }
        Device::new(
            "GED_".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&Interrupt::new(
                        true, true, false, false, GSI_EVENTS,
                    )]),
                ),
                &OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &PORT_EVENTS, &ONE),
                &Field::new(
                    "EREG".into(),
                    FieldAccessType::Byte,
                    FieldLockRule::NoLock,
                    FieldUpdateRule::WriteAsZeroes,
                    vec![FieldEntry::Named(*b"ESTS", 8)],
                ),
                &Method::new("_EVT".into(), 1, true, handler),
            ],
        )
        .to_aml_bytes(sink);
    }
}
