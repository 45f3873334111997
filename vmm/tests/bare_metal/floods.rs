//! Guests that do without end what costs the host most: who owns the machine feels nothing
//! of it, and the process doesn't grow.

use super::cost::memory;
use super::driver::{Function, forever, real_forever, real_out32, start_second};
use super::hung::promptly;
use super::*;

/// The second processor: ejects all, moves the disk's BAR of ports, and turns its MSI-X
/// on and off.
fn bus_flood() -> Vec<u8> {
    let config = |register: u32, value: u32| {
        let address = 0x8000_0800 | register;
        [real_out32(0xcf8, address), real_out32(0xcfc, value)].concat()
    };
    let code = [
        real_out32(0x61c, u32::MAX),
        config(MSIX, 0xc000_0000),
        config(0x18, 0x1ff0),
        config(MSIX, 0x8000_0000),
        config(0x18, 0x1000),
    ];
    real_forever(code.concat())
}

/// Where a virtio function has its MSI-X capability: the last of seven.
const MSIX: u32 = 0xac;

/// The first: brings the disk up, has it read, gives its queue one vector after the other
/// with messages that change, and resets it, while the disk is at work.
fn device_flood() -> Vec<u8> {
    let disk = Function::in_slot(1);
    let mut round = [disk.bring_up(&[0]), disk.read_sector(0)].concat();
    for data in 0x40..0x44 {
        round.extend(disk.vector(0, 1));
        round.extend(disk.message(1, data));
        round.extend(disk.ring(0));
        round.extend(disk.vector(0, 0xffff));
    }
    round.extend(disk.reset());
    forever(round)
}

#[test]
fn a_guest_that_floods_its_devices_is_not_felt_outside() {
    // Placed before the second looks at configuration space: both would use one address
    // register.
    let code = [
        Function::in_slot(1).place(),
        start_second(&bus_flood()),
        device_flood(),
    ];
    let Some(bench) = Bench::new(&code.concat()) else {
        return;
    };
    let flag = format!("path={},id=disk,queues=1", bench.disk("disk").display());
    let mut child = bench
        .command()
        .args(["--vcpus", "2", "--disk", &flag])
        .start();
    bench.listens("socket");
    let exits = || bench.metrics().vcpu_exits;
    until("it floods", || exits() > 20_000);
    let before = memory(child.id());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        for request in ["GET /v1/machine", "PUT /v1/pause", "PUT /v1/resume"] {
            promptly(&bench, request);
        }
    }
    let after = memory(child.id());
    assert!(after < before + 256, "{before} KiB, then {after}");
    assert_eq!(bench.machine().disks.len(), 1);
    // On a busy host it gets nowhere between a resume and the next pause.
    until("its disk works", || {
        let disk = &bench.metrics().devices["disk"];
        let worked = ["notifications", "reads", "interrupts"].map(|name| disk[name]);
        worked.iter().all(|count| *count > 10)
    });
    let asked = Instant::now();
    let pid = libc::pid_t::try_from(child.id()).expect("a pid");
    // SAFETY: a child that was not waited for has its pid.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}
