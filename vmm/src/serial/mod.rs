//! The console. COM1 is a 16550 (rust-vmm's register machine) whose output goes to a
//! bounded log file or to standard output, and whose input comes from the terminal, or
//! who is attached to the console socket. A virtio console has a second port of it
//! ([`ConsolePort`]).
//!
//! ```text
//!  vCPU ─► UART ─► Outlet ──► log
//!   ▲       ▲        └─ the newest 64 KiB ─► Console ─► clients
//!   │       │                     └────────► StandardOutput
//!   └─ irq ─┴─────────── input ◄────────────────┘
//! ```

#![allow(unsafe_code, reason = "termios(3)")]

mod console;
mod feed;
mod log;
mod outlet;
mod port;
mod state;
mod stdout;

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::outlet::Outlet;

pub use self::console::Console;
pub use self::log::BoundedLog;
pub use self::outlet::{Output, TICK};
pub use self::port::{ConsolePort, INPUT_ROOM};
pub use self::state::SerialV1;
pub use self::stdout::StandardOutput;

#[derive(Clone)]
struct Sink(Arc<Mutex<Outlet>>);

impl Sink {
    fn lock(&self) -> MutexGuard<'_, Outlet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone)]
struct Interrupt(Arc<EventFd>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the console when the guest has read all its input.
#[derive(Clone)]
struct InputRead(Arc<EventFd>);

impl SerialEvents for InputRead {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Only a full counter makes this fail, and then the reader is awake anyway.
        let _ = self.0.write(1);
    }
}

/// Registers, by their offset, and bits of them. National Semiconductor PC16550D,
/// section 8.
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;
const RECEIVED: u8 = 1;
const DIVISOR_LATCH: u8 = 1 << 7;
const NO_INTERRUPT: u8 = 1;
/// Received data, with the FIFOs in use.
const DATA_AVAILABLE: u8 = 0xc4;

/// Reads what the interrupt is for. Data that wait are a reason as long as one of them
/// is there (section 8.6, table 4). The register machine forgets that with the first
/// byte read; Linux leaves off after 256 bytes, looks here for more, and with
/// nothing seen, the rest would wait for the next key.
fn identify(uart: &mut Uart<Interrupt, InputRead, Sink>) -> u8 {
    let reason = uart.read(INTERRUPT_IDENTIFICATION);
    // With the divisor latch open, the enable register isn't there to be read.
    let latched = uart.read(LINE_CONTROL) & DIVISOR_LATCH != 0;
    let waits = !latched
        && uart.read(LINE_STATUS) & RECEIVED != 0
        && uart.read(INTERRUPT_ENABLE) & RECEIVED != 0;
    if reason & NO_INTERRUPT != 0 && waits {
        DATA_AVAILABLE
    } else {
        reason
    }
}

/// COM1, on the bus and on the console.
pub struct Serial {
    uart: Mutex<Uart<Interrupt, InputRead, Sink>>,
    sink: Sink,
    interrupt: Interrupt,
    input_read: InputRead,
    output_waits: Arc<EventFd>,
    /// Beside the UART, where the machine has a virtio console.
    port: OnceLock<Arc<ConsolePort>>,
}

impl Serial {
    /// A UART after power-on.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new(output: Output) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        let output_waits = event()?;
        let outlet = Outlet::new(output, Arc::clone(&output_waits));
        let sink = Sink(Arc::new(Mutex::new(outlet)));
        let interrupt = Interrupt(event()?);
        let input_read = InputRead(event()?);
        Ok(Self {
            uart: Mutex::new(Uart::with_events(
                interrupt.clone(),
                input_read.clone(),
                sink.clone(),
            )),
            sink,
            interrupt,
            input_read,
            output_waits,
            port: OnceLock::new(),
        })
    }

    /// The console's other port, the same at each call: what is written there is output
    /// too, and takes the input while it is open.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn console_port(&self) -> io::Result<Arc<ConsolePort>> {
        let (input_read, output_waits) = (&self.input_read.0, &self.output_waits);
        let port = ConsolePort::new(Arc::clone(input_read), Arc::clone(output_waits))?;
        Ok(Arc::clone(self.port.get_or_init(|| Arc::new(port))))
    }

    /// What raises its interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt.0
    }

    /// Signalled whenever the guest has read all input there was.
    #[must_use]
    pub fn input_read(&self) -> &EventFd {
        &self.input_read.0
    }

    /// Signalled when there is output after a while without: [`Self::progress`] is due.
    #[must_use]
    pub fn output_waits(&self) -> &EventFd {
        &self.output_waits
    }

    /// Carries output on to where it goes. Returns whether to call this again after
    /// [`TICK`]; if not, [`Self::output_waits`] is signalled then.
    pub fn progress(&self) -> bool {
        let mut sink = self.sink.lock();
        if let Some(port) = self.port.get() {
            sink.carry(&port.take_output());
        }
        sink.progress()
    }

    /// Remembers the newest output from now on, beginning with that of the log.
    fn keep_recent(&self) -> io::Result<()> {
        self.sink.lock().keep_recent()
    }

    /// The number of the oldest byte of output that is remembered.
    fn recent_start(&self) -> u64 {
        self.sink.lock().recent_start()
    }

    /// Appends up to `count` bytes of output from number `from` on.
    fn recent(&self, from: u64, count: usize, to: &mut Vec<u8>) -> outlet::Read {
        self.sink.lock().read(from, count, to)
    }

    /// Reads a register. All are one byte wide; a wider access reads ones behind.
    pub fn read(&self, register: u8, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = match register {
                INTERRUPT_IDENTIFICATION => identify(&mut self.lock()),
                _ => self.lock().read(register),
            };
        }
    }

    /// Writes a register.
    pub fn write(&self, register: u8, data: &[u8]) {
        if let [value] = data {
            // It fails when the interrupt can't be raised, and then is lost.
            let _ = self.lock().write(register, *value);
        }
    }

    /// How many bytes of input there is room for.
    #[must_use]
    pub fn input_capacity(&self) -> usize {
        let port = self.port.get().and_then(|port| port.input_capacity());
        port.unwrap_or_else(|| self.lock().fifo_capacity())
    }

    /// Gives the guest input; what does not fit is dropped.
    pub fn input(&self, bytes: &[u8]) {
        if !self.port.get().is_some_and(|port| port.type_in(bytes)) {
            let _ = self.lock().enqueue_raw_bytes(bytes);
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        *self.lock() = Uart::with_events(
            self.interrupt.clone(),
            self.input_read.clone(),
            self.sink.clone(),
        );
    }

    fn lock(&self) -> MutexGuard<'_, Uart<Interrupt, InputRead, Sink>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts a terminal into raw mode until dropped, so that every key reaches the
/// guest. (The tests have no terminal.)
#[derive(Debug)]
pub struct RawTerminal {
    saved: libc::termios,
}

impl RawTerminal {
    /// Makes standard input raw, if it is a terminal.
    #[must_use]
    pub fn enter() -> Option<Self> {
        let fd = io::stdin().as_raw_fd();
        // SAFETY: termios is plain data, for which all zeros are a value.
        let mut saved: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live termios; on no terminal the call fails.
        if unsafe { libc::tcgetattr(fd, &raw mut saved) } != 0 {
            return None;
        }
        let mut raw = saved;
        // SAFETY: the pointer is to a live termios that tcgetattr has filled.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // SAFETY: as above.
        (unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const raw) } == 0)
            .then_some(Self { saved })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // SAFETY: the pointer is to the live termios that tcgetattr filled.
        unsafe {
            libc::tcsetattr(
                io::stdin().as_raw_fd(),
                libc::TCSANOW,
                &raw const self.saved,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn output_reaches_the_log_and_input_the_guest() {
        let file = tempfile::tempfile().expect("file");
        let mut view = file.try_clone().expect("clone");
        let serial = Serial::new(Output::log(file).expect("log")).expect("serial");
        for byte in b"hi\n" {
            serial.write(0, &[*byte]);
        }
        serial.progress();
        let mut text = String::new();
        view.rewind().expect("rewind");
        view.read_to_string(&mut text).expect("read");
        assert_eq!(text, "hi\n");

        serial.input(b"x");
        let mut byte = [0];
        serial.read(0, &mut byte);
        assert_eq!(&byte, b"x");
        assert_eq!(serial.input_read().read().expect("signalled"), 1);
    }

    #[test]
    fn input_that_waits_is_a_reason_until_the_last_byte() {
        let serial = Serial::new(Output::log(tempfile::tempfile().expect("file")).expect("log"))
            .expect("serial");
        let read = |register| {
            let mut byte = [0];
            serial.read(register, &mut byte);
            byte[0]
        };
        serial.write(INTERRUPT_ENABLE, &[RECEIVED]);
        serial.input(b"abc");
        for byte in b"abc" {
            // Whether a byte was read since or only this register.
            assert_eq!(read(INTERRUPT_IDENTIFICATION), DATA_AVAILABLE);
            assert_eq!(read(INTERRUPT_IDENTIFICATION), DATA_AVAILABLE);
            assert_eq!(read(0), *byte);
        }
        assert_eq!(read(INTERRUPT_IDENTIFICATION), 0xc1);
        // Nobody asks, or the enable register is not there.
        serial.input(b"d");
        serial.write(LINE_CONTROL, &[DIVISOR_LATCH]);
        read(INTERRUPT_IDENTIFICATION);
        assert_eq!(read(INTERRUPT_IDENTIFICATION), 0xc1);
        serial.write(LINE_CONTROL, &[0]);
        serial.write(INTERRUPT_ENABLE, &[0]);
        read(INTERRUPT_IDENTIFICATION);
        assert_eq!(read(INTERRUPT_IDENTIFICATION), 0xc1);
    }

    #[test]
    fn input_interrupts_a_guest_that_asked_for_it() {
        let log = Output::log(tempfile::tempfile().expect("file")).expect("log");
        let serial = Serial::new(log).expect("serial");
        serial.input(b"a");
        assert!(serial.interrupt().read().is_err(), "nobody asked");
        serial.write(INTERRUPT_ENABLE, &[RECEIVED]);
        serial.input(b"b");
        assert!(serial.interrupt().read().is_ok());
        assert!(serial.input_read().read().is_err(), "not all was read");
    }

    #[test]
    fn the_main_loop_comes_as_long_as_there_is_output() {
        let log = Output::log(tempfile::tempfile().expect("file")).expect("log");
        let serial = Serial::new(log).expect("serial");
        assert!(!serial.progress());
        serial.write(0, b"x");
        assert!(serial.output_waits().read().is_ok());
        assert!(serial.progress());
        serial.write(0, b"y");
        assert!(serial.output_waits().read().is_err(), "it comes by itself");
        assert!(serial.progress());
        assert!(!serial.progress());
    }

    #[test]
    fn what_is_remembered_begins_with_the_log_and_is_bounded() {
        let file = tempfile::tempfile().expect("file");
        (&file).write_all(b"before ").expect("write");
        let serial = Serial::new(Output::log(file).expect("log")).expect("serial");
        serial.write(0, b"a");
        serial.keep_recent().expect("kept");
        serial.write(0, b"b");
        let mut text = Vec::new();
        let read = serial.recent(0, 100, &mut text);
        assert_eq!((read.lost, read.next, &text[..]), (0, 9, &b"before ab"[..]));
        assert_eq!(serial.recent_start(), 0);
        for _ in 0..64 << 10 {
            serial.write(0, b"c");
        }
        assert_eq!(serial.recent_start(), 9);
        let read = serial.recent(2, 1, &mut text);
        assert_eq!((read.lost, read.next), (7, 10));
    }

    #[test]
    fn reset_forgets_the_input() {
        let serial = Serial::new(Output::log(tempfile::tempfile().expect("file")).expect("log"))
            .expect("serial");
        serial.input(b"abc");
        let before = serial.input_capacity();
        serial.reset();
        assert_eq!(serial.input_capacity(), before + 3);
    }
}
