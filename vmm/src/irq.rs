//! Interrupts and notifications, seen from the devices: traits that know nothing
//! of KVM. The machine implements them with irqfd and ioeventfd; a unit test, with
//! a list.

pub mod kvm;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// What one MSI-X vector says to the interrupt controller.
///
/// PCI Local Bus Specification 3.0, section 6.8.2.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// One MSI-X vector's way into the guest.
pub trait MsiVector: Send + Sync {
    /// Sets what the vector says, and whether it may say it. A vector that is
    /// masked keeps a signalled interrupt pending in the caller, not here.
    ///
    /// # Errors
    /// When the interrupt controller refuses the route.
    fn route(&self, message: MsiMessage, masked: bool) -> io::Result<()>;

    /// Sends the interrupt. Cheap and callable from any thread.
    ///
    /// # Errors
    /// When the event can't be written.
    fn signal(&self) -> io::Result<()>;

    /// The eventfd behind [`Self::signal`], for a back end in the kernel.
    fn eventfd(&self) -> &EventFd;
}

/// A write of the guest that only says that something is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbell {
    /// A 16-bit write of a value to an I/O port, for which KVM has width, port and value
    /// from the exit itself.
    Port(u16, u16),
    /// Any write to an address: the store must be decoded first, and emulated.
    Memory(u64),
}

/// Hands out MSI-X vectors and binds doorbells.
pub trait Interrupts: Send + Sync {
    /// Makes a vector; it is given back when dropped.
    ///
    /// # Errors
    /// When no route is left.
    fn msi_vector(&self) -> io::Result<Arc<dyn MsiVector>>;

    /// Has a doorbell signal `event` without leaving the kernel.
    ///
    /// # Errors
    /// When it is taken.
    fn bind_doorbell(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Self::bind_doorbell`].
    ///
    /// # Errors
    /// When there is no such doorbell.
    fn unbind_doorbell(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()>;
}
