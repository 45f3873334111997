//! Puts a kernel, its initrd and its command line into guest memory.
//!
//! Two ways in: the Linux boot protocol's 64-bit entry for a bzImage
//! (Documentation/arch/x86/boot.rst, "64-bit boot protocol"), and the PVH entry for
//! an ELF image (Xen's docs/misc/pvh.pandoc; the note XEN_ELFNOTE_PHYS32_ENTRY).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress};

use super::image::Image;
use super::layout::{
    ACPI, CMDLINE, CMDLINE_CAPACITY, HIGH_RAM, MIB, PORT_RESET, PVH_MEMMAP, PVH_MODULES,
    PVH_START_INFO, RESET_VALUE, ZERO_PAGE,
};
use super::memory;
use crate::memory::Ram;

/// "Undefined" in Documentation/arch/x86/boot.rst's table of boot loader ids.
const LOADER_UNDEFINED: u8 = 0xff;
/// `xloadflags`: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Where the 64-bit entry lies behind the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// `hvm_start_info.magic`: "xEn3" with the top bit set.
const PVH_MAGIC: u32 = 0x336e_c578;
/// An initrd starts on a page.
const PAGE: u64 = 4096;

/// How the boot vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Long mode, paging on, `rsi` = zero page.
    Linux64 {
        /// The instruction pointer.
        rip: u64,
    },
    /// Protected mode, paging off, `ebx` = start info.
    Pvh {
        /// The instruction pointer.
        rip: u64,
    },
}

/// Why a kernel can't be booted. Each is one line that names what was wrong.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is neither of the two formats.
    #[error("the kernel is neither a bzImage nor an ELF image")]
    UnknownFormat,
    /// The loader refused it.
    #[error("the kernel can't be loaded: {0}")]
    Kernel(String),
    /// An old or 32-bit kernel.
    #[error("the kernel has no 64-bit entry point")]
    No64BitEntry,
    /// An ELF image without the note.
    #[error("the ELF kernel has no PVH entry point (CONFIG_PVH)")]
    NoPvhEntry,
    /// Not enough memory for the kernel's own needs.
    #[error("the kernel needs {needs} MiB of memory to unpack itself, the machine has {has} MiB")]
    MemoryTooSmall {
        /// What the kernel needs, in MiB.
        needs: u64,
        /// What the machine has below 4 GiB, in MiB.
        has: u64,
    },
    /// Not enough memory for kernel and initrd.
    #[error("the initrd ({size} bytes) does not fit into memory beside the kernel")]
    InitrdTooLarge {
        /// The initrd's size in bytes.
        size: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {size} bytes, the kernel takes at most {limit}")]
    CmdlineTooLong {
        /// Its size in bytes.
        size: u64,
        /// The kernel's limit in bytes.
        limit: u64,
    },
    /// The initrd can't be read.
    #[error("the initrd can't be read: {0}")]
    ReadInitrd(String),
    /// The kernel can't be read.
    #[error("the kernel can't be read")]
    ReadKernel(#[from] std::io::Error),
    /// The boot data can't be written to guest memory.
    #[error("the boot data can't be written: {0}")]
    Write(String),
}

/// The code at the reset vector, 16-bit: writes the reset value to the reset port.
#[must_use]
pub fn reset_vector() -> [u8; 9] {
    let [low, high] = PORT_RESET.to_le_bytes();
    [
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xba,
        low,
        high, // mov dx, PORT_RESET
        0xee, // out dx, al
        0xf4, // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

/// What is to be booted. The files stay open, so that a reset boots the very same
/// bytes, also in a jail that can't open them.
#[derive(Debug)]
pub struct Payload {
    /// The kernel image.
    pub kernel: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Loads everything and says where to enter it. The memory must be clear.
///
/// # Errors
/// See [`BootError`].
pub fn load(memory: &Ram, size: u64, payload: &mut Payload) -> Result<Entry, BootError> {
    let mut kernel = Image::map(&payload.kernel)?;
    let mut magic = [0u8; 4];
    kernel.read_exact(&mut magic)?;
    kernel.rewind()?;
    if magic == *b"\x7fELF" {
        load_elf(memory, size, &mut kernel, payload)
    } else {
        load_bzimage(memory, size, &mut kernel, payload)
    }
}

fn load_bzimage(
    memory: &Ram,
    size: u64,
    kernel: &mut Image,
    payload: &mut Payload,
) -> Result<Entry, BootError> {
    let loaded = BzImage::load(
        memory,
        Some(GuestAddress(HIGH_RAM)),
        kernel,
        Some(GuestAddress(HIGH_RAM)),
    )
    .map_err(|error| match error {
        linux_loader::loader::Error::Bzimage(
            linux_loader::loader::bzimage::Error::InvalidBzImage,
        ) => BootError::UnknownFormat,
        error => BootError::Kernel(error.to_string()),
    })?;
    let mut header: setup_header = loaded.setup_header.ok_or(BootError::UnknownFormat)?;
    if { header.version } < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry);
    }

    // Without KASLR the kernel unpacks itself at its preferred address and takes
    // `init_size` bytes there; neither the end of RAM nor an initrd may be inside.
    let low_end = memory::low_end(size);
    let needs = header
        .pref_address
        .saturating_add(u64::from(header.init_size))
        .max(loaded.kernel_end);
    if needs > low_end {
        return Err(BootError::MemoryTooSmall {
            needs: needs.div_ceil(MIB),
            has: low_end / MIB,
        });
    }

    load_cmdline(
        memory,
        &payload.cmdline,
        u64::from(header.cmdline_size).min(CMDLINE_CAPACITY - 1),
    )?;
    let limit = low_end.min(u64::from(header.initrd_addr_max).saturating_add(1));
    let initrd = load_initrd(memory, payload.initrd.as_mut(), needs, limit)?;

    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = narrow(CMDLINE)?;
    if let Some((start, size)) = initrd {
        header.ramdisk_image = narrow(start)?;
        header.ramdisk_size = narrow(size)?;
    }
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: ACPI,
        ..Default::default()
    };
    for (slot, range) in params.e820_table.iter_mut().zip(memory::map(size)) {
        *slot = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: range.kind as u32,
        };
        params.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, GuestAddress(ZERO_PAGE)),
        memory,
    )
    .map_err(|error| BootError::Write(error.to_string()))?;
    Ok(Entry::Linux64 {
        rip: loaded.kernel_load.0 + ENTRY_64,
    })
}

fn load_elf(
    memory: &Ram,
    size: u64,
    kernel: &mut Image,
    payload: &mut Payload,
) -> Result<Entry, BootError> {
    let loaded = Elf::load(memory, None, kernel, Some(GuestAddress(HIGH_RAM)))
        .map_err(|error| BootError::Kernel(error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhEntry);
    };
    load_cmdline(memory, &payload.cmdline, 2047)?;
    let initrd = load_initrd(
        memory,
        payload.initrd.as_mut(),
        loaded.kernel_end,
        memory::low_end(size),
    )?;

    let map: Vec<hvm_memmap_table_entry> = memory::map(size)
        .into_iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: ACPI,
        memmap_paddr: PVH_MEMMAP,
        memmap_entries: u32::try_from(map.len()).map_err(|e| BootError::Write(e.to_string()))?,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { PVH_MODULES } else { 0 },
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(PVH_START_INFO));
    params.set_sections(&map, GuestAddress(PVH_MEMMAP));
    if let Some((start, size)) = initrd {
        params.set_modules(
            &[hvm_modlist_entry {
                paddr: start,
                size,
                ..Default::default()
            }],
            GuestAddress(PVH_MODULES),
        );
    }
    PvhBootConfigurator::write_bootparams(&params, memory)
        .map_err(|error| BootError::Write(error.to_string()))?;
    Ok(Entry::Pvh { rip: entry.0 })
}

fn load_cmdline(memory: &Ram, cmdline: &str, limit: u64) -> Result<(), BootError> {
    let size = cmdline.len() as u64;
    if size > limit {
        return Err(BootError::CmdlineTooLong { size, limit });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(CMDLINE))
        .map_err(|error| BootError::Write(error.to_string()))
}

/// Puts the initrd as high as it may lie, on a page.
fn load_initrd(
    memory: &Ram,
    initrd: Option<&mut File>,
    floor: u64,
    limit: u64,
) -> Result<Option<(u64, u64)>, BootError> {
    let Some(initrd) = initrd else {
        return Ok(None);
    };
    let read = |error: std::io::Error| BootError::ReadInitrd(error.to_string());
    let size = initrd.seek(SeekFrom::End(0)).map_err(read)?;
    initrd.seek(SeekFrom::Start(0)).map_err(read)?;
    let start = initrd_start(size, floor, limit).ok_or(BootError::InitrdTooLarge { size })?;
    let count = usize::try_from(size).map_err(|e| BootError::ReadInitrd(e.to_string()))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), initrd, count)
        .map_err(|error| BootError::ReadInitrd(error.to_string()))?;
    Ok(Some((start, size)))
}

fn initrd_start(size: u64, floor: u64, limit: u64) -> Option<u64> {
    let start = limit.checked_sub(size)? / PAGE * PAGE;
    (start >= floor).then_some(start)
}

fn narrow(value: u64) -> Result<u32, BootError> {
    u32::try_from(value).map_err(|error| BootError::Write(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn payload(kernel: &[u8]) -> Payload {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(kernel).expect("write");
        Payload {
            kernel: file,
            initrd: None,
            cmdline: "console=ttyS0".into(),
        }
    }

    /// The smallest thing with a valid setup header.
    fn bzimage(init_size: u32, xloadflags: u16) -> Vec<u8> {
        let mut image = vec![0u8; 1024 + 512];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
        // The header's field names stand in the way of its real place.
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image
    }

    fn boot(payload: &mut Payload) -> Result<Entry, BootError> {
        let size = 64 * MIB;
        let memory = Ram::private(&memory::ram(size)).expect("memory");
        load(&memory, size, payload)
    }

    #[test]
    fn bzimage_is_entered_in_long_mode() {
        let entry = boot(&mut payload(&bzimage(0x10_0000, 1))).expect("boots");
        assert_eq!(entry, Entry::Linux64 { rip: 0x10_0200 });
    }

    #[test]
    fn rubbish_is_refused_by_name() {
        assert!(matches!(
            boot(&mut payload(&[0; 4096])),
            Err(BootError::UnknownFormat)
        ));
        assert!(boot(&mut payload(&[0; 3])).is_err());
        assert!(boot(&mut payload(b"\x7fELF")).is_err());
    }

    #[test]
    fn a_32_bit_kernel_is_refused() {
        assert!(matches!(
            boot(&mut payload(&bzimage(0x10_0000, 0))),
            Err(BootError::No64BitEntry)
        ));
    }

    #[test]
    fn a_kernel_too_large_for_the_memory_is_refused() {
        assert!(matches!(
            boot(&mut payload(&bzimage(0x1000_0000, 1))),
            Err(BootError::MemoryTooSmall {
                needs: 272,
                has: 64
            })
        ));
    }

    #[test]
    fn a_long_command_line_is_refused() {
        let mut payload = payload(&bzimage(0x10_0000, 1));
        payload.cmdline = "x".repeat(2048);
        assert!(matches!(
            boot(&mut payload),
            Err(BootError::CmdlineTooLong {
                size: 2048,
                limit: 2047
            })
        ));
    }

    #[test]
    fn initrd_lies_high_and_never_in_the_kernel() {
        assert_eq!(initrd_start(5000, 0x1000, 0x10000), Some(0xe000));
        assert_eq!(initrd_start(5000, 0xf000, 0x10000), None);
        assert_eq!(initrd_start(u64::MAX, 0, 0x10000), None);
    }
}
