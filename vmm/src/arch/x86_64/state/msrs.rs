//! A vCPU's model-specific registers: those that KVM lists, and the memory types, as far
//! as it can read them.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::refused;
use crate::snapshot::Refused;

/// `IA32_TIME_STAMP_COUNTER`: Intel SDM volume 4, table 2-2.
pub(super) const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;

/// Registers that KVM has, and doesn't list: the memory types. Intel SDM volume 3, section
/// 12.11.
const UNLISTED: [RangeInclusive<u32>; 5] = [
    // Variable ranges: base and mask of eight.
    0x200..=0x20f,
    // Fixed ranges of 64, 16 and 4 KiB.
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    // IA32_MTRR_DEF_TYPE: the default, and whether all this counts.
    0x2ff..=0x2ff,
];

/// As many registers are moved at once: KVM takes 256 (`MAX_IO_MSRS`).
const AT_ONCE: usize = 64;

/// A model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MsrV1 {
    /// Its number.
    pub(super) index: u32,
    /// What is in it.
    pub(super) value: u64,
}

/// The numbers of those that are worth saving here.
///
/// # Errors
/// When KVM doesn't say.
pub fn kept(kvm: &Kvm) -> Result<Vec<u32>, Refused> {
    let list = kvm.get_msr_index_list();
    let list = list.map_err(refused("ask which MSRs there are"))?;
    let mut kept = list.as_slice().to_vec();
    kept.extend(UNLISTED.into_iter().flatten());
    // A later KVM may list them, or one twice.
    kept.sort_unstable();
    kept.dedup();
    Ok(kept)
}

/// Refuses what isn't among the registers that are kept here, and one that comes twice:
/// no state that was saved has such, and KVM takes from this process what it wouldn't from
/// a guest.
pub(super) fn check(msrs: &[MsrV1], kept: &[u32]) -> Result<(), Refused> {
    let mut seen = HashSet::new();
    for MsrV1 { index, .. } in msrs {
        if !kept.contains(index) {
            let wrong = format!("MSR {index:#x} is none that is kept here");
            return Err(Refused::because(wrong));
        }
        if !seen.insert(index) {
            return Err(Refused::because(format!("MSR {index:#x} comes twice")));
        }
    }
    Ok(())
}

fn table(msrs: &[MsrV1]) -> Result<Msrs, Refused> {
    let entry = |msr: &MsrV1| kvm_msr_entry {
        index: msr.index,
        data: msr.value,
        ..Default::default()
    };
    let entries: Vec<_> = msrs.iter().map(entry).collect();
    Msrs::from_entries(&entries).map_err(|_| Refused::because("so many MSRs at once"))
}

/// Reads those of these that can be read: of what KVM lists, some a vCPU lacks.
pub(super) fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<MsrV1>, Refused> {
    let mut found = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let asked = left.iter().take(AT_ONCE);
        let asked: Vec<_> = asked
            .map(|index| MsrV1 {
                index: *index,
                value: 0,
            })
            .collect();
        let mut msrs = table(&asked)?;
        // It stops at the first that it can't read.
        let read = vcpu.get_msrs(&mut msrs).map_err(refused("get MSRs"))?;
        let read = msrs.as_slice().iter().take(read);
        let before = found.len();
        found.extend(read.map(|entry| MsrV1 {
            index: entry.index,
            value: entry.data,
        }));
        let read = found.len() - before;
        let skipped = usize::from(read < asked.len());
        left = left.get(read + skipped..).unwrap_or_default();
    }
    Ok(found)
}

/// Sets these. One that can't be written must be so already.
pub(super) fn restore(vcpu: &VcpuFd, msrs: &[MsrV1]) -> Result<(), Refused> {
    let mut left = msrs;
    while !left.is_empty() {
        let wanted = left.get(..AT_ONCE).unwrap_or(left);
        let written = vcpu.set_msrs(&table(wanted)?);
        let written = written.map_err(refused("set MSRs"))?;
        let mut done = written;
        // It stops at the first that it can't write.
        if let Some(msr) = wanted.get(written) {
            if save(vcpu, &[msr.index])? != [*msr] {
                let MsrV1 { index, value } = msr;
                let wrong = format!("this host can't set MSR {index:#x} to {value:#x}");
                return Err(Refused::because(wrong));
            }
            done += 1;
        }
        left = left.get(done..).unwrap_or_default();
    }
    Ok(())
}
