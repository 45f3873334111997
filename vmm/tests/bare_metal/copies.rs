//! What processors have, seen by guests that go on with it in a copy of their machine: a
//! second one, interrupts, a timer.

use super::driver::{forever, real_forever, start_second, store8, store16, store32};
use super::*;

/// Where the second processor counts.
const SECOND_COUNTS: u32 = 0x1_0100;

/// Has the second processor count in memory without end (`inc dword cs:[0x100]`, in real
/// mode), and says a dot each time that there is more; halts when there is less.
fn two_count() -> Vec<u8> {
    let count = real_forever(vec![0x2e, 0x66, 0xff, 0x06, 0x00, 0x01]);
    // And xor ecx, ecx.
    let start = [start_second(&count), vec![0x31, 0xc9]];
    let look = [
        // mov eax, [count]; cmp eax, ecx; je to the mov; jb past the end of the loop.
        [&[0x8b, 0x04, 0x25][..], &SECOND_COUNTS.to_le_bytes()].concat(),
        vec![0x39, 0xc8, 0x74, 0xf5, 0x72, 0x0e],
        // mov ecx, eax; mov dx, 0x3f8; mov al, '.'; out dx, al.
        vec![0x89, 0xc1, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee],
    ];
    [start.concat(), forever(look.concat())].concat()
}

#[test]
fn every_processor_goes_on() {
    let Some(bench) = Bench::new(&two_count()) else {
        return;
    };
    let vcpus = ["--vcpus", "2"];
    let mut child = bench.command().args(vcpus).start();
    for round in 0..4 {
        let before = bench.log().len();
        until(&format!("it counts in round {round}"), || {
            bench.log().len() > before + 100
        });
        bench.listens("socket");
        let folder = round.to_string();
        bench.snapshot(&folder);
        bench.stop(child);
        child = bench.restored(&folder).args(vcpus).start();
    }
    let before = bench.log().len();
    until("it counts at last", || bench.log().len() > before + 100);
    bench.stop(child);
}

/// Where the guest has its interrupt descriptors, the description of these, and the code
/// that its timer interrupts for.
const IDT: u32 = 0x21_0000;
const IDT_REGISTER: u32 = 0x22_0000;
const HANDLER: u32 = 0x23_0000;
const LAPIC: u32 = 0xfee0_0000;

/// Has its timer interrupt it a thousand times a second, once interrupts are on.
pub(super) fn timer() -> Vec<u8> {
    const VECTOR: u32 = 0x40;
    let gate = IDT + 16 * VECTOR;
    // push rdx; mov edx, EOI; mov dword [rdx], 0; pop rdx; iretq.
    let mut handler = [&[0x52, 0xba][..], &(LAPIC + 0xb0).to_le_bytes()].concat();
    handler.extend([0xc7, 0x02, 0, 0, 0, 0, 0x5a, 0x48, 0xcf]);
    let handler = (HANDLER..).zip(handler);
    let set_up = [
        handler.flat_map(|(at, byte)| store8(at, byte)).collect(),
        // An interrupt gate of the boot's code segment: Intel SDM volume 3, figure 6-8.
        store32(gate, 0x10 << 16 | HANDLER & 0xffff),
        store32(gate + 4, HANDLER & 0xffff_0000 | 0x8e00),
        store16(IDT_REGISTER, 0xfff),
        store32(IDT_REGISTER + 2, IDT),
        // lidt [register].
        [&[0x0f, 0x01, 0x1c, 0x25][..], &IDT_REGISTER.to_le_bytes()].concat(),
        // Enabled by software; periodic; divided by one; so often that it counts.
        store32(LAPIC + 0xf0, 0x1ff),
        store32(LAPIC + 0x320, 1 << 17 | VECTOR),
        store32(LAPIC + 0x3e0, 0xb),
        store32(LAPIC + 0x380, 1_000_000),
    ];
    set_up.concat()
}

/// Waits for its timer, and says a dot each time.
fn wait_for_timer() -> Vec<u8> {
    // sti; hlt; mov dx, 0x3f8; mov al, '.'; out dx, al.
    let wait = vec![0xfb, 0xf4, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee];
    [timer(), forever(wait)].concat()
}

#[test]
fn a_guest_that_waits_for_its_timer_goes_on() {
    let Some(bench) = Bench::new(&wait_for_timer()) else {
        return;
    };
    let mut child = bench.command().start();
    for round in 0..4 {
        let before = bench.log().len();
        until("it ticks", || bench.log().len() > before + 20);
        bench.listens("socket");
        let folder = round.to_string();
        bench.snapshot(&folder);
        bench.stop(child);
        child = bench.restored(&folder).start();
    }
    let before = bench.log().len();
    until("it ticks", || bench.log().len() > before + 20);
    bench.stop(child);
}
