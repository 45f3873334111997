//! A saved bus that somebody has written over: a bus made anew takes it over, or says why
//! not, and either way its devices go on, are held, and reset.

#![no_main]

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use hearth_vmm::pci::{BusV1, PciRoot, Windows};
use hearth_vmm::virtio::VirtioDevice;
use hearth_vmm::virtio::balloon::Balloon;
use hearth_vmm::virtio::pci::VirtioPciDevice;
use hearth_vmm::virtio::rng::Rng;
use hearth_vmm_fuzz::backplane;
use libfuzzer_sys::fuzz_target;

const LOW: u64 = 0xc000_0000;
const BAR_SIZE: u64 = 0x8000;

fn bus() -> PciRoot {
    let root = PciRoot::new(Windows {
        low: LOW..LOW + 0x10_0000,
        high: None,
        io: 0x1000..0x2000,
    });
    let devices: [Box<dyn VirtioDevice>; 2] = [Box::new(Rng::new()), Box::new(Balloon::new())];
    let backplane = backplane();
    for device in devices {
        let function = VirtioPciDevice::new(device, &backplane);
        let function = Box::new(function.expect("a function"));
        root.add(None, function).expect("a free slot");
    }
    root
}

/// Of a bus whose first device has a driver.
static SAVED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let root = bus();
    root.ecam_write((1 << 15) + 4, &[7, 0]);
    let put = |at, data: &[u8]| {
        root.mmio_write(LOW + at, data);
    };
    put(0x14, &[3]);
    put(0x08, &[1, 0, 0, 0]);
    put(0x0c, &[1, 0, 0, 0]);
    put(0x14, &[0xb]);
    for (at, address) in [(0x20, 0x1000u32), (0x28, 0x2000), (0x30, 0x3000)] {
        put(at, &address.to_le_bytes());
    }
    put(0x1c, &[1, 0]);
    put(0x14, &[0xf]);
    root.hold();
    while root.settle().busy != 0 {
        std::thread::yield_now();
    }
    let state = root.save().expect("it is held");
    serde_json::to_vec(&state).expect("JSON")
});

fn drive(mut u: Unstructured) -> Result<()> {
    let mut text = SAVED.clone();
    while !u.is_empty() {
        let start = u.int_in_range(0..=text.len())?;
        let end = start.saturating_add(u.int_in_range(0..=8)?).min(text.len());
        let length = u.int_in_range(0..=8)?;
        text.splice(start..end, u.bytes(length)?.iter().copied());
    }
    let Ok(state) = serde_json::from_slice::<BusV1>(&text) else {
        return Ok(());
    };
    let root = bus();
    if root.restore(&state).is_ok() {
        root.save().expect("it is held");
    }
    for slot in 0..2 {
        for at in (0..0x40).step_by(4) {
            root.mmio_read(LOW + slot * BAR_SIZE + at, &mut [0; 4]);
        }
    }
    root.resume();
    root.hold();
    root.reset();
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let _ = drive(Unstructured::new(data));
});
