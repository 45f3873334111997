//! The files of an instance's memory; what each name means is in [`super::hibernation`].
//!
//! Files are root's, mode 0600: a VMM gets them as open descriptors, or opens them before
//! it becomes its user.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::folder::{Folder, absent_is_fine};
use crate::compute::Kept;

/// Being written: good for nothing.
const NEW: &str = "memory.new";
/// Given out: good for nothing else.
const USED: &str = "memory.used";
/// What the name of kept memory begins with; the boot that it is of follows.
const WHOLE: &str = "memory-";
/// Guest memory, as the VMM calls it where it has a folder.
const MEMORY: &str = "memory";
/// The rest of the machine, which the VMM writes last.
const MACHINE: &str = "machine.json";
/// The longest that the rest of a machine may be, in bytes: one of the most vCPUs and
/// devices takes a small part of it.
const MOST_MACHINE: u64 = 16 << 20;
/// Size of the blocks that `st_blocks` counts, in bytes: stat(2).
const BLOCK: u64 = 512;

/// An instance's memory, in its folder.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    folder: PathBuf,
}

impl Memory {
    pub(super) fn of(folder: &Folder) -> Self {
        Self::at(folder.path().to_owned())
    }

    pub(super) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn whole(&self, boot: u64) -> PathBuf {
        self.place(&format!("{WHOLE}{boot}"))
    }

    /// The boots whose memory is kept, and whether there is anything else of any.
    fn look(&self) -> io::Result<(Vec<u64>, bool)> {
        let (mut boots, mut rest) = (Vec::new(), false);
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((boots, rest)),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            boots.extend(name.strip_prefix(WHOLE).and_then(|n| n.parse::<u64>().ok()));
            rest |= name == NEW || name == USED;
        }
        Ok((boots, rest))
    }

    /// What is kept.
    pub(super) fn kept(&self) -> io::Result<Option<Kept>> {
        Ok(match self.look()? {
            (boots, false) if boots.is_empty() => None,
            (boots, _) => match boots[..] {
                [boot] => Some(Kept::Whole { boot }),
                // There is never more than one.
                _ => Some(Kept::Rest),
            },
        })
    }

    /// Empties what is written into, which is there from now on, with nothing in it: by it is
    /// seen that the machine may be to be let go. No other memory is left.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.withdraw()?;
        absent_is_fine(fs::remove_dir_all(self.place(USED)))?;
        match DirBuilder::new().mode(0o700).create(self.place(NEW)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.spoil(),
            made => made,
        }
    }

    /// Takes away what is written, and has it take no room on the disk, though a VMM may
    /// still have it open. Nobody takes it for whole from here on.
    pub(super) fn spoil(&self) -> io::Result<()> {
        let new = self.place(NEW);
        absent_is_fine(fs::remove_file(new.join(MACHINE)))?;
        let memory = new.join(MEMORY);
        let emptied = OpenOptions::new().write(true).open(&memory);
        absent_is_fine(emptied.and_then(|memory| memory.set_len(0)))?;
        absent_is_fine(fs::remove_file(memory))
    }

    /// Makes the files that memory and the rest of the machine go into, open.
    pub(super) fn create(&self) -> io::Result<[File; 2]> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let create = |name| options.open(self.place(NEW).join(name));
        Ok([create(MEMORY)?, create(MACHINE)?])
    }

    /// Whether a VMM has written all of it. It writes the machine last, when memory is on
    /// the disk, and in one piece: that is cut short, and no JSON, or whole.
    pub(super) fn is_written(&self) -> io::Result<bool> {
        let new = self.place(NEW);
        let mut machine = Vec::new();
        let read = File::open(new.join(MACHINE))
            // The VMM has it open: it may be as long as it pleases.
            .and_then(|file| file.take(MOST_MACHINE + 1).read_to_end(&mut machine));
        match read {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
            Ok(_) if machine.len() as u64 > MOST_MACHINE => Ok(false),
            Ok(_) => Ok(
                serde_json::from_slice::<serde::de::IgnoredAny>(&machine).is_ok()
                    && new.join(MEMORY).try_exists()?,
            ),
        }
    }

    /// What memory that is being written takes by now, in bytes; none where none is.
    pub(super) fn written(&self) -> io::Result<Option<u64>> {
        match fs::metadata(self.place(NEW).join(MEMORY)) {
            Ok(memory) => Ok(Some(memory.blocks() * BLOCK)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What was written is whole, and on the disk but for its names. So is what the guest
    /// wrote, first: it has that for written, and a power cut must not take back any of it
    /// and leave the memory.
    pub(super) fn keep(&self, boot: u64, disks: &[PathBuf]) -> io::Result<()> {
        for disk in disks {
            sync(disk)?;
        }
        sync(&self.place(NEW))?;
        fs::rename(self.place(NEW), self.whole(boot))?;
        sync(&self.folder)
    }

    /// Has the names of what is kept outlast a power cut.
    pub(super) fn outlast(&self) -> io::Result<()> {
        sync(&self.folder)
    }

    /// Takes its name from whatever memory is kept: when this returns, none can be gone on
    /// from any more. What it was given to removes it.
    pub(super) fn withdraw(&self) -> io::Result<()> {
        for boot in self.look()?.0 {
            absent_is_fine(fs::remove_dir_all(self.place(USED)))?;
            fs::rename(self.whole(boot), self.place(USED))?;
        }
        // Also where one who was killed in between had renamed it.
        absent_is_fine(self.outlast())
    }

    /// Removes what a VMM that runs was given: it has it open.
    pub(super) fn remove_used(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(self.place(USED)))
    }

    /// Removes what is good for nothing.
    pub(super) fn sweep(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(self.place(NEW)))?;
        absent_is_fine(fs::remove_dir_all(self.place(USED)))
    }

    /// Removes all of it, so that none of it can ever be gone on from.
    pub(super) fn discard(&self) -> io::Result<()> {
        self.withdraw()?;
        self.sweep()
    }

    /// Before a launch, from this boot's memory or from cold: no other is left.
    pub(super) fn keep_only(&self, boot: Option<u64>) -> io::Result<()> {
        match (self.kept()?, boot) {
            (None, _) => Ok(()),
            (Some(Kept::Whole { boot: kept }), Some(boot)) if kept == boot => self.sweep(),
            _ => self.discard(),
        }
    }

    /// The folder with this boot's memory, for the one VMM that ever gets it.
    pub(super) fn take(&self, boot: u64) -> io::Result<Option<PathBuf>> {
        if !self.whole(boot).try_exists()? {
            return Ok(None);
        }
        self.withdraw()?;
        Ok(Some(self.place(USED)))
    }

    /// Takes back what was given out, to a VMM that is gone and never let its guest run.
    pub(super) fn give_back(&self, boot: u64) -> io::Result<()> {
        fs::rename(self.place(USED), self.whole(boot))?;
        sync(&self.folder)
    }

    /// What it takes on the disk, in bytes.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        let (boots, rest) = self.look()?;
        let mut places: Vec<_> = boots.into_iter().map(|boot| self.whole(boot)).collect();
        if rest {
            places.extend([NEW, USED].map(|name| self.place(name)));
        }
        let mut bytes = 0;
        for place in places {
            // It may have been removed meanwhile.
            let taken = fs::metadata(place.join(MEMORY));
            absent_is_fine(taken.map(|file| bytes += file.blocks() * BLOCK))?;
        }
        Ok(bytes)
    }
}

/// Has the names in a folder, or what is in a file, outlast a power cut.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_has_written_may_be_as_long_as_it_pleases() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::at(dir.path().to_owned());
        memory.clear().unwrap();
        memory.create().unwrap();
        let machine = dir.path().join(NEW).join(MACHINE);
        assert!(!memory.is_written().unwrap());
        let all = usize::try_from(MOST_MACHINE).unwrap();
        let mut text = b"null".to_vec();
        text.resize(all, b' ');
        fs::write(&machine, &text).unwrap();
        assert!(memory.is_written().unwrap());
        text.push(b' ');
        fs::write(&machine, &text).unwrap();
        assert!(!memory.is_written().unwrap());
    }

    #[test]
    fn of_an_instance_without_a_folder_there_is_nothing_to_discard() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::at(dir.path().join("none"));
        memory.discard().unwrap();
        memory.keep_only(Some(1)).unwrap();
        assert!(memory.kept().unwrap().is_none());
    }
}
