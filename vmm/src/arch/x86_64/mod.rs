//! The x86-64 PC, as far as a kernel without firmware under it needs one.

pub mod boot;
pub mod cpuid;
mod image;
pub mod layout;
pub mod memory;
pub mod msrs;
pub mod regs;

/// Whose system call numbers the jail's filters are for.
pub const SECCOMP_TARGET: seccompiler::TargetArch = seccompiler::TargetArch::x86_64;
