//! Requests to a block device.

#![no_main]

use arbitrary::{Result, Unstructured};
use hearth_vmm::block::{Backend, EngineKind};
use hearth_vmm::virtio::blk::{Block, Options};
use hearth_vmm_fuzz::{STEP, disk};
use libfuzzer_sys::fuzz_target;

/// Headers that are mostly right, virtio 1.2 section 5.2.6, and ranges to discard.
fn headers(u: &mut Unstructured) -> Result<Vec<u8>> {
    let mut painted = Vec::new();
    for _ in 0..u.int_in_range(0..=16u8)? {
        let start = painted.len();
        painted.extend(u32::to_le_bytes(*u.choose(&[0, 1, 4, 8, 11, 13, 99])?));
        painted.extend([0; 4]);
        painted.extend(u64::from(u.arbitrary::<u8>()?).to_le_bytes());
        painted.resize(start + usize::try_from(STEP).unwrap_or(0), 0);
    }
    Ok(painted)
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let read_only = u.ratio(1, 8).unwrap_or(false);
    let engine = match u.ratio(1, 8) {
        Ok(true) => EngineKind::Threads,
        _ => EngineKind::Auto,
    };
    let options = Options {
        serial: "vol0".to_owned(),
        queues: 1,
        engine,
        ..Options::default()
    };
    let backend = Backend::from_file(disk(), read_only).expect("a file");
    let mut block = Block::new(backend, &options).expect("a device");
    let _ = hearth_vmm_fuzz::run_painted(&mut block, u, headers);
});
