//! Disks that other processes serve. One that comes while the machine runs is plugged once
//! its back end has said what it is: until then, a thread of its own waits for that.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Instant;

use hearth_vmm_api as api;

use super::context::{DeviceContext, Made};
use super::devices::{Device, Handle};
use super::life::MOMENT;
use super::{Error, Machine, taken};
use crate::config;
use crate::virtio::vhost_user_blk::{BackEnd, Target, UNSHARED, UserBlock};

/// As many wait, or have failed, at once.
const MAX_CONNECTING: usize = 16;

/// A disk that isn't plugged yet.
pub(super) struct Connecting {
    disk: config::UserDisk,
    answer: Receiver<io::Result<BackEnd>>,
    /// Why it will not be.
    error: Option<Error>,
    /// It was taken away, and its thread is still there.
    is_forgotten: bool,
}

impl Connecting {
    /// Whether it is the one of this name.
    fn is(&self, id: &str) -> bool {
        self.disk.id == id && !self.is_forgotten
    }
}

/// Where its back end is, or the connection to it that there is already.
pub(super) fn target(disk: &config::UserDisk, socket: Option<OwnedFd>) -> Target {
    Target {
        path: disk.socket.clone(),
        socket: socket.map(Into::into),
    }
}

fn what(disk: &config::UserDisk) -> String {
    format!("--disk socket={}", disk.socket.display())
}

impl DeviceContext {
    /// A disk that another process serves, which has said what it is or why it isn't.
    pub(super) fn user_disk(
        &self,
        disk: &config::UserDisk,
        back_end: io::Result<BackEnd>,
    ) -> Result<Made, Error> {
        let what = what(disk);
        let memory = Arc::clone(&self.memory);
        let vcpus = self.vcpus.into();
        let device = back_end
            .and_then(|back_end| UserBlock::new(back_end, memory, disk.queues, vcpus))
            .map_err(|error| Error::Device(format!("{what}: {error}")))?;
        let handle = device.handle();
        let description = api::Disk {
            id: disk.id.clone(),
            slot: 0,
            path: disk.socket.clone(),
            size_bytes: 0,
            read_only: device.read_only(),
            serial: String::new(),
            back_end: None,
            limits: api::Limits::default(),
            unplug_requested: false,
        };
        Ok(Made {
            id: disk.id.clone(),
            what,
            device: Box::new(device),
            handle: Box::new(move |slot| {
                let description = api::Disk {
                    slot,
                    ..description
                };
                Handle::UserDisk(description, handle)
            }),
        })
    }
}

impl Machine {
    /// Puts a disk in that another process serves, at a socket that may be connected
    /// already, and notifies the guest. None: its back end hasn't said yet what it is, and
    /// the disk is put in once it has.
    ///
    /// # Errors
    /// When the name is taken, guest memory isn't shared, or the back end can't be had.
    pub fn add_user_disk(
        &mut self,
        disk: config::UserDisk,
        socket: Option<OwnedFd>,
    ) -> Result<Option<api::Disk>, Error> {
        let refuse = |why: &str| Err(Error::Device(format!("{}: {why}", what(&disk))));
        self.may_plug(&config::Device::UserDisk(disk.clone()))?;
        if !self.memory.options().shared {
            return refuse(UNSHARED);
        }
        if self.connecting.len() == MAX_CONNECTING {
            return refuse("too many others wait for their back ends, or have failed");
        }
        let (said, answer) = channel();
        let bell = Arc::clone(&self.quieted);
        let begun = target(&disk, socket).open_later(move |back_end| {
            // Nobody hears of it who has taken the disk away.
            let _ = said.send(back_end);
            // Fails only when the counter is full, and then it is rung already.
            let _ = bell.write(1);
        });
        if let Err(error) = begun {
            return refuse(&error.to_string());
        }
        let id = disk.id.clone();
        self.connecting.push(Connecting {
            disk,
            answer,
            error: None,
            is_forgotten: false,
        });
        let deadline = Instant::now() + MOMENT;
        loop {
            self.progress()?;
            let Some(place) = self.connecting.iter().position(|one| one.is(&id)) else {
                let mut devices = self.devices.list();
                let device = devices.find(|device| device.id == id);
                return Ok(device.and_then(Device::disk));
            };
            if self.connecting[place].error.is_some()
                && let Some(error) = self.connecting.swap_remove(place).error
            {
                return Err(error);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left);
        }
    }

    /// Plugs disks whose back ends have answered.
    pub(super) fn plug_connected(&mut self) {
        let is_over = |answer: &Receiver<_>| {
            let answer = answer.try_recv();
            !matches!(answer, Err(TryRecvError::Empty))
        };
        self.connecting
            .retain(|one| !one.is_forgotten || !is_over(&one.answer));
        if self.state == api::MachineState::Resetting {
            return;
        }
        for mut connecting in std::mem::take(&mut self.connecting) {
            let back_end = match connecting.answer.try_recv() {
                _ if connecting.error.is_some() || connecting.is_forgotten => {
                    self.connecting.push(connecting);
                    continue;
                }
                Err(TryRecvError::Empty) => {
                    self.connecting.push(connecting);
                    continue;
                }
                Err(TryRecvError::Disconnected) => {
                    Err(io::Error::other("the thread that waited for it is gone"))
                }
                Ok(back_end) => back_end,
            };
            if let Err(error) = self.plug_user_disk(&connecting.disk, back_end) {
                connecting.error = Some(error);
                self.connecting.push(connecting);
            }
        }
    }

    fn plug_user_disk(
        &mut self,
        disk: &config::UserDisk,
        back_end: io::Result<BackEnd>,
    ) -> Result<(), Error> {
        if self.devices.has(&disk.id) {
            return Err(taken(&config::Device::UserDisk(disk.clone())));
        }
        let made = self.context.user_disk(disk, back_end)?;
        let slot = self.plug(made, None)?;
        self.notify_guest(|registers| registers.slot_filled(slot))
    }

    /// Forgets a disk that isn't plugged yet; false: there is none of this name. Its thread
    /// counts until it ends: however often one is asked for and taken away, there are no
    /// more than [`MAX_CONNECTING`].
    pub fn forget_connecting(&mut self, id: &str) -> bool {
        self.forget_failed(id);
        let mut all = self.connecting.iter_mut();
        let it = all.find(|other| other.is(id));
        it.map(|it| it.is_forgotten = true).is_some()
    }

    /// Whether a disk of this name is to be plugged once its back end has answered.
    pub(super) fn is_connecting(&self, id: &str) -> bool {
        self.connecting.iter().any(|other| other.is(id))
    }

    /// Whether any is to be plugged.
    pub(super) fn connects(&self) -> bool {
        self.connecting.iter().any(|one| !one.is_forgotten)
    }

    /// Forgets a disk of this name that will never be plugged.
    pub(super) fn forget_failed(&mut self, id: &str) {
        self.connecting
            .retain(|other| other.disk.id != id || other.error.is_none());
    }

    /// Disks that aren't plugged yet.
    pub(super) fn connecting(&self) -> impl Iterator<Item = api::Connecting> {
        let all = self.connecting.iter().filter(|one| !one.is_forgotten);
        all.map(|connecting| api::Connecting {
            id: connecting.disk.id.clone(),
            error: connecting.error.as_ref().map(ToString::to_string),
        })
    }
}
