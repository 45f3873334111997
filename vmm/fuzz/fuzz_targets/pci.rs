//! The bus as vCPUs reach it: configuration space by both ways, BARs, and behind
//! them the common configuration of two virtio devices.

#![no_main]

use arbitrary::{Result, Unstructured};
use hearth_vmm::pci::{PciRoot, Windows};
use hearth_vmm::virtio::VirtioDevice;
use hearth_vmm::virtio::balloon::Balloon;
use hearth_vmm::virtio::pci::VirtioPciDevice;
use hearth_vmm::virtio::rng::Rng;
use hearth_vmm_fuzz::{MEMORY, backplane};
use libfuzzer_sys::fuzz_target;

const LOW: u64 = 0xc000_0000;
const BAR_SIZE: u64 = 0x8000;
const IO: u64 = 0x1000;

fn drive(mut u: Unstructured) -> Result<()> {
    let root = PciRoot::new(Windows {
        low: LOW..LOW + 0x10_0000,
        high: None,
        io: IO..IO + 0x1000,
    });
    let devices: [Box<dyn VirtioDevice>; 2] = [Box::new(Rng::new()), Box::new(Balloon::new())];
    let backplane = backplane();
    for device in devices {
        let function = VirtioPciDevice::new(device, &backplane);
        let function = Box::new(function.expect("a function"));
        root.add(None, function).expect("a free slot");
    }
    // Decoding on, so that inputs reach the BARs at once.
    for slot in 0..4u64 {
        root.ecam_write((slot << 15) + 4, &[7, 0]);
    }
    while !u.is_empty() {
        let width = *u.choose(&[1usize, 2, 4, 8])?;
        let mut data = [0; 8];
        let data = &mut data[..width];
        let write = u.ratio(2, 3)?;
        if write {
            u.fill_buffer(data)?;
            if width == 4 && u.ratio(1, 2)? {
                // An address in memory more often than not.
                let address = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
                let mask = u32::try_from(MEMORY - 1).unwrap_or(0);
                data.copy_from_slice(&(address & mask & !0xf).to_le_bytes());
            }
        }
        match u.int_in_range(0..=6u8)? {
            0 => {
                let offset = u64::from(u.arbitrary::<u32>()?) & 0x1f_ffff;
                if write {
                    root.ecam_write(offset, data);
                } else {
                    root.ecam_read(offset, data);
                }
            }
            1 => {
                let port = 0xcf8 + u16::from(u.arbitrary::<u8>()? & 7);
                if write {
                    root.port_write(port, data);
                } else {
                    root.port_read(port, data);
                }
            }
            2 if u.ratio(1, 16)? => root.reset(),
            2 if u.ratio(1, 8)? => root.hold(),
            2 if u.ratio(1, 4)? => root.resume(),
            2 => {
                root.settle();
            }
            // The doorbells, which have four ports each.
            3 => {
                let port = 0x1000 + u16::from(u.arbitrary::<u8>()? & 0xf);
                if write {
                    root.io_write(port, data);
                } else {
                    root.io_read(port, data);
                }
            }
            // Mostly into the first pages of a BAR: common, device, MSI-X.
            _ => {
                let slot = u64::from(u.arbitrary::<u8>()? & 1);
                let offset = u64::from(u.arbitrary::<u16>()?);
                let page = u64::from(u.arbitrary::<u8>()? & 7);
                let address = LOW + slot * BAR_SIZE + page * 0x1000 + (offset & 0x3f);
                if write {
                    root.mmio_write(address, data);
                } else {
                    root.mmio_read(address, data);
                }
            }
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let _ = drive(Unstructured::new(data));
});
