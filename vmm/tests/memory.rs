//! What a guest of a few bytes writes to its memory, on whatever `/dev/kvm` is here: seen
//! in KVM's log, saved, saved again over it, restored. And to a doorbell there.

mod image;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use hearth_vmm::arch::boot::Payload;
use hearth_vmm::config;
use hearth_vmm::jail;
use hearth_vmm::machine::{Built, Machine, Origin, Parts, Software, Taps, VcpuCount};
use hearth_vmm::memory::{Options, PAGE, Pages, Ram};
use hearth_vmm::serial::{Output, Serial};
use vm_memory::{Bytes, GuestAddress};

use image::{AWAIT_BUTTON, bzimage};

const MEMORY: u64 = 64 << 20;
/// Memory that is added, apart from the rest.
const ADDED: (u64, u64) = (96 << 20, 2 << 20);

/// `mov edi, address; mov byte [rdi], value`.
fn store(address: u64, value: u8) -> Vec<u8> {
    let mut code = vec![0xbf];
    code.extend(u32::try_from(address).expect("low").to_le_bytes());
    code.extend([0xc6, 0x07, value]);
    code
}

/// `mov dx, 0x3f8; mov al, '\n'; out dx, al`: a line on the serial port, whose log has it
/// at once.
const SAY: [u8; 7] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'\n', 0xee];

/// A machine in this process, and what it says.
struct Bench {
    machine: Machine,
    folder: tempfile::TempDir,
}

impl Bench {
    /// Nothing where there is no KVM, said aloud.
    fn new(code: &[u8], memory: Options) -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: there is no /dev/kvm");
            return None;
        }
        let folder = tempfile::tempdir().expect("folder");
        let file = |name| folder.path().join(name);
        std::fs::write(file("kernel"), bzimage(code)).expect("kernel");
        let description = config::parse(["hearth-vmm", "--kernel", "/k"]).expect("is right");
        let log = File::create(file("serial")).expect("log");
        let parts = Parts {
            id: description.id,
            vcpus: VcpuCount {
                first: 1,
                most: None,
            },
            memory_bytes: MEMORY,
            memory,
            pluggable: None,
            payload: Software::Kernel(Payload {
                kernel: File::open(file("kernel")).expect("kernel"),
                initrd: None,
                cmdline: String::new(),
            }),
            identity: description.identity,
            serial: Serial::new(Output::log(log).expect("log")).expect("serial"),
            devices: description.devices,
            last_slot: description.last_slot,
            taps: Taps::new(),
            template: None,
            origin: Origin::PowerOn,
            exit_trace: None,
            began_ns: 0,
            pid: std::process::id(),
        };
        let confinement = jail::confine_outside(None, None).expect("without the jail");
        let machine = Built::new(parts).and_then(|built| built.start(&confinement));
        let machine = machine.expect("a machine");
        Some(Self { machine, folder })
    }

    /// Lets it run until it has said so many lines, and holds it.
    fn run_until_said(&mut self, lines: u64) {
        self.machine.resume().expect("nothing is saved");
        let log = self.folder.path().join("serial");
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::metadata(&log).expect("log").len() < lines {
            assert!(Instant::now() < deadline, "it never said it");
            std::thread::yield_now();
        }
        self.pause();
    }

    /// Holds it, and waits until it stands still.
    fn pause(&mut self) {
        while self.machine.pause() == Ok(false) {}
    }
}

fn kinds() -> [Options; 2] {
    [false, true].map(|shared| Options {
        shared,
        pages: Pages::default(),
    })
}

#[test]
fn what_a_guest_writes_is_seen_and_saved_and_restored() {
    let code = [
        store(0x20_0000, 1),
        store(0x30_0000, 2),
        SAY.to_vec(),
        AWAIT_BUTTON.to_vec(),
        store(0x30_0000, 3),
        store(0x40_0fff, 4),
        store(ADDED.0 + 0x1000, 5),
        SAY.to_vec(),
    ]
    .concat();
    for kind in kinds() {
        let Some(mut bench) = Bench::new(&code, kind) else {
            return;
        };
        bench.machine.add_memory(ADDED.0, ADDED.1).expect("added");
        for taken in [0, 0xc000_0000] {
            assert!(bench.machine.add_memory(taken, ADDED.1).is_err());
        }
        bench.machine.begin_dirty_tracking().expect("tracks");
        let clean = bench.machine.take_dirty().expect("asked");
        assert_eq!(clean.count(), 0, "nothing ran yet");

        bench.run_until_said(1);
        let dirty = bench.machine.take_dirty().expect("asked");
        assert!(dirty.contains(0x20_0000) && dirty.contains(0x30_0000));
        assert!(!dirty.contains(0x40_0000) && !dirty.contains(0x20_1000));
        let mut file = tempfile::tempfile().expect("file");
        let whole = bench.machine.save_memory(&mut file).expect("saved");
        assert!(whole < MEMORY / 2, "zeroes are holes: {whole}");

        bench.machine.press_power_button().expect("pressed");
        bench.run_until_said(2);
        let dirty = bench.machine.take_dirty().expect("asked");
        assert!(!dirty.contains(0x20_0000));
        for written in [0x30_0000, 0x40_0000, ADDED.0 + 0x1000] {
            assert!(dirty.contains(written), "{written:#x}");
        }
        let changed = bench.machine.save_dirty_memory(&mut file, &dirty);
        let changed = changed.expect("saved");
        assert!((3 * PAGE..whole).contains(&changed), "{changed}");

        let restored = Ram::restore(&[(0, MEMORY), ADDED], kind, &file).expect("restored");
        for (address, value) in [
            (0x20_0000, 1),
            (0x30_0000, 3),
            (0x40_0fff, 4),
            (ADDED.0 + 0x1000, 5),
        ] {
            let found: u8 = restored.read_obj(GuestAddress(address)).expect("memory");
            assert_eq!(found, value, "{address:#x}");
        }
        // And all the rest is as it was.
        let (mut here, mut there) = ([0; 4096], [0; 4096]);
        for region in restored.regions() {
            let pages = region.start()..region.start() + region.size();
            for at in pages.step_by(4096).map(GuestAddress) {
                let memory = bench.machine.memory();
                memory.read_slice(&mut here, at).expect("memory");
                restored.read_slice(&mut there, at).expect("memory");
                assert!(here == there, "{at:?}");
            }
        }
    }
}

/// `mov dx, port; mov eax, value; out dx, eax`.
fn out(port: u16, value: u32) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let mut code = vec![0x66, 0xba, low, high, 0xb8];
    code.extend(value.to_le_bytes());
    code.push(0xef);
    code
}

/// PCI configuration mechanism #1: a register of the first function, the entropy source.
fn pci_register(register: u32) -> Vec<u8> {
    out(0xcf8, 1 << 31 | 1 << 11 | register)
}

#[test]
fn a_doorbell_in_memory_costs_an_exit_once() {
    let code = [
        // Command: memory space.
        pci_register(0x04),
        out(0xcfc, 1 << 1),
        // edi = the first BAR, where a machine's start has put it: in eax, dx; and al,
        // 0xf0; mov edi, eax; add edi, 0x3000.
        pci_register(0x10),
        vec![0x66, 0xba, 0xfc, 0x0c, 0xed, 0x24, 0xf0, 0x89, 0xc7],
        vec![0x81, 0xc7, 0x00, 0x30, 0x00, 0x00],
        // A thousand times: mov ecx, 1000; mov word [rdi], 0; loop.
        vec![0xb9, 0xe8, 0x03, 0x00, 0x00],
        vec![0x66, 0xc7, 0x07, 0x00, 0x00, 0xe2, 0xf9],
        SAY.to_vec(),
    ]
    .concat();
    let Some(mut bench) = Bench::new(&code, Options::default()) else {
        return;
    };
    bench.run_until_said(1);
    let exits = bench.machine.metrics().vcpu_exits;
    assert!((5..100).contains(&exits), "{exits}");
    // And there is another doorbell to bind in the VM that comes then.
    bench.machine.reset().expect("reset");
    bench.run_until_said(2);
    let more = bench.machine.metrics().vcpu_exits - exits;
    assert!((5..100).contains(&more), "{more}");
}

#[test]
fn a_reset_writes_all_and_goes_on_being_tracked() {
    let code = [store(0x20_0000, 1), SAY.to_vec()].concat();
    let Some(mut bench) = Bench::new(&code, Options::default()) else {
        return;
    };
    bench.machine.begin_dirty_tracking().expect("tracks");
    bench.run_until_said(1);
    bench.machine.reset().expect("reset");
    bench.run_until_said(2);
    let dirty = bench.machine.take_dirty().expect("asked");
    assert_eq!(dirty.count(), MEMORY / PAGE);
    bench.machine.reset().expect("reset");
    bench.pause();
    bench.machine.take_dirty().expect("asked");
    bench.machine.end_dirty_tracking().expect("ends");
    bench.run_until_said(3);
    let dirty = bench.machine.take_dirty().expect("asked");
    assert_eq!(dirty.count(), 0, "nothing is tracked any more");
}
