//! MSI-X: a table of messages, a mask for each and for all, and pending bits.
//!
//! PCI Local Bus 3.0, section 6.8.2. [`Msix`] is shared between the function's
//! registers (written by vCPUs) and the device threads that signal, so each
//! vector has its own lock: what is signalled while masked becomes pending under
//! the same lock that unmasks it, and no interrupt is lost between.

#![allow(unsafe_code, reason = "dup(2) of an eventfd")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::irq::{Interrupts, MsiMessage, MsiVector};
use crate::snapshot::Refused;
use crate::sync::{AtomicBool, Mutex, MutexGuard};

/// Capability ID of MSI-X. PCI Local Bus 3.0, appendix H.
pub const CAPABILITY_ID: u8 = 0x11;

/// Bytes of one table entry. Section 6.8.2.6: address, upper address, data,
/// vector control.
pub const ENTRY_SIZE: usize = 16;

/// The most vectors we give one function; the table and its pending bits then fit
/// one page each.
pub const MAX_VECTORS: u16 = 256;

/// Message control bit 15: MSI-X enable.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control bit 14: function mask.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Vector control bit 0: mask. Set after reset.
const VECTOR_MASKED: u8 = 1;
/// Where vector control stands in an entry.
const VECTOR_CONTROL: usize = 12;

/// One vector, saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorV1 {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Its own mask.
    pub masked: bool,
    /// Whether an interrupt waits until nothing masks it.
    pub pending: bool,
}

/// [`Msix`], saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixV1 {
    /// Whether software has enabled it.
    pub enabled: bool,
    /// The function's mask.
    pub masked: bool,
    /// Every vector.
    pub vectors: Vec<VectorV1>,
}

impl MsixV1 {
    /// Whether message control says so too.
    #[must_use]
    pub fn is_of(&self, control: u16) -> bool {
        self.enabled == (control & CONTROL_ENABLE != 0)
            && self.masked == (control & CONTROL_FUNCTION_MASK != 0)
    }
}

/// An entry after reset.
const fn masked_entry() -> [u8; ENTRY_SIZE] {
    let mut entry = [0; ENTRY_SIZE];
    entry[VECTOR_CONTROL] = VECTOR_MASKED;
    entry
}

struct State {
    entry: [u8; ENTRY_SIZE],
    pending: bool,
    /// The route that the interrupt controller has; `None` is masked.
    routed: Option<MsiMessage>,
}

struct Vector {
    state: Mutex<State>,
    way: Arc<dyn MsiVector>,
}

impl Vector {
    /// Whether an interrupt waits for the mask to fall: one of ours, or one of a back end
    /// in the kernel.
    fn is_pending(&self) -> bool {
        let state = lock(&self.state);
        state.pending || (state.routed.is_none() && is_written(self.way.eventfd()))
    }
}

/// Whether an event was written and not yet read.
fn is_written(event: &EventFd) -> bool {
    let mut interest = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is to one live `pollfd`.
    unsafe { libc::poll(&raw mut interest, 1, 0) == 1 }
}

/// Forgets that an event was written. Waits for nobody, whatever the file's flags say: a
/// back end in another process has the same file, and with it the flags (`F_SETFL`).
fn drain(event: &EventFd) {
    let mut count = 0u64;
    let part = libc::iovec {
        iov_base: (&raw mut count).cast(),
        iov_len: size_of::<u64>(),
    };
    // SAFETY: the pointer is to one part, which is eight live bytes. It fails where nothing
    // was written.
    let _ = unsafe { libc::preadv2(event.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
}

/// Rings an event that a back end in another process has, too: one that is full is rung
/// already, and is not waited for where that one has made it blocking.
pub(crate) fn ring(event: &EventFd) {
    let mut interest = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: the pointer is to one live `pollfd`.
    if unsafe { libc::poll(&raw mut interest, 1, 0) } == 1 {
        let _ = event.write(1);
    }
}

/// The vectors of one function.
pub struct Msix {
    vectors: Vec<Vector>,
    enabled: AtomicBool,
    masked: AtomicBool,
}

impl Msix {
    /// Takes `count` vectors, all masked.
    ///
    /// # Errors
    /// When the interrupt controller has none left, or `count` is 0 or too many.
    pub fn new(count: u16, interrupts: &dyn Interrupts) -> io::Result<Self> {
        if count == 0 || count > MAX_VECTORS {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let vectors = (0..count)
            .map(|_| {
                Ok(Vector {
                    state: Mutex::new(State {
                        entry: masked_entry(),
                        pending: false,
                        routed: None,
                    }),
                    way: interrupts.msi_vector()?,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            vectors,
            enabled: AtomicBool::new(false),
            masked: AtomicBool::new(false),
        })
    }

    /// Number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Never: a function with MSI-X has at least one vector.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Whether software has enabled MSI-X.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The capability's body behind ID and next pointer, and its writable mask.
    /// Table and pending bits are at these offsets of one BAR. Section 6.8.2.3.
    #[must_use]
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let last = u16::try_from(self.vectors.len().saturating_sub(1)).unwrap_or(0);
        let mut body = [0; 10];
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        let writable = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
        (body, writable.to_le_bytes())
    }

    /// Message control was written.
    pub fn set_control(&self, control: u16) {
        let enabled = control & CONTROL_ENABLE != 0;
        let masked = control & CONTROL_FUNCTION_MASK != 0;
        let changed = self.enabled.swap(enabled, Ordering::SeqCst) != enabled;
        if self.masked.swap(masked, Ordering::SeqCst) != masked || changed {
            for vector in &self.vectors {
                self.update(vector, &mut lock(&vector.state));
            }
        }
    }

    /// Reads the table. Bytes outside of it read 0.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((vector, at)) = self.locate(offset) else {
            return;
        };
        let state = lock(&vector.state);
        for (byte, value) in data.iter_mut().zip(&state.entry[at..]) {
            *byte = *value;
        }
    }

    /// Writes the table; section 6.8.2 wants aligned 4 or 8 bytes, so that no
    /// access reaches into a second entry, and one that would is cut there.
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let Some((vector, at)) = self.locate(offset) else {
            return;
        };
        let mut state = lock(&vector.state);
        for (value, byte) in state.entry[at..].iter_mut().zip(data) {
            *value = *byte;
        }
        // Reserved bits of vector control read 0.
        state.entry[VECTOR_CONTROL] &= VECTOR_MASKED;
        state.entry[VECTOR_CONTROL + 1..].fill(0);
        self.update(vector, &mut state);
    }

    /// Reads pending bits; they are read-only. Section 6.8.2.10.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = (0..8).fold(0, |bits, bit| {
                let vector = usize::try_from(at.saturating_mul(8).saturating_add(bit))
                    .ok()
                    .and_then(|index| self.vectors.get(index));
                let pending = vector.is_some_and(Vector::is_pending);
                bits | u8::from(pending) << bit
            });
        }
    }

    /// Sends a vector's interrupt, or leaves it pending while masked. A vector
    /// that doesn't exist says nothing.
    pub fn signal(&self, index: u16) {
        let Some(vector) = self.vectors.get(usize::from(index)) else {
            return;
        };
        let mut state = lock(&vector.state);
        // Under the lock, which a reset takes once it has disabled all: what comes later
        // than that must not pend for the next driver.
        if !self.enabled.load(Ordering::Acquire) {
            return;
        }
        // A write to a full eventfd is the only error; then one is on its way.
        if state.routed.is_none() || vector.way.signal().is_err() {
            state.pending = true;
        }
    }

    /// What sends a vector's interrupt, for a back end in the kernel. What it says while
    /// the vector is masked stays in the event, where KVM finds it (`KVM_IRQFD`).
    #[must_use]
    pub fn event(&self, index: u16) -> Option<EventFd> {
        let vector = self.vectors.get(usize::from(index))?;
        vector.way.eventfd().try_clone().ok()
    }

    /// Masks everything and forgets what is pending.
    pub fn reset(&self) {
        self.enabled.store(false, Ordering::SeqCst);
        self.masked.store(false, Ordering::SeqCst);
        for vector in &self.vectors {
            let mut state = lock(&vector.state);
            state.entry = masked_entry();
            state.pending = false;
            self.update(vector, &mut state);
            // What a back end said to the driver that was.
            drain(vector.way.eventfd());
        }
    }

    /// Masks, table and what is pending.
    #[must_use]
    pub fn save(&self) -> MsixV1 {
        let save = |vector: &Vector| {
            let pending = vector.is_pending();
            let entry = lock(&vector.state).entry;
            let MsiMessage { address, data } = message(&entry);
            VectorV1 {
                address,
                data,
                masked: entry[VECTOR_CONTROL] & VECTOR_MASKED != 0,
                pending,
            }
        };
        MsixV1 {
            enabled: self.enabled.load(Ordering::SeqCst),
            masked: self.masked.load(Ordering::SeqCst),
            vectors: self.vectors.iter().map(save).collect(),
        }
    }

    /// Takes over what was saved: the interrupt controller has its messages then. What is
    /// pending and not masked is sent, and nothing else.
    ///
    /// # Errors
    /// When it has another number of vectors.
    pub fn restore(&self, state: &MsixV1) -> Result<(), Refused> {
        let (own, saved) = (self.vectors.len(), state.vectors.len());
        if own != saved {
            let wrong = format!("it has {own} interrupt vectors here and {saved} there");
            return Err(Refused::because(wrong));
        }
        self.enabled.store(state.enabled, Ordering::SeqCst);
        self.masked.store(state.masked, Ordering::SeqCst);
        for (vector, saved) in self.vectors.iter().zip(&state.vectors) {
            let mut state = lock(&vector.state);
            state.entry[..8].copy_from_slice(&saved.address.to_le_bytes());
            state.entry[8..VECTOR_CONTROL].copy_from_slice(&saved.data.to_le_bytes());
            state.entry[VECTOR_CONTROL] = u8::from(saved.masked) * VECTOR_MASKED;
            state.pending = saved.pending;
            self.update(vector, &mut state);
        }
        Ok(())
    }

    fn locate(&self, offset: u64) -> Option<(&Vector, usize)> {
        let offset = usize::try_from(offset).ok()?;
        let vector = self.vectors.get(offset / ENTRY_SIZE)?;
        Some((vector, offset % ENTRY_SIZE))
    }

    /// Tells the interrupt controller what changed, and sends what was pending
    /// once nothing masks it.
    fn update(&self, vector: &Vector, state: &mut State) {
        let open = self.enabled.load(Ordering::SeqCst)
            && !self.masked.load(Ordering::SeqCst)
            && state.entry[VECTOR_CONTROL] & VECTOR_MASKED == 0;
        let wanted = open.then(|| message(&state.entry));
        if wanted != state.routed {
            let said = wanted.or(state.routed).unwrap_or_default();
            // A refused route leaves the vector masked: its interrupts pend, and
            // the next write of the entry tries again.
            state.routed = match vector.way.route(said, wanted.is_none()) {
                Ok(()) => wanted,
                Err(_) => None,
            };
        }
        if state.routed.is_some() && state.pending {
            state.pending = vector.way.signal().is_err();
        }
    }
}

/// What an entry says.
fn message(entry: &[u8; ENTRY_SIZE]) -> MsiMessage {
    let mut address = [0; 8];
    address.copy_from_slice(&entry[..8]);
    let mut data = [0; 4];
    data.copy_from_slice(&entry[8..VECTOR_CONTROL]);
    MsiMessage {
        address: u64::from_le_bytes(address),
        data: u32::from_le_bytes(data),
    }
}

/// A poisoned lock guards plain registers, which are never left half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::FakeInterrupts;
    use proptest::prelude::*;

    fn write_entry(msix: &Msix, vector: u64, address: u64, data: u32, control: u32) {
        let at = vector * 16;
        msix.table_write(at, &address.to_le_bytes());
        msix.table_write(at + 8, &data.to_le_bytes());
        msix.table_write(at + 12, &control.to_le_bytes());
    }

    #[test]
    fn an_open_vector_is_routed_and_signals() {
        let fake = FakeInterrupts::default();
        let msix = Msix::new(2, &fake).unwrap();
        msix.set_control(0x8000);
        write_entry(&msix, 1, 0xfee0_0000, 0x41, 0);
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 0x41,
        };
        assert_eq!(fake.route(1), Some((message, false)));
        msix.signal(1);
        assert_eq!(fake.signals(1), 1);
        assert_eq!(fake.signals(0), 0);
    }

    #[test]
    fn the_table_reads_as_it_was_written_but_for_what_is_reserved() {
        let msix = Msix::new(2, &FakeInterrupts::default()).unwrap();
        assert_eq!((msix.len(), msix.is_empty()), (2, false));
        let read = |offset, length: usize| {
            let mut data = vec![0xee; length];
            msix.table_read(offset, &mut data);
            data
        };
        assert_eq!(read(28, 4), [1, 0, 0, 0], "masked at first");
        write_entry(&msix, 1, 0x0123_4567_89ab_cdef, 0x1122_3344, u32::MAX);
        assert_eq!(read(16, 8), 0x0123_4567_89ab_cdefu64.to_le_bytes());
        assert_eq!(read(24, 4), 0x1122_3344u32.to_le_bytes());
        assert_eq!(read(28, 4), [1, 0, 0, 0]);
        assert_eq!(read(32, 4), [0; 4], "past the end");
    }

    #[test]
    fn the_capability_names_the_bar_and_what_can_be_written() {
        let msix = Msix::new(3, &FakeInterrupts::default()).unwrap();
        let (body, writable) = msix.capability(2, 0x1000, 0x2000);
        let expected = [2, 0, 0x02, 0x10, 0, 0, 0x02, 0x20, 0, 0];
        assert_eq!(body, expected);
        assert_eq!(writable, [0, 0xc0]);
        assert!(!msix.is_enabled());
        msix.set_control(0x8000);
        assert!(msix.is_enabled());
        msix.reset();
        assert!(!msix.is_enabled());
    }

    #[test]
    fn a_masked_vector_pends_until_unmasked() {
        let fake = FakeInterrupts::default();
        let msix = Msix::new(3, &fake).unwrap();
        msix.set_control(0x8000);
        write_entry(&msix, 2, 0xfee0_0000, 0x41, 1);
        msix.signal(2);
        assert_eq!(fake.signals(2), 0);
        let mut pending = [0; 8];
        msix.pending_read(0, &mut pending);
        assert_eq!(pending, [4, 0, 0, 0, 0, 0, 0, 0]);
        msix.table_write(44, &[0; 4]);
        assert_eq!(fake.signals(2), 1);
        msix.pending_read(0, &mut pending);
        assert_eq!(pending, [0; 8]);
    }

    #[test]
    fn the_function_mask_holds_all_back() {
        let fake = FakeInterrupts::default();
        let msix = Msix::new(1, &fake).unwrap();
        write_entry(&msix, 0, 0xfee0_0000, 0x41, 0);
        assert_eq!(fake.route(0), None);
        msix.set_control(0xc000);
        msix.signal(0);
        assert_eq!(fake.signals(0), 0);
        msix.set_control(0x8000);
        assert_eq!(fake.signals(0), 1);
        msix.set_control(0);
        msix.signal(0);
        msix.set_control(0x8000);
        assert_eq!(fake.signals(0), 1, "disabled MSI-X doesn't pend");
    }

    #[test]
    fn what_a_kernel_back_end_says_while_masked_pends_in_the_event() {
        let fake = FakeInterrupts::default();
        let msix = Msix::new(1, &fake).unwrap();
        let event = msix.event(0).unwrap();
        assert!(msix.event(1).is_none());
        let pending = || {
            let mut bits = [0];
            msix.pending_read(0, &mut bits);
            bits[0]
        };
        assert_eq!(pending(), 0);
        event.write(1).unwrap();
        assert_eq!(pending(), 1);
        msix.reset();
        assert_eq!(pending(), 0, "another driver's interrupt");
    }

    #[test]
    fn sizes_are_bounded() {
        let fake = FakeInterrupts::default();
        assert!(Msix::new(0, &fake).is_err());
        assert!(Msix::new(MAX_VECTORS + 1, &fake).is_err());
    }

    fn copy_of(first: &Msix, fake: &FakeInterrupts) -> Msix {
        let json = serde_json::to_string(&first.save()).unwrap();
        let count = u16::try_from(first.len()).unwrap();
        let copy = Msix::new(count, fake).unwrap();
        copy.restore(&serde_json::from_str(&json).unwrap()).unwrap();
        copy
    }

    #[test]
    fn a_copy_has_its_routes_and_what_pends() {
        let msix = Msix::new(3, &FakeInterrupts::default()).unwrap();
        msix.set_control(0x8000);
        write_entry(&msix, 0, 0xfee0_0000, 0x40, 0);
        write_entry(&msix, 1, 0xfee0_1000, 0x41, 1);
        // One that a back end in the kernel has sent.
        write_entry(&msix, 2, 0xfee0_2000, 0x42, 1);
        msix.event(2).unwrap().write(1).unwrap();
        msix.signal(1);
        let fake = FakeInterrupts::default();
        let copy = copy_of(&msix, &fake);
        let message = |address, data| MsiMessage { address, data };
        assert_eq!(fake.route(0), Some((message(0xfee0_0000, 0x40), false)));
        assert_eq!((fake.route(1), fake.route(2)), (None, None), "masked");
        copy.signal(0);
        for vector in [1, 2] {
            copy.table_write(16 * vector + 12, &[0; 4]);
        }
        assert_eq!([0, 1, 2].map(|vector| fake.signals(vector)), [1; 3]);
        let route = Some((message(0xfee0_1000, 0x41), false));
        assert_eq!(fake.route(1), route);
        let refused = Msix::new(2, &fake).unwrap().restore(&msix.save());
        assert_eq!(
            refused.unwrap_err().to_string(),
            "it has 2 interrupt vectors here and 3 there"
        );
        let state = msix.save();
        assert!(state.is_of(0x8002));
        assert!(!state.is_of(0x0002) && !state.is_of(0xc002));
    }

    #[test]
    fn a_copy_sends_what_pends_and_is_not_masked_and_nothing_else() {
        let vector = |masked, pending| VectorV1 {
            address: 0xfee0_0000,
            data: 0x40,
            masked,
            pending,
        };
        let vectors = [
            vector(false, true),
            vector(false, false),
            vector(true, true),
            vector(true, false),
        ];
        for (enabled, masked, sent) in [
            (true, false, [1, 0, 0, 0]),
            (true, true, [0; 4]),
            (false, false, [0; 4]),
        ] {
            let fake = FakeInterrupts::default();
            let copy = Msix::new(4, &fake).unwrap();
            let mut state = MsixV1 {
                enabled,
                masked,
                vectors: vectors.to_vec(),
            };
            copy.restore(&state).unwrap();
            assert_eq!([0, 1, 2, 3].map(|vector| fake.signals(vector)), sent);
            // What was sent pends no more.
            state.vectors[0].pending = sent[0] == 0;
            assert_eq!(copy.save(), state);
        }
    }

    proptest! {
        #[test]
        fn a_copy_reads_as_the_first_does(
            accesses in prop::collection::vec((0u64..80, prop::collection::vec(any::<u8>(), 0..16), any::<u16>()), 0..64)
        ) {
            let msix = Msix::new(4, &FakeInterrupts::default()).unwrap();
            for (offset, bytes, control) in accesses {
                msix.set_control(control);
                msix.table_write(offset, &bytes);
                msix.signal(control % 8);
            }
            let copy = copy_of(&msix, &FakeInterrupts::default());
            prop_assert_eq!(copy.save(), msix.save());
            let read = |msix: &Msix| {
                let (mut table, mut pending) = ([[0; 16]; 4], [0]);
                for (at, entry) in (0..).zip(&mut table) {
                    msix.table_read(16 * at, entry);
                }
                msix.pending_read(0, &mut pending);
                (table, pending)
            };
            prop_assert_eq!(read(&copy), read(&msix));
        }

        #[test]
        fn any_access_is_harmless(
            accesses in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..16), any::<u16>()), 0..64)
        ) {
            let fake = FakeInterrupts::default();
            let msix = Msix::new(4, &fake).unwrap();
            for (offset, bytes, control) in accesses {
                let offset = if control & 1 == 0 { offset % 80 } else { offset };
                msix.set_control(control);
                msix.table_write(offset, &bytes);
                msix.signal(control % 8);
                let mut data = vec![0xaa; bytes.len()];
                msix.table_read(offset, &mut data);
                msix.pending_read(offset, &mut data);
            }
            msix.reset();
            let mut entry = [0; 16];
            msix.table_read(0, &mut entry);
            prop_assert_eq!(entry, masked_entry());
        }
    }

    /// Who serves a queue in another process has the vector's very file, and with it the
    /// file's flags. A reset comes under the bus's lock, on the main thread.
    #[test]
    fn a_reset_waits_for_no_event_that_a_back_end_has_made_blocking() {
        let fake = FakeInterrupts::default();
        let msix = Msix::new(1, &fake).unwrap();
        let theirs = msix.event(0).unwrap();
        // SAFETY: takes plain numbers.
        let cleared = unsafe { libc::fcntl(theirs.as_raw_fd(), libc::F_SETFL, 0) };
        assert_eq!(cleared, 0);
        let (said, heard) = std::sync::mpsc::channel();
        #[allow(clippy::disallowed_methods, reason = "a test may start threads")]
        std::thread::spawn(move || {
            msix.reset();
            said.send(()).unwrap();
        });
        let long = std::time::Duration::from_secs(10);
        assert!(heard.recv_timeout(long).is_ok(), "it waits for ever");
    }
}
