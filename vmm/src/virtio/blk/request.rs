//! A block request: from the buffers of a chain to something owned and checked.
//!
//! Virtio 1.2, section 5.2.6. A request is `type, reserved, sector`, then data,
//! then one byte of status; how it is cut into descriptors is the driver's matter
//! (section 2.7.4), so only lengths and directions count here.

use crate::block::Op;
use crate::virtio::queue::{Broken, Buffers};

use super::{F_DISCARD, F_FLUSH, F_WRITE_ZEROES, MAX_DISCARD_SECTORS, SECTOR_SHIFT, SECTOR_SIZE};

/// Bytes of the header.
const HEADER: usize = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE: usize = 16;
/// Its flag "unmap".
const FLAG_UNMAP: u32 = 1;

/// Bytes of a device's identity. Section 5.2.6.
pub(super) const ID_SIZE: usize = 20;

/// Request types. Section 5.2.6.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// Status byte. Section 5.2.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The disk as requests are checked against it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    /// Size in sectors, now.
    pub(super) sectors: u64,
    /// Features that the driver accepted.
    pub(super) features: u64,
    /// Whether writes are refused.
    pub(super) read_only: bool,
    /// The answer to VIRTIO_BLK_T_GET_ID.
    pub(super) id: &'a [u8; ID_SIZE],
}

/// What is to be done.
pub(super) enum Action {
    /// Nothing more: the status and the data bytes written so far.
    Done(Status, u32),
    /// A request to the host.
    Start(Op),
}

/// Parses and checks a request, whose status byte has been cut off. Its data move
/// out of `buffers` into the operation.
///
/// # Errors
/// When there is no room for a header.
pub(super) fn parse(buffers: &mut Buffers, rules: Rules<'_>) -> Result<Action, Broken> {
    let mut header = [0; HEADER];
    if buffers.readable.copy_out(0, &mut header) < HEADER {
        return Err(Broken::Request);
    }
    buffers.readable.trim_front(HEADER);
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    Ok(match u32::from_le_bytes([a, b, c, d]) {
        kind::IN => match extent(sector, buffers.writable.length(), rules) {
            Some(offset) => Action::Start(Op::Read {
                offset,
                into: std::mem::take(&mut buffers.writable),
            }),
            None => Action::Done(Status::IoError, 0),
        },
        kind::OUT => match extent(sector, buffers.readable.length(), rules) {
            Some(offset) if !rules.read_only => Action::Start(Op::Write {
                offset,
                from: std::mem::take(&mut buffers.readable),
                // Without flush the driver takes every completed write for
                // stable (section 5.2.6.2).
                durable: rules.features & F_FLUSH == 0,
            }),
            _ => Action::Done(Status::IoError, 0),
        },
        kind::FLUSH if rules.features & F_FLUSH != 0 => Action::Start(Op::Flush),
        kind::GET_ID => {
            let written = buffers.writable.copy_in(0, rules.id);
            Action::Done(Status::Ok, u32::try_from(written).unwrap_or(0))
        }
        kind::DISCARD if rules.features & F_DISCARD != 0 => range(buffers, rules, true),
        kind::WRITE_ZEROES if rules.features & F_WRITE_ZEROES != 0 => range(buffers, rules, false),
        _ => Action::Done(Status::Unsupported, 0),
    })
}

/// The byte offset of a transfer if it is whole sectors within the disk.
fn extent(sector: u64, length: usize, rules: Rules<'_>) -> Option<u64> {
    let length = length as u64;
    let end = sector.checked_add(length >> SECTOR_SHIFT)?;
    let fits = length.is_multiple_of(SECTOR_SIZE) && end <= rules.sectors;
    // Below the capacity in sectors, so the shift loses nothing.
    fits.then_some(sector << SECTOR_SHIFT)
}

/// A discard or write-zeroes request: exactly one range, as configuration says.
fn range(buffers: &Buffers, rules: Rules<'_>, discard: bool) -> Action {
    let mut bytes = [0; RANGE];
    let whole =
        buffers.readable.length() == RANGE && buffers.readable.copy_out(0, &mut bytes) == RANGE;
    if !whole || rules.read_only {
        return Action::Done(Status::IoError, 0);
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    // Reserved bits, and unmap in a discard, are refused so (section 5.2.6.2).
    if flags & !FLAG_UNMAP != 0 || (discard && flags != 0) {
        return Action::Done(Status::Unsupported, 0);
    }
    let fits = sector
        .checked_add(count.into())
        .is_some_and(|end| end <= rules.sectors);
    if !fits || count > MAX_DISCARD_SECTORS {
        return Action::Done(Status::IoError, 0);
    }
    let offset = sector << SECTOR_SHIFT;
    let length = u64::from(count) << SECTOR_SHIFT;
    match (count, discard || flags & FLAG_UNMAP != 0) {
        (0, _) => Action::Done(Status::Ok, 0),
        (_, true) => Action::Start(Op::Discard { offset, length }),
        (_, false) => Action::Start(Op::Zero { offset, length }),
    }
}
