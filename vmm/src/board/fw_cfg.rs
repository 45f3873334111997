//! The firmware configuration device, as a pure machine: a selector, and the bytes of
//! what is selected one after the other (QEMU, `docs/specs/fw_cfg.rst`).
//!
//! Without its DMA interface, which would have the guest name memory to write to. What
//! is read by ports is a few dozen KiB, with string instructions.

/// What a guest finds by number: QEMU, `include/standard-headers/linux/qemu_fw_cfg.h`.
mod key {
    pub(super) const SIGNATURE: u16 = 0x00;
    pub(super) const ID: u16 = 0x01;
    pub(super) const VCPUS: u16 = 0x05;
    pub(super) const BOOT_MENU: u16 = 0x0e;
    pub(super) const MAX_VCPUS: u16 = 0x0f;
    pub(super) const DIRECTORY: u16 = 0x19;
    pub(super) const FIRST_FILE: u16 = 0x20;
    /// Bits of the selector that tell nothing apart here: written, and of the processor.
    pub(super) const FLAGS: u16 = 0xc000;
}

/// `ID`: the traditional interface, and no other.
const TRADITIONAL: u32 = 1 << 0;
/// Bytes of a file's name, with its final zero.
const NAME_SIZE: usize = 56;

/// The offset within the device of its two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// What is read: two bytes, written.
    Selector,
    /// Its next byte.
    Data,
}

/// A file that the guest finds by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name: at most 55 bytes.
    pub name: &'static str,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The device.
#[derive(Debug, Default)]
pub struct FwCfg {
    vcpus: u8,
    directory: Vec<u8>,
    files: Vec<File>,
    selected: u16,
    /// How many bytes of it were read.
    position: usize,
}

impl FwCfg {
    /// A device with these files, of a machine with so many vCPUs.
    #[must_use]
    pub fn new(vcpus: u8, files: Vec<File>) -> Self {
        Self {
            vcpus,
            directory: directory(&files),
            files,
            selected: key::SIGNATURE,
            position: 0,
        }
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.select(key::SIGNATURE);
    }

    /// Reads a port: the selector can't be.
    pub fn read(&mut self, port: Port, data: &mut [u8]) {
        data.fill(0);
        if let (Port::Data, [byte]) = (port, data) {
            *byte = self.next();
        }
    }

    /// Writes a port: what is selected can't be.
    pub fn write(&mut self, port: Port, data: &[u8]) {
        if let (Port::Selector, &[low, high]) = (port, data) {
            self.select(u16::from_le_bytes([low, high]) & !key::FLAGS);
        }
    }

    fn select(&mut self, selected: u16) {
        self.selected = selected;
        self.position = 0;
    }

    /// The next byte of what is selected, or zero behind its end.
    fn next(&mut self) -> u8 {
        let mut short = [0; 4];
        let item: &[u8] = match self.selected {
            key::SIGNATURE => b"QEMU",
            key::ID => {
                short = TRADITIONAL.to_le_bytes();
                &short
            }
            key::VCPUS | key::MAX_VCPUS => {
                short[0] = self.vcpus;
                &short[..2]
            }
            // There is one, which is waited for as long as `etc/boot-menu-wait` says.
            key::BOOT_MENU => {
                short[0] = 1;
                &short[..2]
            }
            key::DIRECTORY => &self.directory,
            selected => {
                let file = selected.checked_sub(key::FIRST_FILE).map(usize::from);
                let file = file.and_then(|index| self.files.get(index));
                file.map_or(&[], |file| &file.bytes)
            }
        };
        let Some(byte) = item.get(self.position) else {
            return 0;
        };
        self.position += 1;
        *byte
    }
}

/// How many there are; then size, number and name of each. Numbers are big-endian.
fn directory(files: &[File]) -> Vec<u8> {
    let count = u32::try_from(files.len()).unwrap_or(0);
    let mut bytes = count.to_be_bytes().to_vec();
    for (file, selector) in files.iter().zip(key::FIRST_FILE..) {
        let size = u32::try_from(file.bytes.len()).unwrap_or(0);
        bytes.extend(size.to_be_bytes());
        bytes.extend(selector.to_be_bytes());
        bytes.extend([0; 2]);
        let mut name = [0; NAME_SIZE];
        let given = file.name.bytes().take(NAME_SIZE - 1);
        name.iter_mut().zip(given).for_each(|(to, from)| *to = from);
        bytes.extend(name);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device() -> FwCfg {
        let file = |name, bytes: &[u8]| File {
            name,
            bytes: bytes.to_vec(),
        };
        FwCfg::new(3, vec![file("etc/one", b"abc"), file("etc/two", b"")])
    }

    fn read(device: &mut FwCfg, selected: u16, count: usize) -> Vec<u8> {
        device.write(Port::Selector, &selected.to_le_bytes());
        let byte = |_| {
            let mut data = [0xff];
            device.read(Port::Data, &mut data);
            data[0]
        };
        (0..count).map(byte).collect()
    }

    #[test]
    fn what_firmware_asks_first_is_there() {
        let mut device = device();
        assert_eq!(read(&mut device, 0, 6), b"QEMU\0\0");
        // No DMA.
        assert_eq!(read(&mut device, 1, 4), [1, 0, 0, 0]);
        assert_eq!(read(&mut device, 5, 2), [3, 0]);
        assert_eq!(read(&mut device, 0xf, 2), [3, 0]);
        // There is no kernel: its size.
        assert_eq!(read(&mut device, 8, 4), [0; 4]);
    }

    #[test]
    fn files_are_found_by_their_names() {
        let mut device = device();
        let directory = read(&mut device, 0x19, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..12], [0, 0, 0, 3, 0, 0x20, 0, 0]);
        assert_eq!(directory[12..20], *b"etc/one\0");
        assert_eq!(directory[68..76], [0, 0, 0, 0, 0, 0x21, 0, 0]);
        assert_eq!(read(&mut device, 0x20, 5), b"abc\0\0");
        // Once more from its beginning, by whatever else is in the selector.
        assert_eq!(read(&mut device, 0x4020, 2), b"ab");
        assert_eq!(read(&mut device, 0x22, 2), [0; 2]);
    }

    #[test]
    fn a_reset_selects_the_signature() {
        let mut device = device();
        read(&mut device, 0x20, 1);
        device.reset();
        let mut data = [0];
        device.read(Port::Data, &mut data);
        assert_eq!(data, *b"Q");
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_zero_behind_its_end(selected: u16, width in 0usize..5) {
            let mut device = device();
            read(&mut device, selected, 200);
            let mut data = vec![0xff; width];
            device.read(Port::Data, &mut data);
            device.write(Port::Data, &data);
            prop_assert!(data.iter().all(|byte| *byte == 0));
        }
    }
}
