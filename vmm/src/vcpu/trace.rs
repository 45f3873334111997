//! A trace of exits in a file: what each was for, when, and how long it took. For who
//! studies guests; `tests/bench/exits.py` draws it.
//!
//! ```text
//!  | head: JSON, a line | vCPU 0: block, block, … | vCPU 1: … |
//!    HEAD bytes           as many blocks for each
//!  block: a time mark, then 127 exits, of RECORD bytes each
//! ```
//! Of each vCPU the first exits are kept, up to a number that was asked for: a boot is
//! what is looked at mostly, and a guest can't fill the disk. A block is written when it
//! is full, when the vCPU stands still, and at its end.
//!
//! | bytes of a record, little-endian | an exit | a time mark |
//! |---|---|---|
//! | 0 to 7 | ticks from the trace's start to the exit | … to the mark |
//! | 8 to 11 | ticks from the exit to the next entry | 0 |
//! | 12 | its reason's place in `reasons`, counted from 1 | 255 |
//! | 13 | its target's place in `targets` | 0 |
//! | 14 | bytes of the access | 0 |
//! | 15 | 0 | 0 |
//! | 16 to 23 | port or guest-physical address | 0 |
//! | 24 to 31 | the first 8 bytes that were read or written | nanoseconds for the ticks |
//!
//! Where byte 12 is 0, the vCPU's exits end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hearth_vmm_api::ExitReason;
use serde_json::json;

use crate::arch;
use crate::machine::bus::Target;

/// Bytes of the head: room for the names of as many devices as there can be.
const HEAD: usize = 16 << 10;
/// Bytes of a record.
const RECORD: usize = 32;
/// Bytes of a block: what one write takes.
const BLOCK: usize = 4096;
/// Exits of a block.
const EXITS: u64 = (BLOCK / RECORD) as u64 - 1;
/// The reason of a time mark.
const MARK: u8 = u8::MAX;

/// When ticks and nanoseconds are counted from.
#[derive(Debug, Clone, Copy)]
struct Start {
    ticks: u64,
    at: Instant,
}

/// What an exit was about, where it is an access.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Access {
    address: u64,
    width: u8,
    value: [u8; 8],
}

impl Access {
    /// An access of `width` bytes, or several of which all bytes are in `data`.
    pub(super) fn new(address: u64, width: usize, data: &[u8]) -> Self {
        let mut value = [0; 8];
        let count = data.len().min(value.len());
        value[..count].copy_from_slice(&data[..count]);
        Self {
            address,
            width: u8::try_from(width).unwrap_or(u8::MAX),
            value,
        }
    }
}

/// The trace of a machine.
#[derive(Debug, Clone)]
pub struct Trace {
    file: Arc<File>,
    blocks: u64,
    start: Start,
}

impl Trace {
    /// Begins one in an empty file, with room for so many exits of each vCPU.
    #[must_use]
    pub fn new(file: File, exits: u32) -> Self {
        Self {
            file: Arc::new(file),
            blocks: u64::from(exits).div_ceil(EXITS),
            start: Start {
                ticks: arch::ticks(),
                at: Instant::now(),
            },
        }
    }

    /// Writes the head, once it is known what targets are called.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn head(&self, vcpus: usize, name: impl Fn(Target) -> String) -> io::Result<()> {
        let head = json!({
            "format": "hearth-vmm exit trace",
            "version": 1,
            "vcpus": vcpus,
            "head_bytes": HEAD,
            "record_bytes": RECORD,
            "block_bytes": BLOCK,
            "blocks": self.blocks,
            "reasons": ExitReason::ALL.map(ExitReason::name),
            "targets": Target::all().map(name).collect::<Vec<_>>(),
        });
        let mut head = head.to_string().into_bytes();
        if head.len() >= HEAD {
            return Err(io::Error::other("the names of its devices are too long"));
        }
        head.resize(HEAD - 1, b' ');
        head.push(b'\n');
        self.file.write_all_at(&head, 0)
    }

    /// The part of one vCPU.
    pub(super) fn of(&self, index: usize) -> VcpuTrace {
        VcpuTrace {
            file: Arc::clone(&self.file),
            first: HEAD as u64 + index as u64 * self.blocks * BLOCK as u64,
            blocks: self.blocks,
            start: self.start,
            block: Mutex::default(),
        }
    }
}

/// The block that is being filled. Its first record is for the mark.
#[derive(Debug, Default)]
struct Block {
    number: u64,
    bytes: Vec<u8>,
    is_written: bool,
}

/// The trace of one vCPU, whose thread alone notes exits.
#[derive(Debug)]
pub(super) struct VcpuTrace {
    file: Arc<File>,
    first: u64,
    blocks: u64,
    start: Start,
    block: Mutex<Block>,
}

impl VcpuTrace {
    /// Notes an exit that was at `at` and took `ticks`, as long as there is room.
    pub(super) fn note(
        &self,
        at: u64,
        ticks: u64,
        reason: ExitReason,
        target: Target,
        access: Access,
    ) {
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        if block.number >= self.blocks {
            return;
        }
        if block.bytes.is_empty() {
            block.bytes.reserve_exact(BLOCK);
            block.bytes.resize(RECORD, 0);
        }
        let at = at.saturating_sub(self.start.ticks);
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        let place = |place: usize| u8::try_from(place).unwrap_or(MARK);
        block.bytes.extend(at.to_le_bytes());
        block.bytes.extend(ticks.to_le_bytes());
        block.bytes.extend([
            place(reason as usize + 1),
            place(target.index()),
            access.width,
            0,
        ]);
        block.bytes.extend(access.address.to_le_bytes());
        block.bytes.extend(access.value);
        block.is_written = false;
        if block.bytes.len() >= BLOCK {
            self.write(&mut block);
            block.number += 1;
            block.bytes.clear();
            if block.number >= self.blocks {
                block.bytes = Vec::new();
            }
        }
    }

    /// Writes what is noted, so that a reader finds it.
    pub(super) fn flush(&self) {
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        if !block.bytes.is_empty() && !block.is_written {
            self.write(&mut block);
        }
    }

    fn write(&self, block: &mut Block) {
        let ticks = arch::ticks().saturating_sub(self.start.ticks);
        let ns = u64::try_from(self.start.at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        block.bytes[..8].copy_from_slice(&ticks.to_le_bytes());
        block.bytes[12] = MARK;
        block.bytes[24..RECORD].copy_from_slice(&ns.to_le_bytes());
        let at = self.first + block.number * BLOCK as u64;
        match self.file.write_all_at(&block.bytes, at) {
            Ok(()) => block.is_written = true,
            // A disk that is full must not stop the guest: the trace ends here.
            Err(_) => block.number = self.blocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(exits: u32) -> (Trace, File) {
        let file = tempfile::tempfile().expect("file");
        let trace = Trace::new(file.try_clone().expect("clone"), exits);
        trace.head(2, |target| format!("{target:?}")).expect("head");
        (trace, file)
    }

    fn read(file: &File) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(file.metadata().expect("a file").len()).unwrap()];
        file.read_exact_at(&mut all, 0).expect("read");
        all
    }

    fn reasons(part: &[u8]) -> Vec<u8> {
        part.chunks(RECORD).map(|record| record[12]).collect()
    }

    #[test]
    fn exits_are_where_the_table_says() {
        let (trace, file) = trace(1);
        let access = Access::new(0xcf8, 4, &[1, 2, 3, 4]);
        let one = trace.of(1);
        let at = trace.start.ticks + 5;
        one.note(at, 7, ExitReason::PortWrite, Target::Config, access);
        assert_eq!(read(&file).len(), HEAD, "a block waits");
        one.flush();
        let all = read(&file);
        let head: serde_json::Value = serde_json::from_slice(&all[..HEAD]).expect("JSON");
        assert_eq!(head["reasons"][1], "port-write");
        assert_eq!(head["targets"][2], "Config");
        assert_eq!(head["blocks"], 1);
        let part = &all[HEAD + BLOCK..];
        assert_eq!(reasons(part), [MARK, 2]);
        let mut record = [5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 2, 4, 0].to_vec();
        record.extend([0xf8, 0xc, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(part[RECORD..], record);
    }

    #[test]
    fn there_is_no_more_than_asked_for() {
        let (trace, file) = trace(130);
        let parts = [trace.of(0), trace.of(1)];
        for _ in 0..1000 {
            for (part, target) in parts.iter().zip([Target::Serial, Target::Slot(31)]) {
                part.note(0, u64::MAX, ExitReason::Halt, target, Access::default());
                part.flush();
            }
        }
        let all = read(&file);
        assert_eq!(all.len(), HEAD + 4 * BLOCK);
        let [serial, slot] = [Target::Serial, Target::Slot(31)].map(Target::index);
        for (block, target) in all[HEAD..].chunks(BLOCK).zip([serial, serial, slot, slot]) {
            assert_eq!(reasons(block)[0], MARK);
            assert!(block[RECORD..].chunks(RECORD).all(|exit| exit[12] == 5));
            assert_eq!(usize::from(block[RECORD + 13]), target);
        }
    }

    #[test]
    fn an_access_of_any_length_fits() {
        assert_eq!(Access::new(1, 1000, &[7; 20]).width, 255);
        assert_eq!(Access::new(1, 1, &[7; 20]).value, [7; 8]);
        assert_eq!(Access::new(1, 2, &[]).value, [0; 8]);
    }
}
