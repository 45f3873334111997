//! What a virtio function shows in configuration space, and where its BARs keep
//! what: one of memory with everything, and one of ports with the doorbell alone.
//!
//! Virtio 1.2, section 4.1.4: each structure has its vendor capability. There are two
//! of doorbells. A driver takes the first that it can use (4.1.4.1), and the better one
//! comes first (4.1.4.2): the port, since an `out` costs a hypervisor less than a store
//! to memory, which must be decoded. Drivers without port I/O have the other.

use crate::pci::config::{Bar, BarKind, ConfigSpace, Identity, LayoutError};
use crate::pci::msix;
use crate::virtio::Declaration;

/// PCI vendor ID of virtio. Section 4.1.2.
const VENDOR: u16 = 0x1af4;

/// Non-transitional device IDs begin here. Section 4.1.2.
const DEVICE_BASE: u16 = 0x1040;

/// Capability ID "vendor-specific".
const VENDOR_CAPABILITY: u8 = 0x09;

/// The BAR that holds everything.
pub(super) const BAR: u8 = 0;

/// The BAR that holds the doorbell.
pub(super) const DOORBELL_BAR: u8 = 2;

/// Bytes between the doorbells of two queues in memory, `notify_off_multiplier`.
pub(super) const DOORBELL_STRIDE: u64 = 4;

/// The most queues a device may have: their doorbells fit one page.
pub(super) const MAX_QUEUES: usize = 128;

/// A structure in the BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) start: u32,
    pub(super) size: u32,
}

/// Common configuration, section 4.1.4.3.
pub(super) const COMMON: Region = Region::page(0, 0x40);
/// ISR status, section 4.1.4.5.
pub(super) const ISR: Region = Region::page(1, 1);
/// Device configuration, section 4.1.4.6.
pub(super) const DEVICE: Region = Region::page(2, 0x1000);
/// Doorbells in memory, section 4.1.4.4: one for each queue.
pub(super) const NOTIFY: Region = Region::page(3, 0x1000);
/// The doorbell of all queues in [`DOORBELL_BAR`]: what is written says which one. As
/// long as the smallest I/O BAR, and as the longest access.
pub(super) const DOORBELL: Region = Region::page(0, 4);
/// MSI-X table.
pub(super) const MSIX_TABLE: Region = Region::page(4, 0x1000);
/// MSI-X pending bits.
pub(super) const MSIX_PENDING: Region = Region::page(5, 0x1000);
/// Bytes of the BAR: the pages above, to the next power of two.
const BAR_SIZE: u64 = 0x8000;

impl Region {
    const fn page(page: u32, size: u32) -> Self {
        Self {
            start: page * 0x1000,
            size,
        }
    }

    /// An offset in the BAR as one in this region, if it is.
    pub(super) fn offset(self, at: u64) -> Option<u64> {
        at.checked_sub(u64::from(self.start))
            .filter(|offset| *offset < u64::from(self.size))
    }
}

/// Structure types, `cfg_type`. Section 4.1.4.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum CfgType {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    PciAccess = 5,
}

/// Where the capabilities with registers of their own ended up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offsets {
    /// The capability that reaches into BARs through configuration space.
    pub(super) access: u8,
    /// MSI-X.
    pub(super) msix: u8,
}

/// Bytes of `struct virtio_pci_cap`; the access window's data follow.
pub(super) const ACCESS_DATA: u8 = 16;

/// The body of `struct virtio_pci_cap` behind ID and next pointer.
fn capability(kind: CfgType, bar: u8, region: Region, extra: usize) -> Vec<u8> {
    let mut body = vec![0; 14 + extra];
    // cap_len counts ID and next pointer too; 14 + 4 + 2 is the longest.
    body[0] = if extra == 0 { 16 } else { 20 };
    body[1] = kind as u8;
    body[2] = bar;
    body[6..10].copy_from_slice(&region.start.to_le_bytes());
    body[10..14].copy_from_slice(&region.size.to_le_bytes());
    body
}

/// Builds the configuration space of a virtio function.
pub(super) fn config_space(
    declaration: &Declaration,
    msix: &msix::Msix,
) -> Result<(ConfigSpace, Offsets), LayoutError> {
    let id = declaration.device_type;
    let mut config = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: DEVICE_BASE + id,
        // Section 4.1.2: 1 or higher for a device that is not transitional.
        revision: 1,
        class: declaration.pci_class,
        subsystem_vendor: VENDOR,
        subsystem: DEVICE_BASE + id,
    });
    config.add_bar(
        BAR,
        Bar {
            kind: BarKind::Memory64,
            size: BAR_SIZE,
        },
    )?;
    config.add_bar(
        DOORBELL_BAR,
        Bar {
            kind: BarKind::Io,
            size: DOORBELL.size.into(),
        },
    )?;
    let mut add =
        |body: &[u8], writable: &[u8]| config.add_capability(VENDOR_CAPABILITY, body, writable);
    add(&capability(CfgType::Common, BAR, COMMON, 0), &[])?;
    add(&capability(CfgType::Isr, BAR, ISR, 0), &[])?;
    add(&capability(CfgType::Device, BAR, DEVICE, 0), &[])?;
    // Its multiplier is 0: every queue's offset is that of the port.
    let doorbell = capability(CfgType::Notify, DOORBELL_BAR, DOORBELL, 4);
    add(&doorbell, &[])?;
    let mut notify = capability(CfgType::Notify, BAR, NOTIFY, 4);
    notify[14] = 4;
    add(&notify, &[])?;
    // bar, offset, length and data are the driver's; section 4.1.4.9.
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let nowhere = Region { start: 0, size: 0 };
    let access = add(&capability(CfgType::PciAccess, BAR, nowhere, 4), &writable)?;
    let (body, writable) = msix.capability(BAR, MSIX_TABLE.start, MSIX_PENDING.start);
    let msix = config.add_capability(msix::CAPABILITY_ID, &body, &writable)?;
    Ok((config, Offsets { access, msix }))
}
