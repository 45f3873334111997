//! SMBIOS 3 (DMTF DSP0134 3.6): what the machine says it is.
//!
//! cloud-init takes a machine for EC2 when its product UUID and its serial number
//! both start with `ec2` and are equal, so both are the same string. The UUID's
//! first three fields are little-endian in the table (section 7.2.1); the kernel
//! turns them back, and `product_uuid` prints as the string did.

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may start programs")]
mod tests;

use crate::arch::layout::{MIB, SMBIOS, SMBIOS_SIZE};

/// What the tables say about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who made it.
    pub manufacturer: String,
    /// Its product name: the instance type.
    pub product: String,
    /// Its UUID, and its serial number.
    pub uuid: Uuid,
    /// Its asset tag: the instance id.
    pub asset_tag: String,
}

/// A UUID, in the order in which it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// A UUID out of 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let groups: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        if lengths != [8, 4, 4, 4, 12] || !text.is_ascii() {
            return None;
        }
        let digits = groups.concat();
        let mut bytes = [0; 16];
        for (byte, index) in bytes.iter_mut().zip((0..32).step_by(2)) {
            let pair = digits.get(index..index + 2)?;
            if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Self(bytes))
    }

    fn little_endian(self) -> [u8; 16] {
        let mut bytes = self.0;
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl Identity {
    /// What is this machine's alone, in each form in which the tables, or a kernel that has
    /// read them, have it: always the same forms in the same order.
    #[must_use]
    pub fn own(&self) -> [Vec<u8>; 5] {
        let text = self.uuid.to_string();
        [
            text.to_ascii_uppercase().into_bytes(),
            text.into_bytes(),
            self.uuid.0.to_vec(),
            self.uuid.little_endian().to_vec(),
            self.asset_tag.clone().into_bytes(),
        ]
    }
}

/// The longest string we put into a structure: section 6.1.3 sets no limit any
/// more, and 64 bytes is what the older ones promised.
pub const MAX_STRING: usize = 64;

/// Why no tables could be made.
#[derive(Debug, thiserror::Error)]
#[error("the SMBIOS tables take {size} bytes, {SMBIOS_SIZE} are there")]
pub struct TablesTooLarge {
    size: usize,
}

/// The entry point and the structures, as they lie from [`SMBIOS`] on.
///
/// # Errors
/// When they outgrow their place.
pub fn build(identity: &Identity, vcpus: u8, memory_bytes: u64) -> Result<Vec<u8>, TablesTooLarge> {
    let serial = identity.uuid.to_string();
    let memory_mib = u32::try_from(memory_bytes / MIB).unwrap_or(u32::MAX >> 1);
    let mut table = Table::default();

    table.structure(0, handle::BIOS, |s| {
        s.string("Hearth");
        s.string(env!("CARGO_PKG_VERSION"));
        s.word(0xf000); // starting segment
        s.string("01/01/2026");
        s.byte(0); // ROM size
        s.qword(1 << 3); // characteristics: none are given
        s.bytes(&[0x01, 0x14]); // ACPI; targeted content, virtual machine (3 is UEFI: clear)
        s.bytes(&[0, 1, 0xff, 0xff]); // system and controller firmware releases
        s.word(0); // extended ROM size
    });
    table.structure(1, handle::SYSTEM, |s| {
        s.string(&identity.manufacturer);
        s.string(&identity.product);
        s.string("");
        s.string(&serial);
        s.bytes(&identity.uuid.little_endian());
        s.byte(6); // woken by the power switch
        s.string(""); // SKU
        s.string(""); // family
    });
    table.structure(2, handle::BOARD, |s| {
        s.string(&identity.manufacturer);
        s.string("");
        s.string("");
        s.string("");
        s.string(&identity.asset_tag);
        s.byte(1); // hosting board
        s.string("");
        s.word(handle::CHASSIS);
        s.byte(0x0a); // motherboard
        s.byte(0);
    });
    table.structure(3, handle::CHASSIS, |s| {
        s.string(&identity.manufacturer);
        s.byte(1); // other
        s.string("");
        s.string("");
        s.string(&identity.asset_tag);
        s.bytes(&[3, 3, 3, 2]); // boot-up, power, thermal: safe; security: unknown
        s.dword(0);
        s.bytes(&[0, 0, 0, 0]); // height, cords, no contained elements
        s.string(""); // SKU
    });
    table.structure(4, handle::PROCESSOR, |s| {
        s.string("CPU 0");
        s.bytes(&[3, 2]); // central processor; family unknown
        s.string(&identity.manufacturer);
        s.qword(0); // id
        s.string(""); // version
        s.byte(0); // voltage unknown
        s.word(0); // external clock unknown
        s.word(0); // maximum speed unknown
        s.word(0); // current speed unknown
        s.byte(0x41); // socket populated, processor enabled
        s.byte(1); // upgrade: other
        s.word(0xffff); // no cache structures
        s.word(0xffff);
        s.word(0xffff);
        s.string("");
        s.string("");
        s.string("");
        s.bytes(&[vcpus, vcpus, vcpus]); // cores, enabled, threads
        s.word(1 << 2 | 1 << 3); // 64-bit capable, multi-core
        s.word(2); // family 2: unknown
        s.word(vcpus.into());
        s.word(vcpus.into());
        s.word(vcpus.into());
    });
    table.structure(16, handle::MEMORY_ARRAY, |s| {
        s.bytes(&[3, 3, 3]); // system board, system memory, no ECC
        s.dword(0x8000_0000); // see the extended size
        s.word(0xfffe); // no error information
        s.word(1); // devices
        s.qword(memory_bytes);
    });
    table.structure(17, handle::MEMORY_DEVICE, |s| {
        s.word(handle::MEMORY_ARRAY);
        s.word(0xfffe);
        s.word(64);
        s.word(64);
        // Section 7.18.1: 0x7fff says that the extended size holds it.
        let short = u16::try_from(memory_mib).ok().filter(|size| *size < 0x7fff);
        s.word(short.unwrap_or(0x7fff));
        s.bytes(&[9, 0]); // DIMM, in no set
        s.string("DIMM 0");
        s.string("");
        s.byte(7); // RAM
        s.word(1 << 1); // other
        s.word(0); // speed unknown
        s.string(&identity.manufacturer);
        s.string("");
        s.string("");
        s.string("");
        s.byte(0); // rank unknown
        s.dword(if short.is_some() { 0 } else { memory_mib });
        s.word(0);
        s.word(0);
        s.word(0);
        s.word(0);
    });
    table.structure(19, handle::MAPPED_ADDRESS, |s| {
        s.dword(u32::MAX); // see the extended addresses
        s.dword(u32::MAX);
        s.word(handle::MEMORY_ARRAY);
        s.byte(1);
        s.qword(0);
        s.qword(memory_bytes.saturating_sub(1));
    });
    table.structure(32, handle::BOOT, |s| {
        s.bytes(&[0; 6]);
        s.byte(0); // no errors
    });
    table.structure(127, handle::END, |_| {});

    let mut bytes = entry_point(&table.bytes);
    bytes.extend_from_slice(&table.bytes);
    // Text can be that long. Which byte is the first too many, no test looks for.
    if bytes.len() as u64 > SMBIOS_SIZE {
        return Err(TablesTooLarge { size: bytes.len() });
    }
    Ok(bytes)
}

/// The structures' handles: any distinct numbers.
mod handle {
    pub(super) const BIOS: u16 = 0x0000;
    pub(super) const SYSTEM: u16 = 0x0100;
    pub(super) const BOARD: u16 = 0x0200;
    pub(super) const CHASSIS: u16 = 0x0300;
    pub(super) const PROCESSOR: u16 = 0x0400;
    pub(super) const MEMORY_ARRAY: u16 = 0x1000;
    pub(super) const MEMORY_DEVICE: u16 = 0x1100;
    pub(super) const MAPPED_ADDRESS: u16 = 0x1300;
    pub(super) const BOOT: u16 = 0x2000;
    pub(super) const END: u16 = 0x7f00;
}

/// The 64-bit entry point (section 5.2.2), padded to 32 bytes.
fn entry_point(structures: &[u8]) -> Vec<u8> {
    const LENGTH: u8 = 0x18;
    const PADDED: u64 = 0x20;
    let mut entry = Vec::with_capacity(32);
    entry.extend_from_slice(b"_SM3_");
    entry.push(0); // checksum, below
    entry.push(LENGTH);
    entry.extend_from_slice(&[3, 6, 0]); // version
    entry.push(1); // entry point revision
    entry.push(0);
    let size = u32::try_from(structures.len()).unwrap_or(u32::MAX);
    entry.extend_from_slice(&size.to_le_bytes());
    entry.extend_from_slice(&(SMBIOS + PADDED).to_le_bytes());
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    entry[5] = sum.wrapping_neg();
    entry.resize(32, 0);
    entry
}

/// All structures so far.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
}

/// One structure: its fields, and the strings they count.
#[derive(Default)]
struct Fields {
    bytes: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Table {
    /// Section 6.1: header, fields, strings, two zeros at the end.
    fn structure(&mut self, kind: u8, handle: u16, fill: impl FnOnce(&mut Fields)) {
        let mut fields = Fields::default();
        fill(&mut fields);
        self.bytes.push(kind);
        self.bytes
            .push(u8::try_from(fields.bytes.len() + 4).unwrap_or(u8::MAX));
        self.bytes.extend_from_slice(&handle.to_le_bytes());
        self.bytes.append(&mut fields.bytes);
        if fields.strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.append(&mut fields.strings);
        self.bytes.push(0);
    }
}

impl Fields {
    fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    fn bytes(&mut self, values: &[u8]) {
        self.bytes.extend_from_slice(values);
    }

    fn word(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn dword(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn qword(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A string's number; an empty one has number 0.
    fn string(&mut self, text: &str) {
        if text.is_empty() {
            self.byte(0);
            return;
        }
        self.count += 1;
        self.byte(self.count);
        self.strings
            .extend(text.bytes().filter(|byte| *byte != 0).take(MAX_STRING));
        self.strings.push(0);
    }
}
