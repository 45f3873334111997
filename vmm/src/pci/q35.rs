//! The two functions by which firmware knows QEMU's "q35" board, with the registers that
//! it writes: the host bridge and the LPC bridge. They are all that there is of these
//! chips.
//!
//! Intel 82G33 "MCH" data sheet (316966), section 5.1: PCIEXBAR, where configuration
//! space lies in memory. Intel ICH9 data sheet (316972), chapter 13: PMBASE and others,
//! which move nothing here: what they place is where firmware places it, or not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::{ConfigSpace, Identity};
use super::{PciDevice, Quiesce};

/// Intel.
const VENDOR: u16 = 0x8086;

/// The slot of the LPC bridge.
pub(super) const LPC_SLOT: u8 = 31;

/// PCIEXBAR: eight bytes.
const PCIEXBAR: u8 = 0x60;
/// … it decodes.
const ENABLE: u64 = 1 << 0;
/// … how much, of which only the smallest three are lengths: 256, 128 and 64 MiB.
const LENGTH: u64 = 0b110;
/// … where, as far as 256 MiB are aligned.
const BASE: u64 = 0xf_f000_0000;

/// Where configuration space lies in memory: none, while it is zero.
pub(super) type Ecam = Arc<AtomicU64>;

/// The host bridge.
pub(super) struct Mch {
    config: ConfigSpace,
    ecam: Ecam,
}

impl Mch {
    /// A bridge after power-on, and where configuration space is once firmware has said.
    pub(super) fn new() -> (Self, Ecam) {
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: 0x29c0,
            class: [0x06, 0x00, 0x00],
            ..Identity::default()
        });
        config.allow(PCIEXBAR, &[0xff; 8]);
        let ecam = Ecam::default();
        let bridge = Self {
            config,
            ecam: Arc::clone(&ecam),
        };
        (bridge, ecam)
    }

    fn follow(&self) {
        let low = self.config.read_u32(PCIEXBAR);
        let high = self.config.read_u32(PCIEXBAR + 4);
        let register = u64::from(high) << 32 | u64::from(low);
        // Firmware asks for all of it, and nothing else has been seen to.
        let decodes = register & (ENABLE | LENGTH) == ENABLE;
        let base = if decodes { register & BASE } else { 0 };
        self.ecam.store(base, Ordering::Relaxed);
    }
}

impl PciDevice for Mch {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.config.write(offset, data);
        self.follow();
    }
    fn bar_read(&mut self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn bar_write(&mut self, _: u8, _: u64, _: &[u8]) {}
    fn bar_moved(&mut self, _: u8, _: Option<u64>) {}
    fn quiesce(&mut self, for_what: Quiesce) {
        if for_what == Quiesce::PowerOn {
            self.config.reset();
            self.follow();
        }
    }
    fn is_quiet(&mut self) -> bool {
        true
    }
    fn resume(&mut self) {}
}

/// The LPC bridge: registers that firmware writes and reads back.
pub(super) struct Lpc(ConfigSpace);

impl Lpc {
    /// A bridge after power-on.
    pub(super) fn new() -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: 0x2918,
            revision: 2,
            class: [0x06, 0x01, 0x00],
            ..Identity::default()
        });
        for (at, writable) in [
            // PMBASE, whose bit 0 says that it is one of ports, and ACPI_CNTL.
            (0x40, &[0x80, 0xff, 0, 0, 0x87][..]),
            // PIRQ[A-D]_ROUT, PIRQ[E-H]_ROUT.
            (0x60, &[0x8f; 4]),
            (0x68, &[0x8f; 4]),
            // RCBA.
            (0xf0, &[0x01, 0xc0, 0xff, 0xff]),
        ] {
            config.allow(at, writable);
        }
        config.put(0x40, &[1]);
        Self(config)
    }
}

impl PciDevice for Lpc {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn bar_read(&mut self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn bar_write(&mut self, _: u8, _: u64, _: &[u8]) {}
    fn bar_moved(&mut self, _: u8, _: Option<u64>) {}
    fn quiesce(&mut self, for_what: Quiesce) {
        if for_what == Quiesce::PowerOn {
            self.0.reset();
        }
    }
    fn is_quiet(&mut self) -> bool {
        true
    }
    fn resume(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn configuration_space_is_where_firmware_says() {
        let (mut bridge, ecam) = Mch::new();
        let at = || ecam.load(Ordering::Relaxed);
        assert_eq!(at(), 0);
        bridge.config_write(PCIEXBAR, &0xb000_0001u32.to_le_bytes());
        assert_eq!(at(), 0xb000_0000);
        bridge.config_write(PCIEXBAR + 4, &[1, 0, 0, 0]);
        assert_eq!(at(), 0x1_b000_0000);
        // Of another length.
        bridge.config_write(PCIEXBAR, &[3]);
        assert_eq!(at(), 0);
        bridge.config_write(PCIEXBAR, &[1]);
        bridge.quiesce(Quiesce::Hold);
        assert_eq!(at(), 0x1_b000_0000);
        bridge.quiesce(Quiesce::PowerOn);
        assert_eq!(at(), 0);
    }

    /// What firmware makes of a q35's LPC bridge.
    #[test]
    fn power_management_is_placed_and_enabled() {
        let mut bridge = Lpc::new();
        assert_eq!(bridge.config().read_u32(0x40), 1);
        bridge.config_write(0x40, &0x600u32.to_le_bytes());
        assert_eq!(bridge.config().read_u32(0x40), 0x601);
        bridge.config_write(0x44, &[0x80]);
        assert_eq!(bridge.config().read_u32(0x44), 0x80);
        bridge.config_write(0xf0, &0xfed1_c001u32.to_le_bytes());
        assert_eq!(bridge.config().read_u32(0xf0), 0xfed1_c001);
        bridge.quiesce(Quiesce::PowerOn);
        assert_eq!(bridge.config().read_u32(0x40), 1);
        assert_eq!(bridge.config().read_u32(0x44), 0);
        let mut data = [1; 4];
        bridge.bar_read(0, 0, &mut data);
        assert_eq!(data, [0; 4]);
    }

    proptest! {
        #[test]
        fn it_is_aligned_wherever_it_is(writes in prop::collection::vec((0u8..64, any::<u32>()), 0..8)) {
            let (mut bridge, ecam) = Mch::new();
            for (register, value) in writes {
                bridge.config_write(4 * register, &value.to_le_bytes());
                prop_assert!(ecam.load(Ordering::Relaxed) % (256 << 20) == 0);
            }
        }
    }
}
