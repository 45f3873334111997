//! A log file with an upper bound that keeps the newest bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The file never grows past this many bytes: 1 MiB.
pub(super) const LIMIT: u64 = 1 << 20;
/// What is kept when it is full: half, so that a guest that writes without end has
/// its log copied once in 512 KiB.
const KEEP: usize = 1 << 19;

/// The log. A reader that opens the file at any time finds the newest bytes at its
/// end.
#[derive(Debug)]
pub struct BoundedLog {
    file: File,
    length: u64,
}

impl BoundedLog {
    /// Goes on behind what the file has, which is cut if it is too much.
    ///
    /// # Errors
    /// When the file can't be measured or cut.
    pub fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut log = Self { file, length };
        if log.length > LIMIT {
            log.compact()?;
        }
        Ok(log)
    }

    /// Puts bytes at the end.
    ///
    /// # Errors
    /// When the file can't be written; the log stays usable.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length + bytes.len() as u64 > LIMIT {
            self.compact()?;
        }
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The newest bytes, at most `count`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn tail(&self, count: usize) -> io::Result<Vec<u8>> {
        let start = self.length.saturating_sub(count as u64);
        let mut bytes = vec![0; usize::try_from(self.length - start).unwrap_or(count)];
        let mut filled = 0;
        // Mostly one read has all, and the next would find the end.
        while filled < bytes.len() {
            match self
                .file
                .read_at(&mut bytes[filled..], start + filled as u64)?
            {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn compact(&mut self) -> io::Result<()> {
        let kept = self.tail(KEEP)?;
        self.file.write_all_at(&kept, 0)?;
        self.length = kept.len() as u64;
        self.file.set_len(self.length)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_log_keeps_the_newest() {
        let file = tempfile::tempfile().expect("file");
        let view = file.try_clone().expect("clone");
        let mut log = BoundedLog::new(file).expect("log");
        for line in 0..200_000u32 {
            log.append(format!("line {line}\n").as_bytes())
                .expect("append");
        }
        let length = view.metadata().expect("length").len();
        assert!(length <= LIMIT && length >= KEEP as u64);
        let mut tail = [0; 12];
        view.read_exact_at(&mut tail, length - 12).expect("tail");
        assert_eq!(&tail, b"line 199999\n");
    }

    #[test]
    fn a_log_is_cut_when_it_would_be_too_long_and_no_sooner() {
        let file = tempfile::tempfile().expect("file");
        let view = file.try_clone().expect("clone");
        let length = || view.metadata().expect("length").len();
        view.set_len(LIMIT - 1).expect("longer");
        let mut log = BoundedLog::new(file).expect("log");
        log.append(b"a").expect("append");
        assert_eq!(length(), LIMIT);
        log.append(b"b").expect("append");
        assert_eq!(length(), KEEP as u64 + 1);
        assert_eq!(log.tail(2).expect("tail"), b"ab");
        assert_eq!(log.tail(0).expect("tail"), b"");
        // As is one that was too long from the start.
        view.set_len(LIMIT + 1).expect("longer");
        BoundedLog::new(view.try_clone().expect("clone")).expect("log");
        assert_eq!(length(), KEEP as u64);
    }

    #[test]
    fn goes_on_behind_what_is_there() {
        let file = tempfile::tempfile().expect("file");
        file.write_all_at(b"old ", 0).expect("write");
        let view = file.try_clone().expect("clone");
        BoundedLog::new(file)
            .expect("log")
            .append(b"new")
            .expect("append");
        let mut all = [0; 7];
        view.read_exact_at(&mut all, 0).expect("read");
        assert_eq!(&all, b"old new");
    }
}
