//! What a machine's processors were, and what of it KVM has: to be saved, and set again
//! in another process, or on another host of the same kind.
//!
//! ```text
//!   save     each vCPU, on its own thread, parked ─► controllers ─► clock
//!   restore  clock ─► each vCPU, on its own thread ─► controllers
//! ```
//! The clock is first to be set, since a vCPU writes the wall clock into guest memory
//! when its register is set. The controllers are last: interrupts that wait in the IOAPIC
//! go to the local APICs at once, which must be those that were saved by then.
//!
//! Which vector a device's interrupt has is its MSI-X table's to say: routes are made of
//! it again, and are no state of their own.

mod controllers;
mod msrs;
mod processor;
mod raw;
#[cfg(test)]
#[allow(unsafe_code, reason = "KVM is handed an address of guest memory")]
mod tests;
mod time;
mod vcpu;

pub use controllers::ControllersV1;
pub use msrs::kept as kept_msrs;
pub use processor::ProcessorV1;
pub use time::{ClockV1, Elapsed};
pub use vcpu::VcpuV1;

use crate::snapshot::Refused;

/// KVM refused something.
fn refused(what: &str) -> impl FnOnce(kvm_ioctls::Error) -> Refused {
    move |error| Refused::by_host(format_args!("KVM: {what}"), &error.into())
}
