//! The devices of a machine, in the order in which they were plugged.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use hearth_vmm_api as api;

use super::Error;
use crate::config::NO_DISK_LIMITS;
use crate::pci::PciRoot;
use crate::virtio::counters::Counters;
use crate::virtio::limit::Limits;
use crate::virtio::{Declaration, Plug, balloon, blk, mem, net, vhost_user_blk};

/// A device in its slot.
pub(super) struct Device {
    /// Its name, unique in the machine.
    pub(super) id: String,
    /// The PCI device number.
    pub(super) slot: u8,
    /// What it is.
    pub(super) declaration: &'static Declaration,
    /// What it counts.
    pub(super) counters: Arc<dyn Counters>,
    /// Whether the guest was asked to eject it, and has not yet.
    pub(super) unplug_requested: bool,
    /// What the control socket shows of it, and the way to it.
    pub(super) handle: Handle,
}

/// What the control socket has of a device.
pub(super) enum Handle {
    /// A disk.
    Disk(api::Disk, blk::Handle),
    /// A disk that another process serves.
    UserDisk(api::Disk, vhost_user_blk::Handle),
    /// A network interface.
    Nic(api::Nic, net::Handle),
    /// The balloon.
    Balloon(balloon::Handle),
    /// The socket device: where it listens.
    Vsock(Arc<UnixListener>),
    /// Memory that comes and goes.
    Memory(mem::Handle),
    /// Nothing but its counters.
    None,
}

/// How a disk's size is looked at.
pub(super) enum Look {
    /// By this, which may take its time.
    At(blk::Handle),
    /// Its back end was asked, and the answer is seen by who asks later.
    Asked(api::Disk),
}

impl Handle {
    /// What the device is made of, open once more: another process makes the same one of
    /// it.
    pub(super) fn files(&self) -> io::Result<Vec<OwnedFd>> {
        match self {
            Self::Disk(_, disk) => Ok(vec![disk.file()?]),
            Self::Nic(_, nic) => nic.files(),
            Self::Vsock(listener) => Ok(vec![listener.as_fd().try_clone_to_owned()?]),
            // Its socket has one client.
            Self::UserDisk(..) => Err(io::ErrorKind::Unsupported.into()),
            Self::Balloon(_) | Self::Memory(_) | Self::None => Ok(Vec::new()),
        }
    }
}

/// All devices.
#[derive(Default)]
pub(super) struct Devices(Vec<Device>);

impl Devices {
    /// Whether there is one of this name.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|other| other.id == id)
    }

    /// Adds one that is in its slot.
    pub(super) fn push(&mut self, device: Device) {
        self.0.push(device);
    }

    /// The newest in a slot.
    pub(super) fn at(&self, slot: u8) -> Option<&Device> {
        self.0.iter().rfind(|device| device.slot == slot)
    }

    /// The name of the one in a slot, or that of the slot once it is empty.
    pub(super) fn name(&self, slot: u8) -> String {
        let device = self.0.iter().find(|device| device.slot == slot);
        device.map_or_else(|| format!("slot-{slot}"), |device| device.id.clone())
    }

    /// The names of those in these slots, one bit for each.
    pub(super) fn names(&self, slots: u32) -> Vec<String> {
        let all = self.0.iter();
        let those = all.filter(|device| slots >> device.slot & 1 == 1);
        those.map(|device| device.id.clone()).collect()
    }

    /// What all devices count, by their names.
    pub(super) fn metrics(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let list = |device: &Device| {
            let list = device.counters.list().into_iter();
            list.map(|(name, value)| (name.to_owned(), value)).collect()
        };
        let all = self.0.iter();
        all.map(|device| (device.id.clone(), list(device)))
            .collect()
    }

    /// The disks, in the order in which they were plugged.
    pub(super) fn disks(&self) -> Vec<api::Disk> {
        self.0.iter().filter_map(Device::disk).collect()
    }

    /// The network interfaces, in the order in which they were plugged.
    pub(super) fn nics(&self) -> Vec<api::Nic> {
        self.0.iter().filter_map(Device::nic).collect()
    }

    /// The balloon, if there is one.
    pub(super) fn balloon(&self) -> Option<&balloon::Handle> {
        self.0.iter().find_map(|device| match &device.handle {
            Handle::Balloon(handle) => Some(handle),
            _ => None,
        })
    }

    /// The memory that comes and goes, if there is any.
    pub(super) fn memory(&self) -> Option<&mem::Handle> {
        self.0.iter().find_map(|device| match &device.handle {
            Handle::Memory(handle) => Some(handle),
            _ => None,
        })
    }

    /// Has a disk's size looked at again, whose limits may be to be changed; none: there is
    /// no disk of this name.
    ///
    /// # Errors
    /// Another process serves it, which has no limits.
    pub(super) fn look_at_disk(
        &self,
        id: &str,
        limits: Option<Limits>,
    ) -> Result<Option<Look>, Error> {
        let device = self.0.iter().find(|device| device.id == id);
        Ok(match device.map(|device| (device, &device.handle)) {
            Some((_, Handle::Disk(_, handle))) => Some(Look::At(handle.clone())),
            Some((_, Handle::UserDisk(..))) if limits.is_some() => {
                return Err(Error::Device(NO_DISK_LIMITS.to_owned()));
            }
            Some((device, Handle::UserDisk(_, handle))) => {
                handle.refresh();
                device.disk().map(Look::Asked)
            }
            _ => None,
        })
    }

    /// Has a disk have this size in bytes, and these limits if there are any; none: there is
    /// no disk of this name any more.
    pub(super) fn disk_has(
        &mut self,
        id: &str,
        size: u64,
        limits: Option<Limits>,
    ) -> Option<api::Disk> {
        let device = self.0.iter_mut().find(|device| device.id == id)?;
        if let Handle::Disk(disk, handle) = &mut device.handle {
            handle.resized(size);
            disk.size_bytes = size;
            if let Some(limits) = limits {
                handle.set_limits(limits);
                disk.limits = limits.into();
            }
        }
        device.disk()
    }

    /// Changes how much may pass through a network interface; none: there is none of
    /// this name.
    pub(super) fn limit_nic(&mut self, id: &str, limits: Limits) -> Option<io::Result<api::Nic>> {
        let device = self.0.iter_mut().find(|device| device.id == id)?;
        let Handle::Nic(nic, handle) = &mut device.handle else {
            return None;
        };
        match handle.set_limits(limits) {
            Ok(()) => nic.limits = limits.into(),
            Err(error) => return Some(Err(error)),
        }
        device.nic().map(Ok)
    }

    /// Notes that the unplug of a device is requested. Returns its slot; none: there is
    /// no such device, or it stays.
    pub(super) fn request_unplug(&mut self, kind: &Declaration, id: &str) -> Option<u8> {
        let device = self.0.iter_mut().find(|device| {
            device.id == id && device.declaration.name == kind.name && kind.plug == Plug::Hot
        })?;
        device.unplug_requested = true;
        Some(device.slot)
    }

    /// All of them.
    pub(super) fn list(&self) -> impl Iterator<Item = &Device> {
        self.0.iter()
    }

    /// Notes that the unplug of a device was requested before it was saved.
    pub(super) fn request_unplug_of(&mut self, id: &str) {
        if let Some(device) = self.0.iter_mut().find(|device| device.id == id) {
            device.unplug_requested = device.declaration.plug == Plug::Hot;
        }
    }

    /// The slots whose unplug is requested, one bit for each.
    pub(super) fn unplug_requested(&self) -> u32 {
        let requested = self.0.iter().filter(|device| device.unplug_requested);
        requested.fold(0, |slots, device| slots | 1 << device.slot)
    }

    /// Takes out what the guest has ejected, of what it was asked for. The devices are
    /// listed until they are gone.
    pub(super) fn eject(&mut self, pci: &PciRoot, slots: u32) {
        let slots = slots & self.unplug_requested();
        for device in &self.0 {
            if slots >> device.slot & 1 == 1 {
                // It is empty for one that is on its way already.
                let _ = pci.remove(device.slot);
            }
        }
    }

    /// Forgets those that are gone.
    pub(super) fn forget(&mut self, slots: u32) {
        self.0.retain(|device| slots >> device.slot & 1 == 0);
    }
}

impl Device {
    /// What the control socket shows, if it is a disk.
    pub(super) fn disk(&self) -> Option<api::Disk> {
        match &self.handle {
            Handle::Disk(disk, _) => Some(api::Disk {
                unplug_requested: self.unplug_requested,
                ..disk.clone()
            }),
            Handle::UserDisk(disk, handle) => {
                let state = handle.state();
                Some(api::Disk {
                    unplug_requested: self.unplug_requested,
                    size_bytes: handle.size(),
                    back_end: Some(api::BackEnd {
                        connected: state.connected,
                        error: state.error,
                    }),
                    ..disk.clone()
                })
            }
            _ => None,
        }
    }

    /// What the control socket shows, if it is a network interface.
    pub(super) fn nic(&self) -> Option<api::Nic> {
        match &self.handle {
            Handle::Nic(nic, _) => Some(api::Nic {
                unplug_requested: self.unplug_requested,
                ..nic.clone()
            }),
            _ => None,
        }
    }
}
