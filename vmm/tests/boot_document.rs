//! What `BOOT.md` says is what the code does: as far as a table, a path or ASL can be
//! compared.

#![allow(clippy::disallowed_methods, reason = "a test may start programs")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use hearth_vmm::acpi;
use hearth_vmm::arch::layout::{self, ACPI, GIB};
use hearth_vmm::arch::memory;

const ONE_VCPU: acpi::Hardware = acpi::Hardware {
    vcpus: 1,
    most_vcpus: None,
    last_slot: None,
};

fn document() -> String {
    read("BOOT.md")
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of the table under these column heads, row by row, without their backquotes.
fn table(document: &str, heads: &str) -> Vec<Vec<String>> {
    let lines = document.lines().skip_while(|line| *line != heads);
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cell = |cell: &str| cell.trim().replace('`', "");
    let rows: Vec<Vec<_>> = rows
        .map(|row| row.trim_matches('|').split('|').map(cell).collect())
        .collect();
    assert!(!rows.is_empty(), "there is no table {heads}");
    rows
}

fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

macro_rules! constants {
    ($($name:ident)*) => {
        BTreeMap::from([$((stringify!($name).to_owned(), u64::from(layout::$name))),*])
    };
}

/// The places of the layout, by name.
fn places() -> BTreeMap<String, u64> {
    constants! {
        GDT IDT PVH_START_INFO PVH_MODULES PVH_MEMMAP ZERO_PAGE BOOT_STACK PML4 PDPT
        PAGE_DIRECTORIES CMDLINE CMDLINE_CAPACITY LOW_RAM_END GENERATION ACPI ACPI_SIZE SMBIOS
        SMBIOS_SIZE RESET_VECTOR HIGH_RAM HOLE ABOVE_4G MEMORY_BLOCK PCI_WINDOW PCI_WINDOW_SIZE ECAM ECAM_SIZE
        IOAPIC LAPIC NMI_ADDRESS NMI_DATA KVM_IDENTITY_MAP KVM_TSS PORT_CONTROL_B PORT_I8042 PORT_SERIAL PORT_SLEEP_CONTROL
        PORT_SLEEP_STATUS PORT_RESET RESET_VALUE PORT_EVENTS PORT_HOTPLUG_UP PORT_HOTPLUG_DOWN
        PORT_HOTPLUG_EJECT PORT_CPUS_UP PORT_CPUS_DOWN PORT_CPUS PORT_PCI_ADDRESS PORT_PCI_DATA PORT_PCI_WINDOW PORT_PCI_WINDOW_SIZE
        GSI_SERIAL GSI_EVENTS GSI_MSI_FIRST
    }
}

#[test]
fn every_place_of_the_layout_is_told() {
    let told = table(&document(), "| constant | value | what |");
    let told: BTreeMap<_, _> = told
        .iter()
        .map(|row| (row[0].clone(), number(&row[1])))
        .collect();
    assert_eq!(told, places());
    // And there is no other: units and limits aside.
    let code = read("src/arch/x86_64/layout.rs");
    let names = code
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split_once(':'));
    for (name, _) in names.filter(|(name, _)| !name.ends_with("IB") && !name.starts_with("MAX_")) {
        assert!(told.contains_key(name), "{name} is not told");
    }
}

#[test]
fn the_memory_map_is_the_kernels() {
    let told = table(&document(), "| start | size | type | why |");
    let told: Vec<_> = told
        .iter()
        .map(|row| (number(&row[0]), number(&row[1]), number(&row[2])))
        .collect();
    let map: Vec<_> = memory::map(4 * GIB)
        .iter()
        .map(|range| (range.start, range.size, range.kind as u64))
        .collect();
    assert_eq!(told, map);
}

/// The bytes of the table at a guest-physical address.
fn acpi_table(image: &[u8], address: u64) -> &[u8] {
    let start = usize::try_from(address - ACPI).expect("offset");
    let length = u32::from_le_bytes(image[start + 4..start + 8].try_into().expect("4 bytes"));
    &image[start..start + length as usize]
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// The image of all tables, and its FADT.
fn fadt(image: &[u8]) -> &[u8] {
    let xsdt = acpi_table(image, u64_at(image, 24));
    acpi_table(image, u64_at(xsdt, 36))
}

#[test]
fn every_field_of_the_fadt_is_told() {
    let image = acpi::build(ONE_VCPU).expect("fits");
    let mut rest = fadt(&image).to_vec();
    rest[..36].fill(0);
    for row in table(&document(), "| field | offset | bytes | value | why |") {
        let [at, length, value] = [1, 2, 3].map(|cell| number(&row[cell]));
        let at = usize::try_from(at).expect("offset");
        let length = usize::try_from(length).expect("length");
        let field = &mut rest[at..at + length];
        assert_eq!(field, &value.to_le_bytes()[..length], "{}", row[0]);
        field.fill(0);
    }
    let untold = rest.iter().position(|byte| *byte != 0);
    assert_eq!(untold, None, "a field that is not zero");
}

/// The document's ASL, with what stands for each slot put in for each.
fn asl(document: &str) -> String {
    let (_, rest) = document.split_once("```asl\n").expect("ASL");
    let (asl, _) = rest.split_once("```").expect("its end");
    let mut parts = asl.split("// for nn = 1 … 31\n");
    let mut all = parts.next().expect("a beginning").to_owned();
    for part in parts {
        let (each, after) = part.split_once("// end\n").expect("an end");
        for slot in 1..32u32 {
            let shifted = [
                ("nn << 16", format!("{:#x}", slot << 16)),
                ("1 << nn", format!("{:#x}", 1u32 << slot)),
                ("Snn_", format!("S{slot:02}")),
                ("nn", slot.to_string()),
            ];
            let put = shifted
                .iter()
                .fold(each.to_owned(), |text, (from, to)| text.replace(from, to));
            all.push_str(&put);
        }
        all.push_str(after);
    }
    all
}

/// Runs iasl in a folder.
fn iasl(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("iasl");
    let output = command.current_dir(folder).args(arguments).output();
    let output = output.expect("iasl runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

/// One number has several encodings in AML, so that both are compared as one compiler
/// writes them.
#[test]
fn the_asl_is_the_dsdt() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: iasl (acpica-tools) is not installed");
        return;
    }
    let image = acpi::build(ONE_VCPU).expect("fits");
    let dsdt = acpi_table(&image, u64_at(fadt(&image), 140));
    let folder = tempfile::tempdir().expect("folder");
    let write = |name: &str, bytes: &[u8]| {
        fs::write(folder.path().join(name), bytes).expect("write");
    };
    write("told.dsl", asl(&document()).as_bytes());
    write("made.aml", dsdt);
    iasl(folder.path(), &["-d", "made.aml"]);
    for name in ["told", "made"] {
        iasl(folder.path(), &["-p", name, &format!("{name}.dsl")]);
        iasl(folder.path(), &["-d", &format!("{name}.aml")]);
    }
    let body = |name: &str| {
        let text = fs::read_to_string(folder.path().join(name)).expect("disassembled");
        let (_, body) = text.split_once("DefinitionBlock").expect("a body");
        body.to_owned()
    };
    assert_eq!(body("told.dsl"), body("made.dsl"));
}

#[test]
fn what_it_names_is_there() {
    let document = document();
    let quoted = document.split('`').skip(1).step_by(2);
    let paths: Vec<_> = quoted
        .filter(|text| text.starts_with("src/") || text.starts_with("tests/"))
        .collect();
    assert!(paths.len() > 30, "{paths:?}");
    for path in paths {
        let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        assert!(whole.exists(), "{path} is not there");
    }
}
