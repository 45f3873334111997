//! Blocks of guest memory that come and go, in a region whose place is kept for them.
//!
//! ```text
//!                 ┌──────── plug ────────┐
//!                 │                      ▼
//!   kept: reads as zero ──────────► plugged: memory ─ unplug ─► sunk: one piece for all
//!         (clear)  ◄─────────────────────┴──── clear ─────────────┘ │ ▲ plug │
//!                                        ▲──────────────────────────┘        ▼
//! ```
//!
//! Whatever the guest does, it costs the host no more memory than is plugged, and what a
//! block takes. What was never plugged can't be written: a guest that tries ends itself
//! (`KVM_RUN` fails), and a system call fails. What was unplugged can't be guarded like
//! that, since requests may be under way whose addresses were looked up before, in this
//! process too: they read and write the sink, a single block that stands in for every one
//! that is gone. Who looks up an address finds plugged memory only.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};

use super::Region;

/// Bits of one word.
const BITS: u64 = u64::BITS as u64;

/// Where blocks may be: addresses and sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pluggable {
    /// The first address.
    pub start: u64,
    /// All of it: whole blocks.
    pub size: u64,
    /// Each block.
    pub block: u64,
}

/// How blocks stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// All are plugged.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

/// Which blocks of a region are plugged.
#[derive(Debug)]
pub struct Blocks {
    size: u64,
    count: u64,
    plugged: Box<[AtomicU64]>,
    changing: Mutex<()>,
    sink: File,
}

impl Blocks {
    /// Blocks of a region, all of them plugged or none.
    pub(super) fn new(region: u64, size: u64, are_plugged: bool) -> io::Result<Self> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why);
        if size == 0 || !region.is_multiple_of(size) {
            return Err(wrong("memory to be plugged is no multiple of its blocks"));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let sink = rustix::fs::memfd_create("unplugged-memory", flags)?;
        rustix::fs::ftruncate(&sink, size)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&sink, seals)?;
        let count = region / size;
        let blocks = Self {
            size,
            count,
            plugged: (0..count.div_ceil(BITS))
                .map(|_| AtomicU64::new(0))
                .collect(),
            changing: Mutex::default(),
            sink: sink.into(),
        };
        if are_plugged {
            blocks.set(&(0..count), true);
        }
        Ok(blocks)
    }

    /// Bytes of each.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many are plugged.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        let words = self.plugged.iter();
        words
            .map(|word| u64::from(word.load(Ordering::SeqCst).count_ones()))
            .sum()
    }

    fn word(&self, block: u64) -> Option<&AtomicU64> {
        usize::try_from(block / BITS)
            .ok()
            .and_then(|word| self.plugged.get(word))
    }

    fn is_plugged(&self, block: u64) -> bool {
        self.word(block)
            .is_some_and(|word| word.load(Ordering::SeqCst) >> (block % BITS) & 1 == 1)
    }

    fn set(&self, blocks: &Range<u64>, is_plugged: bool) {
        for block in blocks.clone() {
            let bit = 1 << (block % BITS);
            match (self.word(block), is_plugged) {
                (Some(word), true) => word.fetch_or(bit, Ordering::SeqCst),
                (Some(word), false) => word.fetch_and(!bit, Ordering::SeqCst),
                (None, _) => 0,
            };
        }
    }

    /// How these stand; none where some of them don't exist, or there are none.
    #[must_use]
    pub fn state(&self, blocks: Range<u64>) -> Option<BlockState> {
        if blocks.is_empty() || blocks.end > self.count {
            return None;
        }
        let all = blocks.end - blocks.start;
        let plugged = blocks.filter(|block| self.is_plugged(*block)).count() as u64;
        Some(match plugged {
            0 => BlockState::Unplugged,
            plugged if plugged == all => BlockState::Plugged,
            _ => BlockState::Mixed,
        })
    }

    /// Those that are plugged, in runs.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let find = |from, wanted| (from..self.count).find(|at| self.is_plugged(*at) == wanted);
            let start = find(next, true)?;
            next = find(start, false).unwrap_or(self.count);
            Some(start..next)
        })
    }

    /// How many bytes from an offset on are plugged, at most so many.
    pub(super) fn length(&self, offset: u64, length: u64) -> u64 {
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end && self.is_plugged(at / self.size) {
            at = (at / self.size + 1) * self.size;
        }
        at.min(end).saturating_sub(offset)
    }
}

fn no_blocks() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "there are no such blocks")
}

/// A region of blocks; of others, all of this is refused.
impl Region {
    /// Plugs blocks, none of which is plugged: they read as zero.
    ///
    /// # Errors
    /// When there are no such blocks, or the host can't have them: none is plugged then.
    pub fn plug(&self, blocks: Range<u64>) -> io::Result<()> {
        self.change(blocks, BlockState::Unplugged, |all, bytes| {
            self.mapping().fill(bytes)?;
            all.1.set(&all.0, true);
            Ok(())
        })
    }

    /// Unplugs blocks, all of which are plugged: what they held goes back to the host.
    ///
    /// # Errors
    /// When there are no such blocks, or the host can't: they are plugged then, and empty.
    pub fn unplug(&self, blocks: Range<u64>) -> io::Result<()> {
        self.change(blocks, BlockState::Plugged, |(range, blocks), bytes| {
            blocks.set(&range, false);
            let sunk = self
                .mapping()
                .sink(bytes.clone(), blocks.size, &blocks.sink);
            sunk.inspect_err(|_| {
                // The host has no room for a mapping, which this makes.
                let _ = self.mapping().fill(bytes);
                blocks.set(&range, true);
            })
        })
    }

    /// Unplugs all that are plugged.
    ///
    /// # Errors
    /// As [`Self::unplug`]: some may be unplugged then.
    pub fn unplug_all(&self) -> io::Result<()> {
        let runs: Vec<_> = self.blocks().ok_or_else(no_blocks)?.runs().collect();
        runs.into_iter().try_for_each(|run| self.unplug(run))
    }

    fn change(
        &self,
        blocks: Range<u64>,
        from: BlockState,
        act: impl FnOnce((Range<u64>, &Blocks), Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let all = self.blocks().ok_or_else(no_blocks)?;
        let _changing = all.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if all.state(blocks.clone()) != Some(from) {
            return Err(no_blocks());
        }
        let bytes = self.bytes(&blocks)?;
        let (start, length) = (self.start() + bytes.start as u64, bytes.len());
        act((blocks, all), bytes)?;
        self.mark(start, length);
        Ok(())
    }

    fn bytes(&self, blocks: &Range<u64>) -> io::Result<Range<usize>> {
        let size = self.blocks().ok_or_else(no_blocks)?.size;
        let byte = |block: u64| usize::try_from(block * size).map_err(io::Error::other);
        Ok(byte(blocks.start)?..byte(blocks.end)?)
    }

    /// Unplugs all of a region that nobody uses: its place is kept.
    pub(super) fn clear_blocks(&self) -> io::Result<()> {
        let blocks = self.blocks().ok_or_else(no_blocks)?;
        blocks.set(&(0..blocks.count), false);
        self.mapping().keep(0..self.mapping().size())
    }

    /// Has these runs be all that is plugged, of a region that was restored whole.
    ///
    /// # Errors
    /// When they aren't runs in order, or the host can't.
    pub fn keep_blocks(&self, runs: &[Range<u64>]) -> io::Result<()> {
        let blocks = self.blocks().ok_or_else(no_blocks)?;
        let mut next = 0;
        for run in runs {
            if run.start < next || run.is_empty() || run.end > blocks.count {
                return Err(no_blocks());
            }
            next = run.end;
        }
        let ends = runs.iter().map(|run| run.start).chain([blocks.count]);
        let starts = [0].into_iter().chain(runs.iter().map(|run| run.end));
        for gap in starts.zip(ends).map(|(start, end)| start..end) {
            blocks.set(&gap, false);
            if !gap.is_empty() {
                self.mapping().keep(self.bytes(&gap)?)?;
            }
        }
        Ok(())
    }
}
