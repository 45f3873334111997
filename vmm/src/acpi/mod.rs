//! The ACPI tables of a hardware-reduced machine (ACPI 6.5, section 4.1), and the
//! register machines that they point to.
//!
//! There is no firmware under the kernel, so everything it needs to know lies in
//! guest memory before the first instruction: RSDP → XSDT → FADT (→ DSDT), MADT,
//! MCFG.

mod dsdt;
mod fadt;
mod generation;
mod loader;
mod madt;
pub mod processors;
pub mod registers;

pub use generation::{Generation, GenerationV1};
pub use loader::{Files, for_firmware};

use acpi_tables::Aml;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use crate::arch::layout::{
    ACPI, ACPI_SIZE, ECAM, PCI_WINDOW, PCI_WINDOW_SIZE, PORT_PCI_WINDOW, PORT_PCI_WINDOW_SIZE,
};

pub(crate) const OEM_ID: [u8; 6] = *b"HEARTH";
pub(crate) const OEM_TABLE_ID: [u8; 8] = *b"HEARTHVM";
pub(crate) const OEM_REVISION: u32 = 1;

/// Tables start on these boundaries.
const ALIGNMENT: usize = 16;

/// Why no tables could be made.
#[derive(Debug, thiserror::Error)]
#[error("the ACPI tables take {size} bytes, {ACPI_SIZE} are there")]
pub struct TablesTooLarge {
    size: u64,
}

/// What the tables are about that not every machine has alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hardware {
    /// The processors that are there at the start.
    pub vcpus: u8,
    /// How many there may ever be, where they come and go.
    pub most_vcpus: Option<u8>,
    /// The last slot of the PCI bus in which devices come and go, 1 to 31; none: 31.
    /// Each costs the guest's kernel some of its boot.
    pub last_slot: Option<u8>,
}

/// All tables, as they lie from [`ACPI`] on; the RSDP is the first.
///
/// # Errors
/// When they outgrow their place.
pub fn build(hardware: Hardware) -> Result<Vec<u8>, TablesTooLarge> {
    let image = Image::of(ACPI, hardware, &Resources::default());
    let size = image.bytes.len() as u64;
    // The tables of as many processors as there can be fit.
    if size > ACPI_SIZE {
        return Err(TablesTooLarge { size });
    }
    Ok(image.bytes)
}

/// What the tables say of the PCI bus. The first and the last of each range.
struct Resources {
    /// Configuration space is at [`ECAM`]; else the tables don't say where.
    has_ecam: bool,
    ports: (u16, u16),
    /// Windows of 32-bit BARs.
    windows: Vec<(u32, u32)>,
    /// The window of 64-bit BARs, if there is another one.
    window_64: Option<(u64, u64)>,
}

impl Default for Resources {
    /// A machine without firmware.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the window lies below 4 GiB"
    )]
    fn default() -> Self {
        let last_port = PORT_PCI_WINDOW + (PORT_PCI_WINDOW_SIZE - 1);
        let last = PCI_WINDOW + PCI_WINDOW_SIZE - 1;
        Self {
            has_ecam: true,
            ports: (PORT_PCI_WINDOW, last_port),
            windows: vec![(PCI_WINDOW as u32, last as u32)],
            window_64: None,
        }
    }
}

/// All tables as they lie in memory, and where.
struct Image {
    start: u64,
    bytes: Vec<u8>,
    dsdt: u64,
    fadt: u64,
    xsdt: u64,
    /// How many tables the XSDT names.
    entries: usize,
}

impl Image {
    fn of(start: u64, hardware: Hardware, resources: &Resources) -> Self {
        let mut image = Self {
            start,
            bytes: vec![0; Rsdp::len()],
            dsdt: 0,
            fadt: 0,
            xsdt: 0,
            entries: 0,
        };
        image.dsdt = image.append(&bytes(&dsdt::build(hardware, resources)));
        image.fadt = image.append(&bytes(&fadt::build(image.dsdt)));
        let mut tables = vec![image.fadt, image.append(&bytes(&madt::build(hardware)))];
        if resources.has_ecam {
            let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
            mcfg.add_ecam(ECAM, 0, 0, 0);
            tables.push(image.append(&bytes(&mcfg)));
        }
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        for table in &tables {
            xsdt.add_entry(*table);
        }
        image.entries = tables.len();
        image.xsdt = image.append(&bytes(&xsdt));
        let rsdp = bytes(&Rsdp::new(OEM_ID, image.xsdt));
        image.bytes[..Rsdp::len()].copy_from_slice(&rsdp);
        image
    }

    /// Puts a table behind the others and returns its guest-physical address.
    fn append(&mut self, table: &[u8]) -> u64 {
        let start = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(table);
        self.start + start as u64
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may start programs")]
mod tests {
    use super::*;
    use crate::arch::layout::GENERATION;

    /// A machine whose processors neither come nor go.
    fn fixed(vcpus: u8) -> Hardware {
        Hardware {
            vcpus,
            ..Hardware::default()
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(image: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(image[offset..offset + 8].try_into().expect("8 bytes"))
    }

    /// The table at a guest-physical address, cut to the length it states.
    fn table(image: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - ACPI).expect("offset");
        let length = u32::from_le_bytes(image[start + 4..start + 8].try_into().expect("4 bytes"));
        &image[start..start + length as usize]
    }

    fn tables(image: &[u8]) -> Vec<&[u8]> {
        let xsdt = table(image, u64_at(image, 24));
        xsdt[36..]
            .chunks_exact(8)
            .map(|entry| {
                table(
                    image,
                    u64::from_le_bytes(entry.try_into().expect("8 bytes")),
                )
            })
            .collect()
    }

    #[test]
    fn every_checksum_is_right() {
        for vcpus in [1, 2, 32, u8::MAX] {
            let image = build(fixed(vcpus)).expect("fits");
            assert_eq!(&image[..8], b"RSD PTR ");
            assert_eq!(sum(&image[..20]), 0);
            assert_eq!(sum(&image[..36]), 0);
            assert_eq!(sum(table(&image, u64_at(&image, 24))), 0);
            let tables = tables(&image);
            let names: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
            assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
            for one in &tables {
                assert_eq!(sum(one), 0, "{:?}", &one[..4]);
            }
            let dsdt = table(&image, u64_at(tables[0], 140));
            assert_eq!(&dsdt[..4], b"DSDT");
            assert_eq!(sum(dsdt), 0);
        }
    }

    #[test]
    fn madt_has_one_local_apic_for_each_vcpu() {
        let image = build(fixed(3)).expect("fits");
        let madt = tables(&image)[1];
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        assert_eq!(madt[44 + 2 * 8 + 3], 2, "the third one's APIC id");
    }

    #[test]
    fn processors_that_may_come_are_online_capable_and_have_a_device() {
        let hardware = Hardware {
            vcpus: 2,
            most_vcpus: Some(4),
            last_slot: None,
        };
        let image = build(hardware).expect("fits");
        let madt = tables(&image)[1];
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
        let flags = [0, 1, 2, 3].map(|at| madt[44 + at * 8 + 4]);
        assert_eq!(flags, [1, 1, 2, 2]);
        let dsdt = table(&image, u64_at(tables(&image)[0], 140));
        let container = device(dsdt, b"CPUC");
        assert!(has(container, b"_HID\x0dACPI0010\0"));
        for processor in 0..4u8 {
            let name = format!("C{processor:03}");
            let one = device(container, name.as_bytes().try_into().expect("4 bytes"));
            assert!(has(one, b"_HID\x0dACPI0007\0"), "{name}");
            assert_eq!(has(one, b"_EJ0"), processor > 0, "{name}");
            // Its entry of the MADT while it is there, and before and after.
            for flags in [1, 2] {
                let entry = [0, 8, processor, processor, flags, 0, 0, 0];
                assert!(has(one, &entry), "{name}");
            }
            let bit = bytes(&(1u32 << processor));
            let notify = [&b"\x93\x60"[..], &bit, b"\x86", name.as_bytes(), b"\x69"].concat();
            assert!(has(container, &notify), "{name}");
        }
        assert!(has(device(dsdt, b"GED_"), b"CSCN"));
        assert!(!has(&self::dsdt(), b"CSCN"), "nor in a machine whose stay");
    }

    #[test]
    fn the_dsdt_leads_to_the_generation_id() {
        let image = build(fixed(1)).expect("fits");
        let dsdt = table(&image, u64_at(tables(&image)[0], 140));
        let find = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|part| part == bytes);
        assert!(find(b"_CID\x0dVM_Gen_Counter\0"));
        // Name, Package of two: a DWord and zero (ACPI 6.5, section 20.2).
        let low = u32::try_from(GENERATION)
            .expect("below 4 GiB")
            .to_le_bytes();
        assert!(find(
            &[&b"\x08ADDR\x12\x08\x02\x0c"[..], &low, b"\0"].concat()
        ));
    }

    fn dsdt() -> Vec<u8> {
        let image = build(fixed(1)).expect("fits");
        table(&image, u64_at(tables(&image)[0], 140)).to_vec()
    }

    fn has(aml: &[u8], part: &[u8]) -> bool {
        aml.windows(part.len()).any(|window| window == part)
    }

    /// What a device holds (ACPI 6.5, section 20.2.5.2): operator, length, name.
    fn device<'a>(aml: &'a [u8], name: &[u8; 4]) -> &'a [u8] {
        let starts = aml.windows(2).enumerate();
        let mut starts = starts.filter(|(_, window)| *window == [0x5b, 0x82]);
        let found = starts.find_map(|(at, _)| {
            let rest = &aml[at + 2..];
            let more = usize::from(rest[0] >> 6);
            let length = match more {
                0 => usize::from(rest[0] & 0x3f),
                _ => {
                    rest[1..=more]
                        .iter()
                        .rev()
                        .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
                        << 4
                        | usize::from(rest[0] & 0xf)
                }
            };
            let whole = &rest[1 + more..length];
            whole.strip_prefix(name)
        });
        found.unwrap_or_else(|| panic!("no device {}", String::from_utf8_lossy(name)))
    }

    #[test]
    fn the_dsdt_has_the_devices_that_a_kernel_cannot_find() {
        let dsdt = dsdt();
        // EISA ids: three letters of five bits, then four digits.
        for (name, hid) in [
            (b"MBRD", &b"_HID\x0c\x41\xd0\x0c\x02"[..]),
            (b"PCI0", b"_HID\x0c\x41\xd0\x0a\x08"),
            (b"COM1", b"_HID\x0c\x41\xd0\x05\x01"),
            (b"PWRB", b"_HID\x0c\x41\xd0\x0c\x0c"),
            (b"VGEN", b"_HID\x0dHRTH0001\0"),
            (b"GED_", b"_HID\x0dACPI0013\0"),
        ] {
            assert!(
                has(device(&dsdt, name), hid),
                "{}",
                String::from_utf8_lossy(name)
            );
        }
        // Scope _SB_ and, outside of it, S5 as sleep type 5.
        assert!(has(&dsdt, b"_SB_"));
        assert!(has(&dsdt, b"_S5_\x12\x05\x02\x0a\x05\0"));
        let events = device(&dsdt, b"GED_");
        for part in [&b"_EVT"[..], b"PWRB\x0a\x80", b"PCNT", b"VGEN\x0a\x80"] {
            assert!(has(events, part), "{part:?}");
        }
    }

    #[test]
    fn every_slot_but_the_bridges_is_notified_and_ejected() {
        let dsdt = dsdt();
        let bus = device(&dsdt, b"PCI0");
        for part in [
            &b"PHPR"[..],
            b"PCIU",
            b"PCID",
            b"B0EJ",
            b"BLCK",
            b"PCEJ",
            b"DVNT",
        ] {
            assert!(has(bus, part), "{part:?}");
        }
        for slot in 1..32u8 {
            let name = format!("S{slot:02}_");
            let name: [u8; 4] = name.as_bytes().try_into().expect("4 bytes");
            let one = device(bus, &name);
            let address = bytes(&(u32::from(slot) << 16));
            assert!(has(one, &[b"_ADR", &address[..]].concat()), "{slot}");
            assert!(has(one, &[b"_SUN", &bytes(&slot)[..]].concat()), "{slot}");
            assert!(has(one, b"_EJ0") && has(one, b"PCEJ_SUN"), "{slot}");
            // If (Local0 == bit) Notify (slot, Arg1).
            let bit = bytes(&(1u32 << slot));
            let notify = [&b"\x93\x60"[..], &bit, b"\x86", &name, b"\x69"].concat();
            assert!(has(bus, &notify), "{slot}");
        }
        assert!(!has(bus, b"S00_"));
    }

    #[test]
    fn slots_are_as_many_as_may_be_filled() {
        let all = dsdt();
        let image = build(Hardware {
            last_slot: Some(3),
            ..fixed(1)
        })
        .expect("fits");
        let dsdt = table(&image, u64_at(tables(&image)[0], 140));
        let bus = device(dsdt, b"PCI0");
        assert!(has(device(bus, b"S03_"), b"_EJ0"));
        assert!(!has(bus, b"S04_"));
        assert!(dsdt.len() < all.len() / 2);
    }

    /// ACPI 6.5, table 5.9.
    #[test]
    fn the_fadt_says_what_is_not_there_and_how_to_end() {
        let image = build(fixed(1)).expect("fits");
        let fadt = tables(&image)[0];
        // No VGA, no ASPM, no CMOS clock.
        assert_eq!(fadt[109..111], [0x34, 0]);
        let flags = u32::from_le_bytes(fadt[112..116].try_into().expect("4 bytes"));
        assert_eq!(flags, 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20);
        for (at, port) in [
            (116, crate::arch::layout::PORT_RESET),
            (244, crate::arch::layout::PORT_SLEEP_CONTROL),
            (256, crate::arch::layout::PORT_SLEEP_STATUS),
        ] {
            assert_eq!(fadt[at..at + 4], [1, 8, 0, 1], "{at}");
            assert_eq!(u64_at(fadt, at + 4), u64::from(port), "{at}");
        }
        assert_eq!(fadt[268..276], *b"HEARTHVM");
    }

    /// iasl, where it is there, reads the tables without an error.
    #[test]
    fn iasl_disassembles_and_compiles_the_dsdt() {
        use std::process::Command;
        let iasl = || Command::new("iasl");
        if iasl().arg("-v").output().is_err() {
            eprintln!("SKIPPED: iasl (acpica-tools) is not installed");
            return;
        }
        let hardware = Hardware {
            vcpus: 2,
            most_vcpus: Some(32),
            last_slot: None,
        };
        let image = build(hardware).expect("fits");
        let folder = tempfile::tempdir().expect("folder");
        let aml = folder.path().join("dsdt.aml");
        std::fs::write(&aml, table(&image, u64_at(tables(&image)[0], 140))).expect("write");
        for (argument, file) in [("-d", "dsdt.aml"), ("-tc", "dsdt.dsl")] {
            let output = iasl()
                .current_dir(folder.path())
                .args([argument, file])
                .output()
                .expect("iasl runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}");
        }
    }
}
