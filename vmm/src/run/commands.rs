//! What a client of the control socket asks for, done.

use std::io;
use std::os::fd::OwnedFd;

use hearth_vmm_api::{Exit, MachineChange, NewDisk, NewSnapshot, Snapshot};

use super::hand_over::HandOver;
use super::prometheus;
use crate::config;
use crate::control::{Answer, Command};
use crate::error::chain;
use crate::machine::{self, Errand, Machine, Outcome, Resize, Unfit, Unsaved};
use crate::snapshot::Destination;
use crate::virtio::limit::Limits;
use crate::virtio::{blk, net, vhost_user_blk};

const NO_BALLOON: &str = "the machine was started without --balloon";

/// How a request is answered.
pub(super) enum Reply {
    /// At once.
    Now(Answer),
    /// When the snapshot that is begun is written, of which there is one at a time.
    Saved,
    /// When this is done.
    Done(Errand),
}

/// Does what a client of the control socket asks for.
pub(super) fn perform(
    machine: &mut Machine,
    ending: &mut Option<Exit>,
    handing_over: &mut Option<HandOver>,
    command: Command,
    mut descriptors: Vec<OwnedFd>,
) -> Reply {
    if handing_over.is_some() && !command.only_reads() && command != Command::Stop {
        let why = "the machine is being handed over to another process";
        return Reply::Now(Answer::error(409, why));
    }
    Reply::Now(match command {
        Command::HandOver => match HandOver::begin(machine, descriptors.pop()) {
            Ok(begun) => {
                *handing_over = Some(begun);
                Answer::asked()
            }
            Err(answer) => answer,
        },
        Command::Snapshot(new) => return snapshot(machine, new, descriptors),
        Command::CancelSnapshot => match machine.cancel_snapshot() {
            true => Answer::asked(),
            false => Answer::done(),
        },
        Command::Describe => Answer::value(&machine.describe()),
        Command::ChangeMachine(change) => changed(machine, change),
        Command::Metrics => Answer::value(&machine.metrics()),
        Command::Prometheus => Answer::text(prometheus::text(&machine.metrics())),
        Command::PowerButton => match machine.press_power_button() {
            Ok(()) => Answer::done(),
            Err(error) => Answer::error(500, &chain(&error)),
        },
        Command::Nmi => match machine.send_nmi() {
            Ok(()) => Answer::done(),
            Err(error) => Answer::error(500, &chain(&error)),
        },
        Command::Reboot(reboot) => match machine.ask_to_reboot(reboot.resets) {
            Ok(true) => Answer::done(),
            Ok(false) => Answer::error(409, "the machine was reset since"),
            Err(error) => Answer::error(500, &chain(&error)),
        },
        Command::Pause => match machine.pause() {
            Ok(true) => Answer::done(),
            Ok(false) => Answer::asked(),
            Err(why) => Answer::error(409, why),
        },
        Command::Resume => match machine.resume() {
            Ok(()) => Answer::done(),
            Err(why) => Answer::error(409, why),
        },
        Command::Reset if let Some(why) = machine.refuses_reset() => Answer::error(409, why),
        Command::Reset => match machine.reset() {
            Ok(true) => Answer::done(),
            Ok(false) => Answer::asked(),
            Err(error) => {
                *ending = Some(cannot_reset(&error));
                Answer::error(500, &chain(&error))
            }
        },
        Command::AddDisk(new) => return add_disk(machine, new, descriptors.pop()),
        Command::AddNic(new) => {
            let tap = config::Tap::Name(new.tap);
            let mac = new.mac.as_deref();
            let (mtu, queues, vhost) = (new.mtu, new.queues, new.vhost);
            let nic = config::Nic::new(machine.id(), new.id, tap, mac, mtu, queues, vhost);
            let nic = nic.and_then(|nic| nic.limited(new.limits.try_into()?));
            added(nic, |nic| machine.add_nic(nic, descriptors))
        }
        Command::ChangeDisk(id, change) => {
            let limits = change.map(|change| Limits::try_from(change.limits));
            let limits = match limits.transpose() {
                Ok(limits) => limits,
                Err(mistake) => return Reply::Now(Answer::error(400, &mistake)),
            };
            match machine.change_disk(&id, limits) {
                Ok(Some(Resize::Now(disk))) => Answer::value(&disk),
                Ok(Some(Resize::Later(errand))) => return Reply::Done(errand),
                Ok(None) => no_device(&id),
                Err(error) => Answer::error(409, &chain(&error)),
            }
        }
        Command::ChangeNic(id, change) => match change.limits.try_into() {
            Ok(limits) => match machine.limit_nic(&id, limits) {
                Some(Ok(nic)) => Answer::value(&nic),
                None => no_device(&id),
                Some(Err(error)) => Answer::error(409, &error.to_string()),
            },
            Err(mistake) => Answer::error(400, &mistake),
        },
        Command::Balloon => match machine.balloon() {
            Some(state) => Answer::value(&state),
            None => Answer::error(404, NO_BALLOON),
        },
        Command::SetBalloon(wanted) => {
            if wanted.target_bytes >= machine.memory_bytes() {
                let wrong = "target_bytes: the guest has not that much memory";
                return Reply::Now(Answer::error(400, wrong));
            }
            match machine.set_balloon(wanted.target_bytes) {
                true => Answer::asked(),
                false => Answer::error(404, NO_BALLOON),
            }
        }
        Command::RemoveDisk(id) => remove_disk(machine, &id),
        Command::RemoveNic(id) => removed(&id, machine.request_unplug(&net::DECLARATION, &id)),
        Command::Stop => {
            *ending = Some(Exit::Stopped);
            Answer::done()
        }
    })
}

/// Changes the machine: all that is asked for, or nothing.
fn changed(machine: &mut Machine, change: MachineChange) -> Answer {
    match machine.change(change) {
        Ok(()) => Answer::value(&machine.describe()),
        Err(unfit) => {
            let status = match unfit {
                Unfit::Range(_) => 400,
                Unfit::NotNow(_) => 409,
                Unfit::Machine(_) => 500,
            };
            Answer::error(status, &chain(&unfit))
        }
    }
}

/// Puts a disk in: a file of ours, or what another process serves.
fn add_disk(machine: &mut Machine, new: NewDisk, open: Option<OwnedFd>) -> Reply {
    let (path, socket) = (new.path, new.socket);
    if let (None, Some(socket)) = (&path, socket.clone()) {
        if new.serial.is_some() || new.read_only {
            let wrong = "serial and read_only are for the back end to say";
            return Reply::Now(Answer::error(400, wrong));
        }
        if !new.limits.is_none() {
            return Reply::Now(Answer::error(400, config::NO_DISK_LIMITS));
        }
        let disk = config::UserDisk::new(new.id, socket);
        return Reply::Now(match disk.map(|disk| machine.add_user_disk(disk, open)) {
            Err(mistake) => Answer::error(400, &mistake),
            Ok(Err(error)) => Answer::error(409, &chain(&error)),
            Ok(Ok(Some(disk))) => Answer::value(&disk),
            Ok(Ok(None)) => Answer::asked(),
        });
    }
    let (Some(path), None) = (path, socket) else {
        let wrong = "a disk has either a path or a socket";
        return Reply::Now(Answer::error(400, wrong));
    };
    let disk = config::Disk::new(new.id, path, new.serial, new.read_only);
    let disk = disk.and_then(|disk| {
        let limits = new.limits.try_into()?;
        Ok(config::Disk { limits, ..disk })
    });
    match disk.map(|disk| machine.add_disk(disk, open)) {
        Err(mistake) => Reply::Now(Answer::error(400, &mistake)),
        Ok(Err(error)) => Reply::Now(Answer::error(409, &chain(&error))),
        Ok(Ok(errand)) => Reply::Done(errand),
    }
}

/// What came of an errand.
pub(super) fn finished(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Added(Ok(disk)) => Answer::value(&disk),
        Outcome::Added(Err(error)) => Answer::error(409, &chain(&error)),
        Outcome::Resized(Ok(Some(disk))) => Answer::value(&disk),
        Outcome::Resized(Ok(None)) => Answer::error(404, "the disk is gone"),
        Outcome::Resized(Err(error)) => Answer::error(500, &chain(&error)),
    }
}

/// Requests the unplug of a disk, whoever serves it.
fn remove_disk(machine: &mut Machine, id: &str) -> Answer {
    if machine.forget_connecting(id) || machine.forget_opening(id) {
        return Answer::asked();
    }
    let asked = match machine.request_unplug(&blk::DECLARATION, id) {
        Ok(false) => machine.request_unplug(&vhost_user_blk::DECLARATION, id),
        asked => asked,
    };
    removed(id, asked)
}

/// Begins to save the machine, into files that are open where some came along.
fn snapshot(machine: &mut Machine, new: NewSnapshot, mut descriptors: Vec<OwnedFd>) -> Reply {
    let destination = match (descriptors.pop(), descriptors.pop()) {
        (None, _) => Destination::Folder(new.path),
        (Some(state), Some(memory)) => Destination::Files {
            memory: memory.into(),
            state: state.into(),
        },
        (Some(_), None) => {
            let wrong = "two files are needed: memory and state";
            return Reply::Now(Answer::error(400, wrong));
        }
    };
    let begun = machine.begin_snapshot(destination, new.base, new.follow);
    match begun {
        Ok(()) => Reply::Saved,
        Err(unsaved) => Reply::Now(saved(Err(unsaved))),
    }
}

/// What became of a snapshot.
pub(super) fn saved(outcome: Result<u64, Unsaved>) -> Answer {
    match outcome {
        Ok(written_bytes) => Answer::value(&Snapshot { written_bytes }),
        Err(Unsaved::Unwritten(error)) if error.kind() != io::ErrorKind::AlreadyExists => {
            Answer::error(500, &chain(&error))
        }
        Err(unsaved @ Unsaved::Machine(_)) => Answer::error(500, &chain(&unsaved)),
        Err(unsaved) => Answer::error(409, &chain(&unsaved)),
    }
}

/// The end of a machine that can't be made anew.
pub(super) fn cannot_reset(error: &machine::Error) -> Exit {
    Exit::Crashed {
        detail: format!("the machine can't be reset: {}", chain(error)),
    }
}

/// Adds a device that was described rightly.
fn added<D, T: serde::Serialize>(
    described: Result<D, String>,
    add: impl FnOnce(D) -> Result<T, machine::Error>,
) -> Answer {
    match described.map(add) {
        Err(mistake) => Answer::error(400, &mistake),
        Ok(Err(error)) => Answer::error(409, &chain(&error)),
        Ok(Ok(device)) => Answer::value(&device),
    }
}

fn removed(id: &str, asked: Result<bool, machine::Error>) -> Answer {
    match asked {
        Ok(true) => Answer::asked(),
        Ok(false) => no_device(id),
        Err(error) => Answer::error(500, &chain(&error)),
    }
}

fn no_device(id: &str) -> Answer {
    Answer::error(404, &format!("there is no device {id:?}"))
}
