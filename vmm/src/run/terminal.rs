//! The terminal that the process was started from, as the serial port's other end.

#![allow(unsafe_code, reason = "read(2) and poll(2) on standard input")]

use std::io;
use std::os::fd::AsRawFd;

use crate::serial::{RawTerminal, Serial, StandardOutput};

/// The terminal, as the serial port's other end. Ctrl-A x ends the machine,
/// Ctrl-A Ctrl-A is one Ctrl-A.
pub(super) struct Terminal {
    /// Whether more input may come.
    pub(super) open: bool,
    /// Where the output goes.
    pub(super) output: StandardOutput,
    escaped: bool,
    _terminal: Option<RawTerminal>,
}

const CTRL_A: u8 = 1;

impl Terminal {
    /// On standard input, raw if it is a terminal, and standard output.
    pub(super) fn new(output: StandardOutput) -> Self {
        Self {
            open: true,
            output,
            escaped: false,
            _terminal: RawTerminal::enter(),
        }
    }

    fn wants_input(&self, serial: &Serial) -> bool {
        self.open && serial.input_capacity() > 0
    }

    /// Moves output from the guest and input to it. True: the user wants to end.
    pub(super) fn progress(&mut self, serial: &Serial) -> bool {
        self.output.progress(serial);
        if !self.wants_input(serial) || !readable(io::stdin().as_raw_fd()) {
            return false;
        }
        let mut buffer = [0; 64];
        let room = serial.input_capacity().min(buffer.len());
        // SAFETY: the pointer and the length are those of a part of a live buffer.
        // Not through io::stdin, whose buffer would hide bytes from poll.
        let count = unsafe { libc::read(0, buffer.as_mut_ptr().cast(), room) };
        let Ok(count) = usize::try_from(count) else {
            self.open = false;
            return false;
        };
        if count == 0 {
            self.open = false;
        }
        let (keys, end) = self.unescape(&buffer[..count]);
        serial.input(&keys);
        end
    }

    fn unescape(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut keys = Vec::with_capacity(input.len());
        for byte in input {
            match (std::mem::take(&mut self.escaped), *byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x') => return (keys, true),
                (_, byte) => keys.push(byte),
            }
        }
        (keys, false)
    }
}

fn readable(fd: i32) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is to one live pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_ends() {
        let mut terminal = Terminal {
            open: true,
            output: StandardOutput::open(),
            escaped: false,
            _terminal: None,
        };
        assert_eq!(terminal.unescape(b"ab\x01"), (b"ab".to_vec(), false));
        assert_eq!(terminal.unescape(b"\x01c"), (b"\x01c".to_vec(), false));
        assert_eq!(terminal.unescape(b"d\x01x"), (b"d".to_vec(), true));
    }
}
