//! The newest output on its way to a reader who is never waited for.

use std::io;

use super::Serial;

/// The most bytes that a reader is handed at once.
const CHUNK: usize = 4096;
/// The most chunks for one reader before the next has its turn.
const BATCH: usize = 16;

/// How far a reader has got. One that reads too slowly misses output, and reads how
/// much.
pub(super) struct Feed {
    /// What it is being handed, and how much of it is out.
    chunk: Vec<u8>,
    sent: usize,
    /// The number of the next byte that it gets.
    next: u64,
    /// It has more to get, and no room for it.
    lags: bool,
}

impl Feed {
    /// For a reader of the output from byte number `next` on.
    pub(super) fn new(next: u64) -> Self {
        Self {
            chunk: Vec::new(),
            sent: 0,
            next,
            lags: false,
        }
    }

    /// Whether there is more for it than it has taken.
    pub(super) fn lags(&self) -> bool {
        self.lags
    }

    /// Hands on output until `write`, which never waits, takes no more. False: the
    /// reader has gone.
    pub(super) fn send(
        &mut self,
        serial: &Serial,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> bool {
        self.lags = false;
        for _ in 0..BATCH {
            if self.sent == self.chunk.len() && !self.refill(serial) {
                return true;
            }
            match write(&self.chunk[self.sent..]) {
                Ok(0) => return false,
                Ok(count) => self.sent += count,
                Err(error) if will_pass(&error) => break,
                Err(_) => return false,
            }
        }
        self.lags = true;
        true
    }

    /// The next chunk. Returns whether there is one.
    fn refill(&mut self, serial: &Serial) -> bool {
        self.sent = 0;
        self.chunk.clear();
        let read = serial.recent(self.next, CHUNK, &mut self.chunk);
        self.next = read.next;
        if read.lost > 0 {
            let notice = format!("\r\n[hearth-vmm: {} bytes were missed here]\r\n", read.lost);
            self.chunk.splice(..0, notice.into_bytes());
        }
        !self.chunk.is_empty()
    }
}

/// Whether it is worth trying again later.
pub(super) fn will_pass(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
