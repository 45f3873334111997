//! Every guest-physical address and I/O port, with its budget.
//!
//! ```text
//!  guest-physical memory
//!
//!  0x0_0000_0000 ┌──────────────────────────────┐
//!        0x500   │ GDT, IDT                     │  gone once the kernel has its own
//!        0x6000  │ PVH start info, modules, map │  ELF kernels only
//!        0x7000  │ zero page (boot_params)      │  bzImage kernels only
//!        0x8ff0  │ boot stack (grows down)      │
//!        0x9000  │ page tables: 4 GiB, 2 MiB    │  PML4, PDPT, four PDs
//!        0x20000 │ command line, at most 64 KiB │
//!  0x0_0009_fc00 ├──────────────────────────────┤  end of low RAM in the e820 map
//!        0xdf010 │ generation id     (16 bytes) │  e820: reserved
//!  0x0_000e_0000 │ RSDP, ACPI tables   (64 KiB) │  e820: ACPI data
//!  0x0_000f_0000 │ SMBIOS 3, `_SM3_`   (64 KiB) │  e820: reserved
//!  0x0_000f_fff0 │ reset vector      (16 bytes) │
//!  0x0_0010_0000 ├──────────────────────────────┤
//!                │ RAM: kernel from 1 MiB,      │
//!                │ initrd at the top of what    │
//!                │ the kernel can reach         │
//!  0x0_c000_0000 ├──────────────────────────────┤  the hole, 1 GiB
//!                │ PCI memory window (512 MiB)  │  virtio BARs
//!  0x0_e000_0000 │ PCI ECAM, bus 0     (1 MiB)  │  MCFG
//!  0x0_fec0_0000 │ IOAPIC              (4 KiB)  │
//!  0x0_fee0_0000 │ local APIC          (4 KiB)  │  MSI writes
//!  0x0_feff_c000 │ KVM identity map, TSS        │  never seen by the guest
//!  0x1_0000_0000 ├──────────────────────────────┤
//!                │ RAM: what 3 GiB did not hold │
//!                ├──────────────────────────────┤  the next whole 2 GiB
//!                │ memory that is plugged       │  virtio-mem
//!                └──────────────────────────────┘
//!
//!  I/O ports
//!  0x061        system control port B: no cause of an NMI
//!  0x064        keyboard controller, as far as the reset pulse
//!  0x3f8-0x3ff  16550 UART, COM1
//!  0x600-0x603  ACPI sleep control, sleep status, reset
//!  0x610-0x61f  events: GED status; PCI hotplug
//!  0x620-0x62b  processors that come and go
//!  0xcf8-0xcff  PCI configuration mechanism #1
//!  0x1000-0x1fff  PCI I/O window: virtio doorbells
//! ```

/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// The boot GDT.
pub const GDT: u64 = 0x500;
/// The boot IDT: empty, since nothing may interrupt the entry.
pub const IDT: u64 = 0x520;
/// PVH `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list: one entry, the initrd.
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMMAP: u64 = 0x6100;
/// `boot_params`, the "zero page".
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the boot stack.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page map level 4.
pub const PML4: u64 = 0x9000;
/// Page directory pointers.
pub const PDPT: u64 = 0xa000;
/// Four page directories, one for each of the first four GiB.
pub const PAGE_DIRECTORIES: u64 = 0xb000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line with its final zero, in bytes.
pub const CMDLINE_CAPACITY: u64 = 64 * KIB;

/// Where low RAM ends for the guest.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The generation id, which the DSDT points to. Off the 2 KiB boundaries where a PC's
/// option ROMs begin, so that no id is ever taken for one.
pub const GENERATION: u64 = 0xd_f010;
/// The RSDP, and the other ACPI tables behind it.
pub const ACPI: u64 = 0xe_0000;
/// Room for all ACPI tables, in bytes.
pub const ACPI_SIZE: u64 = 64 * KIB;
/// The SMBIOS entry point, and its structures behind it: SMBIOS 3.6, section
/// 5.2.2, has it found on a 16-byte boundary in this segment.
pub const SMBIOS: u64 = 0xf_0000;
/// Room for the SMBIOS tables, in bytes.
pub const SMBIOS_SIZE: u64 = 64 * KIB - 16;
/// Where a PC's processor starts, f000:fff0: code that resets the machine. Linux
/// jumps there in real mode to reboot when ACPI is hardware-reduced and there is
/// no EFI (`efi_reboot_required` picks EFI, which falls through to the BIOS).
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Where RAM goes on, and bzImage kernels are put.
pub const HIGH_RAM: u64 = MIB;

/// Where the hole for devices begins and RAM below 4 GiB ends.
pub const HOLE: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub const ABOVE_4G: u64 = 4 * GIB;
/// Memory that may be plugged begins on a multiple of it: Linux takes memory in blocks of
/// 128 MiB to 2 GiB (`probe_memory_block_size` of arch/x86/mm/init_64.c), and only whole
/// ones.
pub const MEMORY_BLOCK: u64 = 2 * GIB;
/// The window out of which PCI BARs are given.
pub const PCI_WINDOW: u64 = HOLE;
/// Its size in bytes.
pub const PCI_WINDOW_SIZE: u64 = 512 * MIB;
/// PCI enhanced configuration space: one bus.
pub const ECAM: u64 = 0xe000_0000;
/// Its size in bytes: 32 devices, 8 functions, 4 KiB each.
pub const ECAM_SIZE: u64 = MIB;
/// The IOAPIC's registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APIC's registers.
pub const LAPIC: u64 = 0xfee0_0000;
/// Where the message goes by which every local APIC gets a non-maskable interrupt: physical
/// destination FFh. Intel SDM, volume 3, section 11.11.1.
pub const NMI_ADDRESS: u64 = LAPIC | 0xff << 12;
/// What it says: delivery mode 100b. The same, section 11.11.2.
pub const NMI_DATA: u32 = 0b100 << 8;
/// One page that KVM on Intel needs for real mode without unrestricted guest. Below
/// the last 16 MiB, which are flash where there is firmware.
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages that KVM on Intel needs for the same.
pub const KVM_TSS: u64 = 0xfeff_d000;

/// The PC AT's system control port B, where a kernel looks for what caused an NMI.
pub const PORT_CONTROL_B: u16 = 0x61;
/// The keyboard controller's command port.
pub const PORT_I8042: u16 = 0x64;
/// COM1: eight ports.
pub const PORT_SERIAL: u16 = 0x3f8;
/// ACPI sleep control register.
pub const PORT_SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub const PORT_SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register.
pub const PORT_RESET: u16 = 0x602;
/// What the guest writes there to be reset.
pub const RESET_VALUE: u8 = 1;
/// The Generic Event Device's pending events: one byte, cleared by reading.
pub const PORT_EVENTS: u16 = 0x610;
/// PCI hotplug: slots with a new device (read), 4 bytes.
pub const PORT_HOTPLUG_UP: u16 = 0x614;
/// PCI hotplug: slots whose device shall go (read), 4 bytes.
pub const PORT_HOTPLUG_DOWN: u16 = 0x618;
/// PCI hotplug: the guest lets go of these slots (write), 4 bytes.
pub const PORT_HOTPLUG_EJECT: u16 = 0x61c;
/// Processor hotplug: those that were plugged (read), 4 bytes.
pub const PORT_CPUS_UP: u16 = 0x620;
/// Processor hotplug: those that shall go (read), 4 bytes.
pub const PORT_CPUS_DOWN: u16 = 0x624;
/// Processor hotplug: those that are there (read), and those that the guest lets go of
/// (write), 4 bytes.
pub const PORT_CPUS: u16 = 0x628;
/// PCI configuration address.
pub const PORT_PCI_ADDRESS: u16 = 0xcf8;
/// PCI configuration data: four ports.
pub const PORT_PCI_DATA: u16 = 0xcfc;
/// The window out of which I/O BARs are given. Linux assigns no port below 0x1000 to
/// a PCI device (`PCIBIOS_MIN_IO`).
pub const PORT_PCI_WINDOW: u16 = 0x1000;
/// Its size in ports. Where Linux places a BAR by itself it keeps to the 256 ports of
/// each KiB that no ISA card aliases: these hold every device of the bus four times.
pub const PORT_PCI_WINDOW_SIZE: u16 = 0x1000;

/// The UART's interrupt: an IOAPIC pin.
pub const GSI_SERIAL: u32 = 4;
/// The Generic Event Device's interrupt: an IOAPIC pin.
pub const GSI_EVENTS: u32 = 9;
/// The first GSI that is no IOAPIC pin: MSI routes have these.
pub const GSI_MSI_FIRST: u32 = 24;

/// The smallest guest memory in MiB.
pub const MIN_MEMORY_MIB: u64 = 64;
/// The largest guest memory in MiB: 1 TiB, well below every physical address
/// width that KVM can offer.
pub const MAX_MEMORY_MIB: u64 = 1 << 20;
/// The most vCPUs. Each has an APIC id below 255, so no interrupt remapping is
/// needed, and one bit in the registers of processor hotplug.
pub const MAX_VCPUS: u8 = 32;

/// What is elsewhere, or there besides, on the board of a machine with firmware: as far
/// as OVMF asks for it, QEMU's "q35". Everything else is as above.
///
/// ```text
///  0x0_8000_0000 ┌──────────────────────────────┐  RAM below 4 GiB ends
///                │ PCI memory window            │  newer firmware's
///  0x0_b000_0000 │ or ECAM                      │  where older firmware puts it
///  0x0_c000_0000 │ PCI memory window            │  older firmware's
///  0x0_e000_0000 │ or ECAM                      │  where newer firmware puts it
///  0x0_ff00_0000 │ flash: variables, then code, │
///                │ up to the last byte          │  the reset vector is 16 bytes before
///  0x1_0000_0000 ├──────────────────────────────┤
///                │ RAM: what 2 GiB did not hold │
///                │ 64-bit PCI memory window     │  up to what the processor can address
///                └──────────────────────────────┘
///
///  I/O ports
///  0x070-0x071    CMOS memory and clock
///  0x510-0x511    firmware configuration: selector, data
///  0x604-0x605    ACPI PM1 control
///  0x608-0x60b    ACPI PM timer
///  0x6000-0xffff  PCI I/O window
/// ```
pub mod firmware {
    use super::{GIB, MIB};

    /// Where RAM below 4 GiB ends: what the firmware's memory type registers divide
    /// without a rest, and below both places of ECAM.
    pub const HOLE: u64 = 2 * GIB;
    /// Where the flash may begin; it ends at 4 GiB.
    pub const FLASH: u64 = 0xff00_0000;
    /// The most bytes of flash.
    pub const MAX_FLASH: u64 = 16 * MIB;
    /// Windows of 32-bit BARs: all that firmware leaves between RAM and devices, but for
    /// the 256 MiB in which some of it puts ECAM. First and last byte of each.
    pub const PCI_WINDOWS: [(u64, u64); 2] =
        [(HOLE, 0xafff_ffff), (super::PCI_WINDOW, 0xdfff_ffff)];
    /// The last byte of the window of 64-bit BARs, which begins behind all RAM: firmware
    /// puts them as high as it thinks that addresses go, and no higher than this.
    pub const PCI_WINDOW_64_LAST: u64 = (1 << 47) - 1;
    /// CMOS memory: index, then data.
    pub const PORT_CMOS: u16 = 0x70;
    /// Firmware configuration: selector (two bytes), then data.
    pub const PORT_FW_CFG: u16 = 0x510;
    /// Where the firmware puts the chip set's power management registers (PMBASE): ours
    /// are between them.
    pub const PORT_PM1_CONTROL: u16 = 0x604;
    /// A counter of 3.579545 MHz.
    pub const PORT_PM_TIMER: u16 = 0x608;
    /// The window out of which I/O BARs are given: all ports from there on.
    pub const PORT_PCI_WINDOW: u16 = 0x6000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap() {
        let regions = [
            (GDT, 0x20),
            (IDT, 0x20),
            (PVH_START_INFO, 0x40),
            (PVH_MODULES, 0x40),
            (PVH_MEMMAP, 0x400),
            (ZERO_PAGE, 0x1000),
            (PML4, 0x1000),
            (PDPT, 0x1000),
            (PAGE_DIRECTORIES, 0x4000),
            (CMDLINE, CMDLINE_CAPACITY),
            (LOW_RAM_END, 0),
            (GENERATION, 16),
            (ACPI, ACPI_SIZE),
            (SMBIOS, SMBIOS_SIZE),
            (RESET_VECTOR, 16),
            (PCI_WINDOW, PCI_WINDOW_SIZE),
            (ECAM, ECAM_SIZE),
            (IOAPIC, 0x1000),
            (LAPIC, 0x1000),
            (KVM_IDENTITY_MAP, 0x1000),
            (KVM_TSS, 0x3000),
        ];
        for pair in regions.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        let ports = [
            (PORT_CONTROL_B, 1),
            (PORT_I8042, 1),
            (PORT_SERIAL, 8),
            (PORT_SLEEP_CONTROL, 1),
            (PORT_SLEEP_STATUS, 1),
            (PORT_RESET, 1),
            (PORT_EVENTS, 1),
            (PORT_HOTPLUG_UP, 4),
            (PORT_HOTPLUG_DOWN, 4),
            (PORT_HOTPLUG_EJECT, 4),
            (PORT_CPUS_UP, 4),
            (PORT_CPUS_DOWN, 4),
            (PORT_CPUS, 4),
            (PORT_PCI_ADDRESS, 4),
            (PORT_PCI_DATA, 4),
            (PORT_PCI_WINDOW, PORT_PCI_WINDOW_SIZE),
        ];
        for pair in ports.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        // What firmware finds besides is between them.
        let taken = [
            (firmware::PORT_CMOS, 2),
            (firmware::PORT_FW_CFG, 2),
            (firmware::PORT_PM1_CONTROL, 2),
            (firmware::PORT_PM_TIMER, 4),
        ];
        for (start, count) in taken {
            let ends = |other: &(u16, u16)| start + count <= other.0 || other.0 + other.1 <= start;
            assert!(ports.iter().all(ends), "{start:x}");
        }
        const { assert!(IOAPIC < KVM_TSS && KVM_TSS + 0x3000 <= firmware::FLASH) };
        assert_eq!(firmware::FLASH + firmware::MAX_FLASH, ABOVE_4G);
    }
}
