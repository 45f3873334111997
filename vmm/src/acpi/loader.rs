//! The tables as files for firmware that puts them where it likes, and what it must do
//! for that: QEMU's "table loader" (QEMU, `hw/acpi/bios-linker-loader.c`; edk2,
//! `OvmfPkg/Include/IndustryStandard/QemuLoader.h`).
//!
//! Every pointer of the tables is an offset into the file, to which the firmware adds
//! where the file has come to lie; after which it computes the checksums of what has
//! pointers. Their bytes are zero before, as they are counted too.

use acpi_tables::rsdp::Rsdp;

use super::{Hardware, Image, Resources};
use crate::arch::layout::firmware::{PCI_WINDOW_64_LAST, PCI_WINDOWS, PORT_PCI_WINDOW};
use crate::arch::layout::{ABOVE_4G, GIB};

/// The file that the tables are in. Pointers and commands name it.
const TABLES: &str = "etc/acpi/tables";
/// Bytes of a file's name in a command.
const NAME_SIZE: usize = 56;
/// Bytes of a command, of which most need few.
const COMMAND_SIZE: usize = 128;

/// RSDP: ACPI 6.5, table 5.3. Its first checksum is of the part that ACPI 1.0 had.
mod rsdp {
    pub(super) const CHECKSUM: u32 = 8;
    pub(super) const FIRST_SIZE: u32 = 20;
    pub(super) const XSDT: u32 = 24;
    pub(super) const EXTENDED_CHECKSUM: u32 = 32;
}
/// Of any other table: table 5.4.
const CHECKSUM: u32 = 9;
const HEADER_SIZE: u32 = 36;
/// FADT, `X_DSDT`: table 5.9.
const X_DSDT: u32 = 140;

/// Commands.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
enum Kind {
    Allocate = 1,
    AddPointer = 2,
    AddChecksum = 3,
}

/// Anywhere but in the first MiB.
const ZONE_HIGH: u8 = 1;

/// What firmware gets, each with its name.
#[derive(Debug)]
pub struct Files {
    /// The tables, RSDP first.
    pub tables: (&'static str, Vec<u8>),
    /// What is to be done with them.
    pub loader: (&'static str, Vec<u8>),
}

/// The tables of a machine with firmware, whose RAM ends here.
#[must_use]
pub fn for_firmware(hardware: Hardware, ram_end: u64) -> Files {
    let first = ram_end.max(ABOVE_4G).next_multiple_of(GIB);
    let narrow = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let windows = PCI_WINDOWS.map(|(first, last)| (narrow(first), narrow(last)));
    let resources = Resources {
        // It is where firmware puts it, and what is written here is written before.
        has_ecam: false,
        ports: (PORT_PCI_WINDOW, u16::MAX),
        windows: windows.to_vec(),
        window_64: Some((first, PCI_WINDOW_64_LAST)),
    };
    let mut image = Image::of(0, hardware, &resources);
    let [fadt, xsdt] = [image.fadt, image.xsdt].map(narrow);
    let mut pointers = vec![rsdp::XSDT, fadt + X_DSDT];
    let entries = (0..).take(image.entries);
    pointers.extend(entries.map(|entry: u32| xsdt + HEADER_SIZE + 8 * entry));

    let length = |table: u32| {
        let at = table as usize + 4;
        let bytes = image.bytes.get(at..at + 4);
        bytes.map_or(0, |bytes| {
            bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
        })
    };
    let sums = [
        (rsdp::CHECKSUM, 0, rsdp::FIRST_SIZE),
        (rsdp::EXTENDED_CHECKSUM, 0, narrow(Rsdp::len() as u64)),
        (fadt + CHECKSUM, fadt, length(fadt)),
        (xsdt + CHECKSUM, xsdt, length(xsdt)),
    ];
    for (at, ..) in sums {
        if let Some(sum) = image.bytes.get_mut(at as usize) {
            *sum = 0;
        }
    }

    let mut loader = Vec::new();
    let mut allocate = name(TABLES);
    allocate.extend(64u32.to_le_bytes());
    allocate.push(ZONE_HIGH);
    push(&mut loader, Kind::Allocate, &allocate);
    for at in pointers {
        let mut add = [name(TABLES), name(TABLES)].concat();
        add.extend(at.to_le_bytes());
        add.push(8);
        push(&mut loader, Kind::AddPointer, &add);
    }
    for (at, start, length) in sums {
        let mut add = name(TABLES);
        add.extend([at, start, length].map(u32::to_le_bytes).concat());
        push(&mut loader, Kind::AddChecksum, &add);
    }
    Files {
        tables: (TABLES, image.bytes),
        loader: ("etc/table-loader", loader),
    }
}

fn name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME_SIZE, 0);
    bytes
}

fn push(commands: &mut Vec<u8>, kind: Kind, arguments: &[u8]) {
    let end = commands.len() + COMMAND_SIZE;
    commands.extend((kind as u32).to_le_bytes());
    commands.extend(arguments);
    commands.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
    }

    /// Does what firmware does: the file comes to lie at `base`.
    fn loaded(files: &Files, base: u64) -> Vec<u8> {
        let (mut tables, mut has_begun) = (files.tables.1.clone(), false);
        for command in files.loader.1.chunks_exact(128) {
            assert_eq!(command[4..60], name(TABLES));
            match u32_at(command, 0) {
                1 => has_begun = true,
                2 => {
                    assert!(has_begun && command[60..116] == name(TABLES) && command[120] == 8);
                    let at = u32_at(command, 116);
                    let value = u64_at(&tables, at);
                    assert!(value < tables.len() as u64);
                    tables[at..at + 8].copy_from_slice(&(value + base).to_le_bytes());
                }
                3 => {
                    let [at, start, length] = [60, 64, 68].map(|at| u32_at(command, at));
                    let range = &tables[start..start + length];
                    let sum = range.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    tables[at] = sum.wrapping_neg();
                }
                other => panic!("command {other}"),
            }
        }
        tables
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn firmware_puts_them_together_wherever_it_likes() {
        const BASE: u64 = 0x7_e000_1000;
        let hardware = Hardware {
            vcpus: 3,
            most_vcpus: None,
            last_slot: None,
        };
        let files = for_firmware(hardware, 6 * GIB);
        let tables = loaded(&files, BASE);
        let table = |address: u64| {
            let at = usize::try_from(address - BASE).expect("inside");
            &tables[at..at + u32_at(&tables, at + 4)]
        };
        assert_eq!(sum(&tables[..20]), 0);
        assert_eq!(sum(&tables[..36]), 0);
        let xsdt = table(u64_at(&tables, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let named: Vec<_> = xsdt[36..]
            .chunks_exact(8)
            .map(|entry| table(u64_at(entry, 0)))
            .collect();
        let names: Vec<_> = named.iter().map(|table| &table[..4]).collect();
        // No MCFG: it is not ours to say where ECAM is.
        assert_eq!(names, [b"FACP", b"APIC"]);
        assert!(named.iter().all(|table| sum(table) == 0));
        let dsdt = table(u64_at(named[0], 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        // QWord address space descriptor (ACPI 6.5, table 6.39): granularity, first, last.
        let window = [0, 6 * GIB, PCI_WINDOW_64_LAST]
            .map(u64::to_le_bytes)
            .concat();
        assert!(dsdt.windows(24).any(|part| part == window));
    }
}
