//! Several devices, two processors: each runs a program of its own over the same bus, and
//! drivers come, ring and go while the other one resets, holds and writes memory. In the
//! end the bus is reset, and every device must have become quiet.
//!
//! Two threads meet as they like: the same input doesn't always run the same way.

#![no_main]

use std::sync::Barrier;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use hearth_vmm::block::{Backend, EngineKind};
use hearth_vmm::pci::{PciRoot, Windows};
use hearth_vmm::virtio::VirtioDevice;
use hearth_vmm::virtio::balloon::Balloon;
use hearth_vmm::virtio::blk::{Block, Options};
use hearth_vmm::virtio::pci::VirtioPciDevice;
use hearth_vmm::virtio::rng::Rng;
use hearth_vmm_fuzz::{DATA, MEMORY, areas, backplane, disk, memory, paint_queue};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const LOW: u64 = 0xc000_0000;
const BAR_SIZE: u64 = 0x8000;
const IO: u64 = 0x1000;
const SLOTS: u64 = 4;

/// No device has longer than this for what it has begun: all are in memory.
const QUIET: Duration = Duration::from_secs(5);

/// What one of the processors does next.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A driver's way from reset to `DRIVER_OK`, virtio 1.2, section 3.1.1.
    BringUp(u64),
    /// A write of device status.
    Status(u64, u8),
    /// A doorbell at its port.
    Ring(u64, u16),
    /// A write to the first bytes of a page of a BAR.
    Write(u64, u32),
    /// A read there.
    Read(u64),
    /// A write to the configuration header.
    Config(u64, u16),
    /// A word of guest memory.
    Memory(u64, u32),
    Hold,
    Resume,
    Settle,
    Reset,
}

fn program(u: &mut Unstructured) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for _ in 0..u.int_in_range(0..=48u8)? {
        let slot = u.int_in_range(0..=SLOTS - 1)?;
        let step = match u.int_in_range(0..=15u8)? {
            0..=2 => Step::BringUp(slot),
            3 => Step::Status(slot, *u.choose(&[0, 1, 3, 0xb, 0xf, 0x80])?),
            4..=6 => Step::Ring(slot, u.int_in_range(0..=3)?),
            7 => {
                let page = u.int_in_range(0..=7u64)? << 12;
                let at = page + u64::from(u.arbitrary::<u8>()? & 0x3c);
                Step::Write(LOW + slot * BAR_SIZE + at, u.arbitrary()?)
            }
            8 => {
                let page = u.int_in_range(0..=7u64)? << 12;
                let at = page + u64::from(u.arbitrary::<u8>()? & 0x3c);
                Step::Read(LOW + slot * BAR_SIZE + at)
            }
            9 => Step::Config(
                (slot << 15) + u64::from(u.arbitrary::<u8>()? & 0xfe),
                u.arbitrary()?,
            ),
            10 | 11 => {
                let at = u64::from(u.arbitrary::<u16>()?) & (DATA - 1) & !3;
                Step::Memory(at, u.arbitrary()?)
            }
            12 => Step::Hold,
            13 => Step::Resume,
            14 => Step::Settle,
            _ => Step::Reset,
        };
        steps.push(step);
    }
    Ok(steps)
}

fn bring_up(root: &PciRoot, slot: u64) {
    let put = |at, data: &[u8]| {
        root.mmio_write(LOW + slot * BAR_SIZE + at, data);
    };
    root.ecam_write((slot << 15) + 4, &[7, 0]);
    put(0x14, &[0]);
    put(0x14, &[3]);
    // VIRTIO_F_VERSION_1, bit 32.
    put(0x08, &[1, 0, 0, 0]);
    put(0x0c, &[1, 0, 0, 0]);
    put(0x14, &[0xb]);
    for queue in 0..3u16 {
        put(0x16, &queue.to_le_bytes());
        put(0x18, &16u16.to_le_bytes());
        for (at, address) in [0x20, 0x28, 0x30].into_iter().zip(areas(queue)) {
            put(at, &address.0.to_le_bytes());
        }
        put(0x1c, &[1, 0]);
    }
    put(0x14, &[0xf]);
}

fn run(root: &PciRoot, steps: &[Step]) {
    let memory = memory();
    for step in steps {
        match *step {
            Step::BringUp(slot) => bring_up(root, slot),
            Step::Status(slot, status) => {
                root.mmio_write(LOW + slot * BAR_SIZE + 0x14, &[status]);
            }
            Step::Ring(slot, queue) => {
                // Where the bus put its port: 4 bytes each, in slot order.
                let port = u16::try_from(IO + slot * 4).expect("a port");
                root.io_write(port, &queue.to_le_bytes());
            }
            Step::Write(address, value) => {
                root.mmio_write(address, &value.to_le_bytes());
            }
            Step::Read(address) => {
                root.mmio_read(address, &mut [0; 4]);
            }
            Step::Config(at, value) => root.ecam_write(at, &value.to_le_bytes()),
            Step::Memory(at, value) => {
                memory
                    .write_slice(&value.to_le_bytes(), GuestAddress(at))
                    .expect("in memory");
            }
            Step::Hold => root.hold(),
            Step::Resume => root.resume(),
            Step::Settle => {
                root.settle();
            }
            Step::Reset => root.reset(),
        }
    }
}

fn drive(mut u: Unstructured) -> Result<()> {
    let programs = [program(&mut u)?, program(&mut u)?];
    let memory = memory();
    let zeroes = vec![0; usize::try_from(MEMORY).expect("small")];
    memory.write_slice(&zeroes, GuestAddress(0)).expect("all");
    for queue in 0..3 {
        paint_queue(&memory, queue, &mut u)?;
    }
    let root = PciRoot::new(Windows {
        low: LOW..LOW + 0x10_0000,
        high: None,
        io: IO..IO + 0x1000,
    });
    let block = |engine| {
        let options = Options {
            serial: "vol0".to_owned(),
            queues: 2,
            engine,
            ..Options::default()
        };
        let backend = Backend::from_file(disk(), false).expect("a file");
        Box::new(Block::new(backend, &options).expect("a device"))
    };
    let devices: [Box<dyn VirtioDevice>; SLOTS as usize] = [
        Box::new(Rng::new()),
        Box::new(Balloon::new()),
        block(EngineKind::Auto),
        block(EngineKind::Threads),
    ];
    let backplane = backplane();
    for device in devices {
        let function = VirtioPciDevice::new(device, &backplane);
        let function = Box::new(function.expect("a function"));
        root.add(None, function).expect("a free slot");
    }
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        for steps in &programs {
            let (root, start) = (&root, &start);
            scope.spawn(move || {
                start.wait();
                run(root, steps);
            });
        }
    });
    root.resume();
    root.reset();
    let deadline = Instant::now() + QUIET;
    while root.settle().busy != 0 {
        assert!(Instant::now() < deadline, "a device never becomes quiet");
        std::thread::yield_now();
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let _ = drive(Unstructured::new(data));
});
