//! Devices made from their descriptions, with their files open, and then plugged into
//! slots: between the two, the process confines itself.

#![allow(unsafe_code, reason = "fcntl(2) locks")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use hearth_vmm_api as api;

use super::bus::Bus;
use super::devices::{Device, Handle};
use super::{Error, Taps, user_disk};
use crate::block::Backend;
use crate::config;
use crate::memory::Memory;
use crate::net::{Tap, Vhost};
use crate::pci::PciRoot;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{Block, Options};
use crate::virtio::console::Console;
use crate::virtio::limit::Limits;
use crate::virtio::mem::Mem;
use crate::virtio::net::{KERNEL_FEATURES, Net, Options as NetOptions};
use crate::virtio::pci::{Backplane, VirtioPciDevice};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{self, Vsock};
use crate::virtio::{Plug, VirtioDevice};

/// What a device needs of the machine.
pub(super) struct DeviceContext {
    pub(super) memory: Memory,
    pub(super) vcpus: u8,
    /// Of the console.
    pub(super) bus: Arc<Bus>,
    /// Whether the paths of sockets that came open are this process's to remove.
    pub(super) owns_paths: Arc<AtomicBool>,
}

/// A device with its files open, that no thread serves and no guest sees yet.
pub(super) struct Made {
    pub(super) id: String,
    /// How messages call it.
    pub(super) what: String,
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) handle: Box<dyn FnOnce(u8) -> Handle>,
}

impl Made {
    /// Its name, unique in the machine.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The name of its kind.
    pub(super) fn kind(&self) -> &'static str {
        self.device.declaration().name
    }

    /// Whether it may come while the guest runs.
    pub(super) fn is_hot(&self) -> bool {
        self.device.declaration().plug == Plug::Hot
    }

    /// Makes its threads and puts it into a slot, or the next free one.
    pub(super) fn plug(
        self,
        slot: Option<u8>,
        pci: &PciRoot,
        backplane: &Backplane,
    ) -> Result<Device, Error> {
        let Self {
            id,
            what,
            device,
            handle,
        } = self;
        let declaration = device.declaration();
        let function = VirtioPciDevice::new(device, backplane)
            .map_err(|error| Error::Device(format!("{what}: {error}")))?;
        let counters = function.counters();
        let slot = pci
            .add(slot, Box::new(function))
            .map_err(|error| Error::Device(format!("{what}: {error}")))?;
        Ok(Device {
            id,
            slot,
            declaration,
            counters,
            unplug_requested: false,
            handle: handle(slot),
        })
    }
}

impl DeviceContext {
    /// Makes a device, from its files where those are open already.
    pub(super) fn make(
        &self,
        device: &config::Device,
        taps: &mut Taps,
        mut open: Vec<OwnedFd>,
    ) -> Result<Made, Error> {
        match device {
            config::Device::Disk(disk) => self.disk(disk, open_disk(disk, open.pop())?),
            config::Device::UserDisk(disk) => {
                let back_end = user_disk::target(disk, open.pop()).open();
                self.user_disk(disk, back_end)
            }
            config::Device::Nic(nic) => self.nic(nic, taps, open),
            config::Device::Rng => {
                let rng = Box::new(Rng::new());
                Ok(fixed("entropy source".to_owned(), rng, Handle::None))
            }
            config::Device::Balloon => {
                let balloon = Balloon::new();
                let handle = Handle::Balloon(balloon.handle());
                Ok(fixed("--balloon".to_owned(), Box::new(balloon), handle))
            }
            config::Device::Vsock(options) => {
                let what = format!("--vsock {}", options.path.display());
                let options = vsock::Options {
                    cid: options.cid,
                    path: options.path.clone(),
                };
                let device = match open.pop() {
                    Some(socket) => {
                        Vsock::listening(&options, socket, Arc::clone(&self.owns_paths))
                    }
                    None => Vsock::new(options),
                }
                .map_err(|error| Error::Device(format!("{what}: {error}")))?;
                let handle = Handle::Vsock(device.listener());
                Ok(fixed(what, Box::new(device), handle))
            }
            config::Device::Memory => {
                let mem = Mem::new(Arc::clone(&self.memory));
                let handle = Handle::Memory(mem.handle());
                Ok(fixed("--memory max".to_owned(), Box::new(mem), handle))
            }
            config::Device::Console => {
                let what = "--virtio-console".to_owned();
                let port = self.bus.serial.console_port();
                let port = port.map_err(|error| Error::Device(format!("{what}: {error}")))?;
                Ok(fixed(what, Box::new(Console::new(port)), Handle::None))
            }
        }
    }

    /// A disk, with its file open. Nothing of it asks the file for anything.
    pub(super) fn disk(&self, disk: &config::Disk, found: Found) -> Result<Made, Error> {
        let what = what(disk);
        let fail = |error: io::Error| Error::Device(format!("{what}: {error}"));
        let Found {
            backend,
            size_bytes,
        } = found;
        let options = Options {
            serial: disk.serial.clone(),
            queues: disk.queues.unwrap_or(self.vcpus.into()),
            engine: disk.engine,
            limits: disk.limits,
        };
        let device = Block::with_size(backend, size_bytes, &options).map_err(fail)?;
        let handle = device.handle();
        let description = api::Disk {
            id: disk.id.clone(),
            slot: 0,
            path: disk.path.clone(),
            size_bytes,
            read_only: disk.read_only,
            serial: disk.serial.clone(),
            back_end: None,
            limits: disk.limits.into(),
            unplug_requested: false,
        };
        Ok(Made {
            id: disk.id.clone(),
            what,
            device: Box::new(device),
            handle: Box::new(move |slot| {
                Handle::Disk(
                    api::Disk {
                        slot,
                        ..description
                    },
                    handle,
                )
            }),
        })
    }

    /// A network interface, on its tap where that is open already, once
    /// for each pair of queues; as many of vhost-net may come behind them.
    fn nic(
        &self,
        nic: &config::Nic,
        taps: &mut Taps,
        mut open: Vec<OwnedFd>,
    ) -> Result<Made, Error> {
        let queues = usize::from(nic.queues);
        let vhosts = match open.len() == 2 * queues {
            true => open.split_off(queues),
            false => Vec::new(),
        };
        let (name, open) = match &nic.tap {
            config::Tap::Name(name) => (name.clone(), open),
            config::Tap::Fds(fds) => {
                let numbers: Vec<_> = fds.iter().map(i32::to_string).collect();
                let name = format!("descriptor {}", numbers.join(":"));
                let open = match open.is_empty() {
                    true => fds.iter().filter_map(|fd| taps.remove(fd)).collect(),
                    // Of another process, in which they had these numbers.
                    false => open,
                };
                (name, open)
            }
        };
        let what = format!("--nic {name}");
        let fail = |error: io::Error| Error::Device(format!("{what}: {error}"));
        let links = if open.is_empty() {
            Tap::open_queues(&name, queues)
        } else if open.len() == queues {
            Tap::from_fds(open)
        } else {
            let wrong = format!("{queues} queues need as many descriptors of the tap");
            Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
        };
        let options = NetOptions {
            mac: nic.mac,
            mtu: nic.mtu,
            limits: nic.limits,
        };
        let mut device = Net::with_pairs(links.map_err(fail)?, options).map_err(fail)?;
        let vhosts = self.vhosts(nic, vhosts).map_err(fail)?;
        let vhost = !vhosts.is_empty();
        if vhost {
            device = device.in_kernel(vhosts).map_err(fail)?;
        }
        let handle = device.handle();
        let description = api::Nic {
            id: nic.id.clone(),
            slot: 0,
            tap: name,
            mac: nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
            mtu: nic.mtu,
            queues: nic.queues,
            vhost,
            limits: nic.limits.into(),
            unplug_requested: false,
        };
        Ok(Made {
            id: nic.id.clone(),
            what,
            device: Box::new(device),
            handle: Box::new(move |slot| {
                Handle::Nic(
                    api::Nic {
                        slot,
                        ..description
                    },
                    handle,
                )
            }),
        })
    }

    /// The kernel's half of each pair of queues, from its file where that is open
    /// already; nothing where it is not wanted, or not asked for and not to be had.
    fn vhosts(&self, nic: &config::Nic, open: Vec<OwnedFd>) -> io::Result<Vec<Vhost>> {
        let memory = || Arc::clone(&self.memory);
        let vhosts: io::Result<_> = match (nic.vhost, open.is_empty()) {
            (Some(false), true) => return Ok(Vec::new()),
            // Only a pump has limits.
            (None, true) if nic.limits != Limits::NONE => return Ok(Vec::new()),
            (Some(false), false) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is off, but descriptors of it came along",
            )),
            (wanted, true) => {
                let opened = (0..nic.queues)
                    .map(|_| Vhost::open(memory(), KERNEL_FEATURES))
                    .collect();
                match (opened, wanted) {
                    (Err(_), None) => return Ok(Vec::new()),
                    (opened, _) => opened,
                }
            }
            (_, false) => open
                .into_iter()
                .map(|fd| Vhost::from_fd(fd, memory(), KERNEL_FEATURES))
                .collect(),
        };
        vhosts.map_err(|error| io::Error::new(error.kind(), format!("vhost-net: {error}")))
    }
}

/// A disk's file, open and locked.
pub(super) struct Found {
    backend: Backend,
    size_bytes: u64,
}

/// How messages call a disk.
fn what(disk: &config::Disk) -> String {
    format!("--disk {}", disk.path.display())
}

/// Opens a disk's file, where it isn't open already, and locks it: for as long as its file
/// system likes.
pub(super) fn open_disk(disk: &config::Disk, file: Option<OwnedFd>) -> Result<Found, Error> {
    open_wanted_disk(disk, file, || true)
}

/// The same, of one that may be wanted no more when its file system has answered.
pub(super) fn open_wanted_disk(
    disk: &config::Disk,
    file: Option<OwnedFd>,
    is_wanted: impl FnOnce() -> bool,
) -> Result<Found, Error> {
    let what = what(disk);
    let fail = |error: io::Error| Error::Device(format!("{what}: {error}"));
    let backend = match file {
        Some(file) => Backend::from_file(File::from(file), disk.read_only),
        None => Backend::open(&disk.path, disk.read_only),
    }
    .map_err(fail)?;
    let size_bytes = backend.size().map_err(fail)?;
    // Last: what hangs before has nothing that another needs.
    if !is_wanted() {
        return Err(fail(io::ErrorKind::Interrupted.into()));
    }
    lock(&backend, disk.read_only, "disk").map_err(fail)?;
    if size_bytes < SECTOR {
        return Err(Error::Device(format!(
            "{what}: a disk has at least {SECTOR} bytes"
        )));
    }
    Ok(Found {
        backend,
        size_bytes,
    })
}

/// A device of which there is one at most.
fn fixed(what: String, device: Box<dyn VirtioDevice>, handle: Handle) -> Made {
    Made {
        id: device.declaration().name.to_owned(),
        what,
        device,
        handle: Box::new(|_| handle),
    }
}

/// Locks a disk, or `what` it is, against every other VMM, until its last handle is
/// closed: shared for one that is only read. An "open file description" lock (fcntl(2)),
/// which belongs to the open file and not to the process.
pub(super) fn lock(file: &impl AsRawFd, read_only: bool, what: &str) -> io::Result<()> {
    let kind = if read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    // SAFETY: a flock of zeroes is a valid one: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).map_err(io::Error::other)?;
    let deadline = Instant::now() + UNLOCKING;
    loop {
        // SAFETY: the pointer is to a live flock.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // A ring of io_uring lets go of its files a moment after its process
            // has ended.
            Some(libc::EAGAIN | libc::EACCES) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Some(libc::EAGAIN | libc::EACCES) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("another machine uses this {what}"),
                ));
            }
            // A file system without locks, where there is nothing to guard with.
            Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(()),
            _ => return Err(error),
        }
    }
}

/// How long a disk may stay locked by a process that has ended.
const UNLOCKING: Duration = Duration::from_secs(1);

/// The smallest disk in bytes: one sector.
const SECTOR: u64 = 512;
