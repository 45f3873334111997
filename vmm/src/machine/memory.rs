//! Guest memory of a machine: which pages were written, by whomever, and saving it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::{Error, Machine, Origin, host_error, kvm_error, vm};
use crate::arch;
use crate::memory::{Cancel, Dirty, Memory, Options, Pluggable, Ram};
use crate::snapshot::Refused;

/// Guest memory of so many bytes, of which those below 4 GiB end at the hole: of zeroes,
/// or what a snapshot has.
pub(super) fn make(
    (bytes, hole): (u64, u64),
    blocks: Option<Pluggable>,
    options: Options,
    origin: &mut Origin,
) -> Result<Memory, Error> {
    let regions = arch::memory::ram_around(bytes, hole);
    let memory = match origin {
        Origin::PowerOn => {
            Ram::with_blocks(&regions, blocks, options).map_err(|source| Error::Memory {
                mib: bytes >> 20,
                source,
            })
        }
        Origin::Process(inherited) if options.shared != inherited.regions.is_empty() => {
            let files = std::mem::take(&mut inherited.regions);
            inherited.is_shared = options.shared;
            match options.shared {
                true => Ram::shared_with(&regions, options, files),
                // Only private memory has blocks.
                false => Ram::to_receive(&regions, blocks, options),
            }
            .map_err(host_error("--take-over: guest memory"))
        }
        Origin::Process(_) => {
            let wrong = "--memory: it must be shared, or not, as the machine's is";
            Err(Error::Device(wrong.to_owned()))
        }
        Origin::Snapshot(source) => {
            Ram::restore_with_blocks(&regions, blocks, options, &source.memory)
                .map_err(|error| Error::Restore(Refused::by_host("memory", &error)))
        }
    };
    memory.map(Arc::new)
}

impl Machine {
    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Adds a region of guest memory, of zeroes: the guest can use it from here on. It
    /// isn't in the tables that describe the machine to the guest.
    ///
    /// # Errors
    /// When it isn't one of whole pages, overlaps another or a device, or the host can't
    /// have it; while writes are tracked, or a snapshot is being written.
    pub fn add_memory(&mut self, start: u64, size: u64) -> Result<(), Error> {
        if self.saving.is_some() {
            let busy = io::Error::from(io::ErrorKind::ResourceBusy);
            return Err(host_error("add guest memory while it is saved")(busy));
        }
        if !arch::memory::may_be_ram(start, size) {
            let devices = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(host_error("add guest memory where devices are")(devices));
        }
        let slot = self.memory.regions().count();
        let slot = u32::try_from(slot).map_err(|_| Error::Capability("so many memory slots"))?;
        let region = self.memory.add(start, size);
        let region = region.map_err(host_error("add guest memory"))?;
        vm::map(&self.vm, slot, region, false).map_err(kvm_error("give the VM its memory"))
    }

    /// Marks the pages that are written from here on, by the guest, by devices and by
    /// the kernel for them; all are clean now. A reset writes them all.
    ///
    /// The machine must be held and its devices be quiet: a write that is under way may
    /// be missed.
    ///
    /// # Errors
    /// When KVM or a device in the kernel can't; nothing is tracked then.
    pub fn begin_dirty_tracking(&mut self) -> Result<(), Error> {
        let memory = Arc::clone(&self.memory);
        memory
            .begin_tracking()
            .map_err(host_error("mark what devices write"))?;
        self.map_again().inspect_err(|_| {
            memory.end_tracking();
            // Slots that mark are no harm.
            let _ = self.map_again();
        })
    }

    /// Marks no more.
    ///
    /// # Errors
    /// When KVM refuses, which goes on marking then.
    pub fn end_dirty_tracking(&mut self) -> Result<(), Error> {
        self.memory.end_tracking();
        self.map_again()
    }

    /// Has KVM mark writes, or no longer.
    fn map_again(&self) -> Result<(), Error> {
        let is_tracking = self.memory.is_tracking();
        let regions = (0..).zip(self.memory.regions());
        regions
            .map(|(slot, region)| vm::map(&self.vm, slot, region, is_tracking))
            .try_for_each(|mapped| mapped.map_err(kvm_error("mark what the guest writes")))
    }

    /// The pages that were written since this was last asked, or tracking began; of a
    /// machine that runs, some of them while it is answered. None where nothing is
    /// tracked.
    ///
    /// # Errors
    /// When KVM refuses. Some marks are then lost, and memory is to be saved whole.
    pub fn take_dirty(&mut self) -> Result<Dirty, Error> {
        let mut dirty = self.memory.take_dirty();
        if !self.memory.is_tracking() {
            return Ok(dirty);
        }
        for (slot, region) in (0..).zip(self.memory.regions()) {
            #[expect(clippy::cast_possible_truncation, reason = "it is mapped here")]
            let size = region.size() as usize;
            let marks = self.vm.get_dirty_log(slot, size);
            let marks = marks.map_err(kvm_error("ask what the guest wrote"))?;
            dirty.merge_at(region.start(), &marks);
        }
        Ok(dirty)
    }

    /// Writes guest memory to a file: see [`Ram::save`](crate::memory::Ram::save).
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn save_memory(&self, file: &mut File) -> Result<u64, Error> {
        self.memory
            .save(file, &Cancel::default())
            .map_err(host_error("save guest memory"))
    }

    /// Writes pages over what a file has of them: see
    /// [`Ram::save_dirty`](crate::memory::Ram::save_dirty).
    ///
    /// # Errors
    /// When the file can't be written, or is another memory's.
    pub fn save_dirty_memory(&self, file: &mut File, dirty: &Dirty) -> Result<u64, Error> {
        self.memory
            .save_dirty(file, dirty, &Cancel::default())
            .map_err(host_error("save guest memory"))
    }
}
