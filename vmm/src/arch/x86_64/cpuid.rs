//! What a vCPU says about itself: what KVM supports, less what we don't stand
//! behind, with the machine's topology: one package of N cores with one thread.
//!
//! Leaves: Intel SDM volume 2, "CPUID"; AMD APM volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX.
mod ecx_1 {
    pub(super) const MONITOR: u32 = 1 << 3;
    pub(super) const VMX: u32 = 1 << 5;
    pub(super) const PDCM: u32 = 1 << 15;
    pub(super) const X2APIC: u32 = 1 << 21;
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const HYPERVISOR: u32 = 1 << 31;
}
/// Leaf 1, EDX: the package has room for more than one logical processor.
const EDX_1_HTT: u32 = 1 << 28;
/// Leaf 7, EBX: software guard extensions.
const EBX_7_SGX: u32 = 1 << 2;
/// Leaf 7, EBX: processor trace.
const EBX_7_PT: u32 = 1 << 25;
/// Leaf 7, ECX: SGX launch control.
const ECX_7_SGX_LC: u32 = 1 << 30;
/// Leaf 0x8000_0001, ECX.
mod ecx_8000_0001 {
    pub(super) const CMP_LEGACY: u32 = 1 << 1;
    pub(super) const SVM: u32 = 1 << 2;
    pub(super) const SKINIT: u32 = 1 << 12;
    pub(super) const PERF_CORE: u32 = 1 << 23;
    pub(super) const PERF_NB: u32 = 1 << 24;
    pub(super) const PERF_LLC: u32 = 1 << 28;
}
/// Leaf 0x8000_0008, ECX: the width of the core id, from this bit on.
const APIC_ID_SIZE_SHIFT: u32 = 12;

/// Leaves that stand for things the machine does not have: MONITOR/MWAIT, performance
/// counters, SGX, processor trace, SVM, AMD's performance counters version 2.
const BLANK: [u32; 6] = [0x5, 0xa, 0x12, 0x14, 0x8000_000a, 0x8000_0022];
/// Leaf 0xB and 0x1F, level types.
const LEVEL_INVALID: u32 = 0;
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Where a vCPU stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Topology {
    /// Its number and APIC id.
    pub(super) vcpu: u8,
    /// How many there are.
    pub(super) vcpus: u8,
}

impl Topology {
    /// How many bits of the APIC id distinguish the cores.
    fn core_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }
}

/// What the host's KVM can emulate beyond what `KVM_GET_SUPPORTED_CPUID` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LocalApic {
    /// `KVM_CAP_TSC_DEADLINE_TIMER`.
    pub(super) tsc_deadline: bool,
}

/// The CPUID table of one vCPU, from what KVM supports.
///
/// # Errors
/// When the table has no room, which needs a KVM with more than 256 entries.
pub(super) fn build(
    supported: &CpuId,
    topology: Topology,
    apic: LocalApic,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .copied()
        .collect();
    let highest = entries
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    for leaf in [0xb, 0x1f] {
        if highest >= leaf {
            entries.extend(extended_topology(leaf, topology));
        }
    }
    for entry in &mut entries {
        filter(entry, topology, apic);
    }
    CpuId::from_entries(&entries)
}

fn filter(entry: &mut kvm_cpuid_entry2, topology: Topology, apic: LocalApic) {
    let id = u32::from(topology.vcpu);
    let count = u32::from(topology.vcpus);
    match entry.function {
        leaf if BLANK.contains(&leaf) => {
            entry.eax = 0;
            entry.ebx = 0;
            entry.ecx = 0;
            entry.edx = 0;
        }
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
            entry.ecx &= !(ecx_1::MONITOR | ecx_1::VMX | ecx_1::PDCM);
            entry.ecx |= ecx_1::HYPERVISOR | ecx_1::X2APIC;
            if apic.tsc_deadline {
                entry.ecx |= ecx_1::TSC_DEADLINE;
            }
            if count > 1 {
                entry.edx |= EDX_1_HTT;
            } else {
                entry.edx &= !EDX_1_HTT;
            }
        }
        // Intel's cache leaf. Caches of level 1 and 2 belong to a core; a last
        // level, to all of them.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { count } else { 1 };
            entry.eax = entry.eax & 0x3fff | (sharing - 1) << 14 | (count - 1) << 26;
        }
        0x7 if entry.index == 0 => {
            entry.ebx &= !(EBX_7_SGX | EBX_7_PT);
            entry.ecx &= !ECX_7_SGX_LC;
        }
        0x8000_0001 => {
            entry.ecx &= !(ecx_8000_0001::SVM
                | ecx_8000_0001::SKINIT
                | ecx_8000_0001::PERF_CORE
                | ecx_8000_0001::PERF_NB
                | ecx_8000_0001::PERF_LLC);
            if count == 1 {
                entry.ecx &= !ecx_8000_0001::CMP_LEGACY;
            }
        }
        0x8000_0008 => {
            entry.ecx = (count - 1) | topology.core_bits() << APIC_ID_SIZE_SHIFT;
        }
        // AMD's cache leaf, the counterpart of leaf 4.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { count } else { 1 };
            entry.eax = entry.eax & 0x3fff | (sharing - 1) << 14;
        }
        // AMD's extended APIC id, core id with one thread each, node 0 of 1.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id;
            entry.ecx = 0;
            entry.edx = 0;
        }
        _ => {}
    }
}

/// Leaf 0xB (and 0x1F, its successor): threads, then cores, then the end.
fn extended_topology(leaf: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: u32::from(topology.vcpu),
        ..Default::default()
    };
    [
        level(0, LEVEL_THREAD, 0, 1),
        level(1, LEVEL_CORE, topology.core_bits(), topology.vcpus.into()),
        level(2, LEVEL_INVALID, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let entry = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        CpuId::from_entries(&[
            entry(0, 0x1f),
            entry(1, 0),
            entry(4, 0x1 | 3 << 5),
            entry(7, 0),
            entry(0xa, 5),
            entry(0x8000_0001, 0),
            entry(0x8000_0008, 0),
            entry(0x8000_001e, 9),
        ])
        .expect("fits")
    }

    fn table(vcpu: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        build(
            &supported(),
            Topology { vcpu, vcpus },
            LocalApic { tsc_deadline: true },
        )
        .expect("fits")
        .as_slice()
        .to_vec()
    }

    fn leaf(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *table
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .expect("leaf")
    }

    #[test]
    fn apic_id_and_count_are_the_same_in_every_leaf() {
        let table = table(2, 3);
        let one = leaf(&table, 1, 0);
        assert_eq!(one.ebx >> 24, 2);
        assert_eq!(one.ebx >> 16 & 0xff, 3);
        for function in [0xb, 0x1f] {
            let core = leaf(&table, function, 1);
            assert_eq!((core.eax, core.ebx, core.edx), (2, 3, 2));
        }
        assert_eq!(leaf(&table, 4, 0).eax >> 26, 2);
        assert_eq!(leaf(&table, 0x8000_0008, 0).ecx, 2 | 2 << 12);
        assert_eq!(leaf(&table, 0x8000_001e, 0).eax, 2);
    }

    #[test]
    fn a_single_vcpu_is_not_hyperthreaded() {
        let table = table(0, 1);
        assert_eq!(leaf(&table, 1, 0).edx & EDX_1_HTT, 0);
        assert_eq!(leaf(&table, 0xb, 1).eax, 0);
    }

    #[test]
    fn what_we_do_not_stand_behind_is_gone() {
        let table = table(0, 1);
        assert_eq!(leaf(&table, 1, 0).ecx & (ecx_1::VMX | ecx_1::MONITOR), 0);
        assert_eq!(leaf(&table, 0x8000_0001, 0).ecx & ecx_8000_0001::SVM, 0);
        assert_eq!(leaf(&table, 0xa, 0).eax, 0);
        assert_ne!(leaf(&table, 1, 0).ecx & ecx_1::HYPERVISOR, 0);
    }
}
