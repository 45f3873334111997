//! A tiny guest that does what every stock kernel does and what a KVM without
//! hardware behind it (kvm_pvm: kernel code through an instruction emulator)
//! can't: `cmpxchg16b` and SSE2 arithmetic in 64-bit kernel mode.

use std::{
    alloc::{self, Layout},
    sync::mpsc,
    thread,
    time::Duration,
};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};

/// What became of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// It ran to its end and gave the right result.
    Ran,
    /// There is no KVM to try, and why.
    NoDevice(String),
    /// It was ended: by what.
    Died(String),
    /// It never ended.
    Hung,
}

/// The guest's memory: its tables, its code and its data, in 2 MiB that one
/// large page maps.
const MEMORY: usize = 2 << 20;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const CODE: usize = 0x4000;
const DATA: usize = 0x5000;
/// The port that the result is written to.
const PORT: u16 = 0xf4;
/// 2.0 + 2.0 by SSE2, and the 0x48 that cmpxchg16b stored.
const RESULT: u8 = 4 + 0x48;

#[rustfmt::skip]
const GUEST: &[u8] = &[
    0x48, 0xc7, 0xc7, 0x00, 0x50, 0x00, 0x00, // mov rdi, DATA
    0x31, 0xc0,                               // xor eax, eax
    0x31, 0xd2,                               // xor edx, edx
    0xbb, 0x48, 0x00, 0x00, 0x00,             // mov ebx, 0x48
    0x31, 0xc9,                               // xor ecx, ecx
    0xf0, 0x48, 0x0f, 0xc7, 0x0f,             // lock cmpxchg16b [rdi]
    0xb8, 0x02, 0x00, 0x00, 0x00,             // mov eax, 2
    0xf2, 0x0f, 0x2a, 0xc0,                   // cvtsi2sd xmm0, eax
    0xf2, 0x0f, 0x58, 0xc0,                   // addsd xmm0, xmm0
    0xf2, 0x0f, 0x2c, 0xc0,                   // cvttsd2si eax, xmm0
    0x02, 0x07,                               // add al, [rdi]
    0xe6, 0xf4,                               // out PORT, al
    0xf4,                                     // hlt
];

/// Runs the guest, for five seconds at most.
#[must_use]
pub fn attempt() -> Trial {
    let (send, receive) = mpsc::channel();
    // A guest that spins can't be ended from here; its thread ends with the
    // process, which only prints what came of it.
    thread::spawn(move || {
        let trial = Kvm::new()
            .map_err(|e| Trial::NoDevice(e.to_string()))
            .and_then(|kvm| run(&kvm).map_err(|e| Trial::Died(e.to_string())));
        let _ = send.send(trial.unwrap_or_else(|trial| trial));
    });
    receive
        .recv_timeout(Duration::from_secs(5))
        .unwrap_or(Trial::Hung)
}

fn run(kvm: &Kvm) -> Result<Trial, kvm_ioctls::Error> {
    // Before the VM, so that it is dropped after it.
    let memory = Memory::new();
    let vm = kvm.create_vm()?;
    memory.write(PML4, &entry(PDPT, 0x3));
    memory.write(PDPT, &entry(PD, 0x3));
    // Present, writable, a 2 MiB page at 0.
    memory.write(PD, &entry(0, 0x83));
    memory.write(CODE, GUEST);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.address as u64,
    };
    // SAFETY: the memory outlives the VM: locals are dropped in reverse order.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;

    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 0x8,
        type_: 11,
        db: 0,
        l: 1,
        ..data
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr3 = PML4 as u64;
    // PAE, OSFXSR, OSXMMEXCPT; PE, MP, ET, NE, PG; LME, LMA.
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
    sregs.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
    sregs.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE as u64;
    regs.rflags = 2;
    regs.rsp = (DATA + 0x1000) as u64;
    vcpu.set_regs(&regs)?;

    let died = match vcpu.run()? {
        VcpuExit::IoOut(PORT, [RESULT]) => return Ok(Trial::Ran),
        exit => format!("{exit:?}"),
    };
    let rip = vcpu.get_regs()?.rip;
    Ok(Trial::Died(format!("{died} in {}", instruction(rip))))
}

/// Which of the guest's instructions an address is in.
fn instruction(rip: u64) -> &'static str {
    match rip.checked_sub(CODE as u64) {
        Some(18..=22) => "cmpxchg16b",
        Some(28..=39) => "SSE2 arithmetic",
        _ => "its code",
    }
}

fn entry(address: usize, flags: u64) -> [u8; 8] {
    (address as u64 | flags).to_le_bytes()
}

/// Zeroed, page-aligned memory for the guest.
struct Memory {
    address: *mut u8,
}

impl Memory {
    fn layout() -> Layout {
        // Constants that fit each other: a power of two, and no overflow.
        Layout::from_size_align(MEMORY, 4096).unwrap_or(Layout::new::<u64>())
    }

    fn new() -> Self {
        // SAFETY: the layout's size is not zero.
        let address = unsafe { alloc::alloc_zeroed(Self::layout()) };
        if address.is_null() {
            alloc::handle_alloc_error(Self::layout());
        }
        Self { address }
    }

    /// Writes before the guest runs.
    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: within the allocation by the assertion; nothing else has it
        // until the guest runs, after the last write.
        unsafe {
            self.address
                .add(at)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout, and the VM is gone.
        unsafe { alloc::dealloc(self.address, Self::layout()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_ends_one_way_or_the_other() {
        // Which way depends on the machine; that it is told, doesn't.
        assert!(!matches!(attempt(), Trial::Hung));
    }

    #[test]
    fn the_instructions_are_where_we_say() {
        assert_eq!(GUEST[18..23], [0xf0, 0x48, 0x0f, 0xc7, 0x0f]);
        assert_eq!(GUEST[28..32], [0xf2, 0x0f, 0x2a, 0xc0]);
        assert_eq!(instruction(CODE as u64 + 18), "cmpxchg16b");
        assert_eq!(instruction(CODE as u64 + 32), "SSE2 arithmetic");
    }
}
