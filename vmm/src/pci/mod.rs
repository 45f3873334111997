//! The PCI bus: one root bus with 32 slots, seen through ECAM and through ports
//! 0xCF8/0xCFC.
//!
//! ```text
//!   vCPU exits ──► PciRoot ──► ConfigSpace   registers, BARs, capability list
//!                     │    └─► Msix          vectors, table, pending bits
//!                     └──► PciDevice         what the BARs do (virtio::pci)
//! ```
//!
//! [`config`], [`msix`] and [`window`] are register machines without I/O. The
//! root decides where a BAR decodes and notifies the device when that changes.
//!
//! Specifications: PCI Local Bus 3.0 (configuration header, BARs, MSI-X), PCI
//! Express Base 2.0 section 7.2.2 (ECAM).

mod bridge;
pub mod config;
#[cfg(all(test, loom))]
mod models;
pub mod msix;
mod q35;
mod root;
pub mod window;

pub use root::{
    BusV1, CONFIG_ADDRESS, CONFIG_DATA, ECAM_SIZE, Error, PciRoot, SLOT_COUNT, Settled, SlotV1,
    Windows,
};

use serde_json::Value;

use crate::snapshot::Refused;

/// A function on the bus, as [`PciRoot`] sees it. One lock, that of the root,
/// serializes all calls; no implementation may call back into the root.
pub trait PciDevice: Send {
    /// The configuration space, for the root's own bookkeeping of BARs.
    fn config(&self) -> &config::ConfigSpace;

    /// The same, to place BARs.
    fn config_mut(&mut self) -> &mut config::ConfigSpace;

    /// Reads configuration registers. The root has checked that the access is
    /// 1, 2 or 4 bytes, aligned, and below 256.
    fn config_read(&mut self, offset: u8, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Writes configuration registers, under the same conditions.
    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// Reads from a BAR. Fills all of `data`; what no register covers reads 0.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes to a BAR.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// A BAR now decodes at `address`, or no longer decodes. Doorbells follow it.
    fn bar_moved(&mut self, bar: u8, address: Option<u64>);

    /// Asks the function to let go of guest memory, and returns at once. It signals the
    /// machine's bell when [`Self::is_quiet`] has become true. For [`Quiesce::PowerOn`]
    /// it is then as after power-on; BAR addresses are the root's to restore.
    fn quiesce(&mut self, for_what: Quiesce);

    /// Whether nothing that belongs to it touches guest memory.
    fn is_quiet(&mut self) -> bool;

    /// Goes on after [`Quiesce::Hold`]; before it is quiet, that takes the hold back.
    fn resume(&mut self);

    /// What is behind its configuration space, while it is quiet. The root saves that
    /// itself. A function that has nothing there says so by null.
    ///
    /// # Errors
    /// When it is not quiet.
    fn save(&self) -> Result<Value, Refused> {
        Ok(Value::Null)
    }

    /// Takes over what was saved, while it is quiet and nobody drives it: it is then held,
    /// until it goes on. Its configuration space is there already, and where its BARs
    /// decode follows.
    ///
    /// # Errors
    /// When it is the state of another function, or of none that there can be. What the
    /// guest sees of it is then undefined; it does no harm.
    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        match state {
            Value::Null => Ok(()),
            _ => Err(Refused::because("there is nothing behind its header")),
        }
    }
}

/// What a function is to be quiet for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiesce {
    /// The machine is power-cycled, or the function goes for good.
    PowerOn,
    /// The machine is held: nothing that the guest can see changes.
    Hold,
}
