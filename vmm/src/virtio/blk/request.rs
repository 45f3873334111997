//! A block request: from the buffers of a chain to something owned and checked.
//!
//! Virtio 1.2, section 5.2.6. A request is `type, reserved, sector`, then data,
//! then one byte of status; how it is cut into descriptors is the driver's matter
//! (section 2.7.4), so only lengths and directions count here.

use crate::block::Op;
use crate::virtio::queue::{Broken, Buffers};

use super::{F_DISCARD, F_FLUSH, F_WRITE_ZEROES, MAX_DISCARD_SECTORS, SECTOR_SHIFT, SECTOR_SIZE};

/// Bytes of the header.
pub(super) const HEADER: usize = 16;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Host;
    use crate::virtio::testing::Guest;

    const RULES: Rules<'static> = Rules {
        sectors: 1 << 30,
        features: F_FLUSH | F_DISCARD | F_WRITE_ZEROES,
        read_only: false,
        id: b"vol0123456789abcdef0",
    };

    /// What comes of a header with these bytes behind it, and this much room.
    fn parsed(kind: u32, sector: u64, data: &[u8], room: usize, rules: Rules<'_>) -> String {
        let guest = Guest::new(1);
        let host = Host::new(guest.memory.clone());
        let mut request = kind.to_le_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(sector.to_le_bytes());
        request.extend(data);
        guest.write(0x10_0000, &request);
        let mut buffers = Buffers::default();
        buffers
            .readable
            .push(&host, 0x10_0000, request.len())
            .unwrap();
        buffers.writable.push(&host, 0x20_0000, room).unwrap();
        match parse(&mut buffers, rules).unwrap() {
            Action::Done(status, written) => format!("{status:?} {written}"),
            Action::Start(Op::Read { offset, into }) => format!("read {offset} {}", into.length()),
            Action::Start(Op::Write {
                offset,
                from,
                durable,
            }) => format!("write {offset} {} {durable}", from.length()),
            Action::Start(Op::Flush) => "flush".to_owned(),
            Action::Start(Op::Discard { offset, length }) => format!("discard {offset} {length}"),
            Action::Start(Op::Zero { offset, length }) => format!("zero {offset} {length}"),
        }
    }

    fn range_of(sector: u64, count: u32, flags: u32) -> Vec<u8> {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    }

    #[test]
    fn transfers_are_whole_sectors_within_the_disk() {
        let last = RULES.sectors - 1;
        let all = [7; 512];
        assert_eq!(parsed(0, 3, &[], 1024, RULES), "read 1536 1024");
        assert_eq!(
            parsed(0, last, &[], 512, RULES),
            format!("read {} 512", last << 9)
        );
        assert_eq!(parsed(0, last, &[], 1024, RULES), "IoError 0");
        assert_eq!(parsed(0, 0, &[], 513, RULES), "IoError 0");
        assert_eq!(parsed(1, 3, &all, 0, RULES), "write 1536 512 false");
        assert_eq!(parsed(1, last + 1, &all, 0, RULES), "IoError 0");
        assert_eq!(parsed(1, u64::MAX, &all, 0, RULES), "IoError 0");
        let read_only = Rules {
            read_only: true,
            ..RULES
        };
        assert_eq!(parsed(1, 3, &all, 0, read_only), "IoError 0");
        assert_eq!(parsed(0, 3, &[], 512, read_only), "read 1536 512");
    }

    #[test]
    fn what_the_driver_did_not_take_is_unknown() {
        let none = Rules {
            features: 0,
            ..RULES
        };
        let range = range_of(8, 8, 0);
        assert_eq!(parsed(4, 0, &[], 0, RULES), "flush");
        assert_eq!(parsed(11, 0, &range, 0, RULES), "discard 4096 4096");
        assert_eq!(parsed(13, 0, &range, 0, RULES), "zero 4096 4096");
        for kind in [4, 11, 13] {
            assert_eq!(parsed(kind, 0, &range, 0, none), "Unsupported 0");
        }
        // Without flush, what was written is to stay.
        assert_eq!(parsed(1, 3, &[7; 512], 0, none), "write 1536 512 true");
        assert_eq!(parsed(8, 0, &[], 20, none), "Ok 20");
        assert_eq!(parsed(8, 0, &[], 0, none), "Ok 0");
    }

    #[test]
    fn a_range_is_one_within_the_disk_and_the_bound() {
        let most = MAX_DISCARD_SECTORS;
        let end = RULES.sectors;
        for (kind, range, expected) in [
            (
                11,
                range_of(0, most, 0),
                format!("discard 0 {}", 1u64 << 30),
            ),
            (11, range_of(0, most + 1, 0), "IoError 0".into()),
            (
                13,
                range_of(end - 8, 8, 0),
                format!("zero {} 4096", (end - 8) << 9),
            ),
            (13, range_of(end - 7, 8, 0), "IoError 0".into()),
            (13, range_of(u64::MAX, 8, 0), "IoError 0".into()),
            (13, range_of(0, 8, 1), "discard 0 4096".into()),
            (13, range_of(0, 8, 2), "Unsupported 0".into()),
            (13, range_of(0, 8, 3), "Unsupported 0".into()),
            (11, range_of(0, 8, 1), "Unsupported 0".into()),
            (11, range_of(0, 0, 0), "Ok 0".into()),
            (13, range_of(0, 0, 0), "Ok 0".into()),
            (11, range_of(0, 8, 0)[..15].to_vec(), "IoError 0".into()),
            (
                11,
                [range_of(0, 8, 0), vec![0]].concat(),
                "IoError 0".into(),
            ),
        ] {
            assert_eq!(parsed(kind, 0, &range, 0, RULES), expected, "{range:?}");
        }
        let read_only = Rules {
            read_only: true,
            ..RULES
        };
        assert_eq!(parsed(11, 0, &range_of(0, 8, 0), 0, read_only), "IoError 0");
    }
}
