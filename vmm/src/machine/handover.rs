//! A machine that goes on in another process, with its files: what is handed over, and how
//! it is taken.
//!
//! It is the machine that the guest knows, and no copy: the generation id stays.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hearth_vmm_api::MachineState;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryRegion;

use super::context::Made;
use super::devices::{Device, Handle};
use super::snapshot::{FIRMWARE, MachineV1, Saved};
use super::{Error, Machine, Unsaved, host_error};
use crate::acpi::GenerationV1;
use crate::handover;
use crate::jail::{Allow, Profile};
use crate::memory::Memory;
use crate::snapshot::{Refused, sealed, unsealed};

/// What the thread that sends it asks of the kernel, beside what every thread may.
pub(crate) static PROFILE: Profile = Profile {
    thread: &[
        Allow::any(libc::SYS_sendmsg),
        Allow::any(libc::SYS_sendto),
        Allow::any(libc::SYS_shutdown),
    ],
    plug: &[],
};

/// What can't be had.
const FILES: &str = "hand over its files";

/// What the next process has to know beside its own command line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HandoverV1 {
    machine: MachineV1,
    generation: GenerationV1,
    resets: u64,
}

/// All that another process needs to go on.
pub struct Handover {
    /// What devices are made of, by their ids.
    pub devices: Vec<(String, Vec<OwnedFd>)>,
    /// What a reset boots.
    pub software: Vec<OwnedFd>,
    /// Guest memory.
    pub memory: Memory,
    /// A file for each region of guest memory, if it is shared.
    pub regions: Vec<OwnedFd>,
    /// The state, sealed.
    pub state: Vec<u8>,
}

/// What another process has handed over, as far as it is needed before the process is
/// confined: memory and the state are still to come.
#[derive(Debug)]
pub struct Inherited {
    /// Where they come from.
    pub stream: UnixStream,
    /// What devices are made of, by their ids.
    pub devices: BTreeMap<String, Vec<OwnedFd>>,
    /// What a reset boots.
    pub software: Vec<File>,
    /// A file for each region of guest memory, if it is shared.
    pub regions: Vec<File>,
    /// Whether those were guest memory.
    pub(super) is_shared: bool,
    /// Whether the paths of sockets are this process's to remove, which they are once the
    /// machine is.
    pub owns_paths: Arc<AtomicBool>,
}

impl Inherited {
    /// What comes on this socket, of which nothing has yet.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            devices: BTreeMap::new(),
            software: Vec::new(),
            regions: Vec::new(),
            is_shared: false,
            owns_paths: Arc::default(),
        }
    }
}

impl Machine {
    /// Why another process can't have it, if it can't.
    #[must_use]
    pub fn refuses_hand_over(&self) -> Option<&'static str> {
        if self.is_debugged {
            return Some("a debugger has the machine: detach it");
        }
        if self.payload.is_firmware() {
            return Some(FIRMWARE);
        }
        let mut devices = self.devices.list();
        let is_user_disk = |one: &Device| matches!(one.handle, Handle::UserDisk(..));
        if self.opens() {
            return Some("a disk's file is being opened or looked at");
        }
        let is_served = devices.any(is_user_disk) || self.connects();
        is_served.then_some("a disk that another process serves can't be handed over: unplug it")
    }

    /// Everything that another process needs to go on with the machine, which must be held
    /// and stays so until it is [taken back](Self::take_back).
    ///
    /// # Errors
    /// See [`Unsaved`]: it isn't handed over then.
    pub fn hand_over(&mut self) -> Result<Handover, Unsaved> {
        self.is_saveable()?;
        if let Some(why) = self.refuses_hand_over() {
            return Err(Unsaved::NotNow(why));
        }
        let devices = self.devices.list();
        let devices = devices.map(|device| Ok((device.id.clone(), device.handle.files()?)));
        let devices: io::Result<_> = devices.collect();
        let regions = self.memory.regions().filter_map(|region| {
            let file = region.file_offset()?;
            Some(file.file().as_fd().try_clone_to_owned())
        });
        let regions: io::Result<_> = regions.collect();
        let software = self.payload.files();
        let state = HandoverV1 {
            machine: self.read_state()?,
            generation: self.generation.save(),
            resets: self.resets,
        };
        let handover = Handover {
            devices: devices.map_err(host_error(FILES))?,
            software: software.map_err(host_error(FILES))?,
            memory: Arc::clone(&self.memory),
            regions: regions.map_err(host_error(FILES))?,
            state: sealed(&state).map_err(host_error("hand over its state"))?,
        };
        self.state = MachineState::HandingOver;
        Ok(handover)
    }

    /// Nobody took it: it is paused again.
    pub fn take_back(&mut self) {
        if self.state == MachineState::HandingOver {
            self.state = MachineState::Paused;
        }
    }

    /// Goes on with the machine of another process, which keeps it until it hears that all
    /// of this went well.
    pub(super) fn take_over(
        &mut self,
        made: Vec<Made>,
        mut inherited: Inherited,
    ) -> Result<(), Error> {
        let stream = &mut inherited.stream;
        if !inherited.is_shared {
            let received = self.memory.receive(stream);
            received.map_err(host_error("--take-over: guest memory"))?;
        }
        let state = handover::receive_state(stream);
        let state = state.map_err(host_error("--take-over: the machine's state"))?;
        let fail = |refused: Refused| Error::TakeOver(refused);
        let saved: HandoverV1 = unsealed(&state).map_err(fail)?;
        self.is_same_template(saved.machine.template.as_ref())
            .map_err(fail)?;
        self.generation.restore(&saved.generation).map_err(fail)?;
        self.resets = saved.resets;
        let went_on = self.restore(made, Saved(saved.machine), false);
        went_on.map_err(|error| match error {
            Error::Restore(refused) => Error::TakeOver(refused),
            error => error,
        })
    }
}
