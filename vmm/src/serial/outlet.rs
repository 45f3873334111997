//! Where the guest's output goes: line by line to the log, and into memory for those
//! who read along.
//!
//! A byte that a vCPU writes is put into memory, and the end of a line (or a full
//! chunk) writes out what is there. What is no whole line, as a prompt, the main loop
//! carries on: at once when there was no output for a while, once more when that first
//! line ends, then every [`TICK`] for as long as more comes. So output costs the guest
//! one system call for a line, not for a byte, and a reader sees it no later than a
//! blink; a line that comes alone, as it ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::BoundedLog;

/// How long output waits for more at most.
pub const TICK: Duration = Duration::from_millis(20);
/// The most bytes that wait.
const CHUNK: usize = 4096;
/// What [`Recent`] remembers: what EC2's GetConsoleOutput returns.
const RECENT: usize = 64 << 10;
/// As much output calls the main loop before its [`TICK`]: those who read along should
/// not miss what they had been quick enough for.
const MUCH: usize = RECENT / 4;

/// Where the guest's output goes.
#[derive(Debug)]
pub enum Output {
    /// A log file that keeps the newest.
    Log(BoundedLog),
    /// Standard output: [`StandardOutput`](super::StandardOutput) reads it from what is
    /// remembered. No thread of the guest's writes there, since a write may wait.
    Stdout,
}

impl Output {
    /// A log in `file`, which stays bounded.
    ///
    /// # Errors
    /// When the file can't be measured or cut.
    pub fn log(file: std::fs::File) -> io::Result<Self> {
        BoundedLog::new(file).map(Self::Log)
    }
}

/// The newest output, numbered through since the beginning.
struct Recent {
    /// As long as the output until there are [`RECENT`], then overwritten in turn: a
    /// guest that says little costs little.
    bytes: Vec<u8>,
    /// The number of the next byte.
    end: u64,
}

impl Recent {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            end: 0,
        }
    }

    /// Where a byte lies, by its number.
    #[expect(clippy::cast_possible_truncation, reason = "less than the size")]
    fn place(number: u64) -> usize {
        (number % RECENT as u64) as usize
    }

    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.bytes.get_mut(Self::place(self.end)) {
                Some(place) => *place = *byte,
                None => self.bytes.push(*byte),
            }
            self.end += 1;
        }
    }

    /// The oldest byte's number.
    fn start(&self) -> u64 {
        self.end.saturating_sub(RECENT as u64)
    }

    /// Appends up to `count` bytes from `number` on, which is not before
    /// [`Self::start`].
    fn copy(&self, number: u64, count: usize, to: &mut Vec<u8>) {
        let numbers = (number..self.end).take(count);
        to.extend(numbers.map(|number| self.bytes[Self::place(number)]));
    }
}

/// What a reader of the recent output got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    /// Bytes that were gone already.
    pub(super) lost: u64,
    /// Where to read on.
    pub(super) next: u64,
}

/// The way out.
pub(super) struct Outlet {
    output: Output,
    /// What is not in the output yet.
    waiting: Vec<u8>,
    recent: Option<Recent>,
    /// How many bytes there were since the main loop came by.
    since: usize,
    /// The main loop will come by without being called.
    attended: bool,
    /// It was called for the first bytes of a line after a while without output, and
    /// waits for the rest.
    begun: bool,
    bell: Arc<EventFd>,
}

impl Outlet {
    /// `bell` calls the main loop.
    pub(super) fn new(output: Output, bell: Arc<EventFd>) -> Self {
        let recent = matches!(output, Output::Stdout).then(Recent::new);
        Self {
            output,
            waiting: Vec::with_capacity(CHUNK),
            recent,
            since: 0,
            attended: false,
            begun: false,
            bell,
        }
    }

    /// Remembers the newest output from now on, beginning with that of the log, unless
    /// it does already.
    ///
    /// # Errors
    /// When the log can't be read.
    pub(super) fn keep_recent(&mut self) -> io::Result<()> {
        if self.recent.is_some() {
            return Ok(());
        }
        let mut recent = Recent::new();
        if let Output::Log(log) = &self.output {
            recent.push(&log.tail(RECENT)?);
        }
        recent.push(&self.waiting);
        self.recent = Some(recent);
        Ok(())
    }

    /// Takes output, and calls the main loop where it must come by.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let before = self.since;
        self.carry(bytes);
        let is_much = before < MUCH && self.since >= MUCH;
        let is_first = !self.attended;
        self.begun |= is_first;
        let ends = self.begun && bytes.contains(&b'\n');
        self.begun &= !ends;
        if is_first || is_much || ends {
            self.attended = true;
            // Only a full counter makes this fail, and then it has rung.
            let _ = self.bell.write(1);
        }
    }

    /// Takes output that the main loop brings: it need not be called.
    pub(super) fn carry(&mut self, bytes: &[u8]) {
        if let Some(recent) = &mut self.recent {
            recent.push(bytes);
        }
        for chunk in bytes.chunks(CHUNK) {
            if self.waiting.len() + chunk.len() > CHUNK {
                self.flush();
            }
            self.waiting.extend_from_slice(chunk);
        }
        if bytes.contains(&b'\n') {
            self.flush();
        }
        self.since = self.since.saturating_add(bytes.len());
    }

    /// Carries on what waits. Returns whether to come by again after a [`TICK`]; if
    /// not, the bell calls.
    pub(super) fn progress(&mut self) -> bool {
        self.attended = std::mem::take(&mut self.since) > 0;
        self.flush();
        self.attended
    }

    fn flush(&mut self) {
        if let Output::Log(log) = &mut self.output
            && !self.waiting.is_empty()
        {
            // A log that can't be written must not stop the guest; the bytes are lost.
            let _ = log.append(&self.waiting);
        }
        self.waiting.clear();
    }

    /// The number of the oldest byte that is remembered.
    pub(super) fn recent_start(&self) -> u64 {
        self.recent.as_ref().map_or(0, Recent::start)
    }

    /// Appends up to `count` bytes from number `from` on.
    pub(super) fn read(&self, from: u64, count: usize, to: &mut Vec<u8>) -> Read {
        let Some(recent) = &self.recent else {
            return Read {
                lost: 0,
                next: from,
            };
        };
        let start = from.max(recent.start());
        let before = to.len();
        recent.copy(start, count, to);
        Read {
            lost: start - from,
            next: start + (to.len() - before) as u64,
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn outlet() -> (Outlet, File) {
        let file = tempfile::tempfile().expect("file");
        let view = file.try_clone().expect("clone");
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("eventfd"));
        let output = Output::log(file).expect("log");
        (Outlet::new(output, bell), view)
    }

    fn length(view: &File) -> u64 {
        view.metadata().expect("metadata").len()
    }

    #[test]
    fn the_bell_rings_once_until_the_line_is_idle_again() {
        let (mut outlet, view) = outlet();
        outlet.push(b"a");
        outlet.push(b"b");
        assert_eq!(outlet.bell.read().expect("rung"), 1);
        assert!(outlet.progress());
        assert_eq!(length(&view), 2);
        outlet.push(b"c");
        assert!(outlet.bell.read().is_err(), "a tick will come");
        assert!(outlet.progress());
        assert!(!outlet.progress(), "idle");
        outlet.push(b"d");
        assert_eq!(outlet.bell.read().expect("rung"), 1);
        drop(outlet);
        let mut all = [0; 4];
        view.read_exact_at(&mut all, 0).expect("read");
        assert_eq!(&all, b"abcd");
    }

    #[test]
    fn a_line_that_comes_alone_calls_when_it_ends() {
        let (mut outlet, _) = outlet();
        for _ in 0..2 {
            outlet.push(b"l");
            assert_eq!(outlet.bell.read().expect("rung"), 1);
            assert!(outlet.progress());
            outlet.push(b"ine");
            assert!(outlet.bell.read().is_err(), "it goes on");
            outlet.push(b"\n");
            assert_eq!(outlet.bell.read().expect("rung"), 1);
            assert!(outlet.progress());
            outlet.push(b"another\n");
            assert!(outlet.bell.read().is_err(), "a tick will come");
            assert!(outlet.progress());
            assert!(!outlet.progress(), "idle");
        }
        outlet.push(b"a whole one\n");
        assert_eq!(outlet.bell.read().expect("rung"), 1);
        assert!(outlet.progress());
        outlet.push(b"\n");
        assert!(outlet.bell.read().is_err(), "once");
    }

    #[test]
    fn much_output_calls_before_the_tick() {
        let (mut outlet, _) = outlet();
        outlet.push(b"a");
        assert_eq!(outlet.bell.read().expect("rung"), 1);
        for _ in 0..2 {
            outlet.progress();
            for _ in 0..MUCH - 2 {
                outlet.push(b"b");
            }
            assert!(outlet.bell.read().is_err(), "a tick will come");
            for _ in 0..MUCH {
                outlet.push(b"cd");
            }
            assert_eq!(outlet.bell.read().expect("rung"), 1, "once");
        }
    }

    #[test]
    fn a_whole_line_does_not_wait() {
        let (mut outlet, view) = outlet();
        outlet.push(b"li");
        outlet.push(b"ne");
        assert_eq!(length(&view), 0);
        outlet.push(b"\n");
        assert_eq!(length(&view), 5);
        assert!(outlet.progress(), "who is attached has not seen it");
        assert!(!outlet.progress());
    }

    #[test]
    fn a_full_chunk_does_not_wait() {
        let (mut outlet, view) = outlet();
        outlet.push(&[b'x'; CHUNK]);
        assert_eq!(length(&view), 0);
        outlet.push(b"y");
        assert_eq!(length(&view), CHUNK as u64);
        outlet.push(&[b'z'; 3 * CHUNK]);
        assert!(outlet.waiting.len() <= CHUNK);
    }

    #[test]
    fn the_recent_begins_with_the_log() {
        let (mut outlet, _) = outlet();
        outlet.push(b"old ");
        outlet.progress();
        outlet.push(b"new");
        outlet.keep_recent().expect("kept");
        let mut bytes = Vec::new();
        assert_eq!(outlet.read(0, 100, &mut bytes), Read { lost: 0, next: 7 });
        assert_eq!(bytes, b"old new");
    }

    #[test]
    fn standard_output_is_remembered_once() {
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("eventfd"));
        let mut outlet = Outlet::new(Output::Stdout, bell);
        outlet.push(b"a line\n");
        outlet.keep_recent().expect("kept");
        outlet.push(b"more");
        let mut bytes = Vec::new();
        assert_eq!(outlet.read(0, 100, &mut bytes), Read { lost: 0, next: 11 });
        assert_eq!(bytes, b"a line\nmore");
    }

    proptest! {
        #[test]
        fn a_reader_gets_all_but_what_it_was_told_it_lost(
            steps in prop::collection::vec((0usize..40_000, 0usize..50_000), 1..20)
        ) {
            let (mut outlet, _) = outlet();
            outlet.keep_recent().expect("kept");
            let mut written = Vec::new();
            let mut number = 0;
            for (write, read) in steps {
                let bytes: Vec<u8> = (0..=250).cycle().skip(written.len() % 251).take(write).collect();
                outlet.push(&bytes);
                written.extend(bytes);
                let mut got = Vec::new();
                let result = outlet.read(number, read, &mut got);
                let from = usize::try_from(number + result.lost).expect("small");
                prop_assert!(result.lost == 0 || from == written.len() - RECENT);
                prop_assert_eq!(&got[..], &written[from..from + got.len()]);
                prop_assert_eq!(got.len(), read.min(written.len() - from));
                number = result.next;
            }
        }
    }
}
