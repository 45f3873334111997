//! The x86-64 PC, as far as a kernel without firmware under it needs one.

pub mod boot;
mod cpuid;
pub mod debug;
mod image;
pub mod kvm;
pub mod layout;
pub mod memory;
mod msrs;
mod regs;
pub mod state;

/// Whose system call numbers the jail's filters are for.
pub const SECCOMP_TARGET: seccompiler::TargetArch = seccompiler::TargetArch::x86_64;

/// The processor's time stamp: a counter that runs at one rate on all processors, and
/// costs one instruction to read. Intel SDM 3, 19.17.
#[must_use]
#[allow(unsafe_code, reason = "an instruction without a safe name")]
pub fn ticks() -> u64 {
    // SAFETY: RDTSC reads a register, which Linux allows programs unless they forbid it
    // themselves (prctl(2), PR_SET_TSC).
    unsafe { std::arch::x86_64::_rdtsc() }
}
