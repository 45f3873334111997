//! Warm launches: instances that go on from a template, a machine of their image and type
//! that was held in its initramfs, instead of booting from cold.
//!
//! ```text
//!   launch ── is there a template? ── yes ─► VMM --restore ── refused ─► template goes, cold
//!                                     no ──► cold ── afterwards, by itself: make it
//!
//!   make:  VMM --template, no disk, no interface ── "held" on its console ── pause
//!          ── snapshot ── its group is ended ── the template is there, by a rename
//! ```
//! `<data>/templates/<key>/` has `machine.json` and `memory` of the VMM's snapshot, which
//! are hearth's and were handed in open, and `console`, what its console showed until it
//! held. The key is a hash of all that an instance must share with a template: account,
//! image, boot method, type, slots, and the VMM's program. A host that differs (another
//! processor) is refused by the VMM.
//!
//! Every image is the operator's and public in its region: no account can make one. So a
//! template holds nothing that is not everybody's, but for what its kernel drew before it
//! held (its addresses, secrets of its own) and the pages of `memory`, which all that go
//! on from it map. Those are no other account's to know or to time, hence the account in
//! the key, which stays right when accounts can make images.
//!
//! Templates are a matter of speed alone, so whatever is wrong with one costs it and
//! nothing else: the launch is cold then, and no template of that key is made again before
//! `hearth` starts anew. An image's kernel is as hostile as a guest. Its template knows
//! nothing of any instance, and is used for instances of the same image only. It is made
//! in a control group and a jail of its own, one at a time, when nobody else wants the
//! processor.
//!
//! In the sums that placement goes by a template is what is left over. One that is made
//! takes memory and disk that no instance and no volume was promised, and ends when they
//! are; so no launch is refused for one. One that is there is a file: it lessens the free
//! disk, of which the host's record says how much may be promised, and its pages in memory
//! are the kernel's to drop. When the disk runs short, templates are what goes first: before
//! a save of an instance's memory finds no room or is given up, and before guests are paused.

mod make;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::folder::{Folder, absent_is_fine};
use super::let_pass;
use crate::compute::LaunchSpec;

pub(super) use make::{Maker, available_mib};

/// What is half-made, beside the templates.
const MAKING: &str = ".making";
/// What goes, beside them.
const GOING: &str = ".going";
/// What the console showed.
const CONSOLE: &str = "console";
/// How a template is laid out, and how it is made: another number makes all anew.
const FORMAT: u32 = 1;

/// The templates of this machine.
#[derive(Debug)]
pub(super) struct Templates {
    folder: PathBuf,
    /// How many are kept.
    most: usize,
    /// Those that are being made or wait for it, and those that are not made any more.
    stages: Mutex<BTreeMap<String, Stage>>,
    /// One is made at a time.
    making: tokio::sync::Mutex<()>,
}

/// Why a template that isn't there is not to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being made, or waits for its turn.
    Making,
    /// It can't be made, or was of no use.
    GivenUp,
}

/// The stages, held: none comes or goes meanwhile.
type Stages<'a> = MutexGuard<'a, BTreeMap<String, Stage>>;

/// A template that was there when it was found.
#[derive(Debug)]
pub(super) struct Template {
    key: String,
    folder: PathBuf,
    /// The folder, open.
    opened: File,
}

impl Template {
    /// Its snapshot's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it is still there: it may have had to make room for another, and may even be
    /// made anew.
    fn is_there(&self) -> io::Result<bool> {
        let opened = self.opened.metadata()?;
        match fs::metadata(&self.folder) {
            Ok(now) => Ok((now.dev(), now.ino()) == (opened.dev(), opened.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Has an instance's console begin with what the template's showed.
    pub(super) fn begin_console(&self, of: &Folder) -> io::Result<()> {
        absent_is_fine(fs::copy(self.folder.join(CONSOLE), of.console()).map(drop))
    }
}

impl Templates {
    /// Those under `data`, of which so many are kept; sweeps what a crash has left
    /// half-made. What can't be swept is in nobody's way but that of templates.
    pub(super) fn open(data: &Path, most: usize) -> Self {
        let folder = data.join("templates");
        let mut swept = absent_is_fine(fs::remove_dir_all(folder.join(MAKING)))
            .and_then(|()| absent_is_fine(fs::remove_dir_all(folder.join(GOING))));
        if most == 0 {
            swept = absent_is_fine(fs::remove_dir_all(&folder));
        }
        if let Err(error) = swept {
            let folder = folder.display();
            tracing::warn!(%folder, %error, "templates can't be swept");
        }
        Self {
            folder,
            most,
            stages: Mutex::default(),
            making: tokio::sync::Mutex::default(),
        }
    }

    /// What a template for this launch would be called; none where there can't be one.
    pub(super) fn key(&self, spec: &LaunchSpec, vmm: &Path) -> io::Result<Option<String>> {
        let Some(clone) = spec.clone_of.as_ref() else {
            return Ok(None);
        };
        let Some(account) = &clone.warm_for else {
            return Ok(None);
        };
        if self.most == 0 {
            return Ok(None);
        }
        let vmm = fs::metadata(vmm)?;
        let vmm = (
            vmm.dev(),
            vmm.ino(),
            vmm.len(),
            vmm.mtime(),
            vmm.mtime_nsec(),
        );
        let shape = (
            &spec.instance_type,
            spec.vcpus,
            spec.memory_mib,
            slots(spec),
        );
        let all = (FORMAT, account, &clone.image, &spec.boot_method, shape, vmm);
        let hash = Sha256::digest(serde_json::to_vec(&all)?);
        Ok(Some(hex::encode(&hash[..16])))
    }

    /// The template for this launch, if it is there.
    pub(super) fn find(&self, spec: &LaunchSpec, vmm: &Path) -> Option<Template> {
        // A VMM that can't be looked at is said when it is started.
        let key = self.key(spec, vmm).ok()??;
        self.find_key(&key)
    }

    fn find_key(&self, key: &str) -> Option<Template> {
        let folder = self.folder.join(key);
        // Its last use.
        let opened = File::open(&folder).ok()?;
        opened.set_modified(SystemTime::now()).ok()?;
        Some(Template {
            key: key.to_owned(),
            folder,
            opened,
        })
    }

    /// Removes one that is of no use; none takes its place. One that had to make room for
    /// another while it was used was of use, and may be made again.
    pub(super) fn remove(&self, template: &Template) {
        let mut stages = self.stages();
        if !template.is_there().unwrap_or(true) {
            return;
        }
        stages.insert(template.key.clone(), Stage::GivenUp);
        // What stays is refused again.
        let _ = self.evict(&template.folder, stages);
    }

    /// Removes a template: at once for who looks for it. A machine that maps its memory
    /// goes on with that.
    fn evict(&self, folder: &Path, stages: Stages<'_>) -> io::Result<()> {
        let going = self.folder.join(GOING);
        absent_is_fine(fs::remove_dir_all(&going))?;
        fs::rename(folder, &going)?;
        drop(stages);
        absent_is_fine(fs::remove_dir_all(going))
    }

    /// The key of the template that is to be made for launches as this one, from here on
    /// by the caller; none: there is one, or there is to be none.
    pub(super) fn wanted(&self, spec: &LaunchSpec, vmm: &Path) -> Option<String> {
        let key = self.key(spec, vmm).ok()??;
        self.wants(&key).then_some(key)
    }

    fn wants(&self, key: &str) -> bool {
        let mut stages = self.stages();
        if stages.contains_key(key) || self.folder.join(key).exists() {
            return false;
        }
        stages.insert(key.to_owned(), Stage::Making);
        true
    }

    /// Whether nobody makes one of this key, now or when it is its turn, and what it was
    /// made in is cleared away.
    #[cfg(test)]
    pub(super) fn is_settled(&self, key: &str) -> bool {
        self.stages().get(key) != Some(&Stage::Making)
    }

    /// Removes all of it.
    pub(super) fn purge(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(&self.folder))
    }

    /// None of this key is made any more.
    fn give_up(&self, key: &str) {
        self.stages().insert(key.to_owned(), Stage::GivenUp);
    }

    fn stages(&self) -> Stages<'_> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where one is made.
    fn workshop(&self) -> io::Result<Folder> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.folder);
        // The VMM, another user, must pass through to its own part.
        made.and_then(|()| let_pass(&self.folder))?;
        let path = self.folder.join(MAKING);
        absent_is_fine(fs::remove_dir_all(&path))?;
        Ok(Folder::new(path))
    }

    /// Has what lies in a folder be the template of this key, in the place of those that
    /// were used longest ago.
    fn keep(&self, made: &Path, key: &str) -> io::Result<()> {
        let there = self.by_use()?;
        let over = (there.len() + 1).saturating_sub(self.most);
        for path in there.into_iter().take(over) {
            absent_is_fine(self.evict(&path, self.stages()))?;
        }
        fs::rename(made, self.folder.join(key))
    }

    /// The folders of those that are there: first the one that was used longest ago.
    fn by_use(&self) -> io::Result<Vec<PathBuf>> {
        let mut there = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name() != MAKING && entry.file_name() != GOING {
                there.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        there.sort();
        Ok(there.into_iter().map(|(_, path)| path).collect())
    }

    /// Has the one that was used longest ago make room on the disk for what isn't a matter
    /// of speed alone; false: there is none. It may be made again when there is room.
    pub(super) fn give_way(&self) -> io::Result<bool> {
        let there = match self.by_use() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            there => there?,
        };
        let Some(oldest) = there.first() else {
            return Ok(false);
        };
        // Another may have removed it: look again.
        absent_is_fine(self.evict(oldest, self.stages()))?;
        tracing::info!(template = %oldest.display(), "it makes room on the disk");
        Ok(true)
    }
}

/// The slots that a template leaves free in front of its devices.
fn slots(spec: &LaunchSpec) -> u8 {
    u8::try_from(spec.disks.len() + spec.nics.len()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_used_longest_ago_make_room() {
        let data = tempfile::tempdir().unwrap();
        let templates = Templates::open(data.path(), 2);
        let made = data.path().join("made");
        let keep = |key: &str| {
            templates.workshop().unwrap();
            fs::create_dir(&made).unwrap();
            templates.keep(&made, key).unwrap();
        };
        let age = |key: &str, seconds| {
            let folder = File::open(data.path().join("templates").join(key)).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(seconds);
            folder.set_modified(then).unwrap();
        };
        assert!(templates.wants("a") && !templates.wants("a"));
        keep("a");
        keep("b");
        age("a", 20);
        age("b", 10);
        // Used now.
        templates.find_key("a").unwrap();
        keep("c");
        assert!(templates.find_key("a").is_some() && templates.find_key("b").is_none());
        // One that was refused is not made again.
        templates.remove(&templates.find_key("c").unwrap());
        assert!(templates.find_key("c").is_none() && !templates.wants("c"));
        assert!(templates.wants("b"));
        assert_eq!(fs::read_dir(&templates.folder).unwrap().count(), 1);
        let none = Templates::open(data.path(), 0);
        assert!(none.find_key("a").is_none());
        none.purge().unwrap();
    }

    #[test]
    fn one_that_made_room_while_it_was_used_may_be_made_again() {
        let data = tempfile::tempdir().unwrap();
        let templates = Templates::open(data.path(), 1);
        let made = data.path().join("made");
        let keep = |key: &str| {
            templates.workshop().unwrap();
            fs::create_dir(&made).unwrap();
            templates.keep(&made, key).unwrap();
        };
        keep("a");
        let used = templates.find_key("a").unwrap();
        keep("b");
        // Its VMM finds no files there.
        templates.remove(&used);
        assert!(templates.wants("a"));
        // It is made anew by then, and that one is of use.
        keep("a");
        templates.stages().remove("a");
        templates.remove(&used);
        assert!(templates.find_key("a").is_some());
        templates.remove(&templates.find_key("a").unwrap());
        assert!(templates.find_key("a").is_none() && !templates.wants("a"));
    }
}
