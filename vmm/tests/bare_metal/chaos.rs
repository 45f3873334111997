//! A driver that keeps no rule, and clients in a hurry, at once: whatever is asked for is
//! done in the end.

use super::driver::{Function, forever};
use super::*;

/// How often a client turns the machine over.
const ROUNDS: usize = 100;

/// Without end, on the devices in these slots: up, requests on all queues, and reset
/// while they are served, without a look at whether that is done; MSI-X on and off, and
/// BARs that come and go meanwhile.
fn guest(slots: &[u8]) -> Vec<u8> {
    let turn = slots.iter().flat_map(|slot| {
        let device = Function::in_slot(*slot);
        let queues = [0, 1, 2];
        let requests = queues.map(|queue| device.read_sector(queue)).concat();
        [
            device.place(),
            device.bring_up(&queues),
            requests.clone(),
            // Once more DRIVER_OK, and a BAR that is gone and comes back.
            device.status(1 | 2 | 4 | 8),
            device.config(0x04, 0),
            device.place(),
            queues.map(|queue| device.ring(queue)).concat(),
            device.status(0),
            device.bring_up(&queues[..1]),
            requests,
        ]
        .concat()
    });
    forever(turn.collect())
}

#[test]
fn a_hostile_driver_and_hasty_clients_wait_for_nothing_for_ever() {
    for engine in ["io_uring", "threads"] {
        let Some(bench) = Bench::new(&guest(&[1, 2, 3, 4, 5])) else {
            return;
        };
        let disk = |name: &str| {
            let path = bench.path(name);
            let file = std::fs::File::create(&path);
            file.and_then(|file| file.set_len(1 << 20)).expect("a disk");
            path
        };
        let root = disk("root");
        let flag = format!("path={},id=root,queues=4,engine={engine}", root.display());
        let mut child = bench
            .command()
            .args(["--disk", &flag, "--balloon", "--vsock"])
            .arg(format!("cid=3,path={}", bench.path("vsock").display()))
            .start();
        bench.listens("socket");
        let other = disk("other");
        let other = serde_json::json!({"id": "other", "path": other}).to_string();
        let state = || bench.machine().state;
        let open = || {
            let list = std::fs::read_dir(format!("/proc/{}/fd", child.id()));
            list.expect("its descriptors").count()
        };
        let mut most = 0;
        for round in 0..ROUNDS {
            bench.ask("PUT /v1/pause");
            if round % 2 == 0 {
                until("held", || state() == MachineState::Paused);
            }
            match round % 5 {
                0 => {
                    // It fails where the last one is still there.
                    bench.send("POST /v1/disks", &other);
                }
                1 => {
                    bench.ask("DELETE /v1/disks/other");
                }
                2 => {
                    let limits = r#"{"limits":{"ops":1000,"ops_burst":1}}"#;
                    bench.send("PATCH /v1/disks/root", limits);
                }
                3 => {
                    bench.ask("PUT /v1/reset");
                    bench.ask("PUT /v1/pause");
                }
                _ => {
                    bench.send("PATCH /v1/disks/root", r#"{"limits":{}}"#);
                }
            }
            bench.ask("PUT /v1/resume");
            until("runs", || state() == MachineState::Running);
            if round == ROUNDS / 2 {
                most = open();
            }
        }
        assert!(bench.metrics().devices["root"]["reads"] > 0);
        until("leaks no descriptor", || open() <= most + 16);
        let ended = bench.ask("PUT /v1/stop");
        assert!(ended.contains(" 204 "), "{ended}");
        assert_eq!(child.wait().expect("ends").code(), Some(0));
        assert_eq!(bench.exit(), Exit::Stopped);
    }
}
