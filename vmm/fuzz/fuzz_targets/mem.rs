//! Requests to plug and unplug memory.

#![no_main]

use std::sync::Arc;

use arbitrary::Unstructured;
use hearth_vmm::memory::{Options, Pluggable, Ram};
use hearth_vmm::virtio::mem::Mem;
use libfuzzer_sys::fuzz_target;

/// As few bytes as a block can have, and more blocks than a request is likely to name.
const BLOCK: u64 = 4096;
const START: u64 = 1 << 20;
const COUNT: u64 = 100;

fuzz_target!(|data: &[u8]| {
    let blocks = Pluggable {
        start: START,
        size: COUNT * BLOCK,
        block: BLOCK,
    };
    let memory = Ram::with_blocks(&[(0, 4096)], Some(blocks), Options::default());
    let mut device = Mem::new(Arc::new(memory.expect("memory")));
    let handle = device.handle();
    let mut data = Unstructured::new(data);
    let requested = u64::from(data.arbitrary::<u8>().unwrap_or(0)) % (COUNT + 1) * BLOCK;
    assert!(handle.fits(requested));
    handle.request(requested);
    let _ = hearth_vmm_fuzz::run_painted(&mut device, data, |data| {
        // Requests, a step apart: kind, block, count.
        let mut painted = Vec::new();
        for _ in 0..32 {
            let mut request = [0; 64];
            request[0] = data.int_in_range(0..=4)?;
            let block = data.int_in_range(0..=COUNT)?;
            let address = START + block * BLOCK + u64::from(data.ratio(1, 8)?);
            request[8..16].copy_from_slice(&address.to_le_bytes());
            request[16] = data.int_in_range(0..=8)?;
            painted.extend(request);
        }
        Ok(painted)
    });
    assert!(handle.plugged() <= requested);
});
