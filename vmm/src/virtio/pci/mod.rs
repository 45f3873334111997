//! Virtio over PCI, modern only: a [`VirtioDevice`] as a function on the bus.
//!
//! ```text
//! status 0 ─ ACKNOWLEDGE ─ DRIVER ─ FEATURES_OK ─ DRIVER_OK ──► activate
//!    ▲                                                │ a queue breaks the rules
//!    └─ once quiet, forget ◄─ write 0: quiesce ◄─ NEEDS_RESET
//! ```
//!
//! Device status stays what it was until the device is quiet, which is how a driver knows
//! that it must wait (section 4.1.4.3.1); what it writes meanwhile is lost.
//!
//! Virtio 1.2, section 4.1. There is no INTx: every driver of a modern device on
//! x86 uses MSI-X.

mod common;
mod layout;
mod life;
mod shared;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::common::{Common, Effect};
use self::layout::{
    ACCESS_DATA, COMMON, DEVICE, DOORBELL_BAR, DOORBELL_STRIDE, ISR, MAX_QUEUES, MSIX_PENDING,
    MSIX_TABLE, NOTIFY, Offsets,
};
use self::life::{Life, Then};
use self::shared::{AllCounters, Shared};
use super::counters::Counters;
use super::thread::DeviceThread;
use super::{DECLARATIONS, Site, VirtioDevice};
use crate::irq::{self, Interrupts};
use crate::memory::Memory;
use crate::pci::config::ConfigSpace;
use crate::pci::msix::{Msix, ring};
use crate::pci::{PciDevice, Quiesce};
use crate::snapshot::Refused;

pub use self::common::{CommonV1, QueueV1, Status};
pub use self::shared::SharedV1;
pub use self::state::VirtioFunctionV1;

/// One queue's doorbell.
struct Doorbell {
    event: Arc<EventFd>,
    /// Where the kernel listens for it: at the port, and in memory.
    bound: [Option<irq::Doorbell>; 2],
}

/// What functions are plugged into.
#[derive(Clone)]
pub struct Backplane {
    /// Guest memory.
    pub memory: Memory,
    /// The interrupt controller.
    pub interrupts: Arc<dyn Interrupts>,
    /// The thread of the devices of which there is one at most.
    pub shared: Arc<DeviceThread>,
    /// Rung when a device has become quiet.
    pub bell: Arc<EventFd>,
}

/// Places of [`Doorbell::bound`].
const AT_PORT: usize = 0;
const IN_MEMORY: usize = 1;

/// A virtio device as a PCI function.
pub struct VirtioPciDevice {
    config: ConfigSpace,
    offsets: Offsets,
    common: Common,
    shared: Arc<Shared>,
    doorbells: Vec<Doorbell>,
    backplane: Backplane,
    /// Where the BAR of memory is.
    base: Option<u64>,
    life: Life,
    device: Box<dyn VirtioDevice>,
}

impl VirtioPciDevice {
    /// Makes a function of a device: takes its vectors (one for each queue and one
    /// for configuration) and its doorbells.
    ///
    /// # Errors
    /// When the interrupt controller has no vectors left, the process no file
    /// descriptors, the device has more than 128 queues, or its kind is not among
    /// [`DECLARATIONS`], from which the sandbox and the command line know it.
    pub fn new(mut device: Box<dyn VirtioDevice>, backplane: &Backplane) -> io::Result<Self> {
        let kind = device.declaration();
        if !DECLARATIONS.iter().any(|known| std::ptr::eq(*known, kind)) {
            let unknown = format!("the device {} is not declared", kind.name);
            return Err(io::Error::other(unknown));
        }
        let sizes = device.queue_sizes();
        if sizes.len() > MAX_QUEUES {
            return Err(io::Error::other("too many virtqueues"));
        }
        let vectors = u16::try_from(sizes.len() + 1).map_err(io::Error::other)?;
        let msix = Msix::new(vectors, backplane.interrupts.as_ref())?;
        let (config, offsets) = layout::config_space(kind, &msix).map_err(io::Error::other)?;
        let shared = Arc::new(Shared::new(msix, sizes.len()));
        let doorbells = sizes
            .iter()
            .map(|_| {
                Ok(Doorbell {
                    event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
                    bound: [None; 2],
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let events: Vec<_> = doorbells
            .iter()
            .map(|bell| Arc::clone(&bell.event))
            .collect();
        device.plugged(&Site {
            doorbells: &events,
            shared: &backplane.shared,
        })?;
        Ok(Self {
            config,
            offsets,
            common: Common::new(device.features(), &sizes, Arc::clone(&shared)),
            shared,
            doorbells,
            backplane: backplane.clone(),
            base: None,
            life: Life::new(Arc::clone(&backplane.bell)),
            device,
        })
    }

    /// What is counted of the device.
    #[must_use]
    pub fn counters(&self) -> Arc<dyn Counters> {
        Arc::new(AllCounters {
            shared: Arc::clone(&self.shared),
            device: self.device.counters(),
        })
    }

    /// A doorbell that came as an exit: it is the first of its queue in memory, or the
    /// kernel did not catch it, as the access had another width, or binding failed.
    fn ring(&self, queue: u64) {
        let index = usize::try_from(queue).ok();
        if let Some(bell) = index.and_then(|index| self.doorbells.get(index)) {
            ring(&bell.event);
        }
    }

    /// Has the kernel listen for a queue's doorbell in memory from here on. Not before a
    /// driver has rung there: most take the port, and each place that the kernel listens
    /// at costs a machine's start.
    fn bind_in_memory(&mut self, queue: u64) {
        let bell = usize::try_from(queue).ok();
        let bell = bell.and_then(|index| self.doorbells.get_mut(index));
        let (Some(base), Some(bell)) = (self.base, bell) else {
            return;
        };
        let bound = &mut bell.bound[IN_MEMORY];
        if bound.is_none() {
            let offset = u64::from(NOTIFY.start) + queue * DOORBELL_STRIDE;
            let place = irq::Doorbell::Memory(base + offset);
            *bound = Some(place).filter(|place| {
                // Where the kernel can't listen, exits ring.
                self.backplane
                    .interrupts
                    .bind_doorbell(*place, &bell.event)
                    .is_ok()
            });
        }
    }

    fn unbind(&mut self, place: usize) {
        for bell in &mut self.doorbells {
            if let Some(bound) = bell.bound[place].take() {
                // Nothing is left to do for one that is gone.
                let _ = self
                    .backplane
                    .interrupts
                    .unbind_doorbell(bound, &bell.event);
            }
        }
    }

    /// The BAR and the offset in it that an access to `pci_cfg_data` is for; section
    /// 4.1.4.9: the access has the width that the driver wrote to `length`.
    fn window(&self, offset: u8, width: usize) -> Option<(u8, u64)> {
        let access = self.offsets.access;
        if offset != access + ACCESS_DATA {
            return None;
        }
        let [bar, ..] = self.config.read_u32(access + 4).to_le_bytes();
        let at = self.config.read_u32(access + 8);
        let length = self.config.read_u32(access + 12);
        let matches = self.config.bar(bar).is_some() && usize::try_from(length) == Ok(width);
        matches.then_some((bar, at.into()))
    }
}

impl PciDevice for VirtioPciDevice {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u8, data: &mut [u8]) {
        match self.window(offset, data.len()) {
            Some((bar, at)) => self.bar_read(bar, at, data),
            None => self.config.read(offset, data),
        }
    }

    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.config.write(offset, data);
        if let Some((bar, at)) = self.window(offset, data.len()) {
            self.bar_write(bar, at, data);
        }
        let control = self.offsets.msix + 2;
        if (self.offsets.msix..=control + 1).contains(&offset) {
            self.shared.msix.set_control(self.config.read_u16(control));
        }
    }

    fn bar_read(&mut self, bar: u8, at: u64, data: &mut [u8]) {
        data.fill(0);
        // The port says nothing.
        if bar == DOORBELL_BAR {
            return;
        }
        if let Some(offset) = COMMON.offset(at) {
            self.settle();
            self.common.read(offset, data);
        } else if ISR.offset(at).is_some() {
            if let Some(byte) = data.first_mut() {
                *byte = self.shared.take_isr();
            }
        } else if let Some(offset) = DEVICE.offset(at) {
            self.device.config_read(offset, data);
        } else if let Some(offset) = MSIX_TABLE.offset(at) {
            self.shared.msix.table_read(offset, data);
        } else if let Some(offset) = MSIX_PENDING.offset(at) {
            self.shared.msix.pending_read(offset, data);
        }
    }

    fn bar_write(&mut self, bar: u8, at: u64, data: &[u8]) {
        if bar == DOORBELL_BAR {
            // The queue's index, of 16 bits; a byte is one of the low ones.
            if let (0, [low, rest @ ..]) = (at, data) {
                let high = rest.first().copied().unwrap_or(0);
                self.ring(u16::from_le_bytes([*low, high]).into());
            }
        } else if let Some(offset) = NOTIFY.offset(at) {
            let queue = offset / DOORBELL_STRIDE;
            self.ring(queue);
            self.bind_in_memory(queue);
        } else if let Some(offset) = COMMON.offset(at) {
            self.settle();
            if self.life.is_resetting() {
                return;
            }
            match self.common.write(offset, data) {
                Effect::None => {}
                Effect::Reset => self.become_quiet(Then::Reset),
                Effect::Activate => self.activate(None),
                Effect::Vector => self.device.vectors_changed(),
            }
        } else if let Some(offset) = DEVICE.offset(at) {
            self.device.config_write(offset, data);
        } else if let Some(offset) = MSIX_TABLE.offset(at) {
            self.shared.msix.table_write(offset, data);
        }
    }

    fn bar_moved(&mut self, bar: u8, address: Option<u64>) {
        if bar != DOORBELL_BAR {
            self.unbind(IN_MEMORY);
            self.base = address;
            return;
        }
        self.unbind(AT_PORT);
        let port = address.and_then(|address| u16::try_from(address).ok());
        for (index, bell) in (0..).zip(&mut self.doorbells) {
            let place = port.map(|port| irq::Doorbell::Port(port, index));
            bell.bound[AT_PORT] = place.filter(|place| {
                // Where the kernel can't listen, the exit rings.
                self.backplane
                    .interrupts
                    .bind_doorbell(*place, &bell.event)
                    .is_ok()
            });
        }
    }

    fn quiesce(&mut self, for_what: Quiesce) {
        match for_what {
            Quiesce::PowerOn => {
                self.config.reset();
                self.become_quiet(Then::PowerOn);
            }
            Quiesce::Hold => self.become_quiet(Then::Hold),
        }
    }

    fn is_quiet(&mut self) -> bool {
        self.settle();
        self.life.is_quiet()
    }

    fn resume(&mut self) {
        self.go_on();
    }

    fn save(&self) -> Result<Value, Refused> {
        Ok(serde_json::to_value(self.save_function()?)?)
    }

    fn restore(&mut self, state: &Value) -> Result<(), Refused> {
        self.restore_function(&VirtioFunctionV1::deserialize(state)?)
    }
}

impl Drop for VirtioPciDevice {
    fn drop(&mut self) {
        self.unbind(AT_PORT);
        self.unbind(IN_MEMORY);
    }
}
