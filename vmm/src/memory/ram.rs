//! The guest's memory as a whole: its regions, who follows their changes, and the
//! marks of what is written.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::blocks::{Blocks, Pluggable};
use super::dirty::Tracker;
use super::mapping::Mapping;
use super::{Dirty, Log, Options, PAGE, Pages, Region};

/// The most regions: two from the start, and what is added later.
const MAX_REGIONS: usize = 8;

/// What reaches guest memory past this process's code, as the kernel's vhost does, and
/// must hear of what changes about it.
pub trait Follower: Send + Sync {
    /// Regions were added, or [`Ram::log`] is another one: whatever is written from
    /// here on is marked in it.
    ///
    /// # Errors
    /// When that can't be had.
    fn memory_changed(&self) -> io::Result<()>;
}

/// Guest memory. It is mapped as long as this is held.
///
/// Regions are added and never go, nor does what they are mapped to: a pointer into one
/// stays good, and looking one up takes no lock.
pub struct Ram {
    options: Options,
    /// The file that pages are still read from: its device and inode.
    origin: Option<(u64, u64)>,
    regions: [OnceLock<Region>; MAX_REGIONS],
    growing: Mutex<()>,
    tracker: Arc<Tracker>,
    followers: Mutex<Vec<Weak<dyn Follower>>>,
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl Ram {
    /// Memory that reads as zero: regions by their first address and size in bytes.
    ///
    /// # Errors
    /// When a region is not one of whole pages or overlaps another, or the host has no
    /// address space or memory for it.
    pub fn new(regions: &[(u64, u64)], options: Options) -> io::Result<Self> {
        Self::with_blocks(regions, None, options)
    }

    /// The same, with a place for blocks that come and go behind them. None is plugged.
    ///
    /// # Errors
    /// As [`Self::new`]; and when they are to be shared or of huge pages, or not whole.
    pub fn with_blocks(
        regions: &[(u64, u64)],
        blocks: Option<Pluggable>,
        options: Options,
    ) -> io::Result<Self> {
        let ram = Self::empty(options);
        for (start, size) in regions {
            ram.grow(*start, *size, None, |size| Mapping::new(size, options))?;
        }
        if let Some(Pluggable { start, size, block }) = blocks {
            ram.refuse_blocks()?;
            let blocks = Blocks::new(size, block, false)?;
            let kept = |size| Mapping::kept(size, options.pages);
            ram.grow(start, size, Some(blocks), kept)?;
        }
        Ok(ram)
    }

    /// Blocks are private memory of small pages, or of transparent huge ones: what they
    /// are mapped to changes.
    fn refuse_blocks(&self) -> io::Result<()> {
        let Options { shared, pages } = self.options;
        if shared || pages.size() as u64 != PAGE {
            let wrong = "blocks that come and go are neither shared nor of huge pages";
            return Err(invalid(wrong.to_owned()));
        }
        Ok(())
    }

    /// The same, as [`Options`] are without a word said: private, of transparent huge
    /// pages.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn private(regions: &[(u64, u64)]) -> io::Result<Self> {
        Self::new(regions, Options::default())
    }

    /// Memory with the content that [`Self::save`] wrote. It is read when it is touched,
    /// if it is private and not of huge pages: the file may then neither change nor
    /// become shorter as long as this is held. Otherwise it is read now.
    ///
    /// # Errors
    /// As [`Self::new`]; when the file is another memory's, by its size, or can't be
    /// read.
    pub fn restore(regions: &[(u64, u64)], options: Options, file: &File) -> io::Result<Self> {
        Self::restore_with_blocks(regions, None, options, file)
    }

    /// The same, with blocks that come and go. All count as plugged until
    /// [`Region::keep_blocks`] says which are.
    ///
    /// # Errors
    /// As [`Self::restore`] and [`Self::with_blocks`].
    pub fn restore_with_blocks(
        regions: &[(u64, u64)],
        blocks: Option<Pluggable>,
        options: Options,
        file: &File,
    ) -> io::Result<Self> {
        let mut ram = Self::empty(options);
        let metadata = file.metadata()?;
        let is_lazy = !options.shared && options.pages.size() as u64 == PAGE;
        ram.origin = is_lazy.then(|| (metadata.dev(), metadata.ino()));
        for (start, size) in regions {
            let position = ram.size();
            ram.grow(*start, *size, None, |size| match is_lazy {
                true => Mapping::of_file(file, position, size, options.pages),
                false => Mapping::new(size, options),
            })?;
        }
        if let Some(Pluggable { start, size, block }) = blocks {
            ram.refuse_blocks()?;
            let (position, pages) = (ram.size(), options.pages);
            let blocks = Blocks::new(size, block, true)?;
            let map = |size| Mapping::of_file(file, position, size, pages);
            ram.grow(start, size, Some(blocks), map)?;
        }
        let (has, wants) = (metadata.len(), ram.size());
        if has != wants {
            let wrong = format!("the saved memory has {has} bytes, the machine's {wants}");
            return Err(invalid(wrong));
        }
        if !is_lazy {
            ram.fill(file)?;
        }
        Ok(ram)
    }

    /// Memory of zeroes into which another process's is [received](Self::receive), with
    /// blocks that come and go: all count as plugged until [`Region::keep_blocks`] says which
    /// are.
    ///
    /// # Errors
    /// As [`Self::with_blocks`].
    pub fn to_receive(
        regions: &[(u64, u64)],
        blocks: Option<Pluggable>,
        options: Options,
    ) -> io::Result<Self> {
        let ram = Self::new(regions, options)?;
        if let Some(Pluggable { start, size, block }) = blocks {
            ram.refuse_blocks()?;
            let blocks = Blocks::new(size, block, true)?;
            ram.grow(start, size, Some(blocks), |size| {
                Mapping::new(size, options)
            })?;
        }
        Ok(ram)
    }

    /// Memory that another process shares, of which it handed over the file of each region.
    ///
    /// # Errors
    /// As [`Self::new`], and when these are no files of such regions, or could become
    /// shorter.
    pub fn shared_with(
        regions: &[(u64, u64)],
        options: Options,
        files: Vec<File>,
    ) -> io::Result<Self> {
        if files.len() != regions.len() {
            let (has, wants) = (files.len(), regions.len());
            return Err(invalid(format!(
                "it has {has} shared regions, and the machine {wants}"
            )));
        }
        let ram = Self::empty(options);
        for ((start, size), file) in regions.iter().zip(files) {
            ram.grow(*start, *size, None, |size| {
                Mapping::shared_with(file, size, options.pages)
            })?;
        }
        Ok(ram)
    }

    fn empty(options: Options) -> Self {
        Self {
            options,
            origin: None,
            regions: Default::default(),
            growing: Mutex::default(),
            tracker: Arc::default(),
            followers: Mutex::default(),
        }
    }

    /// Adds a region, of zeroes.
    ///
    /// # Errors
    /// As [`Self::new`]; while writes are tracked; when there are eight already; or when
    /// a follower can't take it in, and then the guest must not see it.
    pub fn add(&self, start: u64, size: u64) -> io::Result<&Region> {
        if self.is_tracking() {
            return Err(io::Error::from(io::ErrorKind::ResourceBusy));
        }
        let region = self.grow(start, size, None, |size| Mapping::new(size, self.options))?;
        self.notify()?;
        Ok(region)
    }

    fn grow(
        &self,
        start: u64,
        size: u64,
        blocks: Option<Blocks>,
        map: impl FnOnce(usize) -> io::Result<Mapping>,
    ) -> io::Result<&Region> {
        let _growing = lock(&self.growing);
        let page = self.options.pages.size().max(Pages::Small.size()) as u64;
        let wrong = |why| invalid(format!("memory of {size:#x} bytes at {start:#x} {why}"));
        if size == 0 || !start.is_multiple_of(page) || !size.is_multiple_of(page) {
            return Err(wrong("is not one of whole pages"));
        }
        let end = start.checked_add(size).ok_or_else(|| wrong("has no end"))?;
        let overlaps = |other: &Region| other.start() < end && start < other.start() + other.size();
        if self.regions().any(overlaps) {
            return Err(wrong("is there already"));
        }
        let mapping = map(usize::try_from(size).map_err(io::Error::other)?)?;
        let region = Region::new(
            start,
            self.size(),
            mapping,
            Arc::clone(&self.tracker),
            blocks,
        );
        let free = self.regions.iter().find(|place| place.get().is_none());
        let place = free.ok_or_else(|| wrong("is one region too many"))?;
        Ok(place.get_or_init(|| region))
    }

    /// The regions, in the order in which they came.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().map_while(OnceLock::get)
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.regions().map(Region::size).sum()
    }

    /// What it is made of.
    #[must_use]
    pub fn options(&self) -> Options {
        self.options
    }

    /// Makes all of it zero, and gives its pages back to the host; of blocks that come and
    /// go, none is plugged any more.
    ///
    /// # Errors
    /// When the host refuses, which leaves some of it as it was.
    pub fn clear(&self) -> io::Result<()> {
        for region in self.regions() {
            match region.blocks() {
                None => region.mapping().clear()?,
                Some(_) => region.clear_blocks()?,
            }
            self.tracker.mark(region.start(), region.mapping().size());
        }
        Ok(())
    }

    /// Gives the whole pages of a host range back to the host, where it is guest memory
    /// whose content the guest has given up. Returns their bytes.
    ///
    /// They read as zero when next touched, or as what they were restored with.
    pub fn release(&self, host: *const u8, length: usize) -> usize {
        let found = self.regions().find_map(|region| {
            let offset = host.addr().checked_sub(region.host().addr())?;
            (offset < region.mapping().size()).then_some((region, offset))
        });
        let Some((region, offset)) = found else {
            return 0;
        };
        let released = region.mapping().release(offset, length);
        self.tracker.mark(region.start() + offset as u64, length);
        released
    }

    /// Marks the pages that are written from here on, all of them clean.
    ///
    /// Devices must be quiet: a write under way may be missed. What the guest itself
    /// writes is KVM's to say.
    ///
    /// # Errors
    /// When a follower can't mark what it writes; nothing is tracked then.
    pub fn begin_tracking(&self) -> io::Result<()> {
        let ends = self.regions().map(|region| region.start() + region.size());
        let end = ends.max().unwrap_or(0);
        self.tracker.begin(end, self.options.shared)?;
        self.notify().inspect_err(|_| {
            self.tracker.end();
            // What can't be had keeps its own hold on the log that it marks.
            let _ = self.notify();
        })
    }

    /// Marks no more.
    pub fn end_tracking(&self) {
        self.tracker.end();
        // As above.
        let _ = self.notify();
    }

    /// Whether writes are tracked.
    #[must_use]
    pub fn is_tracking(&self) -> bool {
        self.tracker.is_on()
    }

    /// The pages that were written by anyone but the guest since this was last asked, or
    /// tracking began.
    #[must_use]
    pub fn take_dirty(&self) -> Dirty {
        self.tracker.take()
    }

    /// Where writes are marked, if they are.
    #[must_use]
    pub fn log(&self) -> Option<Arc<Log>> {
        self.tracker.log()
    }

    /// Has changes told to somebody, for as long as he is there.
    pub fn follow(&self, follower: Weak<dyn Follower>) {
        lock(&self.followers).push(follower);
    }

    /// Tells all followers, even if one fails.
    fn notify(&self) -> io::Result<()> {
        let mut followers = lock(&self.followers);
        followers.retain(|follower| follower.strong_count() > 0);
        let there: Vec<_> = followers.iter().filter_map(Weak::upgrade).collect();
        drop(followers);
        let told = there.iter().map(|follower| follower.memory_changed());
        told.fold(Ok(()), Result::and)
    }

    /// Refuses to write to the file that memory is read from.
    pub(super) fn refuse_origin(&self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        if self.origin == Some((metadata.dev(), metadata.ino())) {
            return Err(invalid(
                "the memory is still read from this file".to_owned(),
            ));
        }
        Ok(())
    }

    /// Where marks are made, for who writes past vm-memory.
    pub(super) fn tracker(&self) -> &Arc<Tracker> {
        &self.tracker
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.regions()).finish()
    }
}

impl GuestMemoryBackend for Ram {
    type R = Region;

    fn find_region(&self, address: GuestAddress) -> Option<&Region> {
        self.regions()
            .find(|region| region.offset(address.0).is_some())
    }

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions()
    }
}
