//! A driver that has a disk write without end, and a machine that is saved while it is at
//! work.

use super::driver::Function;
use super::*;

use std::os::unix::fs::FileExt;

/// Where a queue's parts are from its table on ([`Function::table`]).
const AVAIL_INDEX: u32 = 0x1002;
const USED_INDEX: u32 = 0x2002;
const HEADER: u32 = 0x3000;
const SECTOR: u32 = HEADER + 8;
const STATUS: u32 = 0x3100;
const DATA: u32 = 0x3200;
/// How many sectors it writes to, in turn.
pub(super) const SECTORS: u32 = 8;

/// An instruction on what is so far from `rdi`, with what comes behind that.
fn at(instruction: &[u8], offset: u32, rest: &[u8]) -> Vec<u8> {
    [instruction, &offset.to_le_bytes(), rest].concat()
}

/// Has the disk in slot 1 write a count into one sector after another without end, and
/// says each count to the serial port once it is written. Halts when the disk reports an
/// error.
pub(super) fn write_for_ever() -> Vec<u8> {
    let disk = Function::in_slot(1);
    let table = disk.table(0);
    let set_up = [
        disk.place(),
        // Its doorbell of ports too, which is where a machine's start has put it.
        disk.config(0x04, 0b111),
        disk.bring_up(&[0]),
        // VIRTIO_BLK_T_OUT: virtio 1.2, section 5.2.6.
        disk.describe(0, 0, (table + HEADER, 16, 1, 1)),
        disk.describe(0, 1, (table + DATA, 512, 1, 2)),
        disk.describe(0, 2, (table + STATUS, 1, 2, 0)),
        driver::store32(table + HEADER, 1),
        // rdi = the table; the count: xor ebx, ebx.
        [&[0xbf][..], &table.to_le_bytes(), &[0x31, 0xdb]].concat(),
    ];
    let again = [
        // inc ebx; mov [rdi + data], ebx; mov eax, ebx; and eax, 7; mov [rdi + sector],
        // eax; mov byte [rdi + status], 0xff.
        vec![0xff, 0xc3],
        at(&[0x89, 0x9f], DATA, &[]),
        vec![0x89, 0xd8, 0x83, 0xe0, 0x07],
        at(&[0x89, 0x87], SECTOR, &[]),
        at(&[0xc6, 0x87], STATUS, &[0xff]),
        // mov [rdi + avail.idx], bx; mov dx, doorbell; xor eax, eax; out dx, ax.
        at(&[0x66, 0x89, 0x9f], AVAIL_INDEX, &[]),
        vec![0x66, 0xba, 0x00, 0x10, 0x31, 0xc0, 0x66, 0xef],
        // cmp [rdi + used.idx], bx; jne to the cmp.
        at(&[0x66, 0x39, 0x9f], USED_INDEX, &[0x75, 0xf7]),
        // cmp byte [rdi + status], 0; jne past the end of the loop.
        at(&[0x80, 0xbf], STATUS, &[0x00, 0x75, 0x0c]),
        // mov dx, 0x3f8; mov al, bl; out dx, al.
        vec![0x66, 0xba, 0xf8, 0x03, 0x88, 0xd8, 0xee],
    ];
    [set_up.concat(), driver::forever(again.concat())].concat()
}

#[test]
fn a_disk_goes_on_where_it_was() {
    let Some(bench) = Bench::new(&write_for_ever()) else {
        return;
    };
    let disk = std::fs::File::create_new(bench.path("disk")).expect("a disk");
    disk.set_len(1 << 20).expect("grows");
    drop(disk);
    for engine in ["auto", "threads"] {
        let disk = format!("path={},engine={engine}", bench.path("disk").display());
        let mut child = bench.command().args(["--disk", &disk]).start();
        for round in 0..4 {
            let before = bench.log().len();
            until("it writes", || bench.log().len() > before + 40);
            bench.listens("socket");
            let folder = format!("{engine}-{round}");
            bench.snapshot(&folder);
            bench.stop(child);
            child = bench.restored(&folder).args(["--disk", &disk]).start();
        }
        let before = bench.log().len();
        until("it writes", || bench.log().len() > before + 40);
        bench.stop(child);
        let log = bench.log();
        for (at, (said, count)) in log.iter().zip(1u32..).enumerate() {
            assert_eq!(*said, count.to_le_bytes()[0], "at {at}, {engine}");
        }
        let count = u32::try_from(log.len()).expect("not so many");
        let disk = std::fs::File::open(bench.path("disk")).expect("the disk");
        let mut written = [0; 4];
        let sector = u64::from(count % SECTORS);
        disk.read_exact_at(&mut written, sector * 512)
            .expect("read");
        assert_eq!(u32::from_le_bytes(written), count);
        std::fs::remove_file(bench.path("serial")).expect("the log");
    }
}
