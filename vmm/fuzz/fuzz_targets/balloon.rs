//! Lists of pages and reports to a balloon.

#![no_main]

use arbitrary::Unstructured;
use hearth_vmm::virtio::balloon::Balloon;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = hearth_vmm_fuzz::run(&mut Balloon::new(), Unstructured::new(data));
});
