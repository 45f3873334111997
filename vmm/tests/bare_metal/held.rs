//! A machine that is held, with devices at work.

use std::os::unix::fs::FileExt;

use hearth_vmm_api::MachineState;

use super::driver::{Function, add16, await_used, forever, inc32};
use super::*;

/// Where the guest counts its rounds.
const ROUNDS: u64 = 0x20_0000;
/// Entropy requests of a round.
const REQUESTS: u8 = 16;

/// Has a disk read and the entropy source fill its queue, both at once, waits for both,
/// counts, and begins anew.
fn guest() -> Vec<u8> {
    let disk = Function::in_slot(1);
    let rng = Function::in_slot(2);
    let round = [
        add16(disk.available_index(0), 1),
        disk.ring(0),
        add16(rng.available_index(0), REQUESTS),
        rng.ring(0),
        await_used(disk, 0),
        await_used(rng, 0),
        inc32(u32::try_from(ROUNDS).expect("an address")),
    ];
    let buffer = rng.table(0) + 0x3000;
    [
        disk.place(),
        disk.bring_up(&[0]),
        disk.describe_read(0),
        rng.place(),
        rng.bring_up(&[0]),
        // VIRTQ_DESC_F_WRITE. Each request is this one.
        rng.describe(0, 0, (buffer, 0x400, 2, 0)),
        forever(round.concat()),
    ]
    .concat()
}

/// Guest memory from outside, as far as its devices and its counter have it.
fn memory(pid: u32) -> Vec<u8> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let start = maps.lines().find_map(|line| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).expect("hex"));
        (end - start == 64 << 20).then_some(start)
    });
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("memory");
    let mut read = vec![0; 2 << 20];
    let at = start.expect("guest memory") + ROUNDS;
    memory.read_exact_at(&mut read, at).expect("guest memory");
    read
}

fn rounds(memory: &[u8]) -> u64 {
    u32::from_le_bytes(memory[..4].try_into().expect("four bytes")).into()
}

#[test]
fn a_thousand_holds_lose_no_request_and_nothing_is_written_in_them() {
    for engine in ["io_uring", "threads"] {
        let Some(bench) = Bench::new(&guest()) else {
            return;
        };
        let path = bench.disk("disk");
        let flag = format!("path={},id=disk,queues=1,engine={engine}", path.display());
        let mut child = bench.command().args(["--disk", &flag]).start();
        bench.listens("socket");
        let mut before = 0;
        for hold in 0..1000 {
            until("held", || {
                bench.ask("PUT /v1/pause");
                bench.machine().state == MachineState::Paused
            });
            if hold % 50 == 0 {
                let held = memory(child.id());
                let count = rounds(&held);
                // On a busy host it gets nowhere between some of them.
                assert!(count >= before, "{count} rounds after {before}");
                before = count;
                let metrics = bench.metrics();
                let reads = metrics.devices["disk"]["reads"];
                assert!((count..=count + 1).contains(&reads), "{reads} in {count}");
                let filled = metrics.devices["rng"]["requests"];
                let most = (count + 1) * u64::from(REQUESTS);
                assert!(filled <= most, "{filled} in {count}");
                let again = bench.metrics();
                assert_eq!(metrics.vcpu_exits, again.vcpu_exits);
                assert_eq!(metrics.devices, again.devices);
                assert!(held == memory(child.id()), "held memory changed");
            }
            assert!(bench.ask("PUT /v1/resume").contains(" 204 "));
        }
        until("it goes on", || rounds(&memory(child.id())) > before + 10);
        let failures = |name: &str| bench.metrics().devices[name]["failures"];
        assert_eq!((failures("disk"), failures("rng")), (0, 0));
        bench.ask("PUT /v1/stop");
        assert_eq!(child.wait().expect("ends").code(), Some(0));
    }
}
