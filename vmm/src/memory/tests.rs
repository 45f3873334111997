use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::*;

const MIB: u64 = 1 << 20;
/// As above the hole of a PC.
const HIGH: u64 = 4 << 30;
const REGIONS: [(u64, u64); 2] = [(0, 4 * MIB), (HIGH, 2 * MIB)];

fn options(shared: bool, pages: Pages) -> Options {
    Options { shared, pages }
}

/// Every kind of memory that this host has.
fn kinds() -> Vec<Options> {
    let all = [Pages::Transparent, Pages::Small, Pages::Huge2M];
    let all = all
        .into_iter()
        .flat_map(|pages| [false, true].map(|shared| options(shared, pages)));
    // As many as all tests together take.
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = memory
        .lines()
        .find(|line| line.starts_with("HugePages_Free:"));
    let free = free.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    let has_huge = free.unwrap_or(0) >= 128;
    if !has_huge {
        eprintln!("SKIPPED: fewer than 128 huge pages are free (vm.nr_hugepages)");
    }
    all.filter(|kind| has_huge || kind.pages != Pages::Huge2M)
        .collect()
}

fn put(ram: &Ram, address: u64, value: u64) {
    ram.write_obj(value, GuestAddress(address)).unwrap();
}

fn get(ram: &Ram, address: u64) -> u64 {
    ram.read_obj(GuestAddress(address)).unwrap()
}

/// What `/proc/self/smaps` says of the mapping that begins with a region.
fn smaps(region: &Region) -> String {
    let start = format!("{:x}-", region.host().addr());
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let at = maps.find(&start).expect("the mapping");
    let end = maps[at..].find("VmFlags:").expect("flags") + at;
    let line = maps[end..].lines().next().expect("a line");
    format!("{}{line}", &maps[at..end])
}

#[test]
fn regions_start_on_huge_pages_and_stay_out_of_core_dumps() {
    for kind in kinds() {
        let ram = Ram::new(&REGIONS, kind).unwrap();
        assert_eq!((ram.num_regions(), ram.size()), (2, 6 * MIB));
        for region in ram.regions() {
            assert!(region.host().addr().is_multiple_of(2 << 20));
            let flags = smaps(region);
            let flags = flags.split("VmFlags:").nth(1).expect("flags");
            let has = |flag| flags.split_whitespace().any(|one| one == flag);
            assert!(has("dd"), "{kind:?}: {flags}");
            assert_eq!(has("sh"), kind.shared, "{kind:?}: {flags}");
            assert_eq!(has("hg"), kind.pages == Pages::Transparent, "{kind:?}");
            assert_eq!(has("ht"), kind.pages == Pages::Huge2M, "{kind:?}");
        }
    }
}

#[test]
fn memory_goes_when_it_is_dropped() {
    // A size that no other test has, which might be mapped there meanwhile.
    let size = 37 << 20;
    let ram = Ram::private(&[(0, size)]).unwrap();
    let start = ram.regions().next().unwrap().host().addr();
    drop(ram);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(&format!("{start:x}-{:x}", start + 0x250_0000)));
}

#[test]
fn regions_are_whole_pages_apart_from_each_other() {
    for wrong in [(0, 0), (0, 100), (100, 4096), (u64::MAX - 4095, 4096)] {
        assert!(Ram::private(&[wrong]).is_err(), "{wrong:?}");
    }
    let ram = Ram::private(&[(0x2000, 0x2000)]).unwrap();
    for wrong in [(0x1000, 0x2000), (0x3000, 0x1000), (0x2000, 0x2000)] {
        assert!(ram.add(wrong.0, wrong.1).is_err(), "{wrong:?}");
    }
    for index in 1..8 {
        let region = ram.add(index << 20, 0x1000).unwrap();
        assert_eq!(region.position(), 0x2000 + (index - 1) * 0x1000);
        put(&ram, index << 20, index);
    }
    assert!(ram.add(8 << 20, 0x1000).is_err(), "one too many");
    assert_eq!(get(&ram, 7 << 20), 7);
    assert!(ram.write_obj(0u64, GuestAddress(8 << 20)).is_err());
    assert!(ram.write_obj(0u64, GuestAddress(0x3ffc)).is_err());
}

#[test]
fn cleared_and_released_memory_is_zero_and_marked() {
    for kind in kinds() {
        let ram = Ram::new(&REGIONS, kind).unwrap();
        let host = |address| ram.get_host_address(GuestAddress(address)).unwrap();
        for address in [0, 2 * MIB, HIGH] {
            put(&ram, address, 7);
        }
        ram.begin_tracking().unwrap();
        // Whole pages of its own size only.
        assert_eq!(ram.release(host(1), 100), 0);
        assert_eq!(ram.release(host(2 * MIB), 2 << 20), 2 << 20);
        assert_eq!(ram.release(std::ptr::null(), 4096), 0);
        assert_eq!([0, 2 * MIB, HIGH].map(|at| get(&ram, at)), [7, 0, 7]);
        let dirty = ram.take_dirty();
        assert!(dirty.contains(2 * MIB) && !dirty.contains(HIGH), "{kind:?}");
        ram.clear().unwrap();
        assert_eq!([0, 2 * MIB, HIGH].map(|at| get(&ram, at)), [0; 3]);
        assert_eq!(ram.take_dirty().count(), ram.size() / PAGE);
    }
}

#[test]
fn shared_memory_can_be_mapped_by_others_and_not_cut_short() {
    let ram = Ram::new(&REGIONS, options(true, Pages::Small)).unwrap();
    put(&ram, HIGH + 8, 7);
    let region = ram.find_region(GuestAddress(HIGH)).unwrap();
    let file = region.file_offset().expect("a file").file();
    let mut bytes = [0; 8];
    let read = rustix::io::pread(file, &mut bytes, 8).unwrap();
    assert_eq!((read, bytes), (8, 7u64.to_ne_bytes()));
    assert!(file.set_len(0).is_err());
    assert!(file.set_len(1 << 30).is_err());
    let private = Ram::private(&REGIONS).unwrap();
    assert!(
        private
            .regions()
            .all(|region| region.file_offset().is_none())
    );
}

#[test]
fn what_vm_memory_writes_is_marked() {
    let ram = Ram::private(&REGIONS).unwrap();
    put(&ram, 0x1000, 7);
    ram.begin_tracking().unwrap();
    assert_eq!(get(&ram, 0x1000), 7);
    assert_eq!(ram.take_dirty().count(), 0, "reading marks nothing");
    ram.write_slice(&[1; 5000], GuestAddress(HIGH + 0x2fff))
        .unwrap();
    let runs: Vec<_> = ram.take_dirty().runs(HIGH, 2 * MIB).collect();
    assert_eq!(runs, [(0x2000, 0x5000)]);
    put(&ram, 0x1000, 7);
    ram.end_tracking();
    assert_eq!(ram.take_dirty().count(), 0);
}

/// Somebody who reaches memory past this process.
#[derive(Default)]
struct Other {
    told: AtomicUsize,
    fails: bool,
}

impl Follower for Other {
    fn memory_changed(&self) -> io::Result<()> {
        self.told.fetch_add(1, Ordering::Relaxed);
        match self.fails {
            true => Err(io::Error::other("it can't")),
            false => Ok(()),
        }
    }
}

fn follow(ram: &Ram, other: &Arc<Other>) {
    let other = Arc::clone(other) as Arc<dyn Follower>;
    ram.follow(Arc::downgrade(&other));
}

#[test]
fn followers_are_told_of_each_change() {
    let ram = Ram::private(&REGIONS).unwrap();
    let other = Arc::new(Other::default());
    follow(&ram, &other);
    ram.begin_tracking().unwrap();
    assert!(ram.log().is_some());
    ram.end_tracking();
    assert!(ram.log().is_none());
    ram.add(16 * MIB, MIB).unwrap();
    assert_eq!(other.told.load(Ordering::Relaxed), 3);
    drop(other);
    ram.begin_tracking().unwrap();
    let error = ram.add(32 * MIB, MIB).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
}

#[test]
fn nothing_is_tracked_where_somebody_can_not_mark_his_writes() {
    let ram = Ram::private(&REGIONS).unwrap();
    let good = Arc::new(Other::default());
    let bad = Arc::new(Other {
        fails: true,
        ..Other::default()
    });
    follow(&ram, &bad);
    follow(&ram, &good);
    assert!(ram.begin_tracking().is_err());
    assert!(!ram.is_tracking());
    // Of the beginning, and of its end.
    assert_eq!(good.told.load(Ordering::Relaxed), 2);
}

/// A file for memory, with something in it.
fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(100).unwrap();
    file
}

#[test]
fn what_is_saved_is_restored() {
    for saved in kinds() {
        let ram = Ram::new(&REGIONS, saved).unwrap();
        let values = [
            (0, 1),
            (0x1ff8, 2),
            (4 * MIB - 8, 3),
            (HIGH, 4),
            (HIGH + 2 * MIB - 8, 5),
        ];
        for (address, value) in values {
            put(&ram, address, value);
        }
        let mut file = file();
        assert_eq!(
            ram.save(&mut file, &Cancel::default()).unwrap(),
            5 * PAGE,
            "{saved:?}"
        );
        assert_eq!(file.metadata().unwrap().len(), ram.size());
        for restored in kinds() {
            let again = Ram::restore(&REGIONS, restored, &file).unwrap();
            for (address, value) in values {
                assert_eq!(get(&again, address), value, "{saved:?}, {restored:?}");
            }
            assert_eq!(get(&again, MIB), 0);
            // What is written stays out of the file, and a reset clears all.
            put(&again, 0, 9);
            put(&again, MIB, 9);
            let third = Ram::restore(&REGIONS, restored, &file).unwrap();
            assert_eq!([get(&third, 0), get(&third, MIB)], [1, 0]);
            for _ in 0..2 {
                again.clear().unwrap();
                assert_eq!([get(&again, 0), get(&again, HIGH)], [0; 2]);
                put(&again, HIGH, 9);
            }
        }
    }
}

#[test]
fn nothing_is_written_to_the_file_that_memory_is_read_from() {
    let mut file = file();
    Ram::private(&REGIONS)
        .unwrap()
        .save(&mut file, &Cancel::default())
        .unwrap();
    let lazy = Ram::restore(&REGIONS, Options::default(), &file).unwrap();
    let dirty = Dirty::default();
    assert!(lazy.save(&mut file, &Cancel::default()).is_err());
    assert!(
        lazy.save_dirty(&mut file, &dirty, &Cancel::default())
            .is_err()
    );
    assert_eq!(file.metadata().unwrap().len(), lazy.size());
    let shared = options(true, Pages::Small);
    let read = Ram::restore(&REGIONS, shared, &file).unwrap();
    read.save_dirty(&mut file, &dirty, &Cancel::default())
        .unwrap();
}

#[test]
fn restored_memory_is_read_when_touched() {
    let ram = Ram::private(&REGIONS).unwrap();
    let full = vec![1; 4 << 20];
    ram.write_slice(&full, GuestAddress(0)).unwrap();
    let mut file = file();
    ram.save(&mut file, &Cancel::default()).unwrap();
    let small = options(false, Pages::Small);
    let again = Ram::restore(&REGIONS, small, &file).unwrap();
    let rss = || {
        let maps = smaps(again.regions().next().unwrap());
        let line = maps
            .lines()
            .find(|line| line.starts_with("Private_Dirty:"))
            .unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap()
    };
    assert_eq!(rss(), 0);
    put(&again, 0x1000, 7);
    assert_eq!(rss(), 4);
    // Dropped, it is the file's again.
    let host = again.get_host_address(GuestAddress(0)).unwrap();
    assert_eq!(again.release(host, 0x2000), 0x2000);
    assert_eq!(get(&again, 0x1000), 0x0101_0101_0101_0101);
    // Cleared, it is of the same pages as before.
    again.clear().unwrap();
    put(&again, 0x1000, 7);
    assert_eq!(rss(), 4);
}

#[test]
fn what_changed_is_saved_over_what_was() {
    for kind in kinds() {
        let ram = Ram::new(&REGIONS, kind).unwrap();
        for address in [0, 0x1000, 0x2000, HIGH] {
            put(&ram, address, 1);
        }
        let mut file = file();
        ram.save(&mut file, &Cancel::default()).unwrap();
        ram.begin_tracking().unwrap();
        put(&ram, 0x1000, 0);
        put(&ram, HIGH + 0x5000, 2);
        // Not marked, as what the guest writes: whoever saves adds what KVM says.
        let mut dirty = ram.take_dirty();
        assert_eq!(dirty.count(), 2);
        ram.end_tracking();
        put(&ram, 0x2000, 3);
        dirty.merge_at(0x2000, &[1]);
        assert_eq!(
            ram.save_dirty(&mut file, &dirty, &Cancel::default())
                .unwrap(),
            2 * PAGE
        );
        let again = Ram::restore(&REGIONS, Options::default(), &file).unwrap();
        let found = [0, 0x1000, 0x2000, HIGH, HIGH + 0x5000].map(|at| get(&again, at));
        assert_eq!(found, [1, 0, 3, 1, 2], "{kind:?}");
    }
}

#[test]
fn the_memory_of_another_machine_is_refused() {
    let ram = Ram::private(&REGIONS).unwrap();
    let mut file = file();
    assert!(
        ram.save_dirty(&mut file, &Dirty::default(), &Cancel::default())
            .is_err()
    );
    for kind in kinds() {
        let error = Ram::restore(&REGIONS, kind, &file).unwrap_err();
        assert!(error.to_string().contains("100 bytes"), "{error}");
    }
}

const BLOCK: u64 = 2 * MIB;
const BLOCKS: u64 = 4;

/// A region of its own for blocks that come and go.
fn blocks() -> Ram {
    let place = Pluggable {
        start: HIGH,
        size: BLOCKS * BLOCK,
        block: BLOCK,
    };
    let ram = Ram::with_blocks(&[(0, 4 * MIB)], Some(place), Options::default());
    ram.expect("memory")
}

fn of_blocks(ram: &Ram) -> &Region {
    ram.regions().nth(1).expect("the second")
}

#[test]
fn only_plugged_blocks_are_memory() {
    let ram = blocks();
    let region = of_blocks(&ram);
    let written = |at: u64| ram.write_obj(1u64, GuestAddress(at)).is_ok();
    assert!(!written(HIGH) && ram.read_obj::<u64>(GuestAddress(HIGH)).is_err());
    region.plug(1..3).unwrap();
    assert!(region.plug(2..4).is_err() && region.plug(1..1).is_err());
    assert!(region.plug(3..5).is_err() && region.unplug(0..2).is_err());
    assert!(written(HIGH + BLOCK) && written(HIGH + 3 * BLOCK - 8));
    assert!(!written(HIGH + BLOCK - 1) && !written(HIGH + 3 * BLOCK - 7));
    let state = region.blocks().unwrap();
    let runs: Vec<_> = state.runs().collect();
    assert_eq!((runs.len(), runs.first()), (1, Some(&(1..3))));
    assert_eq!(state.state(0..2), Some(BlockState::Mixed));
    assert_eq!((state.state(0..0), state.state(0..5)), (None, None));
    region.unplug(1..2).unwrap();
    assert!(!written(HIGH + BLOCK) && written(HIGH + 2 * BLOCK));
    region.plug(0..2).unwrap();
    assert_eq!(get(&ram, HIGH + BLOCK), 0, "what it had is gone");
    ram.clear().unwrap();
    assert_eq!((state.plugged(), written(HIGH)), (0, false));
}

#[test]
fn what_was_looked_up_before_an_unplug_does_no_harm_and_takes_no_memory() {
    let ram = blocks();
    let region = of_blocks(&ram);
    region.plug(0..BLOCKS).unwrap();
    let all = usize::try_from(BLOCKS * BLOCK).unwrap();
    let slice = GuestMemoryBackend::get_slice(&ram, GuestAddress(HIGH), all).unwrap();
    let fill = |value: u8| slice.copy_from(&vec![value; all]);
    fill(1);
    region.unplug_all().unwrap();
    // All at one place, whose block all of them are.
    fill(2);
    let mut seen = vec![0u8; all];
    slice.copy_to(&mut seen);
    assert!(seen.iter().all(|byte| *byte == 2));
    let anonymous: u64 = std::fs::read_to_string("/proc/self/smaps")
        .unwrap()
        .split("\nVmFlags:")
        .filter_map(|one| {
            let line = one.lines().find(|line| line.contains("unplugged-memory"))?;
            let (start, _) = line.split_once('-')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            let offset = start.checked_sub(region.host().addr() as u64)?;
            let mut lines = one.lines();
            let line = lines.find(|line| line.starts_with("Private_Dirty:"))?;
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            (offset < BLOCKS * BLOCK).then_some(kib << 10)
        })
        .sum();
    assert!(anonymous <= BLOCK, "{anonymous}");
    region.plug(0..1).unwrap();
    assert_eq!(get(&ram, HIGH), 0, "and none of it is seen by who comes");
}

#[test]
fn blocks_are_saved_as_far_as_they_are_plugged() {
    let ram = blocks();
    let region = of_blocks(&ram);
    region.plug(0..1).unwrap();
    region.plug(2..4).unwrap();
    put(&ram, HIGH + 8, 7);
    put(&ram, HIGH + 3 * BLOCK, 9);
    let mut file = tempfile::tempfile().unwrap();
    ram.save(&mut file, &Cancel::default()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), ram.size());
    ram.begin_tracking().unwrap();
    region.unplug(2..3).unwrap();
    region.plug(1..2).unwrap();
    put(&ram, HIGH + BLOCK, 5);
    let dirty = ram.take_dirty();
    ram.save_dirty(&mut file, &dirty, &Cancel::default())
        .unwrap();
    let place = Pluggable {
        start: HIGH,
        size: BLOCKS * BLOCK,
        block: BLOCK,
    };
    let low = [(0, 4 * MIB)];
    let copy = Ram::restore_with_blocks(&low, Some(place), Options::default(), &file).unwrap();
    of_blocks(&copy).keep_blocks(&[0..2, 3..4]).unwrap();
    assert_eq!(get(&copy, HIGH + 8), 7);
    assert_eq!(get(&copy, HIGH + BLOCK), 5);
    assert_eq!(get(&copy, HIGH + 3 * BLOCK), 9);
    assert!(copy.read_obj::<u8>(GuestAddress(HIGH + 2 * BLOCK)).is_err());
    for wrong in [[3..4, 0..1], [0..2, 1..3], [0..1, 3..5], [0..0, 1..2]] {
        assert!(of_blocks(&copy).keep_blocks(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn blocks_are_whole_private_and_of_small_pages() {
    let refused = |size, block, options| {
        let place = Pluggable {
            start: HIGH,
            size,
            block,
        };
        Ram::with_blocks(&[(0, MIB)], Some(place), options).is_err()
    };
    assert!(refused(BLOCK + 1, BLOCK, Options::default()));
    assert!(refused(BLOCK, 0, Options::default()));
    assert!(refused(BLOCK, BLOCK, options(true, Pages::Small)));
    assert!(refused(BLOCK, BLOCK, options(false, Pages::Huge2M)));
}
