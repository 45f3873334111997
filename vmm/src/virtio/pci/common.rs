//! The common configuration structure as a register machine.
//!
//! Virtio 1.2, section 4.1.4.3; the rules of device status are in 2.1 and 3.1.

use std::sync::Arc;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::shared::Shared;
use crate::memory::Memory;
use crate::snapshot::Refused;
use crate::virtio::{F_EVENT_IDX, F_VERSION_1};

bitflags! {
    /// Device status. Section 2.1.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has seen the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// Both sides agree on features.
        const FEATURES_OK = 8;
        /// The device can't go on.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

/// Registers by offset and width. Section 4.1.4.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigMsixVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueMsixVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDesc(Half),
    QueueDriver(Half),
    QueueDevice(Half),
}

/// Which half of a 64-bit field: drivers access them as two of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

impl Register {
    /// The register that an access is for; the width must be the field's own
    /// (section 4.1.3.1).
    fn at(offset: u64, width: usize) -> Option<Self> {
        use Half::{High, Low};
        Some(match (offset, width) {
            (0x00, 4) => Self::DeviceFeatureSelect,
            (0x04, 4) => Self::DeviceFeature,
            (0x08, 4) => Self::DriverFeatureSelect,
            (0x0c, 4) => Self::DriverFeature,
            (0x10, 2) => Self::ConfigMsixVector,
            (0x12, 2) => Self::NumQueues,
            (0x14, 1) => Self::DeviceStatus,
            (0x15, 1) => Self::ConfigGeneration,
            (0x16, 2) => Self::QueueSelect,
            (0x18, 2) => Self::QueueSize,
            (0x1a, 2) => Self::QueueMsixVector,
            (0x1c, 2) => Self::QueueEnable,
            (0x1e, 2) => Self::QueueNotifyOff,
            (0x20, 4) => Self::QueueDesc(Low),
            (0x24, 4) => Self::QueueDesc(High),
            (0x28, 4) => Self::QueueDriver(Low),
            (0x2c, 4) => Self::QueueDriver(High),
            (0x30, 4) => Self::QueueDevice(Low),
            (0x34, 4) => Self::QueueDevice(High),
            // Not offered: VIRTIO_F_NOTIF_CONFIG_DATA, VIRTIO_F_RING_RESET.
            _ => return None,
        })
    }
}

/// What the transport has to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The driver wrote 0 to device status.
    Reset,
    /// The driver set DRIVER_OK.
    Activate,
    /// The driver gave a queue another vector after that.
    Vector,
}

/// One queue's registers, as written: they are judged at DRIVER_OK.
#[derive(Debug, Clone, Copy)]
struct QueueRegisters {
    max_size: u16,
    size: u16,
    enabled: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
        }
    }
}

/// One queue's registers, saved: as the driver wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueV1 {
    /// Its descriptors.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub enabled: bool,
    /// Where its descriptor table is.
    pub desc: u64,
    /// Where its available ring is.
    pub driver: u64,
    /// Where its used ring is.
    pub device: u64,
}

/// The structure's registers, saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommonV1 {
    /// The features that the driver has written.
    pub features: u64,
    /// Which half of those offered it reads.
    pub device_feature_select: u32,
    /// Which half of its own it reads and writes.
    pub driver_feature_select: u32,
    /// Which queue's registers it reads and writes.
    pub queue_select: u16,
    /// Every queue's.
    pub queues: Vec<QueueV1>,
}

/// The structure's registers.
pub(super) struct Common {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    shared: Arc<Shared>,
}

impl Common {
    /// After power-on. `offered` are the device's features, without
    /// [`F_VERSION_1`].
    pub(super) fn new(offered: u64, queue_sizes: &[u16], shared: Arc<Shared>) -> Self {
        Self {
            offered: offered | F_VERSION_1,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues: queue_sizes
                .iter()
                .copied()
                .map(QueueRegisters::new)
                .collect(),
            shared,
        }
    }

    /// Features that both sides have agreed on.
    pub(super) fn features(&self) -> u64 {
        self.accepted
    }

    /// Back to power-on.
    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
        self.shared.reset();
    }

    /// What the driver has written.
    pub(super) fn save(&self) -> CommonV1 {
        let save = |queue: &QueueRegisters| QueueV1 {
            size: queue.size,
            enabled: queue.enabled,
            desc: queue.desc,
            driver: queue.driver,
            device: queue.device,
        };
        CommonV1 {
            features: self.accepted,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(save).collect(),
        }
    }

    /// Takes over what was saved, with device status restored. Queues are judged where
    /// they are used.
    pub(super) fn restore(&mut self, state: &CommonV1) -> Result<(), Refused> {
        let (own, saved) = (self.queues.len(), state.queues.len());
        if own != saved {
            let wrong = format!("it has {own} queues here and {saved} there");
            return Err(Refused::because(wrong));
        }
        let status = self.shared.status();
        if status.contains(Status::FEATURES_OK) {
            let unknown = state.features & !self.offered;
            if unknown != 0 {
                let wrong = format!("its features {unknown:#x} are not offered here");
                return Err(Refused::because(wrong));
            }
            if !self.agrees_on(state.features) {
                return Err(Refused::because("its driver is a legacy one"));
            }
        } else if status.contains(Status::DRIVER_OK) {
            return Err(Refused::because("it has a driver and no features"));
        }
        self.accepted = state.features;
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.queue_select = state.queue_select;
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            *queue = QueueRegisters {
                max_size: queue.max_size,
                size: saved.size,
                enabled: saved.enabled,
                desc: saved.desc,
                driver: saved.driver,
                device: saved.device,
            };
        }
        Ok(())
    }

    /// Whether a driver may have these features (section 3.1.1, step 5).
    fn agrees_on(&self, features: u64) -> bool {
        features & !self.offered == 0 && features & F_VERSION_1 != 0
    }

    /// Reads a register; what is none reads 0.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let value = Register::at(offset, data.len()).map_or(0, |register| self.get(register));
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    /// Writes a register; what is none, or read-only, or not writable in this
    /// state, keeps its value.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let Some(register) = Register::at(offset, data.len()) else {
            return Effect::None;
        };
        let mut bytes = [0; 4];
        bytes[..data.len()].copy_from_slice(data);
        let value = u32::from_le_bytes(bytes);
        let short = u16::from_le_bytes([bytes[0], bytes[1]]);
        match register {
            Register::DeviceFeatureSelect => self.device_feature_select = value,
            Register::DriverFeatureSelect => self.driver_feature_select = value,
            Register::DriverFeature => self.accept(value),
            Register::ConfigMsixVector => self.shared.set_config_vector(short),
            Register::DeviceStatus => return self.set_status(bytes[0]),
            Register::QueueSelect => self.queue_select = short,
            Register::QueueMsixVector => return self.set_vector(short),
            Register::QueueSize
            | Register::QueueEnable
            | Register::QueueDesc(_)
            | Register::QueueDriver(_)
            | Register::QueueDevice(_) => self.set_queue(register, value, short),
            Register::DeviceFeature
            | Register::NumQueues
            | Register::ConfigGeneration
            | Register::QueueNotifyOff => {}
        }
        Effect::None
    }

    fn get(&self, register: Register) -> u32 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of = |field: fn(&QueueRegisters) -> u64, half: Half| {
            let [a, b, c, d, e, f, g, h] = queue.map_or(0, field).to_le_bytes();
            u32::from_le_bytes(match half {
                Half::Low => [a, b, c, d],
                Half::High => [e, f, g, h],
            })
        };
        match register {
            Register::DeviceFeatureSelect => self.device_feature_select,
            Register::DeviceFeature => select(self.offered, self.device_feature_select),
            Register::DriverFeatureSelect => self.driver_feature_select,
            Register::DriverFeature => select(self.accepted, self.driver_feature_select),
            Register::ConfigMsixVector => self.shared.config_vector().into(),
            Register::NumQueues => u32::try_from(self.queues.len()).unwrap_or(0),
            Register::DeviceStatus => self.shared.status().bits().into(),
            Register::ConfigGeneration => self.shared.generation().into(),
            Register::QueueSelect => self.queue_select.into(),
            // 0 says that there is no such queue.
            Register::QueueSize => queue.map_or(0, |queue| queue.size.into()),
            Register::QueueMsixVector => self.shared.queue_vector(self.queue_select).into(),
            Register::QueueEnable => queue.is_some_and(|queue| queue.enabled).into(),
            Register::QueueNotifyOff => queue.map_or(0, |_| self.queue_select.into()),
            Register::QueueDesc(half) => of(|queue| queue.desc, half),
            Register::QueueDriver(half) => of(|queue| queue.driver, half),
            Register::QueueDevice(half) => of(|queue| queue.device, half),
        }
    }

    /// Features may be chosen until they are agreed on (section 3.1.1, step 5).
    fn accept(&mut self, value: u32) {
        if self.shared.status().contains(Status::FEATURES_OK) {
            return;
        }
        let (mask, value) = match self.driver_feature_select {
            0 => (u64::from(u32::MAX), u64::from(value)),
            1 => (u64::from(u32::MAX) << 32, u64::from(value) << 32),
            _ => return,
        };
        self.accepted = (self.accepted & !mask) | value;
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let old = self.shared.status();
        // The driver may not clear bits, and NEEDS_RESET is the device's.
        let mut new = old | (Status::from_bits_truncate(value) - Status::NEEDS_RESET);
        if !old.contains(Status::FEATURES_OK) && !self.agrees_on(self.accepted) {
            // Section 2.2.2: the driver reads it back and sees that we refuse.
            new.remove(Status::FEATURES_OK);
        }
        if !new.contains(Status::FEATURES_OK) {
            new.remove(Status::DRIVER_OK);
        }
        self.shared.add_status(new);
        if new.contains(Status::DRIVER_OK) && !old.contains(Status::DRIVER_OK) {
            Effect::Activate
        } else {
            Effect::None
        }
    }

    fn set_vector(&mut self, vector: u16) -> Effect {
        let queue = self.queue_select;
        let old = self.shared.queue_vector(queue);
        self.shared.set_queue_vector(queue, vector);
        let live = self.shared.status().contains(Status::DRIVER_OK);
        if live && self.shared.queue_vector(queue) != old {
            Effect::Vector
        } else {
            Effect::None
        }
    }

    /// A queue is set up before it is enabled, and enabled before DRIVER_OK
    /// (section 4.1.4.3.2).
    fn set_queue(&mut self, register: Register, value: u32, short: u16) {
        let live = self.shared.status().contains(Status::DRIVER_OK);
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if live || queue.enabled {
            return;
        }
        match register {
            Register::QueueSize => queue.size = short,
            Register::QueueEnable => queue.enabled = short == 1,
            Register::QueueDesc(half) => queue.desc = replace(queue.desc, half, value),
            Register::QueueDriver(half) => queue.driver = replace(queue.driver, half, value),
            Register::QueueDevice(half) => queue.device = replace(queue.device, half, value),
            _ => {}
        }
    }

    /// The enabled queues with their indices, or the index of the first that
    /// breaks the rules: its size no power of two or too large, its rings
    /// misaligned or outside of memory (section 2.7).
    pub(super) fn build_queues(&self, memory: &Memory) -> Result<Vec<(u16, Queue)>, u16> {
        let enabled = (0..).zip(&self.queues).filter(|(_, queue)| queue.enabled);
        enabled
            .map(|(index, registers)| {
                self.build(registers, memory)
                    .map(|queue| (index, queue))
                    .ok_or(index)
            })
            .collect()
    }

    fn build(&self, registers: &QueueRegisters, memory: &Memory) -> Option<Queue> {
        let mut queue = Queue::new(registers.max_size).ok()?;
        queue.try_set_size(registers.size).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(registers.desc))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(registers.driver))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(registers.device))
            .ok()?;
        queue.set_event_idx(self.accepted & F_EVENT_IDX != 0);
        queue.set_ready(true);
        // An available ring at 0 is how the queue crate says "not set up".
        (registers.driver != 0 && queue.is_valid(memory.as_ref())).then_some(queue)
    }
}

/// 32 of the feature bits.
fn select(features: u64, selector: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match selector {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn replace(old: u64, half: Half, value: u32) -> u64 {
    let low = u64::from(u32::MAX);
    match half {
        Half::Low => (old & !low) | u64::from(value),
        Half::High => (old & low) | u64::from(value) << 32,
    }
}
