//! A kernel of a few bytes, for every test that boots one.

/// Asks for events until the power button was pressed: `mov dx, 0x610; in al, dx;
/// test al, 1; jz` to the beginning.
pub(crate) const AWAIT_BUTTON: [u8; 9] = [0x66, 0xba, 0x10, 0x06, 0xec, 0xa8, 0x01, 0x74, 0xf7];
/// `hlt; jmp` to it.
pub(crate) const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// A bzImage whose 64-bit entry is `code`: the setup header of the Linux boot
/// protocol, and the code 0x200 bytes into the kernel.
pub(crate) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024 + 512];
    image.extend_from_slice(code);
    image.extend_from_slice(&HALT);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x10_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x1_0000u32.to_le_bytes()); // init_size
    image
}
