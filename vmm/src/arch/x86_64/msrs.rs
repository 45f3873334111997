//! Model-specific registers that a kernel expects a firmware to have set.

use kvm_bindings::kvm_msr_entry;

/// `IA32_MISC_ENABLE`: Intel SDM volume 4, table 2-2.
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations.
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
/// `IA32_MTRR_DEF_TYPE`: Intel SDM volume 3, section 12.11.2.1.
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs are on.
const MTRR_ENABLE: u64 = 1 << 11;
/// Memory is cached (write back) where nothing else is said.
const MTRR_WRITE_BACK: u64 = 6;

/// What every vCPU starts with.
#[must_use]
pub(super) fn at_reset() -> [kvm_msr_entry; 2] {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    [
        entry(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        entry(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ]
}
