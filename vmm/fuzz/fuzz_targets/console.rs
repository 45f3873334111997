//! Output to a console device, and input from it.

#![no_main]

use arbitrary::Unstructured;
use hearth_vmm::serial::{Output, Serial};
use hearth_vmm::virtio::console::Console;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let serial = Serial::new(Output::Stdout).expect("a UART");
    let port = serial.console_port().expect("a port");
    assert!(port.set_input(&[b'x'; 100]));
    let _ = hearth_vmm_fuzz::run(&mut Console::new(port), Unstructured::new(data));
    serial.progress();
});
