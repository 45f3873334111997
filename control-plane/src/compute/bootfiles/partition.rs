//! Finds a partition: GPT (the `gptman` crate parses and checks its headers) or
//! MBR, primary partitions. The table is the guest's to write; nothing in it is
//! believed before it is inside the disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use gptman::{GPTHeader, GPTPartitionEntry};

use super::BootFileError;

/// The sector size of every disk that Hearth gives to a guest.
const SECTOR: u64 = 512;
/// UEFI 2.10, 5.3.1: room for at least 128; some partitioners make more. A
/// header that speaks of more than this is not a partitioner's work.
const MAX_ENTRIES: u32 = 1024;
/// UEFI 2.10, table 5-6: the size of an entry in every table in the wild.
const ENTRY_SIZE: u32 = 128;
/// The MBR: four entries of 16 bytes from here on, and a signature.
const MBR_TABLE: usize = 446;
/// The type of the one entry in a GPT disk's protective MBR.
const MBR_PROTECTIVE: u8 = 0xee;

/// A part of a disk, read by position; nothing outside of it can be read.
#[derive(Debug)]
pub struct Slice {
    disk: File,
    start: u64,
    len: u64,
}

impl Slice {
    /// Fills `buf` from `offset` in the slice on.
    ///
    /// # Errors
    /// When that is not all inside the slice, or the disk can't be read.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let inside = offset
            .checked_add(buf.len() as u64)
            .is_some_and(|end| end <= self.len);
        if !inside {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "past the partition's end",
            ));
        }
        self.disk.read_exact_at(buf, self.start + offset)
    }
}

/// The partition of this number, 1 the first; the whole disk for 0.
///
/// # Errors
/// When there is none, in words.
pub fn find(mut disk: File, number: u32) -> Result<Slice, BootFileError> {
    let size = disk.seek(SeekFrom::End(0)).map_err(BootFileError::Disk)?;
    if number == 0 {
        return Ok(Slice {
            disk,
            start: 0,
            len: size,
        });
    }
    let mut mbr = [0; 512];
    disk.read_exact_at(&mut mbr, 0)
        .map_err(BootFileError::Disk)?;
    let refuse = |what: String| Err(BootFileError::Partition(what));
    if mbr[510..] != [0x55, 0xaa] {
        return refuse("the disk has no partition table".to_owned());
    }
    let entries: Vec<&[u8]> = mbr[MBR_TABLE..510].chunks_exact(16).collect();
    let sectors = if entries.iter().any(|e| e[4] == MBR_PROTECTIVE) {
        gpt(&mut disk, size, number)?
    } else {
        match entries.get(number as usize - 1) {
            Some(e) => mbr_entry(e),
            None => {
                return refuse(format!(
                    "partition {number} is a logical one, which an MBR can't be read for"
                ));
            }
        }
    };
    let Some((first, count)) = sectors else {
        return refuse(format!("there is no partition {number}"));
    };
    let bounds = first
        .checked_mul(SECTOR)
        .zip(count.checked_mul(SECTOR))
        .filter(|(start, len)| start.checked_add(*len).is_some_and(|end| end <= size));
    match bounds {
        Some((start, len)) => Ok(Slice { disk, start, len }),
        None => refuse(format!("partition {number} reaches past the disk's end")),
    }
}

/// First sector and count of an MBR entry; none when it is empty.
fn mbr_entry(entry: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| {
        entry
            .get(at..at + 4)
            .and_then(|b| <[u8; 4]>::try_from(b).ok())
            .map_or(0, u32::from_le_bytes)
    };
    let used = entry[4] != 0 && word(12) != 0;
    used.then(|| (word(8).into(), word(12).into()))
}

/// First sector and count of a GPT partition, by the primary table or, when
/// that is damaged, the one at the disk's end.
fn gpt(disk: &mut File, size: u64, number: u32) -> Result<Option<(u64, u64)>, BootFileError> {
    let last = (size / SECTOR).saturating_sub(1);
    let entries = gpt_entries(disk, size, 1).or_else(|first| {
        gpt_entries(disk, size, last).map_err(|second| {
            BootFileError::Partition(format!(
                "the partition table is damaged (at the beginning: {first}; at the end: {second})"
            ))
        })
    })?;
    let entry = entries
        .get(number as usize - 1)
        .filter(|e| e.is_used() && e.ending_lba >= e.starting_lba);
    Ok(entry.map(|e| {
        (
            e.starting_lba,
            (e.ending_lba - e.starting_lba).saturating_add(1),
        )
    }))
}

fn gpt_entries(disk: &mut File, size: u64, lba: u64) -> Result<Vec<GPTPartitionEntry>, String> {
    disk.seek(SeekFrom::Start(lba * SECTOR))
        .map_err(|e| e.to_string())?;
    let header = GPTHeader::read_from(disk).map_err(|e| e.to_string())?;
    if header.number_of_partition_entries > MAX_ENTRIES
        || header.size_of_partition_entry != ENTRY_SIZE
    {
        return Err(format!(
            "{} entries of {} bytes",
            header.number_of_partition_entries, header.size_of_partition_entry
        ));
    }
    let length = u64::from(header.number_of_partition_entries * ENTRY_SIZE);
    let inside = header
        .partition_entry_lba
        .checked_mul(SECTOR)
        .and_then(|start| start.checked_add(length))
        .is_some_and(|end| end <= size);
    if !inside {
        return Err("the entries lie past the disk's end".to_owned());
    }
    header
        .read_partitions(disk, SECTOR)
        .map_err(|e| e.to_string())
}
