//! Requests on files of two file systems, and on a disk that can be made to wait, by
//! both engines.

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Weak;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;
use crate::memory::{Host, Ram};

const DATA: u64 = 0x10_0000;
const DEPTH: u16 = 256;

/// An engine at work on a file.
struct Bench {
    engine: Engine,
    backend: Arc<Backend>,
    memory: Memory,
    wakes: Wakes,
}

impl Bench {
    /// None where the kernel has no io_uring for us.
    fn new(kind: EngineKind, file: &File) -> Option<Self> {
        let backend = Backend {
            file: ManuallyDrop::new(file.try_clone().unwrap()),
            read_only: false,
        };
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
        let wakes = Wakes {
            doorbell: event(),
            stop: event(),
        };
        let Ok(prepared) = kind.prepare(&backend, wakes.clone()) else {
            eprintln!("SKIPPED: no io_uring");
            return None;
        };
        let backend = Arc::new(backend);
        let mut engine = prepared.start(Arc::clone(&backend), DEPTH).unwrap();
        let ranges = [(0, 16 << 20)];
        let memory: Memory = Arc::new(Ram::private(&ranges).unwrap());
        engine.begin(Arc::clone(&memory));
        Some(Self {
            engine,
            backend,
            memory,
            wakes,
        })
    }

    fn segments(&self, ranges: &[(u64, usize)]) -> Segments {
        let host = Host::new(Arc::clone(&self.memory));
        let mut segments = Segments::default();
        for (address, length) in ranges {
            segments.push(&host, *address, *length).unwrap();
        }
        segments
    }

    fn read(&self, offset: u64, ranges: &[(u64, usize)]) -> Op {
        let into = self.segments(ranges);
        Op::Read { offset, into }
    }

    fn write(&self, offset: u64, ranges: &[(u64, usize)], durable: bool) -> Op {
        Op::Write {
            offset,
            from: self.segments(ranges),
            durable,
        }
    }

    /// Waits for so many completions: their tokens and results, by token.
    fn finish(&mut self, count: usize) -> Vec<(u16, i32)> {
        let mut done = Vec::new();
        while done.len() < count {
            self.engine.wait(Until::Event, &mut done).unwrap();
        }
        let result = |done: &Completion| (done.token, done.result);
        let mut results: Vec<_> = done.iter().map(result).collect();
        results.sort_unstable();
        results
    }

    /// Carries out one request by itself.
    fn carry_out(&mut self, op: Op) -> i32 {
        self.engine.submit(3, op).unwrap();
        let done = self.finish(1);
        assert_eq!(done[0].0, 3);
        done[0].1
    }

    fn guest(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let at = GuestAddress(address);
        self.memory.read_slice(&mut data, at).unwrap();
        data
    }

    fn fill(&self, address: u64, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(address))
            .unwrap();
    }
}

/// A file on tmpfs, which can't zero a range in one step.
fn on_tmpfs() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create("disk", flags).unwrap().into()
}

/// Both engines, each on a file where temporary ones are and on one of tmpfs.
fn on_all(test: impl Fn(&mut Bench, &File)) {
    for kind in [EngineKind::Threads, EngineKind::IoUring] {
        for file in [tempfile::tempfile().unwrap(), on_tmpfs()] {
            if let Some(mut bench) = Bench::new(kind, &file) {
                test(&mut bench, &file);
            }
        }
    }
}

fn content(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    file.read_exact_at(&mut data, offset).unwrap();
    data
}

#[test]
fn transfers_take_bytes_where_they_belong() {
    on_all(|bench, file| {
        let data: Vec<u8> = (0u8..=250).cycle().take(3000).collect();
        bench.fill(DATA, &data);
        for (offset, durable) in [(512, false), (8192, true)] {
            let one = bench.write(offset, &[(DATA, 3000)], durable);
            assert_eq!(bench.carry_out(one), 3000);
            let halves = [(DATA + 1000, 2000), (DATA, 1000)];
            let two = bench.write(offset + 4000, &halves, durable);
            assert_eq!(bench.carry_out(two), 3000);
            assert_eq!(content(file, offset, 3000), data);
            assert_eq!(content(file, offset + 4000, 2000), data[1000..]);
            assert_eq!(content(file, offset + 6000, 1000), data[..1000]);
        }
        assert_eq!(bench.carry_out(Op::Flush), 0);
        let halves = [(DATA + 0x2000, 1000), (DATA + 0x1000, 2000)];
        for ranges in [&halves[..], &[(DATA + 0x3000, 3000)]] {
            let op = bench.read(512, ranges);
            assert_eq!(bench.carry_out(op), 3000);
        }
        assert_eq!(bench.guest(DATA + 0x2000, 1000), data[..1000]);
        assert_eq!(bench.guest(DATA + 0x1000, 2000), data[1000..]);
        assert_eq!(bench.guest(DATA + 0x3000, 3000), data);
    });
}

#[test]
fn a_file_that_ends_gives_what_it_has() {
    on_all(|bench, file| {
        file.write_all_at(&[7; 1000], 0).unwrap();
        let op = bench.read(900, &[(DATA, 512)]);
        assert_eq!(bench.carry_out(op), 100);
        let op = bench.read(1000, &[(DATA, 512)]);
        assert_eq!(bench.carry_out(op), 0);
    });
}

#[test]
fn what_the_kernel_refuses_is_its_errno() {
    let reading = File::open(std::env::current_exe().unwrap()).unwrap();
    for kind in [EngineKind::Threads, EngineKind::IoUring] {
        let Some(mut bench) = Bench::new(kind, &reading) else {
            continue;
        };
        let op = bench.write(0, &[(DATA, 512)], false);
        assert_eq!(bench.carry_out(op), -libc::EBADF);
        let (offset, length) = (0, 512);
        assert_eq!(
            bench.carry_out(Op::Discard { offset, length }),
            -libc::EBADF
        );
        assert_eq!(bench.carry_out(Op::Zero { offset, length }), -libc::EBADF);
    }
}

#[test]
fn zeroes_keep_their_blocks_and_what_is_discarded_does_not() {
    on_all(|bench, file| {
        const STEP: u64 = 64 << 10;
        const BYTES: usize = 64 << 10;
        file.write_all_at(&[7; 4 * BYTES], 0).unwrap();
        file.sync_all().unwrap();
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        let full = blocks(file);
        let (offset, length) = (STEP, STEP);
        assert_eq!(bench.carry_out(Op::Zero { offset, length }), 0);
        assert!(blocks(file) >= full, "{} of {full}", blocks(file));
        let offset = 2 * STEP;
        assert_eq!(bench.carry_out(Op::Discard { offset, length }), 0);
        assert!(blocks(file) < full, "{} of {full}", blocks(file));
        for (at, byte) in [(0, 7), (STEP, 0), (2 * STEP, 0), (3 * STEP, 7)] {
            assert!(content(file, at, BYTES).iter().all(|found| *found == byte));
        }
        // Neither makes a file longer.
        let offset = 8 * STEP;
        assert_eq!(bench.carry_out(Op::Zero { offset, length }), 0);
        assert_eq!(bench.carry_out(Op::Discard { offset, length }), 0);
        assert_eq!(bench.backend.size().unwrap(), 4 * STEP);
    });
}

/// The second step alone would say that all is well.
#[test]
fn a_range_that_stays_as_it_was_is_not_said_to_be_zero() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("disk", flags).unwrap());
    file.write_all_at(&[7; 8192], 0).unwrap();
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    for kind in [EngineKind::Threads, EngineKind::IoUring] {
        if let Some(mut bench) = Bench::new(kind, &file) {
            let (offset, length) = (4096, 4096);
            assert_eq!(bench.carry_out(Op::Zero { offset, length }), -libc::EPERM);
        }
    }
    assert_eq!(content(&file, 4096, 4096), [7; 4096]);
}

#[test]
fn as_many_requests_as_there_are_tokens_go_at_once() {
    on_all(|bench, file| {
        for token in 0..DEPTH {
            let byte = token.to_le_bytes()[0];
            file.write_all_at(&[byte; 512], u64::from(token) * 512)
                .unwrap();
        }
        for _ in 0..3 {
            for token in 0..DEPTH {
                let (offset, at) = (u64::from(token) * 512, DATA + u64::from(token) * 1024);
                // Some short, so that each result is its own request's.
                let length = 512 - usize::from(token);
                let op = bench.read(offset, &[(at, length)]);
                bench.engine.submit(token, op).unwrap();
            }
            let expected: Vec<_> = (0..DEPTH)
                .map(|token| (token, 512 - i32::from(token)))
                .collect();
            assert_eq!(bench.finish(DEPTH.into()), expected);
        }
        for token in 0..DEPTH {
            let length = 512 - usize::from(token);
            let found = bench.guest(DATA + u64::from(token) * 1024, length);
            assert_eq!(found, vec![token.to_le_bytes()[0]; length]);
        }
    });
}

#[test]
fn an_engine_that_waits_is_woken_by_either_event() {
    on_all(|bench, _| {
        let mut done = Vec::new();
        assert_eq!(
            bench.engine.wait(Until::Now, &mut done).unwrap(),
            Wake::default()
        );
        bench.wakes.doorbell.write(1).unwrap();
        let wake = bench.engine.wait(Until::Event, &mut done).unwrap();
        assert!(wake.rung && !wake.stop);
        bench.wakes.stop.write(1).unwrap();
        let wake = bench.engine.wait(Until::Event, &mut done).unwrap();
        assert!(wake.stop && !wake.rung);
        assert!(done.is_empty());
    });
}

#[test]
fn a_guest_that_always_has_one_more_request_does_not_hide_the_stop() {
    on_all(|bench, file| {
        file.write_all_at(&[7; 4096], 0).unwrap();
        for several in [false, true] {
            bench.wakes.stop.write(1).unwrap();
            let mut stopped = false;
            for _ in 0..64 {
                let mut done = Vec::new();
                for token in 0..=u16::from(several) {
                    let op = bench.read(0, &[(DATA, 512)]);
                    bench.engine.submit(token, op).unwrap();
                }
                while done.len() <= usize::from(several) {
                    stopped |= bench.engine.wait(Until::Event, &mut done).unwrap().stop;
                }
            }
            assert!(stopped);
            bench.wakes.stop.read().unwrap();
            bench.engine.drain().unwrap();
            let memory = Arc::clone(&bench.memory);
            bench.engine.begin(memory);
        }
    });
}

#[test]
fn memory_is_kept_until_the_engine_is_drained() {
    on_all(|bench, _| {
        let ranges = [(0, 1 << 20)];
        let memory: Memory = Arc::new(Ram::private(&ranges).unwrap());
        let seen: Weak<_> = Arc::downgrade(&memory);
        bench.engine.begin(memory);
        assert!(seen.upgrade().is_some());
        bench.engine.drain().unwrap();
        assert!(seen.upgrade().is_none());
    });
}

#[test]
fn nothing_is_left_of_an_engine_that_is_gone() {
    for kind in [EngineKind::Threads, EngineKind::IoUring] {
        let file = on_tmpfs();
        file.set_len(1 << 20).unwrap();
        let Some(bench) = Bench::new(kind, &file) else {
            continue;
        };
        let (op, other) = (bench.read(0, &[(DATA, 512)]), bench.read(0, &[(DATA, 512)]));
        let Bench {
            mut engine,
            backend,
            memory,
            ..
        } = bench;
        engine.submit(0, op).unwrap();
        engine.submit(1, other).unwrap();
        drop(engine);
        assert_eq!(Arc::strong_count(&backend), 1);
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}

/// A disk whose reads wait until something is written to it: a pipe, which no one
/// can plug. Only a ring reads from one.
fn that_waits() -> Option<(Bench, io::PipeWriter)> {
    let (reader, writer) = io::pipe().unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    Some((Bench::new(EngineKind::IoUring, &file)?, writer))
}

#[test]
fn a_ring_with_requests_in_flight_is_woken_by_either_event() {
    let Some((mut bench, mut disk)) = that_waits() else {
        return;
    };
    let mut done = Vec::new();
    for token in [0, 1] {
        let op = bench.read(0, &[(DATA + 1024 * u64::from(token), 512)]);
        bench.engine.submit(token, op).unwrap();
    }
    let nothing = bench.engine.wait(Until::Now, &mut done).unwrap();
    assert_eq!((nothing, done.len()), (Wake::default(), 0));
    for _ in 0..3 {
        bench.wakes.doorbell.write(1).unwrap();
        let wake = bench.engine.wait(Until::Event, &mut done).unwrap();
        assert!(wake.rung && !wake.stop && done.is_empty());
    }
    disk.write_all(&[5; 512]).unwrap();
    // Whichever of them had it.
    let (token, result) = bench.finish(1)[0];
    assert_eq!(result, 512);
    assert_eq!(bench.guest(DATA + 1024 * u64::from(token), 512), [5; 512]);
    bench.wakes.stop.write(1).unwrap();
    let wake = bench.engine.wait(Until::Event, &mut done).unwrap();
    assert!(wake.stop && !wake.rung && done.is_empty());
    // What is still in flight ends with the disk.
    drop(disk);
}

#[test]
fn a_wait_with_and_without_requests_in_flight_ends_at_its_time() {
    let on_time = |bench: &mut Bench| {
        for _ in 0..3 {
            let time = Instant::now() + Duration::from_micros(2500);
            let mut done = Vec::new();
            // A poll that is past may fire first: a wake for nothing.
            while Instant::now() < time {
                let wake = bench.engine.wait(Until::At(time), &mut done).unwrap();
                assert_eq!((wake, done.len()), (Wake::default(), 0));
            }
            let late = Until::At(time + Duration::from_secs(60));
            bench.wakes.doorbell.write(1).unwrap();
            assert!(bench.engine.wait(late, &mut done).unwrap().rung);
            assert!(time.elapsed() < Duration::from_secs(30));
        }
    };
    on_all(|bench, _| on_time(bench));
    let Some((mut bench, disk)) = that_waits() else {
        return;
    };
    for token in [0, 1] {
        let op = bench.read(0, &[(DATA, 512)]);
        bench.engine.submit(token, op).unwrap();
    }
    on_time(&mut bench);
    drop(disk);
}

#[test]
fn a_stop_that_is_past_is_not_seen_again() {
    let Some((mut bench, mut disk)) = that_waits() else {
        return;
    };
    for round in 0..4u8 {
        let mut done = Vec::new();
        let op = bench.read(0, &[(DATA, 512)]);
        bench.engine.submit(0, op).unwrap();
        // Armed, and nothing to say: neither now nor of the round before.
        bench.wakes.doorbell.write(1).unwrap();
        let wake = bench.engine.wait(Until::Event, &mut done).unwrap();
        assert!(wake.rung && !wake.stop, "round {round}");
        // Every other round ends without having heard the stop.
        if round % 2 == 0 {
            bench.wakes.stop.write(1).unwrap();
            // The poll of a round before may fire first: a wake for nothing.
            while !bench.engine.wait(Until::Event, &mut done).unwrap().stop {}
            bench.wakes.stop.read().unwrap();
        }
        assert!(done.is_empty());
        // What is in flight is waited for, and is in memory then.
        disk.write_all(&[round; 512]).unwrap();
        bench.engine.drain().unwrap();
        assert_eq!(bench.guest(DATA, 512), [round; 512]);
        let memory = Arc::clone(&bench.memory);
        bench.engine.begin(memory);
    }
}

#[test]
fn a_ring_is_done_with_memory_when_it_is_gone() {
    let Some((bench, mut disk)) = that_waits() else {
        return;
    };
    let op = bench.read(0, &[(DATA, 512)]);
    let Bench {
        mut engine, memory, ..
    } = bench;
    engine.submit(0, op).unwrap();
    engine.wait(Until::Now, &mut Vec::new()).unwrap();
    disk.write_all(&[5; 512]).unwrap();
    drop(engine);
    let mut data = [0; 512];
    memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    assert_eq!(data, [5; 512]);
}

#[test]
fn tokens_are_below_the_depth_and_not_in_flight() {
    let Some((mut bench, mut disk)) = that_waits() else {
        return;
    };
    let kind = |refused: io::Result<()>| refused.map_err(|error| error.kind());
    for token in [0, 1] {
        let op = bench.read(0, &[(DATA, 512)]);
        bench.engine.submit(token, op).unwrap();
    }
    for token in [0, DEPTH] {
        let op = bench.read(0, &[(DATA, 512)]);
        let refused = bench.engine.submit(token, op);
        assert_eq!(kind(refused), Err(io::ErrorKind::InvalidInput));
    }
    disk.write_all(&[5; 1024]).unwrap();
    assert_eq!(bench.finish(2), [(0, 512), (1, 512)]);
}

#[test]
fn a_disk_is_a_file_or_a_block_device_and_opened_as_asked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [7; 700]).unwrap();
    for read_only in [false, true] {
        let disk = Backend::open(file.path(), read_only).unwrap();
        assert_eq!(disk.size().unwrap(), 700);
        let copy = disk.try_clone().unwrap();
        assert_eq!((disk.read_only(), copy.read_only()), (read_only, read_only));
        assert_eq!(copy.file.write_at(&[8], 0).is_ok(), !read_only);
    }
    let null = File::open("/dev/null").unwrap();
    assert!(Backend::from_file(null, true).is_err());
    assert!(Backend::open(Path::new("/tmp"), true).is_err());
}

/// Whoever hands an open file to us may have opened it for something else.
#[test]
fn a_disk_is_open_for_what_is_done_to_it() {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, [0; 4096]).unwrap();
    let is_taken = |options: &mut OpenOptions, read_only| {
        let file = options.open(&path).unwrap();
        Backend::from_file(file, read_only).is_ok()
    };
    let new = OpenOptions::new;
    assert!(is_taken(new().read(true).write(true), false));
    assert!(is_taken(new().read(true).write(true), true));
    assert!(is_taken(new().read(true), true));
    assert!(!is_taken(new().read(true), false));
    assert!(!is_taken(new().write(true), false));
    // Its first sector would be written behind its last.
    assert!(!is_taken(new().read(true).append(true), false));
    let path_only = new().read(true).custom_flags(libc::O_PATH).clone();
    assert!(!is_taken(&mut path_only.clone(), true));
}
