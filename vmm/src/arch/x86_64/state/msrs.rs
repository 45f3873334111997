//! A vCPU's model-specific registers: those that KVM lists and can read.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::refused;
use crate::snapshot::Refused;

/// `IA32_TIME_STAMP_COUNTER`: Intel SDM volume 4, table 2-2.
pub(super) const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;

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
pub fn listed(kvm: &Kvm) -> Result<Vec<u32>, Refused> {
    let list = kvm.get_msr_index_list();
    let list = list.map_err(refused("ask which MSRs there are"))?;
    Ok(list.as_slice().to_vec())
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
