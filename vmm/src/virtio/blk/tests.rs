//! A driver, kind or hostile, against the whole device, on both engines.

mod device;
mod limits;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::*;
use crate::block::Wakes;
use crate::virtio::queue::{Broken, Buffers, Ring};
use crate::virtio::testing::{
    FakeInterrupt, Guest, INDIRECT, NEXT, READ, SIZE, WRITE, quiesce, reset,
};

const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x10_1000;
const DATA: u64 = 0x20_0000;
const DISK_SIZE: u64 = 4 << 20;

struct Bench {
    guest: Guest,
    interrupt: Arc<FakeInterrupt>,
    block: Block,
    file: File,
    returned: usize,
}

impl Bench {
    fn new(engine: EngineKind, features: u64, read_only: bool) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(DISK_SIZE).unwrap();
        Self::on(&file, engine, features, read_only)
    }

    fn on(file: &File, engine: EngineKind, features: u64, read_only: bool) -> Self {
        let file = file.try_clone().unwrap();
        let backend = Backend::from_file(file.try_clone().unwrap(), read_only).unwrap();
        let options = Options {
            serial: "vol0123456789abcdef0".into(),
            queues: 1,
            engine,
            ..Options::default()
        };
        let mut block = Block::new(backend, &options).unwrap();
        let guest = Guest::new(1);
        let interrupt = Arc::new(FakeInterrupt::default());
        guest.start(&mut block, features, &interrupt);
        Self {
            guest,
            interrupt,
            block,
            file,
            returned: 0,
        }
    }

    /// One request: returns its status and the length the device said it wrote.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
        self.header(kind, sector);
        self.guest.write(STATUS, &[0xee]);
        let mut chain = vec![(HEADER, 16, READ)];
        chain.extend_from_slice(data);
        chain.push((STATUS, 1, WRITE));
        self.guest.offer(0, &chain);
        self.answer()
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.write(HEADER, &header);
    }

    fn answer(&mut self) -> (u8, u32) {
        self.returned += 1;
        let wanted = self.returned;
        self.interrupt
            .wait(|said| said.queues.len() >= wanted || said.needs_reset > 0);
        let used = self.guest.used(0);
        assert_eq!(used.len(), wanted, "{:?}", self.interrupt.wait(|_| true));
        (self.guest.read(STATUS, 1)[0], used[wanted - 1].1)
    }

    fn broken(&self) {
        self.interrupt.wait(|said| said.needs_reset == 1);
    }
}

fn has_io_uring() -> bool {
    let backend = Backend::from_file(tempfile::tempfile().unwrap(), true).unwrap();
    let event = || Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
    let wakes = Wakes {
        doorbell: event(),
        stop: event(),
    };
    EngineKind::IoUring.prepare(&backend, wakes).is_ok()
}

fn on_both(features: u64, read_only: bool, test: impl Fn(&mut Bench)) {
    test(&mut Bench::new(EngineKind::Threads, features, read_only));
    if has_io_uring() {
        test(&mut Bench::new(EngineKind::IoUring, features, read_only));
    }
}

const ALL: u64 = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

#[test]
fn what_is_written_is_read_back() {
    on_both(ALL, false, |bench| {
        let data: Vec<u8> = (0..8192u32).map(|at| at.to_le_bytes()[0] ^ 0x5a).collect();
        bench.guest.write(DATA, &data);
        let out = [(DATA, 512, READ), (DATA + 512, 7680, READ)];
        assert_eq!(bench.request(1, 7, &out), (0, 1));
        assert_eq!(bench.request(4, 0, &[]), (0, 1));
        let into = [(DATA + 0x10000, 4096, WRITE), (DATA + 0x20000, 4096, WRITE)];
        assert_eq!(bench.request(0, 7, &into), (0, 8193));
        assert_eq!(bench.guest.read(DATA + 0x10000, 4096), data[..4096]);
        assert_eq!(bench.guest.read(DATA + 0x20000, 4096), data[4096..]);
        let mut on_disk = vec![0; 8192];
        bench.file.seek(SeekFrom::Start(7 * 512)).unwrap();
        bench.file.read_exact(&mut on_disk).unwrap();
        assert_eq!(on_disk, data);
        reset(&mut bench.block);
        let counted = bench.block.counters().list();
        assert!(counted[0].1 > 0, "{counted:?}");
        let expected = [
            ("reads", 1),
            ("read_bytes", 8192),
            ("writes", 1),
            ("written_bytes", 8192),
            ("flushes", 1),
            ("discards", 0),
            ("errors", 0),
        ];
        assert_eq!(counted[1..], expected);
    });
}

#[test]
fn without_flush_writes_are_durable_and_flush_is_unknown() {
    on_both(0, false, |bench| {
        assert_eq!(bench.request(1, 0, &[(DATA, 512, READ)]), (0, 1));
        assert_eq!(bench.request(4, 0, &[]), (2, 1));
        assert_eq!(bench.request(11, 0, &[(DATA, 16, READ)]), (2, 1));
    });
}

#[test]
fn the_serial_is_the_identity() {
    on_both(ALL, false, |bench| {
        assert_eq!(bench.request(8, 0, &[(DATA, 20, WRITE)]), (0, 21));
        assert_eq!(bench.guest.read(DATA, 20), b"vol0123456789abcdef0");
        assert_eq!(bench.request(8, 0, &[(DATA, 5, WRITE)]), (0, 6));
    });
}

#[test]
fn out_of_range_and_odd_transfers_fail() {
    on_both(ALL, false, |bench| {
        let last = DISK_SIZE / 512;
        for (kind, flags) in [(0, WRITE), (1, READ)] {
            assert_eq!(bench.request(kind, last, &[(DATA, 512, flags)]).0, 1);
            assert_eq!(bench.request(kind, u64::MAX, &[(DATA, 512, flags)]).0, 1);
            assert_eq!(bench.request(kind, 0, &[(DATA, 511, flags)]).0, 1);
            assert_eq!(bench.request(kind, last - 1, &[(DATA, 512, flags)]).0, 0);
        }
        assert_eq!(bench.request(99, 0, &[]).0, 2);
        reset(&mut bench.block);
        let counted = bench.block.counters().list();
        assert_eq!(counted.last(), Some(&("errors", 7)));
    });
}

#[test]
fn a_file_that_shrank_reads_as_an_error() {
    on_both(ALL, false, |bench| {
        bench.file.set_len(1024).unwrap();
        assert_eq!(bench.request(0, 1, &[(DATA, 1024, WRITE)]).0, 1);
        assert_eq!(bench.request(0, 1, &[(DATA, 512, WRITE)]), (0, 513));
    });
}

#[test]
fn a_read_only_disk_refuses_changes() {
    on_both(ALL, true, |bench| {
        assert_eq!(bench.request(1, 0, &[(DATA, 512, READ)]).0, 1);
        assert_eq!(bench.request(13, 0, &[(DATA, 16, READ)]).0, 1);
        assert_eq!(bench.request(0, 0, &[(DATA, 512, WRITE)]).0, 0);
        assert!(bench.block.features() & F_RO != 0);
    });
}

#[test]
fn discard_gives_blocks_back_and_zeroes_read_as_such() {
    on_both(ALL, false, |bench| {
        bench.file.seek(SeekFrom::Start(0)).unwrap();
        bench.file.write_all(&[0x77; 1 << 20]).unwrap();
        bench.file.sync_all().unwrap();
        let before = bench.file.metadata().unwrap().blocks();
        let range = |sector: u64, count: u32, flags: u32| {
            let mut bytes = sector.to_le_bytes().to_vec();
            bytes.extend(count.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes
        };
        bench.guest.write(DATA, &range(0, 1024, 0));
        assert_eq!(bench.request(11, 0, &[(DATA, 16, READ)]), (0, 1));
        assert!(bench.file.metadata().unwrap().blocks() + 1000 <= before);
        bench.guest.write(DATA, &range(1024, 512, 0));
        assert_eq!(bench.request(13, 0, &[(DATA, 16, READ)]), (0, 1));
        bench.guest.write(DATA, &range(1536, 256, 1));
        assert_eq!(bench.request(13, 0, &[(DATA, 16, READ)]), (0, 1));
        let mut content = vec![1; 1 << 20];
        bench.file.seek(SeekFrom::Start(0)).unwrap();
        bench.file.read_exact(&mut content).unwrap();
        assert!(content[..1792 * 512].iter().all(|byte| *byte == 0));
        assert!(content[1792 * 512..].iter().all(|byte| *byte == 0x77));
        // Reserved flags, unmap in a discard, too large, out of range, two ranges.
        for (kind, bytes, status) in [
            (11, range(0, 8, 1), 2),
            (13, range(0, 8, 2), 2),
            (13, range(0, u32::MAX, 0), 1),
            (11, range(u64::MAX, 8, 0), 1),
            (11, [range(0, 8, 0), range(8, 8, 0)].concat(), 1),
        ] {
            bench.guest.write(DATA, &bytes);
            let length = u32::try_from(bytes.len()).unwrap();
            assert_eq!(bench.request(kind, 0, &[(DATA, length, READ)]).0, status);
        }
    });
}

#[test]
fn framing_is_the_drivers_matter() {
    on_both(ALL, false, |bench| {
        // Header in three pieces and one with data; status at the end of data.
        bench.header(1, 3);
        bench.guest.write(HEADER + 16, &[0x42; 512]);
        let chain = [
            (HEADER, 1, READ),
            (HEADER + 1, 0, READ),
            (HEADER + 1, 14, READ),
            (HEADER + 15, 513, READ),
            (STATUS, 1, WRITE),
        ];
        bench.guest.offer(0, &chain);
        assert_eq!(bench.answer(), (0, 1));
        bench.header(0, 3);
        bench
            .guest
            .offer(0, &[(HEADER, 16, READ), (DATA, 513, WRITE)]);
        bench.answer();
        let mut expected = vec![0x42; 512];
        expected.push(0);
        assert_eq!(bench.guest.read(DATA, 513), expected);
    });
}

#[test]
fn chains_that_break_the_rules_stop_the_queue() {
    let past = 16 << 20;
    for chain in [
        &[(HEADER, 16, READ)][..],
        &[(HEADER, 15, READ), (STATUS, 1, WRITE)],
        &[(STATUS, 1, WRITE)],
        &[(HEADER, 16, READ), (STATUS, 0, WRITE)],
        &[(HEADER, 16, READ), (past - 1, 2, WRITE)],
        &[(past, 16, READ), (STATUS, 1, WRITE)],
        &[(u64::MAX - 7, 16, READ), (STATUS, 1, WRITE)],
        &[(HEADER, 16, READ), (STATUS, 1, WRITE), (DATA, 512, READ)],
        &[(HEADER, u32::MAX, READ), (STATUS, 1, WRITE)],
    ] {
        on_both(ALL, false, |bench| {
            bench.header(1, 0);
            bench.guest.offer(0, chain);
            bench.broken();
            assert_eq!(bench.guest.used(0), vec![]);
        });
    }
}

#[test]
fn tables_that_break_the_rules_stop_the_queue() {
    let cases: [&[(u64, u32, u16, u16)]; 6] = [
        // A loop, a next outside of the table.
        &[(HEADER, 16, NEXT, 1), (DATA, 16, NEXT, 0)],
        &[(HEADER, 16, NEXT, SIZE)],
        // Indirect tables: odd size, itself again, outside of memory, empty.
        &[(DATA, 17, INDIRECT, 0)],
        &[(Guest::table(0).0, 16, INDIRECT, 0)],
        &[(16 << 20, 16, INDIRECT, 0)],
        &[(DATA, 0, INDIRECT, 0)],
    ];
    for table in cases {
        on_both(ALL, false, |bench| {
            bench.guest.describe(0, 0, table);
            bench.guest.kick(0, 0);
            bench.broken();
        });
    }
    on_both(ALL, false, |bench| {
        bench.guest.kick(0, SIZE);
        bench.broken();
    });
    on_both(ALL, false, |bench| {
        bench.guest.set_available(0, SIZE + 1);
        bench.guest.ring(0);
        bench.broken();
    });
}

#[test]
fn an_endless_indirect_chain_is_cut() {
    let guest = Guest::new(1);
    let descriptors: Vec<u8> = (1u16..=2000)
        .flat_map(|next| {
            let mut one = DATA.to_le_bytes().to_vec();
            one.extend(1u32.to_le_bytes());
            one.extend(NEXT.to_le_bytes());
            one.extend(next.to_le_bytes());
            one
        })
        .collect();
    guest.write(DATA, &descriptors);
    guest.describe(0, 0, &[(DATA, 32_000, INDIRECT, 0)]);
    guest.kick(0, 0);
    let mut ring = Ring::new(&guest.queue(0), Arc::clone(&guest.memory)).unwrap();
    let popped = ring.pop(&mut Buffers::default());
    assert_eq!(popped, Err(Broken::TooLong));
}

#[test]
fn transfers_and_flushes_take_turns() {
    on_both(ALL, false, |bench| {
        for round in 0..60u64 {
            // A write, two flushes that take time, a read: all at once.
            let sector = (round * 8).to_le_bytes();
            let mut done = bench.guest.used(0).len();
            for (index, kind) in (0u64..).zip([1u32, 4, 4, 0]) {
                let (header, status) = (HEADER + 64 * index, STATUS + index);
                bench.guest.write(header, &kind.to_le_bytes());
                bench.guest.write(header + 4, &[0; 4]);
                bench.guest.write(header + 8, &sector);
                bench.guest.write(status, &[0xee]);
                let data = DATA + index * 0x1000;
                let chain = match kind {
                    1 => vec![(header, 16, READ), (data, 4096, READ), (status, 1, WRITE)],
                    0 => vec![(header, 16, READ), (data, 4096, WRITE), (status, 1, WRITE)],
                    _ => vec![(header, 16, READ), (status, 1, WRITE)],
                };
                bench.guest.offer(0, &chain);
                done += 1;
            }
            bench
                .interrupt
                .wait(|said| said.needs_reset > 0 || bench.guest.used(0).len() >= done);
            assert_eq!(bench.guest.read(STATUS, 4), [0; 4]);
        }
    });
}

#[test]
fn the_same_head_twice_is_the_drivers_loss() {
    on_both(ALL, false, |bench| {
        bench.header(0, 0);
        let head = bench.guest.offer(
            0,
            &[(HEADER, 16, READ), (DATA, 512, WRITE), (STATUS, 1, WRITE)],
        );
        for _ in 0..100 {
            bench.guest.kick(0, head);
        }
        reset(&mut bench.block);
        reset(&mut bench.block);
    });
}

/// A request as large as a system call takes no more of: it goes on where it ended.
#[test]
fn a_transfer_that_falls_short_goes_on() {
    // Linux: MAX_RW_COUNT.
    const MOST: u64 = (1 << 31) - 4096;
    const PIECE: u32 = 8 << 20;
    let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.set_len(3 << 30).unwrap();
    let marks: [u8; 12] = *b"end and rest";
    std::os::unix::fs::FileExt::write_all_at(&file, &marks, MOST - 4).unwrap();
    for engine in [EngineKind::Threads, EngineKind::Auto] {
        let mut bench = Bench::on(&file, engine, ALL, false);
        // The same memory again and again, in an indirect table: then a last page.
        let whole = MOST / u64::from(PIECE);
        let rest = u32::try_from(MOST % u64::from(PIECE)).unwrap();
        let mut chain = vec![(HEADER, 16, READ)];
        let (target, last) = (0x40_0000, 0x30_0000);
        chain.extend((0..whole).map(|_| (target, PIECE, WRITE)));
        chain.extend([
            (target, rest, WRITE),
            (last, 4096, WRITE),
            (STATUS, 1, WRITE),
        ]);
        let table: Vec<u8> = (1u16..)
            .zip(&chain)
            .flat_map(|(next, (address, length, flags))| {
                let more = if usize::from(next) < chain.len() {
                    NEXT
                } else {
                    0
                };
                let mut one = address.to_le_bytes().to_vec();
                one.extend(length.to_le_bytes());
                one.extend((flags | more).to_le_bytes());
                one.extend(next.to_le_bytes());
                one
            })
            .collect();
        bench.header(0, 0);
        bench.guest.write(0x20_0000, &table);
        let length = u32::try_from(table.len()).unwrap();
        bench
            .guest
            .describe(0, 0, &[(0x20_0000, length, INDIRECT, 0)]);
        bench.guest.kick(0, 0);
        let moved = u32::try_from(MOST + 4096).unwrap();
        assert_eq!(bench.answer(), (0, moved + 1));
        assert_eq!(bench.guest.read(last, 8), marks[4..]);
        assert_eq!(bench.guest.read(last + 8, 4088), [0; 4088]);
        let at = target + u64::from(rest) - 4;
        assert_eq!(bench.guest.read(at, 4), marks[..4]);
        reset(&mut bench.block);
        let counted = bench.block.counters().list();
        assert_eq!(counted[1..3], [("reads", 1), ("read_bytes", moved.into())]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_table_hangs_or_breaks_the_device(
        table in prop::collection::vec((0u64..(17 << 20), 0u32..70_000, 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..18, 1..12),
        kinds in prop::collection::vec(0u8..16, 64),
        uring in any::<bool>(),
    ) {
        let engine = if uring { EngineKind::Auto } else { EngineKind::Threads };
        let mut bench = Bench::new(engine, ALL, false);
        for (at, kind) in (0u64..).zip(kinds) {
            bench.guest.write(at * 4096, &[kind]);
        }
        bench.guest.describe(0, 0, &table);
        for head in heads {
            bench.guest.kick(0, head);
        }
        // Joins: whatever it was doing, it ends.
        reset(&mut bench.block);
    }
}
