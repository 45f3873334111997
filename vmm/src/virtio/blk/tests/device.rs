//! The device round its requests: how it is made, plugged, configured and reset.

use super::*;

/// `struct virtio_blk_config`, field by field.
#[test]
fn configuration_is_what_a_driver_plans_its_requests_by() {
    let bench = Bench::new(EngineKind::Threads, ALL, false);
    let field = |at: u64, length: usize| {
        let mut bytes = [0xff; 8];
        bench.block.config_read(at, &mut bytes[..length]);
        bytes[length..].fill(0);
        u64::from_le_bytes(bytes)
    };
    for (what, at, length, value) in [
        ("capacity", 0, 8, DISK_SIZE / 512),
        ("seg_max", 12, 4, 254),
        ("blk_size", 20, 4, 512),
        ("physical_block_exp", 24, 1, 3),
        ("num_queues", 34, 2, 1),
        ("max_discard_sectors", 36, 4, 1 << 21),
        ("max_discard_seg", 40, 4, 1),
        ("discard_sector_alignment", 44, 4, 8),
        ("max_write_zeroes_sectors", 48, 4, 1 << 21),
        ("max_write_zeroes_seg", 52, 4, 1),
        ("write_zeroes_may_unmap", 56, 1, 1),
        ("the end", 60, 4, 0),
    ] {
        assert_eq!(field(at, length), value, "{what}");
    }
}

#[test]
fn queues_are_one_to_sixteen() {
    for (asked, made) in [(0, 1), (1, 1), (16, 16), (17, 16)] {
        let backend = Backend::from_file(tempfile::tempfile().unwrap(), false).unwrap();
        let options = Options {
            queues: asked,
            ..Options::default()
        };
        let block = Block::new(backend, &options).unwrap();
        assert_eq!(block.queue_sizes(), vec![1024; made]);
    }
}

/// What a queue needs is made when the disk is plugged: its threads could not.
#[test]
fn a_plugged_disk_keeps_the_workers_of_its_doorbells() {
    on_both(ALL, false, |bench| {
        bench.block.reset();
        let guest = Guest::new(2);
        let doorbells = |guest: &Guest| {
            let activation = guest.activation(ALL, &Arc::default());
            let doorbells = activation.queues.iter().map(|queue| &queue.doorbell);
            doorbells.cloned().collect::<Vec<_>>()
        };
        bench.block.plugged(&doorbells(&guest)).unwrap();
        assert_eq!(bench.block.workers.len(), 2);
        let kept = doorbells(&guest);
        let is_rung = |bench: &Bench| {
            let workers = bench.block.workers.iter().zip(&kept);
            workers
                .map(|(worker, doorbell)| worker.is_rung_by(doorbell))
                .collect::<Vec<_>>()
        };
        assert_eq!(is_rung(bench), [true, true]);
        let activation = guest.activation(ALL, &bench.interrupt);
        bench.block.activate(activation).unwrap();
        assert_eq!(is_rung(bench), [true, true]);
        let none = Activation {
            queues: Vec::new(),
            ..guest.activation(ALL, &bench.interrupt)
        };
        assert!(bench.block.activate(none).is_err());
    });
}

#[test]
fn a_reset_device_starts_again() {
    on_both(ALL, false, |bench| {
        for round in 0..20 {
            bench.block.reset();
            // The same queues and doorbell, or others.
            match round % 4 {
                0 => bench.guest = Guest::new(1),
                _ => bench.guest.start_over(),
            }
            bench.returned = 0;
            bench.interrupt = Arc::default();
            let activation = bench.guest.activation(ALL, &bench.interrupt);
            bench.block.activate(activation).unwrap();
            assert_eq!(bench.request(0, 0, &[(DATA, 512, WRITE)]).0, 0);
        }
    });
}

#[test]
fn a_queue_that_broke_serves_again_after_a_reset() {
    on_both(ALL, false, |bench| {
        for _ in 0..3 {
            // The device can't write where it shall say how the request went.
            bench.header(0, 0);
            bench.guest.offer(0, &[(HEADER, 16, READ)]);
            bench.broken();
            bench.block.reset();
            bench.guest.start_over();
            bench.returned = 0;
            bench.interrupt = Arc::default();
            let activation = bench.guest.activation(ALL, &bench.interrupt);
            bench.block.activate(activation).unwrap();
            assert_eq!(bench.request(0, 0, &[(DATA, 512, WRITE)]).0, 0);
        }
    });
}

#[test]
fn a_grown_disk_is_told() {
    on_both(ALL, false, |bench| {
        let handle = bench.block.handle();
        assert_eq!(handle.refresh_capacity().unwrap(), DISK_SIZE);
        assert_eq!(bench.interrupt.wait(|_| true).config, 0);
        bench.file.set_len(2 * DISK_SIZE).unwrap();
        assert_eq!(handle.refresh_capacity().unwrap(), 2 * DISK_SIZE);
        bench.interrupt.wait(|said| said.config == 1);
        let mut capacity = [0; 8];
        bench.block.config_read(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 2 * DISK_SIZE / 512);
        let last = 2 * DISK_SIZE / 512 - 1;
        assert_eq!(bench.request(0, last, &[(DATA, 512, WRITE)]).0, 0);
    });
}

#[test]
fn bad_options_are_refused() {
    let backend = || Backend::from_file(tempfile::tempfile().unwrap(), false).unwrap();
    let with = |serial: &str| Options {
        serial: serial.into(),
        ..Options::default()
    };
    assert!(Block::new(backend(), &with("123456789012345678901")).is_err());
    assert!(Block::new(backend(), &with("é")).is_err());
    assert!(Block::new(backend(), &with("")).is_ok());
    assert!(Backend::open(std::path::Path::new("/dev/null"), true).is_err());
}
