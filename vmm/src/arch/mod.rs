//! What depends on the processor: where things lie in the guest's memory, how its
//! kernel is entered, and what its vCPUs look like.
//!
//! The other rooms name what is here, and never the processor: a port to another one
//! is a folder beside `x86_64/` that has the same names.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::{SECCOMP_TARGET, boot, debug, kvm, layout, memory, state, ticks};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("arch/ has no folder for this processor");
