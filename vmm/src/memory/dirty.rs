//! Which pages of guest memory were written, since somebody began to ask.
//!
//! Three write it: the guest itself, which KVM sees; the kernel's vhost, which is given
//! the [`Log`] to mark what it wrote; and this process, each of whose doors to guest
//! memory says so to the [`Tracker`] once it has written: vm-memory's (`region.rs`), a
//! ring and the buffers that a device returns in it (`host.rs`), and pages given back.
//!
//! A write is marked after it was done. One that is under way while the marks are taken
//! is then among the next ones; marked before, it would be among the last ones, and lost
//! to who has read the page by then.

#![allow(unsafe_code, reason = "a log that others write to is mapped")]

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64 as SharedWord, Ordering};
use std::sync::{Arc, PoisonError};

use super::mapping::{Mapping, PAGE_BYTES};
use super::{Options, Pages};
use crate::sync::{AtomicBool, AtomicU64, RwLock};

/// Bytes of a page: one mark, for KVM and vhost alike (`VHOST_PAGE_SIZE`).
pub const PAGE: u64 = PAGE_BYTES as u64;

/// Marks in one word.
const BITS: u64 = u64::BITS as u64;

fn place(page: u64) -> Option<(usize, u64)> {
    let word = usize::try_from(page / BITS).ok()?;
    Some((word, 1 << (page % BITS)))
}

/// A set of pages, by their number in the guest-physical address space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    words: Vec<u64>,
}

impl Dirty {
    /// Whether the page at an address is among them.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.has(address / PAGE)
    }

    fn has(&self, page: u64) -> bool {
        place(page)
            .is_some_and(|(word, bit)| self.words.get(word).is_some_and(|marks| marks & bit != 0))
    }

    /// How many pages there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Adds those of another one: those that could not be saved, say.
    pub fn merge(&mut self, other: &Self) {
        self.merge_words(0, &other.words);
    }

    /// Adds those of a bitmap, whose first bit is the page at an address: one of KVM's
    /// for a region.
    pub fn merge_at(&mut self, address: u64, words: &[u64]) {
        let first = address / PAGE;
        if first.is_multiple_of(BITS) {
            self.merge_words(usize::try_from(first / BITS).unwrap_or(usize::MAX), words);
            return;
        }
        for (base, word) in (first..).step_by(u64::BITS as usize).zip(words) {
            for bit in (0..BITS).filter(|bit| word >> bit & 1 == 1) {
                if let Some((word, bit)) = place(base + bit) {
                    self.grow(word + 1);
                    self.words[word] |= bit;
                }
            }
        }
    }

    fn merge_words(&mut self, first: usize, words: &[u64]) {
        self.grow(first + words.len());
        for (mine, more) in self.words[first..].iter_mut().zip(words) {
            *mine |= more;
        }
    }

    fn grow(&mut self, words: usize) {
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
    }

    /// Runs of them within an address range, as byte offsets from its start: where each
    /// begins and ends.
    pub fn runs(&self, start: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
        let (first, end) = (start / PAGE, (start + size) / PAGE);
        let mut next = first;
        std::iter::from_fn(move || {
            while next < end && !self.has(next) {
                // Mostly, whole words are empty.
                let empty = next.is_multiple_of(BITS)
                    && self.words.get(place(next)?.0).is_none_or(|word| *word == 0);
                next += if empty { BITS } else { 1 };
            }
            let begin = next;
            while next < end && self.has(next) {
                next += 1;
            }
            (begin < next).then(|| ((begin - first) * PAGE, (next - first) * PAGE))
        })
    }
}

/// Marks that anybody may set at any time: a bit for each page from address 0 on, the
/// lowest bit of a word first. On a little-endian host that is the log that vhost
/// writes (`log_write` of Linux's `drivers/vhost/vhost.c`), with the same atomic bits.
pub struct Log {
    words: Words,
}

enum Words {
    Own(Box<[AtomicU64]>),
    /// In a memory file, which others map too, and how many.
    Shared(Mapping, usize),
}

impl Words {
    /// Of a memory file: as long as it is mapped, which this holds, so many words are
    /// there.
    fn shared(mapping: &Mapping, count: usize) -> &[SharedWord] {
        // SAFETY: they begin with a page, the mapping lives as long as what is borrowed of
        // it, and everybody else changes them by atomic operations.
        unsafe { std::slice::from_raw_parts(mapping.start().cast(), count) }
    }

    fn len(&self) -> usize {
        match self {
            Self::Own(words) => words.len(),
            Self::Shared(_, count) => *count,
        }
    }

    fn load(&self, word: usize, order: Ordering) -> Option<u64> {
        match self {
            Self::Own(words) => words.get(word).map(|word| word.load(order)),
            Self::Shared(mapping, count) => {
                let word = Self::shared(mapping, *count).get(word);
                word.map(|word| word.load(order))
            }
        }
    }

    fn set(&self, word: usize, bits: u64) -> Option<u64> {
        match self {
            Self::Own(words) => {
                let word = words.get(word);
                word.map(|word| word.fetch_or(bits, Ordering::Release))
            }
            Self::Shared(mapping, count) => {
                let word = Self::shared(mapping, *count).get(word);
                word.map(|word| word.fetch_or(bits, Ordering::Release))
            }
        }
    }

    fn clear(&self, word: usize) -> u64 {
        let cleared = match self {
            Self::Own(words) => {
                let word = words.get(word);
                word.map(|word| word.swap(0, Ordering::Acquire))
            }
            Self::Shared(mapping, count) => {
                let word = Self::shared(mapping, *count).get(word);
                word.map(|word| word.swap(0, Ordering::Acquire))
            }
        };
        cleared.unwrap_or(0)
    }
}

impl Log {
    /// For what lies below an address; where others than the kernel are to find it, in a
    /// file of memory.
    ///
    /// # Errors
    /// When no such file can be had.
    fn new(end: u64, is_shared: bool) -> io::Result<Self> {
        let count = end.div_ceil(PAGE).div_ceil(BITS);
        let words = if is_shared {
            let count = usize::try_from(count.max(1)).map_err(io::Error::other)?;
            let size = (count * size_of::<u64>()).next_multiple_of(PAGE_BYTES);
            let options = Options {
                shared: true,
                pages: Pages::Small,
            };
            Words::Shared(Mapping::new(size, options)?, count)
        } else {
            Words::Own((0..count).map(|_| AtomicU64::new(0)).collect())
        };
        Ok(Self { words })
    }

    /// Where the kernel finds it.
    #[must_use]
    pub fn address(&self) -> u64 {
        let words = match &self.words {
            Words::Own(words) => words.as_ptr().addr(),
            Words::Shared(mapping, _) => mapping.start().addr(),
        };
        words as u64
    }

    /// What others map, and its size in bytes, where guest memory is shared too.
    #[must_use]
    pub fn file(&self) -> Option<(&File, u64)> {
        match &self.words {
            Words::Own(_) => None,
            Words::Shared(mapping, _) => {
                let file = mapping.file()?;
                Some((file, mapping.size() as u64))
            }
        }
    }

    fn mark(&self, address: u64, length: usize) {
        let Some(last) = (length as u64).checked_sub(1) else {
            return;
        };
        let last = address.saturating_add(last) / PAGE;
        for page in address / PAGE..=last {
            let Some((word, bit)) = place(page) else {
                return;
            };
            // What was written is seen by whoever sees the mark. Not even a mark that
            // stands there already is left alone: it may be taken just now.
            if self.words.set(word, bit).is_none() {
                return;
            }
        }
    }

    fn is_marked(&self, address: u64) -> bool {
        place(address / PAGE)
            .and_then(|(word, bit)| Some(self.words.load(word, Ordering::Acquire)? & bit != 0))
            .unwrap_or(false)
    }

    /// Takes all marks away.
    fn take(&self) -> Dirty {
        let taken = (0..self.words.len()).map(|word| {
            // A swap costs a cache line's ownership; most words are empty.
            match self.words.load(word, Ordering::Relaxed) {
                None | Some(0) => 0,
                Some(_) => self.words.clear(word),
            }
        });
        Dirty {
            words: taken.collect(),
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({} words)", self.words.len())
    }
}

/// Whether writes are marked, and where. Off until asked for, and then each write costs
/// a look at a flag.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    is_on: AtomicBool,
    log: RwLock<Option<Arc<Log>>>,
}

impl Tracker {
    /// Marks writes below an address from here on. Those that other threads have begun
    /// may be missed: devices are to be quiet.
    ///
    /// # Errors
    /// When others are to write the marks too, and can't be given them.
    pub(super) fn begin(&self, end: u64, is_shared: bool) -> io::Result<()> {
        self.set(Some(Arc::new(Log::new(end, is_shared)?)));
        Ok(())
    }

    /// Marks no more, and forgets what was.
    pub(super) fn end(&self) {
        self.set(None);
    }

    fn set(&self, log: Option<Arc<Log>>) {
        let is_on = log.is_some();
        *self.log.write().unwrap_or_else(PoisonError::into_inner) = log;
        self.is_on.store(is_on, Ordering::SeqCst);
    }

    /// Whether writes are marked.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// The marks, if any are made.
    pub(super) fn log(&self) -> Option<Arc<Log>> {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
        log.clone()
    }

    /// Says that a range was written.
    #[inline]
    pub(super) fn mark(&self, address: u64, length: usize) {
        if self.is_on() {
            self.mark_in_log(address, length);
        }
    }

    #[cold]
    fn mark_in_log(&self, address: u64, length: usize) {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = log.as_ref() {
            log.mark(address, length);
        }
    }

    pub(super) fn is_marked(&self, address: u64) -> bool {
        self.log().is_some_and(|log| log.is_marked(address))
    }

    /// Takes all marks away.
    pub(super) fn take(&self) -> Dirty {
        self.log().map(|log| log.take()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_marked_before_it_is_asked_for() {
        let tracker = Tracker::default();
        tracker.mark(0, 1 << 20);
        assert_eq!(tracker.take().count(), 0);
        tracker.begin(1 << 20, false).unwrap();
        tracker.mark(PAGE - 1, 2);
        tracker.mark(5 * PAGE, 0);
        // Past the end, and no address at all: nothing to mark.
        tracker.mark(1 << 20, 1);
        tracker.mark(u64::MAX, usize::MAX);
        assert!(tracker.is_marked(0) && !tracker.is_marked(2 * PAGE));
        let dirty = tracker.take();
        assert_eq!(dirty.count(), 2);
        assert!(dirty.contains(0) && dirty.contains(PAGE) && !dirty.contains(2 * PAGE));
        assert_eq!(tracker.take().count(), 0, "taken once");
        tracker.mark(0, 1);
        tracker.end();
        assert_eq!(tracker.take().count(), 0);
    }

    #[test]
    fn a_region_may_begin_anywhere() {
        for first in [0, 64, 100] {
            let mut dirty = Dirty::default();
            dirty.merge_at(first * PAGE, &[0b101, 1 << 63]);
            let runs: Vec<_> = dirty.runs(first * PAGE, 128 * PAGE).collect();
            let run = |page: u64| (page * PAGE, (page + 1) * PAGE);
            assert_eq!(runs, [run(0), run(2), run(127)]);
        }
    }

    proptest! {
        #[test]
        fn runs_are_the_pages(
            pages in prop::collection::btree_set(0u64..400, 0..200),
            start in 0u64..300,
            size in 0u64..300,
        ) {
            let log = Log::new(400 * PAGE, pages.len() % 2 == 1).unwrap();
            for page in &pages {
                log.mark(page * PAGE + 7, 1);
            }
            let mut dirty = Dirty::default();
            dirty.merge(&log.take());
            prop_assert_eq!(dirty.count(), pages.len() as u64);
            let mut found = Vec::new();
            for (begin, end) in dirty.runs(start * PAGE, size * PAGE) {
                prop_assert!(begin < end);
                found.extend((begin / PAGE..end / PAGE).map(|page| start + page));
            }
            let wanted: Vec<_> = pages.range(start..start + size).copied().collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
