//! Requests to an entropy device.

#![no_main]

use arbitrary::Unstructured;
use hearth_vmm::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = hearth_vmm_fuzz::run(&mut Rng::new(), Unstructured::new(data));
});
