//! The console's second port: as a virtio console reaches it, beside the UART.
//!
//! ```text
//!  device thread ── write ──► output ──► Outlet, by the main loop
//!       ▲  └────── read_input ◄── input ◄── clients, terminal
//!       └─ bell: input came, or output was taken
//! ```
//! Both ways are bounded memory: the thread serves other devices too, and must not wait
//! for a log's disk. The main loop takes output as it comes by, for
//! which nobody calls it before its [`TICK`](super::TICK); a guest that writes faster is
//! held back by its queue.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The most bytes of input that wait for the guest: as many as a Linux terminal keeps
/// (`N_TTY_BUF_SIZE`).
pub const INPUT_ROOM: usize = 4096;
/// With as many bytes of output waiting, there is no room for more.
const OUTPUT_ROOM: usize = 64 << 10;

#[derive(Default)]
struct State {
    input: VecDeque<u8>,
    output: Vec<u8>,
    is_open: bool,
    /// The main loop will come by without being called.
    is_attended: bool,
}

/// A port of the console beside COM1. While it is open, what is typed goes here.
pub struct ConsolePort {
    state: Mutex<State>,
    bell: EventFd,
    input_read: Arc<EventFd>,
    output_waits: Arc<EventFd>,
}

impl ConsolePort {
    pub(super) fn new(input_read: Arc<EventFd>, output_waits: Arc<EventFd>) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            input_read,
            output_waits,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rung for the device: there is input, or room for output again.
    #[must_use]
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// A driver is there: input goes to it from now on.
    pub fn open(&self) {
        self.lock().is_open = true;
        self.input_has_room();
    }

    /// The driver is gone, and with it the input that it hasn't read. What is typed goes
    /// to COM1 again.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_open = false;
        state.input.clear();
        drop(state);
        self.input_has_room();
    }

    /// Has the main loop ask again where input has room.
    fn input_has_room(&self) {
        // Only a full counter makes this fail, and then the reader is awake anyway.
        let _ = self.input_read.write(1);
    }

    /// Whether more output is taken.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.lock().output.len() < OUTPUT_ROOM
    }

    /// Takes output of the guest, all of it: the caller has asked whether it
    /// [has room](Self::has_room).
    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.output.extend_from_slice(bytes);
        let was_attended = std::mem::replace(&mut state.is_attended, true);
        drop(state);
        if !was_attended {
            // As above.
            let _ = self.output_waits.write(1);
        }
    }

    /// Whether input waits for the guest.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.lock().input.is_empty()
    }

    /// The oldest input, at most `count` bytes, which are then read.
    #[must_use]
    pub fn read_input(&self, count: usize) -> Vec<u8> {
        let mut state = self.lock();
        let count = count.min(state.input.len());
        let bytes = state.input.drain(..count).collect();
        drop(state);
        self.input_has_room();
        bytes
    }

    /// The input that waits, the oldest byte first.
    #[must_use]
    pub fn input(&self) -> Vec<u8> {
        self.lock().input.iter().copied().collect()
    }

    /// Has this input wait, in place of what does. False: it is more than has room, and
    /// nothing is changed.
    #[must_use]
    pub fn set_input(&self, input: &[u8]) -> bool {
        let fits = input.len() <= INPUT_ROOM;
        if fits {
            self.lock().input = input.iter().copied().collect();
        }
        fits
    }

    /// Room for input in bytes, while it is open.
    pub(super) fn input_capacity(&self) -> Option<usize> {
        let state = self.lock();
        state.is_open.then(|| INPUT_ROOM - state.input.len())
    }

    /// Gives the guest input; what doesn't fit is dropped. False: it isn't open.
    pub(super) fn type_in(&self, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        if !state.is_open {
            return false;
        }
        let room = INPUT_ROOM - state.input.len();
        state.input.extend(bytes.iter().take(room));
        drop(state);
        let _ = self.bell.write(1);
        true
    }

    /// The output that waits. If there is any, the main loop comes by again.
    pub(super) fn take_output(&self) -> Vec<u8> {
        let mut state = self.lock();
        let output = std::mem::take(&mut state.output);
        state.is_attended = !output.is_empty();
        drop(state);
        if output.len() >= OUTPUT_ROOM {
            let _ = self.bell.write(1);
        }
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serial::{Output, Serial};

    fn serial() -> (Serial, Arc<ConsolePort>) {
        let file = tempfile::tempfile().expect("a file");
        let serial = Serial::new(Output::log(file).expect("a log")).expect("a UART");
        let port = serial.console_port().expect("a port");
        (serial, port)
    }

    #[test]
    fn input_goes_to_the_port_while_it_is_open() {
        let (serial, port) = serial();
        let uart = serial.input_capacity();
        serial.input(b"a");
        assert!(!port.has_input());
        assert_eq!(serial.input_capacity(), uart - 1);
        port.open();
        assert!(serial.input_read().read().is_ok(), "there is other room");
        assert_eq!(serial.input_capacity(), INPUT_ROOM);
        serial.input(b"bcd");
        assert!(port.bell().read().is_ok());
        assert_eq!(port.read_input(2), b"bc");
        assert!(serial.input_read().read().is_ok());
        serial.input(&[b'x'; 2 * INPUT_ROOM]);
        assert_eq!(serial.input_capacity(), 0);
        port.close();
        assert!(!port.has_input());
        assert_eq!(serial.input_capacity(), uart - 1);
    }

    #[test]
    fn output_of_both_ports_is_one_console() {
        let (serial, port) = serial();
        serial.keep_recent().expect("kept");
        serial.write(0, b"a");
        port.write(b"bc");
        assert!(serial.output_waits().read().is_ok());
        serial.progress();
        serial.write(0, b"d");
        let mut text = Vec::new();
        serial.recent(0, 100, &mut text);
        assert_eq!(text, b"abcd");
    }

    #[test]
    fn the_main_loop_comes_by_its_tick_however_much_there_is() {
        let (serial, port) = serial();
        let rung = || serial.output_waits().read().is_ok();
        port.write(b"a");
        assert!(rung());
        for _ in 0..2 {
            port.write(&[b'b'; OUTPUT_ROOM]);
            assert!(serial.progress());
            assert!(!rung(), "a tick will come");
        }
        assert!(!serial.progress());
        port.write(b"c");
        assert!(rung());
    }

    #[test]
    fn a_full_port_rings_once_it_has_room() {
        let (serial, port) = serial();
        port.write(b"a");
        serial.progress();
        assert!(port.bell().read().is_err(), "nobody waits");
        port.write(&[b'b'; OUTPUT_ROOM]);
        assert!(!port.has_room());
        serial.progress();
        assert!(port.bell().read().is_ok());
        assert!(port.has_room());
    }

    #[test]
    fn more_input_than_there_is_room_for_is_refused() {
        let (_serial, port) = serial();
        assert!(port.set_input(b"abc"));
        assert!(!port.set_input(&[0; INPUT_ROOM + 1]));
        assert_eq!(port.input(), b"abc");
    }
}
