//! The device round its requests: how it is made, plugged, configured and reset.

use super::*;
use crate::virtio::quiet::QueueState;

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

/// A thread for each queue from the start on, and none more later.
#[test]
fn a_plugged_disk_has_a_thread_for_each_queue() {
    on_both(ALL, false, |bench| {
        assert_eq!(bench.block.workers.len(), 1);
        reset(&mut bench.block);
        let guest = Guest::new(2);
        guest.plug(&mut bench.block);
        assert_eq!(bench.block.workers.len(), 2);
        let none = Activation {
            queues: Vec::new(),
            ..guest.activation(ALL, &bench.interrupt)
        };
        bench.block.activate(none);
        bench.broken();
    });
}

/// Without a driver's knowledge: what was offered is returned, each request once.
#[test]
fn a_held_device_goes_on_where_it_was() {
    on_both(ALL, false, |bench| {
        for _ in 0..20 {
            assert_eq!(bench.request(0, 0, &[(DATA, 512, WRITE)]).0, 0);
            let held = quiesce(&mut bench.block, Why::Hold);
            let returned = u16::try_from(bench.returned).unwrap();
            let queue = QueueState {
                index: 0,
                next_available: returned,
                next_used: returned,
            };
            assert_eq!(held, [queue]);
            assert_eq!(Arc::strong_count(&bench.guest.memory), 1);
            // What comes meanwhile is found later.
            bench.header(0, 1);
            let chain = [(HEADER, 16, READ), (DATA, 512, WRITE), (STATUS, 1, WRITE)];
            bench.guest.offer(0, &chain);
            let resumption = bench.guest.resumption(ALL, &bench.interrupt, &held);
            bench.block.activate(resumption);
            assert_eq!(bench.answer().0, 0);
        }
    });
}

#[test]
fn a_reset_device_starts_again() {
    on_both(ALL, false, |bench| {
        for _ in 0..20 {
            reset(&mut bench.block);
            bench.guest.start_over();
            bench.returned = 0;
            bench.interrupt = Arc::default();
            let activation = bench.guest.activation(ALL, &bench.interrupt);
            bench.block.activate(activation);
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
            reset(&mut bench.block);
            bench.guest.start_over();
            bench.returned = 0;
            bench.interrupt = Arc::default();
            let activation = bench.guest.activation(ALL, &bench.interrupt);
            bench.block.activate(activation);
            assert_eq!(bench.request(0, 0, &[(DATA, 512, WRITE)]).0, 0);
        }
    });
}

/// A driver may come and go the moment that the device is quiet: whoever says so must
/// be done with the stop before.
#[test]
fn a_stop_right_after_the_last_one_is_seen() {
    for serving in [true, false] {
        on_both(ALL, false, |bench| {
            if !serving {
                // A reset of a queue that is broken already.
                bench.guest.offer(0, &[(HEADER, 16, READ)]);
                bench.broken();
            }
            let worker = Arc::new(Mutex::new(bench.block.workers.remove(0)));
            let (said, heard) = std::sync::mpsc::channel();
            let next = bench.guest.activation(ALL, &bench.interrupt);
            let shared = Arc::clone(&worker);
            let quiet = Quiet::new(move |_| {
                // On the queue's thread, before it looks at anything else.
                let worker = shared.lock().unwrap();
                let mut queues = next.queues;
                worker.start(Job {
                    memory: next.memory,
                    features: next.features,
                    interrupt: next.interrupt,
                    active: queues.remove(0),
                });
                let quiet = Quiet::new(move |_| said.send(()).unwrap());
                worker.stop(Why::Reset, quiet);
            });
            worker.lock().unwrap().stop(Why::Reset, quiet);
            let limit = std::time::Duration::from_secs(10);
            heard.recv_timeout(limit).expect("it stops again");
        });
    }
}

#[test]
fn a_grown_disk_is_told() {
    on_both(ALL, false, |bench| {
        let handle = bench.block.handle();
        assert_eq!(handle.size().unwrap(), DISK_SIZE);
        handle.resized(DISK_SIZE);
        assert_eq!(bench.interrupt.wait(|_| true).config, 0);
        bench.file.set_len(2 * DISK_SIZE).unwrap();
        assert_eq!(handle.size().unwrap(), 2 * DISK_SIZE);
        handle.resized(2 * DISK_SIZE);
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
