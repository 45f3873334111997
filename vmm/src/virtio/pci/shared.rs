//! What the registers (vCPUs) and the device threads share: status, vectors, ISR.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::common::Status;
use crate::pci::msix::Msix;
use crate::snapshot::Refused;
use crate::virtio::Interrupt;
use crate::virtio::counters::{Counters, counters};

/// "No vector". Section 4.1.5.1.2.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// ISR bit 0: a queue has used buffers. Section 4.1.4.5.
const ISR_QUEUE: u8 = 1;
/// ISR bit 1: the configuration changed.
const ISR_CONFIG: u8 = 2;

counters! {
    /// What is counted of every device.
    pub(super) struct TransportCounters {
        /// Interrupts sent.
        interrupts,
        /// Times that the driver broke the rules, or the host failed, and the device
        /// gave up until its reset.
        failures,
    }
}

/// The counters of a device behind this transport.
pub(super) struct AllCounters {
    pub(super) shared: Arc<Shared>,
    pub(super) device: Arc<dyn Counters>,
}

impl Counters for AllCounters {
    fn list(&self) -> Vec<(&'static str, u64)> {
        [self.device.list(), self.shared.counters.list()].concat()
    }
}

/// [`Shared`], saved, but for MSI-X.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedV1 {
    /// Device status: [`Status`].
    pub status: u8,
    /// ISR status, which the driver has not read.
    pub isr: u8,
    /// Configuration generation.
    pub generation: u8,
    /// The vector of configuration changes; 0xffff: none.
    pub config_vector: u16,
    /// Every queue's vector.
    pub queue_vectors: Vec<u16>,
}

/// The state both sides see.
pub(super) struct Shared {
    pub(super) msix: Msix,
    counters: TransportCounters,
    status: AtomicU8,
    isr: AtomicU8,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

impl Shared {
    pub(super) fn new(msix: Msix, queues: usize) -> Self {
        Self {
            msix,
            counters: TransportCounters::default(),
            status: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// Back to power-on, but for MSI-X, which is PCI's, and the generation, which
    /// only ever moves.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.isr.store(0, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    /// What both sides see.
    pub(super) fn save(&self) -> SharedV1 {
        let vectors = self.queue_vectors.iter();
        SharedV1 {
            status: self.status.load(Ordering::SeqCst),
            isr: self.isr.load(Ordering::SeqCst),
            generation: self.generation(),
            config_vector: self.config_vector(),
            queue_vectors: vectors
                .map(|vector| vector.load(Ordering::SeqCst))
                .collect(),
        }
    }

    /// Takes over what was saved.
    pub(super) fn restore(&self, state: &SharedV1) -> Result<(), Refused> {
        let refuse = |wrong: String| Err(Refused::because(wrong));
        if Status::from_bits(state.status).is_none() {
            return refuse(format!("device status can't be {:#x}", state.status));
        }
        if state.isr & !(ISR_QUEUE | ISR_CONFIG) != 0 {
            return refuse(format!("ISR status can't be {:#x}", state.isr));
        }
        let (own, saved) = (self.queue_vectors.len(), state.queue_vectors.len());
        if own != saved {
            return refuse(format!("it has {own} queues here and {saved} there"));
        }
        let mut vectors = state.queue_vectors.iter().chain([&state.config_vector]);
        if let Some(vector) = vectors.find(|vector| self.known(**vector) != **vector) {
            return refuse(format!("there is no vector {vector}"));
        }
        self.status.store(state.status, Ordering::SeqCst);
        self.isr.store(state.isr, Ordering::SeqCst);
        self.generation.store(state.generation, Ordering::SeqCst);
        self.config_vector
            .store(state.config_vector, Ordering::SeqCst);
        for (own, saved) in self.queue_vectors.iter().zip(&state.queue_vectors) {
            own.store(*saved, Ordering::SeqCst);
        }
        Ok(())
    }

    pub(super) fn status(&self) -> Status {
        Status::from_bits_truncate(self.status.load(Ordering::SeqCst))
    }

    /// Adds bits: a device thread may be adding NEEDS_RESET.
    pub(super) fn add_status(&self, status: Status) {
        self.status.fetch_or(status.bits(), Ordering::SeqCst);
    }

    /// Reading clears.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.known(vector), Ordering::SeqCst);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.known(vector), Ordering::SeqCst);
        }
    }

    /// A vector that doesn't exist reads back as none, which is how the driver
    /// learns of the failure (section 4.1.5.1.2.1).
    fn known(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn signal_config(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        self.counters.interrupts.add(1);
        self.msix.signal(self.config_vector());
    }
}

impl Interrupt for Shared {
    fn queue(&self, index: u16) {
        // The queue bit is for INTx, which this device lacks; but section 4.1.4.5.1
        // wants it while MSI-X is off, and a driver may poll it.
        if !self.msix.is_enabled() {
            self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        }
        self.counters.interrupts.add(1);
        self.msix.signal(self.queue_vector(index));
    }

    fn event(&self, index: u16) -> Option<EventFd> {
        if !self.msix.is_enabled() {
            return None;
        }
        self.msix.event(self.queue_vector(index))
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.status().contains(Status::DRIVER_OK) {
            self.signal_config();
        }
    }

    fn needs_reset(&self) {
        self.add_status(Status::NEEDS_RESET);
        self.counters.failures.add(1);
        // Section 2.1.2: notified only once the driver has set DRIVER_OK.
        if self.status().contains(Status::DRIVER_OK) {
            self.signal_config();
        }
    }
}
