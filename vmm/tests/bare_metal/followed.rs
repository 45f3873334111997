//! Memory that is saved as what was written since the last time, of a guest in which as
//! many write it as can: itself, disks of this process and of another one, and KVM.

use std::fs::File;

use super::copies::timer;
use super::driver::{Function, add16, await_used, forever};
use super::snapshot::Xfs;
use super::user_disk::{Daemon, shared};
use super::*;

/// What is written here and there, a page of which each time: 32 MiB.
const PLACE: u32 = 0x100_0000;
const PAGES: u32 = 0x2000;

/// KVM's structures in guest memory (Documentation/virt/kvm/x86/msr.rst): clock, stolen
/// time, end of interrupt; and where each is.
const KVM_WRITES: [(u32, u32); 3] = [
    (0x4b56_4d01, 0x80_0000),
    (0x4b56_4d03, 0x81_0000),
    (0x4b56_4d04, 0x82_0000),
];

/// An instruction, and what is behind it.
fn with(instruction: &[u8], value: u32) -> Vec<u8> {
    [instruction, &value.to_le_bytes()].concat()
}

/// A page that nobody can tell beforehand, but for the last one, in eax: by a linear
/// congruence in esi.
fn somewhere() -> Vec<u8> {
    [
        // imul esi, esi, a; add esi, c; mov eax, esi; shr eax, 8; and eax, pages;
        // shl eax, 12; add eax, place.
        with(&[0x69, 0xf6], 1_103_515_245),
        with(&[0x81, 0xc6], 12_345),
        vec![0x89, 0xf0, 0xc1, 0xe8, 0x08],
        with(&[0x25], PAGES - 2),
        vec![0xc1, 0xe0, 0x0c],
        with(&[0x05], PLACE),
    ]
    .concat()
}

/// Has two disks read into pages here and there without end, counts in others, and says a
/// dot each time; with a timer, and all that KVM writes to a guest's memory.
fn write_everywhere() -> Vec<u8> {
    let disks = [1, 2].map(Function::in_slot);
    let set_up = disks.map(|disk| {
        let buffers = disk.table(0) + 0x3000;
        [
            disk.place(),
            disk.bring_up(&[0]),
            disk.describe_read(0),
            disk.describe(0, 1, (buffers, 0x2000, 1 | 2, 2)),
        ]
        .concat()
    });
    // mov ecx, msr; mov eax, address and enabled; xor edx, edx; wrmsr.
    let shares = KVM_WRITES.map(|(msr, address)| {
        let enabled = [with(&[0xb9], msr), with(&[0xb8], address | 1)].concat();
        [&enabled[..], &[0x31, 0xd2, 0x0f, 0x30]].concat()
    });
    let again = disks.map(|disk| {
        let table = disk.table(0);
        [
            // inc dword [rax + 8].
            somewhere(),
            vec![0xff, 0x40, 0x08],
            // mov [the second descriptor's address], eax.
            somewhere(),
            with(&[0x89, 0x04, 0x25], table + 16),
            // mov eax, esi; shr eax, 12; and eax, 0x3ff; mov [sector], eax.
            vec![0x89, 0xf0, 0xc1, 0xe8, 0x0c],
            with(&[0x25], 0x3ff),
            with(&[0x89, 0x04, 0x25], table + 0x3008),
            add16(disk.available_index(0), 1),
            disk.ring(0),
            await_used(disk, 0),
        ]
        .concat()
    });
    // sti; mov dx, 0x3f8; mov al, '.'; out dx, al.
    let say = [0xfb, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee];
    let begin = [set_up.concat(), shares.concat(), timer()].concat();
    let again = [again.concat(), say.to_vec()].concat();
    [begin, forever(again)].concat()
}

/// The pages of which two files have another content, by their offset.
fn different(left: &Path, right: &Path) -> Vec<usize> {
    let [left, right] = [left, right].map(|folder| {
        let memory = std::fs::read(folder.join("memory"));
        memory.expect("memory")
    });
    assert_eq!(left.len(), right.len());
    let pages = left.chunks(4096).zip(right.chunks(4096)).enumerate();
    let other = pages.filter(|(_, (left, right))| left != right);
    other.map(|(page, _)| page * 4096).collect()
}

fn random(path: &Path) {
    let mut bytes = vec![0; 1 << 20];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    random.expect("random bytes");
    std::fs::write(path, bytes).expect("a disk");
}

#[test]
fn what_was_written_since_is_all_that_is_not_the_same() {
    let Some(bench) = Bench::new(&write_everywhere()) else {
        return;
    };
    // Without clones, the whole is written each time.
    let Some(_xfs) = Xfs::mount(&bench) else {
        return;
    };
    random(&bench.path("disk"));
    random(&bench.path("own"));
    let Some(daemon) = Daemon::start(&bench) else {
        return;
    };
    let own = format!("path={},id=own", bench.path("own").display());
    let disks = ["--disk", &daemon.flag(), "--disk", &own];
    let mut child = shared(&bench.command()).args(disks).start();
    bench.listens("socket");
    let goes_on = || {
        let before = bench.log().len();
        until("it writes", || bench.log().len() > before + 20);
    };
    let base = |path: &str| format!(r#","follow":true,"base":"{}""#, bench.path(path).display());
    for round in 0..2 {
        goes_on();
        let mut last = format!("xfs/{round}");
        bench.snapshot_with(&last, r#","follow":true"#);
        let memory = std::fs::read(bench.path(&last).join("memory")).expect("memory");
        for (msr, address) in &KVM_WRITES[..2] {
            let there = &memory[*address as usize..][..64];
            assert_ne!(there, [0; 64], "{msr:#x}");
        }
        for more in 0..4 {
            bench.ask("PUT /v1/resume");
            goes_on();
            let since = format!("xfs/{round}-{more}");
            let written = bench.snapshot_with(&since, &base(&last)).written_bytes;
            let whole = format!("xfs/{round}-{more}-whole");
            let all = bench
                .snapshot_with(&whole, r#","follow":true"#)
                .written_bytes;
            let other = different(&bench.path(&since), &bench.path(&whole));
            assert_eq!(other, [0; 0], "of {written} bytes written, {all} in all");
            std::fs::remove_dir_all(bench.path(&last)).expect("removed");
            std::fs::remove_dir_all(bench.path(&since)).expect("removed");
            last = whole;
        }
        bench.stop(child);
        child = shared(&bench.restored(&last)).args(disks).start();
        bench.listens("socket");
        goes_on();
        std::fs::remove_dir_all(bench.path(&last)).expect("removed");
    }
    bench.stop(child);
}
