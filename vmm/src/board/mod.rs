//! What firmware finds beside the devices of every machine: a configuration device, a
//! flash with variables, CMOS memory, power management. There only in a machine that
//! has firmware; a guest that is past its firmware has no need of it but for variables
//! and the firmware's own way to switch off.
//!
//! [`fw_cfg`], [`flash`], [`cmos`] and [`power`] are register machines without I/O. This
//! puts them on the bus, with the clocks and the file that they need.

pub mod cmos;
pub mod flash;
pub mod fw_cfg;
pub mod power;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use self::cmos::Cmos;
use self::flash::Flash;
use self::fw_cfg::FwCfg;
use self::power::Control;
use crate::arch::layout::firmware::{PORT_CMOS, PORT_FW_CFG, PORT_PM_TIMER, PORT_PM1_CONTROL};

const PORT_CMOS_DATA: u16 = PORT_CMOS + 1;
const PORT_FW_CFG_DATA: u16 = PORT_FW_CFG + 1;

/// Bytes that show the status around where a command was written: as many as are read at
/// once.
const WORD: usize = 8;

/// Memory that the guest reads the flash from without an exit, and can't write.
pub trait Window: Send {
    /// Shows these bytes at an offset.
    fn show(&self, offset: usize, bytes: &[u8]);
}

/// What variables are kept in.
pub trait Kept: Send {
    /// Writes bytes at an offset, behind all that was written before, and waits until they
    /// are there.
    ///
    /// # Errors
    /// When that can't be, or one that nobody has waited for could not be written.
    fn write(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()>;

    /// The same for who can't wait. False: it is not taken.
    fn write_later(&self, bytes: Vec<u8>, offset: u64) -> bool;
}

/// A file that needn't be waited for.
impl Kept for File {
    fn write(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        self.write_all_at(&bytes, offset)
    }

    fn write_later(&self, bytes: Vec<u8>, offset: u64) -> bool {
        self.write_all_at(&bytes, offset).is_ok()
    }
}

/// Variables: where they are for the guest, and the file that they are kept in.
///
/// What the guest reads in a window is the content, but for the word at which a driver
/// has begun a command: there it looks for the status, and nowhere else.
struct Variables {
    range: Range<u64>,
    flash: Flash,
    file: Box<dyn Kept>,
    window: Option<Box<dyn Window>>,
    /// The word that shows the status.
    status_at: Option<usize>,
}

/// What of it has a state.
struct State {
    fw_cfg: FwCfg,
    cmos: Cmos,
    control: Control,
    variables: Option<Variables>,
}

/// All of it.
pub struct Board {
    state: Mutex<State>,
    began: Instant,
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Board {
    /// A board without configuration and variables.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                fw_cfg: FwCfg::default(),
                cmos: Cmos::new(0, 0),
                control: Control::default(),
                variables: None,
            }),
            began: Instant::now(),
        }
    }

    /// Has firmware find this.
    pub fn configure(&self, fw_cfg: FwCfg, cmos: Cmos) {
        let mut state = self.lock();
        state.fw_cfg = fw_cfg;
        state.cmos = cmos;
    }

    /// Whether [`Self::keep`] was called.
    #[must_use]
    pub fn has_variables(&self) -> bool {
        self.lock().variables.is_some()
    }

    /// Puts variables at a guest-physical address: all that is in a file, where they are
    /// kept.
    /// The guest reads them in the window, if there is one, and by exits else.
    pub fn keep(
        &self,
        start: u64,
        content: Vec<u8>,
        file: impl Kept + 'static,
        window: Option<Box<dyn Window>>,
    ) {
        let range = start..start + content.len() as u64;
        if let Some(window) = &window {
            window.show(0, &content);
        }
        self.lock().variables = Some(Variables {
            range,
            flash: Flash::new(content),
            file: Box::new(file),
            window,
            status_at: None,
        });
    }

    /// As after power-on. Variables stay, and so does the configuration.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.fw_cfg.reset();
        state.control = Control::default();
        if let Some(variables) = &mut state.variables {
            variables.flash.reset();
            variables.show(0..0, None);
            variables.save_later();
        }
    }

    /// Whether a port is the board's.
    #[must_use]
    pub fn has(port: u16) -> bool {
        matches!(
            port,
            PORT_CMOS | PORT_CMOS_DATA | PORT_FW_CFG | PORT_FW_CFG_DATA
        ) || port == PORT_PM1_CONTROL
            || port == PORT_PM_TIMER
    }

    /// Reads a port of the board.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        let mut state = self.lock();
        match port {
            PORT_CMOS => state.cmos.read(cmos::Port::Index, data, now()),
            PORT_CMOS_DATA => state.cmos.read(cmos::Port::Data, data, now()),
            PORT_FW_CFG => state.fw_cfg.read(fw_cfg::Port::Selector, data),
            PORT_FW_CFG_DATA => state.fw_cfg.read(fw_cfg::Port::Data, data),
            PORT_PM1_CONTROL => state.control.read(data),
            PORT_PM_TIMER => {
                let elapsed = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(0);
                let value = power::timer(elapsed).to_le_bytes();
                data.fill(0);
                data.iter_mut().zip(value).for_each(|(to, from)| *to = from);
            }
            _ => data.fill(0xff),
        }
    }

    /// Writes a port of the board. Returns whether the machine is to be switched off.
    #[must_use]
    pub fn port_write(&self, port: u16, data: &[u8]) -> bool {
        let mut state = self.lock();
        match port {
            PORT_CMOS => state.cmos.write(cmos::Port::Index, data),
            PORT_CMOS_DATA => state.cmos.write(cmos::Port::Data, data),
            PORT_FW_CFG => state.fw_cfg.write(fw_cfg::Port::Selector, data),
            PORT_FW_CFG_DATA => state.fw_cfg.write(fw_cfg::Port::Data, data),
            PORT_PM1_CONTROL => return state.control.write(data),
            _ => {}
        }
        false
    }

    /// Reads variables. False: there are none at the address.
    #[must_use]
    pub fn memory_read(&self, address: u64, data: &mut [u8]) -> bool {
        let state = self.lock();
        let Some(variables) = &state.variables else {
            return false;
        };
        let offset = variables.offset(address);
        if let Some(offset) = offset {
            variables.flash.read(offset, data);
        }
        offset.is_some()
    }

    /// Writes variables. False: there are none at the address.
    #[must_use]
    pub fn memory_write(&self, address: u64, data: &[u8]) -> bool {
        let mut state = self.lock();
        let Some(variables) = &mut state.variables else {
            return false;
        };
        let offset = variables.offset(address);
        if let Some(offset) = offset {
            let unsaved = variables.flash.write(offset, data);
            let erased = unsaved.clone().unwrap_or(0..0);
            variables.save(unsaved);
            variables.show(erased, Some(offset));
        }
        offset.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Registers are never left half-written, so poison means nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Variables {
    fn offset(&self, address: u64) -> Option<usize> {
        let inside = self.range.contains(&address);
        let offset = address.checked_sub(self.range.start).filter(|_| inside);
        offset.and_then(|offset| usize::try_from(offset).ok())
    }

    /// Has the window show what is true after a write at an offset, by which this range
    /// is another.
    fn show(&mut self, changed: Range<usize>, written: Option<usize>) {
        let Some(window) = &self.window else { return };
        let content = |range: Range<usize>| {
            if let Some(bytes) = self.flash.data().get(range.clone()) {
                window.show(range.start, bytes);
            }
        };
        content(changed);
        let word = |at: usize| at..at + WORD;
        if let Some(at) = self.status_at.take() {
            content(word(at));
        }
        let Some(at) = written.map(|offset| offset / WORD * WORD) else {
            return;
        };
        content(word(at));
        if !self.flash.shows_content() {
            let mut status = [0; WORD];
            self.flash.read(at, &mut status);
            window.show(at, &status);
            self.status_at = Some(at);
        }
    }

    /// Writes through to the file. If that fails, firmware reads so from the status, and
    /// the next that is written there may do.
    fn save(&mut self, range: Option<Range<usize>>) {
        if let Some(range) = range
            && self.write(range).is_err()
        {
            self.flash.failed();
        }
    }

    fn write(&self, range: Range<usize>) -> io::Result<()> {
        let bytes = self.flash.data().get(range.clone());
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        self.file.write(bytes.to_vec(), range.start as u64)
    }

    /// Has what was programmed written, by whoever has the time: not by the thread that
    /// calls this. Where nobody takes it, that is the next command's to do.
    fn save_later(&mut self) {
        let Some(range) = self.flash.take_unsaved() else {
            return;
        };
        let bytes = self.flash.data().get(range.clone()).unwrap_or_default();
        if !self.file.write_later(bytes.to_vec(), range.start as u64) {
            self.flash.is_unsaved(range);
        }
    }
}

impl Drop for Board {
    /// What was programmed is kept, though the machine ended before its firmware was done.
    fn drop(&mut self) {
        let mut state = self.lock();
        if let Some(variables) = &mut state.variables {
            variables.save_later();
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn board() -> (Board, File) {
        let file = tempfile::tempfile().expect("file");
        let board = Board::new();
        board.keep(
            0x1000,
            vec![0xff; 8192],
            file.try_clone().expect("file"),
            None,
        );
        (board, file)
    }

    #[test]
    fn variables_are_written_through() {
        let (board, mut file) = board();
        file.set_len(8192).expect("sized");
        assert!(!board.memory_read(0xfff, &mut [0]));
        assert!(!board.memory_write(0x3000, &[0x10]));
        for byte in [&[0x10][..], b"x", &[0xff]] {
            assert!(board.memory_write(0x1005, byte));
        }
        let mut data = [0; 2];
        assert!(board.memory_read(0x1004, &mut data));
        assert_eq!(data, [0xff, b'x']);
        // Not done with, and then the machine is gone.
        for byte in [&[0x10][..], b"y"] {
            assert!(board.memory_write(0x1007, byte));
        }
        drop(board);
        let mut kept = Vec::new();
        file.read_to_end(&mut kept).expect("read");
        assert_eq!(kept[..9], *b"\0\0\0\0\0x\0y\0");
    }

    /// Takes nothing later, while it is full.
    struct Full(File, std::sync::Arc<std::sync::atomic::AtomicBool>);

    impl Kept for Full {
        fn write(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
            self.0.write(bytes, offset)
        }

        fn write_later(&self, bytes: Vec<u8>, offset: u64) -> bool {
            let is_full = self.1.load(std::sync::atomic::Ordering::SeqCst);
            !is_full && self.0.write_later(bytes, offset)
        }
    }

    #[test]
    fn what_nobody_takes_at_a_reset_is_saved_by_the_next_command() {
        let mut file = tempfile::tempfile().expect("file");
        file.set_len(4096).expect("sized");
        let is_full = std::sync::Arc::new(true.into());
        let kept = Full(
            file.try_clone().expect("file"),
            std::sync::Arc::clone(&is_full),
        );
        let board = Board::new();
        board.keep(0, vec![0; 4096], kept, None);
        let program = |at, byte| {
            assert!(board.memory_write(at, &[0x10]));
            assert!(board.memory_write(at, &[byte]));
        };
        program(1, b'a');
        board.reset();
        board.reset();
        program(2, b'b');
        assert!(board.memory_write(0, &[0xff]));
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes).expect("read");
        assert_eq!(bytes, *b"\0ab\0");
        program(3, b'c');
        is_full.store(false, std::sync::atomic::Ordering::SeqCst);
        board.reset();
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert_eq!(bytes, *b"\0abc");
    }

    struct Shown(std::sync::Arc<Mutex<Vec<u8>>>);

    impl Window for Shown {
        fn show(&self, offset: usize, bytes: &[u8]) {
            let mut shown = self.0.lock().expect("no panic while held");
            shown[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    #[test]
    fn a_window_shows_content_and_the_status_where_it_is_looked_for() {
        let shown = std::sync::Arc::new(Mutex::new(vec![0; 8192]));
        let window = Box::new(Shown(std::sync::Arc::clone(&shown)));
        let board = Board::new();
        let file = tempfile::tempfile().expect("file");
        board.keep(0, vec![7; 8192], file, Some(window));
        let write = |at, byte| assert!(board.memory_write(at, &[byte]));
        let at = |at: usize| shown.lock().expect("no panic while held")[at];
        let all = |range: Range<usize>, byte| range.into_iter().all(|one| at(one) == byte);
        assert!(all(0..8192, 7));
        write(5, 0x70);
        assert!(
            all(0..8, 0) && all(8..8192, 7),
            "status, and content elsewhere"
        );
        write(5, 0xff);
        assert!(all(0..8192, 7));
        write(100, 0x10);
        write(100, 9);
        write(107, 0x10);
        write(107, 8);
        assert!(at(100) == 9 && all(104..112, 0x80));
        write(107, 0xff);
        assert!(at(107) == 8 && all(104..107, 7));
        write(4100, 0x20);
        write(4100, 0xd0);
        assert!(all(4104..8192, 0xff) && all(4096..4104, 0x80));
        board.reset();
        assert!(all(4096..8192, 0xff) && at(100) == 9);
    }

    #[test]
    fn a_file_that_takes_nothing_is_told_by_the_status() {
        let board = Board::new();
        let null = File::open("/dev/null").expect("read only");
        board.keep(0, vec![0; 4096], null, None);
        for byte in [0x20, 0xd0] {
            assert!(board.memory_write(0, &[byte]));
        }
        let mut status = [0];
        assert!(board.memory_read(0, &mut status));
        assert_eq!(status, [0x90]);
    }

    #[test]
    fn each_port_reaches_its_register() {
        let board = Board::new();
        for port in 0..=u16::MAX {
            let mut data = [0x55; 4];
            board.port_read(port, &mut data);
            assert_eq!(data == [0xff; 4], !Board::has(port) || port >> 1 == 0x38);
        }
        let mut first = [0; 4];
        board.port_read(PORT_PM_TIMER, &mut first);
        assert!(board.port_write(PORT_PM1_CONTROL, &[0, 0x20]));
        assert!(!board.port_write(PORT_CMOS, &[0x0d]));
        let mut data = [0];
        board.port_read(PORT_CMOS_DATA, &mut data);
        assert_eq!(data, [0x80]);
        assert!(!board.port_write(PORT_FW_CFG, &[0, 0]));
        board.port_read(PORT_FW_CFG_DATA, &mut data);
        assert_eq!(data, *b"Q");
    }
}
