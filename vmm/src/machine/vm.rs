//! The KVM side of building a machine: the VM, its memory, its vCPUs.

#![allow(unsafe_code, reason = "KVM is handed addresses of guest memory")]

use std::sync::Arc;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, Msrs, kvm_fpu, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::bus::Bus;
use super::{Error, host_error, kvm_error};
use crate::acpi;
use crate::arch::boot::{self, BootError, Entry, Payload};
use crate::arch::cpuid::{self, LocalApic, Topology};
use crate::arch::layout::{
    ACPI, GENERATION, GSI_EVENTS, GSI_SERIAL, KVM_IDENTITY_MAP, KVM_TSS, RESET_VECTOR, SMBIOS,
};
use crate::arch::{msrs, regs};
use crate::memory::{Ram, Region};
use crate::smbios;

/// What a machine can't do without, by name.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];
const X87_CONTROL_AT_RESET: u16 = 0x37f;
const MXCSR_AT_RESET: u32 = 0x1f80;

/// Opens `/dev/kvm` and checks that it has what we need.
pub(super) fn open(vcpus: u8) -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(kvm_error("open /dev/kvm"))?;
    for (capability, name) in NEEDED {
        if !kvm.check_extension(capability) {
            return Err(Error::Capability(name));
        }
    }
    let most = kvm.get_max_vcpus();
    if usize::from(vcpus) > most {
        return Err(Error::TooManyVcpus { asked: vcpus, most });
    }
    Ok(kvm)
}

/// Makes a VM with its memory and its interrupt controllers.
pub(super) fn create(kvm: &Kvm, memory: &Ram) -> Result<Arc<VmFd>, Error> {
    let vm = loop {
        match kvm.create_vm() {
            // A signal can interrupt the wait for other CPUs.
            Err(error) if error.errno() == libc::EINTR => {}
            result => break result.map_err(kvm_error("create a VM"))?,
        }
    };
    vm.set_identity_map_address(KVM_IDENTITY_MAP)
        .map_err(kvm_error("set the identity map address"))?;
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits here")]
    vm.set_tss_address(KVM_TSS as usize)
        .map_err(kvm_error("set the TSS address"))?;
    for (slot, region) in (0..).zip(memory.regions()) {
        map(&vm, slot, region, memory.is_tracking())
            .map_err(kvm_error("give the VM its memory"))?;
    }
    // After the memory: it leaves grace periods behind that a change of the memory map
    // would wait for, milliseconds at a machine's start.
    vm.create_irq_chip()
        .map_err(kvm_error("create the interrupt controllers"))?;
    Ok(Arc::new(vm))
}

/// Maps a region of guest memory in a slot; once more, to begin or end that KVM marks
/// the pages which the guest writes.
pub(super) fn map(
    vm: &VmFd,
    slot: u32,
    region: &Region,
    is_tracking: bool,
) -> Result<(), kvm_ioctls::Error> {
    let description = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: region.start(),
        memory_size: region.size(),
        userspace_addr: region.host().addr() as u64,
        flags: if is_tracking {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        },
    };
    // SAFETY: the region stays mapped as long as its `Ram`, which the Machine drops after
    // every VM that uses it.
    unsafe { vm.set_user_memory_region(description) }
}

/// Ties the devices on IOAPIC pins to the VM.
pub(super) fn connect(vm: &VmFd, bus: &Bus) -> Result<(), Error> {
    vm.register_irqfd(bus.serial.interrupt(), GSI_SERIAL)
        .map_err(kvm_error("connect the serial port's interrupt"))?;
    vm.register_irqfd(bus.event_interrupt(), GSI_EVENTS)
        .map_err(kvm_error("connect the event device's interrupt"))
}

/// Writes kernel and tables into the (clear) memory.
pub(super) fn load(
    memory: &Ram,
    size: u64,
    vcpus: u8,
    payload: &mut Payload,
    identity: &smbios::Identity,
    generation: &acpi::Generation,
) -> Result<Entry, Error> {
    let entry = boot::load(memory, size, payload)?;
    let write = |bytes: &[u8], address| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|error| BootError::Write(error.to_string()))
    };
    write(&acpi::build(vcpus)?, ACPI)?;
    write(generation.bytes(), GENERATION)?;
    write(&smbios::build(identity, vcpus, size)?, SMBIOS)?;
    write(&boot::reset_vector(), RESET_VECTOR)?;
    Ok(entry)
}

/// Makes the vCPUs; the first one is at the kernel's entry, the others wait for
/// its SIPI.
pub(super) fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    memory: &Ram,
    count: u8,
    entry: Entry,
) -> Result<Vec<VcpuFd>, Error> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("ask for the supported CPUID"))?;
    let apic = LocalApic {
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
    };
    (0..count)
        .map(|index| {
            let vcpu = vm
                .create_vcpu(index.into())
                .map_err(kvm_error("create a vCPU"))?;
            let topology = Topology {
                vcpu: index,
                vcpus: count,
            };
            let table = cpuid::build(&supported, topology, apic)
                .map_err(|_| Error::Capability("room for the CPUID table"))?;
            vcpu.set_cpuid2(&table)
                .map_err(kvm_error("set a vCPU's CPUID"))?;
            let msrs = Msrs::from_entries(&msrs::at_reset())
                .map_err(|_| Error::Capability("room for the MSRs"))?;
            vcpu.set_msrs(&msrs)
                .map_err(kvm_error("set a vCPU's MSRs"))?;
            vcpu.set_fpu(&kvm_fpu {
                fcw: X87_CONTROL_AT_RESET,
                mxcsr: MXCSR_AT_RESET,
                ..Default::default()
            })
            .map_err(kvm_error("set a vCPU's FPU"))?;
            if index == 0 {
                let mut special = vcpu
                    .get_sregs()
                    .map_err(kvm_error("get a vCPU's registers"))?;
                regs::special(memory, entry, &mut special)
                    .map_err(std::io::Error::other)
                    .map_err(host_error("write the boot tables"))?;
                vcpu.set_sregs(&special)
                    .map_err(kvm_error("set a vCPU's registers"))?;
                vcpu.set_regs(&regs::general(entry))
                    .map_err(kvm_error("set a vCPU's registers"))?;
            }
            Ok(vcpu)
        })
        .collect()
}
