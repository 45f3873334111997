//! The serial port: registers on one side, the console on the other.

#![no_main]

use std::fs::File;
use std::os::fd::FromRawFd;

use arbitrary::{Result, Unstructured};
use hearth_vmm::serial::{Output, Serial};
use libfuzzer_sys::fuzz_target;

fn drive(mut u: Unstructured) -> Result<()> {
    // SAFETY: the name is a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(c"log".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no memory file");
    // SAFETY: the descriptor is open and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    let serial = Serial::new(Output::log(file).expect("a log")).expect("a port");
    while !u.is_empty() {
        let register = u.arbitrary::<u8>()? & 7;
        match u.int_in_range(0..=7u8)? {
            0..=3 => {
                let data: [u8; 4] = u.arbitrary()?;
                serial.write(register, &data[..*u.choose(&[1usize, 1, 1, 2, 4])?]);
            }
            4..=5 => {
                let mut data = [0; 4];
                serial.read(register, &mut data[..*u.choose(&[1usize, 1, 2, 4])?]);
            }
            6 => {
                let length = u.int_in_range(0..=100usize)?;
                serial.input(&vec![b'x'; length]);
                let _ = serial.input_capacity();
            }
            _ => serial.reset(),
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let _ = drive(Unstructured::new(data));
});
