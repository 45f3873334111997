//! The x86-64 PC, as far as a kernel without firmware under it needs one.

pub mod boot;
mod cpuid;
mod image;
pub mod kvm;
pub mod layout;
pub mod memory;
mod msrs;
mod regs;

/// Whose system call numbers the jail's filters are for.
pub const SECCOMP_TARGET: seccompiler::TargetArch = seccompiler::TargetArch::x86_64;
