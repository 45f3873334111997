//! What firmware finds: configuration, CMOS memory, power management, and the flash with
//! its variables, whose file must be what the flash is. And what the firmware of a "q35"
//! writes into its bridges.

#![no_main]

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

use arbitrary::{Result, Unstructured};
use hearth_vmm::board::Board;
use hearth_vmm::board::cmos::Cmos;
use hearth_vmm::board::fw_cfg::{self, FwCfg};
use hearth_vmm::pci::{PciRoot, Windows};
use libfuzzer_sys::fuzz_target;

const FLASH: u64 = 0xffc0_0000;
const SIZE: usize = 3 * 4096;

const PORTS: [u16; 8] = [0x70, 0x71, 0x510, 0x511, 0x604, 0x608, 0x605, 0x514];

fn drive(mut u: Unstructured) -> Result<()> {
    // SAFETY: the name is a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(c"vars".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no memory file");
    // SAFETY: the descriptor is open and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(SIZE as u64).expect("sized");
    let mut kept = file.try_clone().expect("a second handle");
    let board = Board::new();
    let files = vec![fw_cfg::File {
        name: "etc/one",
        bytes: u.bytes(u.len().min(16))?.to_vec(),
    }];
    board.configure(FwCfg::new(2, files), Cmos::new(1 << 30, 0));
    board.keep(FLASH, vec![0; SIZE], file, None);
    let root = PciRoot::q35(Windows {
        low: 0xc000_0000..0xe000_0000,
        high: None,
        io: 0x6000..0x1_0000,
    });
    while !u.is_empty() {
        let width = *u.choose(&[1usize, 1, 1, 2, 4, 8])?;
        let mut data = [0; 8];
        let data = &mut data[..width];
        u.fill_buffer(data)?;
        match u.int_in_range(0..=9u8)? {
            0 => {
                let _ = board.port_write(*u.choose(&PORTS)?, data);
            }
            1 => board.port_read(*u.choose(&PORTS)?, data),
            2 => board.reset(),
            3 => {
                let slot = *u.choose(&[0u64, 31])?;
                let register = u64::from(u.arbitrary::<u8>()?);
                root.ecam_write(slot << 15 | register, data);
                let ecam = root.placed_ecam().expect("it is the firmware's to place");
                assert_eq!(ecam % (256 << 20), 0);
            }
            4 => {
                let address = FLASH + u64::from(u.arbitrary::<u16>()?) - 8;
                let _ = board.memory_read(address, data);
            }
            5..=7 => {
                let address = FLASH + u64::from(u.arbitrary::<u16>()?) - 8;
                let _ = board.memory_write(address, data);
            }
            // Whole sequences, so that inputs get somewhere.
            _ => {
                let address = FLASH + u64::from(u.arbitrary::<u16>()?) % SIZE as u64;
                let [begin, then] = *u.choose(&[[0x10, data[0]], [0x20, 0xd0]])?;
                let _ = board.memory_write(address, &[begin]);
                let _ = board.memory_write(address, &[then]);
            }
        }
    }
    board.reset();
    let mut flash = vec![0; SIZE];
    assert!(board.memory_read(FLASH, &mut flash));
    let mut in_file = Vec::new();
    kept.read_to_end(&mut in_file).expect("read");
    assert_eq!(in_file, flash);
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let _ = drive(Unstructured::new(data));
});
