//! The boot vCPU's registers for each way into a kernel, with the descriptor and
//! page tables they point to.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::boot::Entry;
use super::layout::{
    BOOT_STACK, GDT, IDT, MIB, PAGE_DIRECTORIES, PDPT, PML4, PVH_START_INFO, ZERO_PAGE,
};
use crate::memory::Ram;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Reserved, and always one.
const RFLAGS_ONE: u64 = 1 << 1;
const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITABLE: u64 = 1 << 1;
const PDE_HUGE: u64 = 1 << 7;

/// One segment of the boot GDT.
#[derive(Clone, Copy)]
struct Segment {
    selector: u16,
    /// Type field: Intel SDM volume 3, section 3.4.5.1.
    kind: u8,
    /// Long mode code.
    long: bool,
    /// 32-bit default operand size.
    wide: bool,
}

/// The Linux boot protocol asks for these two selectors: `__BOOT_CS`, `__BOOT_DS`.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const CODE_64: Segment = Segment {
    selector: CODE,
    kind: 0xb,
    long: true,
    wide: false,
};
const CODE_32: Segment = Segment {
    selector: CODE,
    kind: 0xb,
    long: false,
    wide: true,
};
const FLAT_DATA: Segment = Segment {
    selector: DATA,
    kind: 0x3,
    long: false,
    wide: true,
};

impl Segment {
    /// The flat segment as KVM wants it.
    fn kvm(self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: self.selector,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: u8::from(self.wide),
            s: 1,
            l: u8::from(self.long),
            g: 1,
            ..Default::default()
        }
    }

    /// The same as a descriptor: Intel SDM volume 3, figure 3-8.
    fn descriptor(self) -> u64 {
        let access = 0x90 | u64::from(self.kind);
        let flags = 0x8 | u64::from(self.wide) << 2 | u64::from(self.long) << 1;
        0xffff | access << 40 | 0xf << 48 | flags << 52
    }
}

/// General registers at the entry.
#[must_use]
pub(super) fn general(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Linux64 { rip } => kvm_regs {
            rip,
            rflags: RFLAGS_ONE,
            rsp: BOOT_STACK,
            rbp: BOOT_STACK,
            rsi: ZERO_PAGE,
            ..Default::default()
        },
        Entry::Pvh { rip } => kvm_regs {
            rip,
            rflags: RFLAGS_ONE,
            rbx: PVH_START_INFO,
            ..Default::default()
        },
    }
}

/// Changes a fresh vCPU's special registers to what the entry asks for, and
/// writes the tables they point to.
///
/// # Errors
/// When guest memory is too small for the tables.
pub(super) fn special(
    memory: &Ram,
    entry: Entry,
    sregs: &mut kvm_sregs,
) -> Result<(), GuestMemoryError> {
    let code = match entry {
        Entry::Linux64 { .. } => CODE_64,
        Entry::Pvh { .. } => CODE_32,
    };
    let gdt = [0u64, 0, code.descriptor(), FLAT_DATA.descriptor()];
    for (slot, descriptor) in (0u64..).zip(gdt) {
        memory.write_obj(descriptor, GuestAddress(GDT + slot * 8))?;
    }
    memory.write_obj(0u64, GuestAddress(IDT))?;
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 4 * 8 - 1,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 7,
        ..Default::default()
    };
    sregs.cs = code.kvm();
    let data = FLAT_DATA.kvm();
    sregs.ds = data;
    sregs.es = data;
    sregs.ss = data;
    match entry {
        Entry::Linux64 { .. } => {
            write_page_tables(memory)?;
            sregs.cr3 = PML4;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Entry::Pvh { .. } => {
            sregs.fs = data;
            sregs.gs = data;
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            // A TSS must be there, 32-bit and busy: Intel SDM volume 3, 27.3.1.2.
            sregs.tr = kvm_segment {
                limit: 0x67,
                type_: 0xb,
                present: 1,
                ..Default::default()
            };
        }
    }
    Ok(())
}

/// Maps the first 4 GiB one to one in pages of 2 MiB.
fn write_page_tables(memory: &Ram) -> Result<(), GuestMemoryError> {
    let table = PTE_PRESENT | PTE_WRITABLE;
    memory.write_obj(PDPT | table, GuestAddress(PML4))?;
    for gib in 0..4u64 {
        let directory = PAGE_DIRECTORIES + gib * 0x1000;
        memory.write_obj(directory | table, GuestAddress(PDPT + gib * 8))?;
        let mut entries = [0u8; 4096];
        for (entry, page) in entries.chunks_exact_mut(8).zip(gib * 512..) {
            entry.copy_from_slice(&((page * 2 * MIB) | table | PDE_HUGE).to_le_bytes());
        }
        memory.write_slice(&entries, GuestAddress(directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::memory::ram;
    use super::*;

    fn memory() -> Ram {
        Ram::private(&ram(64 * MIB)).expect("memory")
    }

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(CODE_64.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(CODE_32.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(FLAT_DATA.descriptor(), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn long_mode_maps_four_gib() {
        let memory = memory();
        let mut sregs = kvm_sregs::default();
        special(&memory, Entry::Linux64 { rip: 0 }, &mut sregs).expect("fits");
        assert_eq!(sregs.efer, EFER_LME | EFER_LMA);
        let last: u64 = memory
            .read_obj(GuestAddress(PAGE_DIRECTORIES + 4 * 0x1000 - 8))
            .expect("in range");
        assert_eq!(last, 0xffe0_0083);
    }

    #[test]
    fn pvh_has_paging_off() {
        let memory = memory();
        let mut sregs = kvm_sregs::default();
        special(&memory, Entry::Pvh { rip: 0 }, &mut sregs).expect("fits");
        assert_eq!(sregs.cr0 & CR0_PG, 0);
        assert_eq!(sregs.cs.db, 1);
    }
}
