//! A kernel image as a loader reads it: mapped, and copied without its zeroes.
//!
//! Two fifths of a vmlinux are zeroes (its `.bss` is in the file, and what is between
//! its sections). Guest memory is zero already, and a page that is not written to is one
//! that the host need not have; so zeroes are left out. What is copied goes from the
//! page cache to guest memory with no system call between.

#![allow(unsafe_code, reason = "guest memory is filled from a file in place")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ptr;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Zeroes are looked for in pieces of this size.
const PAGE: usize = 4096;
static ZEROES: [u8; PAGE] = [0; PAGE];

/// A mapped file and a place in it. Whoever cuts the file short while it is mapped ends
/// this process by a SIGBUS, as with any program that is being executed from it.
pub(super) struct Image {
    start: *mut u8,
    size: usize,
    position: usize,
}

impl Image {
    /// Maps all of a file.
    ///
    /// # Errors
    /// As mmap(2): also when the file is empty.
    pub(super) fn map(file: &File) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping, at no given place.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            size,
            position: 0,
        })
    }

    /// How far it is from the present place to the end.
    fn left(&self) -> usize {
        self.size.saturating_sub(self.position)
    }

    /// Whether the bytes at `at` are all zero; PAGE at most, and within the mapping.
    fn is_zero(&self, at: usize, length: usize) -> bool {
        // SAFETY: both ranges are mapped, and nobody makes references to the file's.
        unsafe { libc::memcmp(self.start.add(at).cast(), ZEROES.as_ptr().cast(), length) == 0 }
    }

    /// The bytes from `at` on that are alike in being zeroes or not, up to `end`: whether
    /// they are, and how many there are.
    fn run(&self, at: usize, end: usize) -> (bool, usize) {
        let piece = |at: usize| (at / PAGE + 1) * PAGE;
        let mut next = piece(at).min(end);
        let zero = self.is_zero(at, next - at);
        while next < end {
            let after = piece(next).min(end);
            if self.is_zero(next, after - next) != zero {
                break;
            }
            next = after;
        }
        (zero, next - at)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and goes with it.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

impl Read for Image {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.left());
        // SAFETY: `count` bytes from the position on are mapped, and the buffer has as
        // many.
        unsafe {
            ptr::copy_nonoverlapping(self.start.add(self.position), buffer.as_mut_ptr(), count)
        };
        self.position += count;
        Ok(count)
    }
}

impl Seek for Image {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::End(offset) => (self.size as u64).checked_add_signed(offset),
            SeekFrom::Current(offset) => (self.position as u64).checked_add_signed(offset),
        };
        let place = place.ok_or(io::ErrorKind::InvalidInput)?;
        // Past the end there is nothing to read.
        self.position = usize::try_from(place).unwrap_or(usize::MAX).min(self.size);
        Ok(place)
    }
}

impl ReadVolatile for Image {
    /// Reads into memory that is zero: what are whole pages of zeroes is not written.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let count = buffer.len().min(self.left());
        let (begin, end) = (self.position, self.position + count);
        let mut at = begin;
        while at < end {
            let (zero, length) = self.run(at, end);
            if !zero {
                // SAFETY: as many bytes are mapped from there on, until after this.
                let from = unsafe { VolatileSlice::new(self.start.add(at), length) };
                from.copy_to_volatile_slice(buffer.subslice(at - begin, length)?);
            }
            at += length;
        }
        self.position = end;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn image(bytes: &[u8]) -> Image {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("write");
        Image::map(&file).expect("mapped")
    }

    #[test]
    fn zeroes_are_not_written() {
        let mut bytes = vec![1; 3 * PAGE];
        bytes[PAGE..2 * PAGE].fill(0);
        let mut memory = vec![7; 3 * PAGE];
        let mut slice = VolatileSlice::from(&mut memory[..]);
        image(&bytes).read_exact_volatile(&mut slice).expect("read");
        assert!(memory[..PAGE].iter().all(|byte| *byte == 1));
        assert!(memory[PAGE..2 * PAGE].iter().all(|byte| *byte == 7));
        assert!(memory[2 * PAGE..].iter().all(|byte| *byte == 1));
    }

    #[test]
    fn an_empty_file_is_refused_and_an_end_is_one() {
        assert!(Image::map(&tempfile::tempfile().expect("file")).is_err());
        let mut image = image(b"short");
        assert_eq!(image.seek(SeekFrom::Start(100)).expect("seeks"), 100);
        let mut memory = [0; 4];
        assert_eq!(image.read(&mut memory).expect("reads"), 0);
        let mut slice = VolatileSlice::from(&mut memory[..]);
        assert!(image.read_exact_volatile(&mut slice).is_err());
        assert_eq!(image.seek(SeekFrom::End(-2)).expect("seeks"), 3);
        assert!(image.seek(SeekFrom::Current(-10)).is_err());
        assert_eq!(image.read(&mut memory).expect("reads"), 2);
        assert_eq!(&memory[..2], b"rt");
    }

    proptest! {
        #[test]
        fn it_reads_what_the_file_has(
            pages in prop::collection::vec(0u8..3, 1..8),
            tail in 0usize..PAGE,
            from in 0usize..5 * PAGE,
            count in 0usize..5 * PAGE,
        ) {
            let mut bytes: Vec<u8> = pages.iter().flat_map(|byte| [*byte; PAGE]).collect();
            bytes.truncate(bytes.len() - tail);
            let mut image = image(&bytes);
            image.seek(SeekFrom::Start(from as u64)).expect("seeks");
            let mut memory = vec![0; count];
            let mut slice = VolatileSlice::from(&mut memory[..]);
            let got = image.read_volatile(&mut slice).expect("reads");
            let wanted = bytes.get(from..).unwrap_or(&[]);
            prop_assert_eq!(got, wanted.len().min(count));
            prop_assert_eq!(&memory[..got], &wanted[..got]);
        }
    }
}
