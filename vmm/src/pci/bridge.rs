//! The host bridge in slot 0: nothing but its header.

use super::config::{ConfigSpace, Identity};
use super::{PciDevice, Quiesce};

/// The host bridge.
pub(super) struct HostBridge(ConfigSpace);

impl HostBridge {
    /// A bridge after power-on.
    pub(super) fn new() -> Self {
        // The generic PCIe host bridge of pci.ids, for which no system has quirks.
        // Class 06:00 is "host bridge", appendix D.
        Self(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            class: [0x06, 0x00, 0x00],
            ..Identity::default()
        }))
    }
}

impl PciDevice for HostBridge {
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
    use crate::pci::config::register;

    #[test]
    fn a_bridge_has_no_bars_and_forgets_what_was_written() {
        let mut bridge = HostBridge::new();
        let mut data = [0xff; 4];
        bridge.bar_read(0, 0, &mut data);
        assert_eq!(data, [0; 4]);
        bridge.config_mut().write(register::COMMAND, &[7, 0]);
        assert_ne!(bridge.config().read_u16(register::COMMAND), 0);
        bridge.quiesce(Quiesce::Hold);
        assert_ne!(bridge.config().read_u16(register::COMMAND), 0);
        bridge.quiesce(Quiesce::PowerOn);
        assert!(bridge.is_quiet());
        assert_eq!(bridge.config().read_u16(register::COMMAND), 0);
    }
}
