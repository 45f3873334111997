//! What the guest was told that its processors are, and whether this host can be that.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use crate::snapshot::Refused;

/// A line of the CPUID table: Intel SDM volume 2, "CPUID".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidV1 {
    /// The leaf.
    pub function: u32,
    /// The subleaf.
    pub index: u32,
    /// `KVM_CPUID_FLAG_*`.
    pub flags: u32,
    /// What is in EAX.
    pub eax: u32,
    /// What is in EBX.
    pub ebx: u32,
    /// What is in ECX.
    pub ecx: u32,
    /// What is in EDX.
    pub edx: u32,
}

/// The processors of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessorV1 {
    /// Who makes it, as CPUID says: `AuthenticAMD`.
    pub vendor: String,
    /// Its family, with the extended one added.
    pub family: u32,
    /// Its model, the extended one in front.
    pub model: u32,
    /// CPUID of each vCPU.
    pub cpuid: Vec<Vec<CpuidV1>>,
}

/// Leaves of features, by function and index, and which of EAX, EBX, ECX, EDX are such.
const FEATURES: [(u32, u32, [bool; 4]); 12] = [
    (0x1, 0, [false, false, true, true]),
    (0x7, 0, [false, true, true, true]),
    (0x7, 1, [true, true, true, true]),
    (0x7, 2, [false, false, false, true]),
    // What XSAVE saves, and how.
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, true, true]),
    // KVM's own: Documentation/virt/kvm/x86/cpuid.rst.
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
    (0x8000_0008, 0, [false, true, false, false]),
    (0x8000_000a, 0, [false, false, false, true]),
    (0x8000_0021, 0, [true, false, false, false]),
];
const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

impl From<&kvm_cpuid_entry2> for CpuidV1 {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        }
    }
}

impl From<&CpuidV1> for kvm_cpuid_entry2 {
    fn from(entry: &CpuidV1) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..Default::default()
        }
    }
}

impl CpuidV1 {
    fn registers(&self) -> [u32; 4] {
        [self.eax, self.ebx, self.ecx, self.edx]
    }
}

fn leaf(table: &[CpuidV1], function: u32, index: u32) -> Option<&CpuidV1> {
    let is = |entry: &&CpuidV1| (entry.function, entry.index) == (function, index);
    table.iter().find(is)
}

impl ProcessorV1 {
    /// That of vCPUs with these tables.
    pub(in super::super) fn save(tables: &[CpuId]) -> Self {
        let list = |table: &CpuId| table.as_slice().iter().map(CpuidV1::from).collect();
        let cpuid: Vec<Vec<CpuidV1>> = tables.iter().map(list).collect();
        let first = cpuid.first().map_or(&[][..], Vec::as_slice);
        let name = leaf(first, 0, 0).map_or([0; 3], |leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
        let name = name.map(u32::to_le_bytes).concat();
        let signature = leaf(first, 1, 0).map_or(0, |leaf| leaf.eax);
        let [family, model] = family_and_model(signature);
        Self {
            vendor: String::from_utf8_lossy(&name).into_owned(),
            family,
            model,
            cpuid,
        }
    }

    /// The tables for as many vCPUs of a host whose own tables would be `here`.
    ///
    /// # Errors
    /// When the host's processor is another maker's or lacks a feature, or there are
    /// more or fewer vCPUs.
    pub(in super::super) fn restore(&self, here: &[CpuId]) -> Result<Vec<CpuId>, Refused> {
        let host = Self::save(here);
        let (has, wants) = (host.cpuid.len(), self.cpuid.len());
        if has != wants {
            let wrong = format!("it has {wants} vCPUs, and the machine {has}");
            return Err(Refused::because(wrong));
        }
        if host.vendor != self.vendor {
            let wrong = format!(
                "its processor is {:?}, and here {:?}",
                self.vendor, host.vendor
            );
            return Err(Refused::because(wrong));
        }
        let tables = self.cpuid.iter().zip(&host.cpuid).map(|(table, host)| {
            if let Some(missing) = missing(table, host) {
                let Self { family, model, .. } = self;
                let of = format!("{} family {family:#x} model {model:#x}", self.vendor);
                let wrong = format!("this host's processor lacks {missing} of its {of}");
                return Err(Refused::because(wrong));
            }
            let entries: Vec<_> = table.iter().map(kvm_cpuid_entry2::from).collect();
            CpuId::from_entries(&entries)
                .map_err(|_| Refused::because(format!("a CPUID of {} lines", entries.len())))
        });
        tables.collect()
    }
}

/// The first features of a table that another one lacks.
fn missing(table: &[CpuidV1], here: &[CpuidV1]) -> Option<String> {
    let masks = |function, index| FEATURES.iter().find(|is| (is.0, is.1) == (function, index));
    table.iter().find_map(|entry| {
        let (function, index, are_features) = masks(entry.function, entry.index)?;
        let has = leaf(here, *function, *index).map_or([0; 4], CpuidV1::registers);
        let each = entry.registers().into_iter().zip(has);
        let mut each = each.zip(REGISTERS).zip(are_features);
        each.find_map(|(((wants, has), register), is_features)| {
            let lacks = wants & !has;
            (*is_features && lacks != 0)
                .then(|| format!("CPUID {function:#x}.{index} {register} {lacks:#x}"))
        })
    })
}

/// AMD APM volume 3, "Function 0000_0001h EAX"; Intel's is the same where it matters.
fn family_and_model(signature: u32) -> [u32; 2] {
    let field = |shift: u32, mask: u32| signature >> shift & mask;
    let (family, model) = (field(8, 0xf), field(4, 0xf));
    let extended = |is_extended| if is_extended { field(16, 0xf) << 4 } else { 0 };
    match family {
        0xf => [family + field(20, 0xff), model | extended(true)],
        _ => [family, model | extended(family == 0x6)],
    }
}
