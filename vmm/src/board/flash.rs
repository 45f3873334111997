//! The flash that keeps the firmware's variables, as a pure machine: Intel's basic
//! command set (JESD68.01, command set 1), as far as firmware for QEMU's `pflash_cfi01`
//! uses it.
//!
//! ```text
//!              ┌──────────── 0xff, 0x50, what else is unknown ◄──────────┐
//!              ▼                                                         │
//!   read array ─ 0x10, 0x40 ─► program ── data: stored ──► read status ──┤
//!              ├ 0x20 ───────► erase ──── 0xd0: 4 KiB are 0xff ─► … ─────┤
//!              └ 0x70 ───────► read status ──────────────────────────────┘
//! ```
//! As there, and unlike a chip, it is done at once; programming stores what is written
//! and doesn't only clear bits; and the status is zero once it was cleared, by which
//! OVMF knows a flash.

use std::ops::Range;

/// Bytes that are erased at once.
pub const BLOCK: usize = 4096;

/// What a write asks for, or begins.
mod command {
    pub(super) const PROGRAM: u8 = 0x10;
    pub(super) const PROGRAM_TOO: u8 = 0x40;
    pub(super) const ERASE: u8 = 0x20;
    pub(super) const ERASE_CONFIRM: u8 = 0xd0;
    pub(super) const CLEAR_STATUS: u8 = 0x50;
    pub(super) const READ_STATUS: u8 = 0x70;
}

/// Status register.
mod status {
    pub(super) const READY: u8 = 1 << 7;
    /// Erase and program failed, both: a sequence of commands that is none.
    pub(super) const SEQUENCE_ERROR: u8 = 1 << 5 | 1 << 4;
    pub(super) const PROGRAM_ERROR: u8 = 1 << 4;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    ReadArray,
    ReadStatus,
    Program,
    Erase,
}

/// A flash and what is in it.
#[derive(Debug)]
pub struct Flash {
    data: Vec<u8>,
    mode: Mode,
    status: u8,
    /// What was programmed and is not on its way to the file yet.
    unsaved: Range<usize>,
}

impl Flash {
    /// A flash with this content.
    #[must_use]
    pub fn new(data: Vec<u8>) -> Self {
        Self {
            data,
            mode: Mode::ReadArray,
            status: 0,
            unsaved: 0..0,
        }
    }

    /// What is in it.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Whether it shows its content, and not its status.
    #[must_use]
    pub fn shows_content(&self) -> bool {
        self.mode == Mode::ReadArray
    }

    /// As after power-on. What was programmed stays.
    pub fn reset(&mut self) {
        self.mode = Mode::ReadArray;
        self.status = 0;
    }

    /// Notes that what was to be saved was not: the guest finds it in the status.
    pub fn failed(&mut self) {
        self.status |= status::PROGRAM_ERROR;
    }

    /// What is to be saved by now, though the guest may go on programming.
    pub fn take_unsaved(&mut self) -> Option<Range<usize>> {
        let unsaved = std::mem::take(&mut self.unsaved);
        (!unsaved.is_empty()).then_some(unsaved)
    }

    /// Notes that this is not on its way to the file after all. Nothing else is unsaved.
    pub fn is_unsaved(&mut self, range: Range<usize>) {
        self.unsaved = range;
    }

    /// Reads at an offset: content, or the status in each byte. Behind the end there are
    /// ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        if self.mode != Mode::ReadArray {
            data.fill(self.status);
            return;
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.data.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes at an offset: a command, or what the last one waits for. Returns what is
    /// to be saved in the file now: all that was programmed, when the driver is done with
    /// it, or the block that was erased.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Option<Range<usize>> {
        let &[first, ..] = data else { return None };
        match self.mode {
            Mode::Program => self.program(offset, data),
            Mode::Erase if first == command::ERASE_CONFIRM => self.erase(offset),
            Mode::Erase => {
                self.status |= status::READY | status::SEQUENCE_ERROR;
                self.mode = Mode::ReadStatus;
                None
            }
            Mode::ReadArray | Mode::ReadStatus => self.begin(first),
        }
    }

    fn begin(&mut self, command: u8) -> Option<Range<usize>> {
        self.mode = match command {
            command::PROGRAM | command::PROGRAM_TOO => Mode::Program,
            command::ERASE => Mode::Erase,
            command::READ_STATUS => Mode::ReadStatus,
            _ => {
                if command == command::CLEAR_STATUS {
                    self.status = 0;
                }
                self.mode = Mode::ReadArray;
                return self.take_unsaved();
            }
        };
        None
    }

    /// What was programmed elsewhere is to be saved now: what lies between is not to be
    /// written time and again.
    fn program(&mut self, offset: usize, data: &[u8]) -> Option<Range<usize>> {
        self.mode = Mode::ReadStatus;
        self.status |= status::READY;
        let end = offset.saturating_add(data.len());
        let Some(stored) = self.data.get_mut(offset..end) else {
            self.status |= status::PROGRAM_ERROR;
            return None;
        };
        stored.copy_from_slice(data);
        let both = self.unsaved.start.min(offset)..self.unsaved.end.max(end);
        if self.unsaved.is_empty() || both.len() > BLOCK {
            let elsewhere = self.take_unsaved();
            self.unsaved = offset..end;
            return elsewhere;
        }
        self.unsaved = both;
        None
    }

    fn erase(&mut self, offset: usize) -> Option<Range<usize>> {
        self.mode = Mode::ReadStatus;
        self.status |= status::READY;
        let start = offset / BLOCK * BLOCK;
        let block = start..(start + BLOCK).min(self.data.len());
        let Some(erased) = self.data.get_mut(block.clone()) else {
            self.status |= status::SEQUENCE_ERROR;
            return None;
        };
        erased.fill(0xff);
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flash() -> Flash {
        Flash::new([0, 1, 2, 3].map(|block| [block; BLOCK]).concat())
    }

    fn read(flash: &Flash, offset: usize) -> u8 {
        let mut data = [0xaa];
        flash.read(offset, &mut data);
        data[0]
    }

    /// The probe of OVMF's driver: neither RAM nor ROM.
    #[test]
    fn a_driver_knows_it_for_a_flash() {
        let mut flash = flash();
        let original = read(&flash, BLOCK);
        assert_eq!(flash.write(BLOCK, &[0x50]), None);
        assert_ne!(read(&flash, BLOCK), 0x50);
        assert_eq!(flash.write(BLOCK, &[0x70]), None);
        assert_ne!(read(&flash, BLOCK), original);
        assert_eq!(read(&flash, BLOCK), 0);
        assert_eq!(flash.write(BLOCK, &[0xff]), None);
        assert_eq!(read(&flash, BLOCK), original);
    }

    #[test]
    fn what_is_programmed_is_saved_when_the_driver_is_done() {
        let mut flash = flash();
        for (at, byte) in [(100, 7), (101, 8), (50, 9)] {
            assert_eq!(flash.write(at, &[0x10]), None);
            assert_eq!(flash.write(at, &[byte]), None);
            assert_eq!(read(&flash, 0), 0x80, "ready");
        }
        assert_eq!(flash.write(101, &[0xff]), Some(50..102));
        assert_eq!(flash.write(101, &[0xff]), None);
        assert_eq!(flash.data()[50], 9);
        assert_eq!(flash.data()[100..102], [7, 8]);
    }

    #[test]
    fn a_block_is_erased_and_a_broken_sequence_says_so() {
        let mut flash = flash();
        flash.write(BLOCK + 5, &[0x20]);
        let erased = flash.write(BLOCK + 5, &[0xd0]);
        assert_eq!(erased, Some(BLOCK..2 * BLOCK));
        assert!(flash.data()[BLOCK..2 * BLOCK].iter().all(|b| *b == 0xff));
        assert_eq!(flash.data()[2 * BLOCK], 2);
        flash.write(0, &[0x20]);
        assert_eq!(flash.write(0, &[0x10]), None);
        assert_eq!(read(&flash, 0), 0xb0);
        flash.write(0, &[0x50]);
        assert_eq!(flash.data()[0], 0);
    }

    #[test]
    fn a_reset_forgets_a_command_and_no_byte() {
        let mut flash = flash();
        flash.write(0, &[0x10]);
        flash.write(0, &[0x55]);
        flash.failed();
        flash.reset();
        assert_eq!(read(&flash, 0), 0x55);
        assert_eq!(flash.take_unsaved(), Some(0..1));
        assert_eq!(flash.take_unsaved(), None);
    }

    proptest! {
        /// What the file has is what the flash has, once all was saved that was to be.
        #[test]
        fn a_file_that_is_kept_up_is_the_flash(
            writes in prop::collection::vec(
                (
                    0usize..5 * BLOCK,
                    prop_oneof![
                        prop::sample::select(&[0x10u8, 0x20, 0xd0, 0xff, 0x50, 0x70][..]),
                        any::<u8>(),
                    ],
                    prop::sample::select(&[1usize, 2, 4, 8][..]),
                ),
                0..64,
            ),
        ) {
            let mut flash = flash();
            let mut file = flash.data().to_vec();
            let save = |file: &mut Vec<u8>, flash: &Flash, range: Option<Range<usize>>| {
                if let Some(range) = range {
                    file[range.clone()].copy_from_slice(&flash.data()[range]);
                }
            };
            for (offset, byte, width) in writes {
                let saved = flash.write(offset, &vec![byte; width]);
                save(&mut file, &flash, saved);
                flash.read(offset, &mut [0; 8]);
            }
            let rest = flash.take_unsaved();
            save(&mut file, &flash, rest);
            prop_assert_eq!(&file[..], flash.data());
        }
    }

    /// What the host writes is in proportion to what the guest does.
    #[test]
    fn two_bytes_far_apart_are_no_whole_flash() {
        let mut flash = Flash::new(vec![0; 4096 * BLOCK]);
        let mut saved = 0;
        for _ in 0..100 {
            for at in [0, 4095 * BLOCK] {
                for byte in [0x10, 0x55] {
                    saved += flash.write(at, &[byte]).map_or(0, |range| range.len());
                }
            }
            saved += flash.write(0, &[0xff]).map_or(0, |range| range.len());
        }
        assert!(saved <= 500 * BLOCK, "{saved} bytes for 500 writes");
    }
}
