//! The KVM side of building a machine: the VM, its memory, its vCPUs.

#![allow(unsafe_code, reason = "KVM is handed addresses of guest memory")]

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::bus::Bus;
use super::{Error, kvm_error};
use crate::acpi;
use crate::arch;
use crate::arch::boot::{self, BootError, Entry, Payload};
use crate::arch::layout::{ACPI, GENERATION, GSI_EVENTS, GSI_SERIAL, RESET_VECTOR, SMBIOS};
use crate::memory::{Ram, Region};
use crate::smbios;

pub(super) fn refused(arch::kvm::Refused { what, source }: arch::kvm::Refused) -> Error {
    Error::Kvm { what, source }
}

/// Opens `/dev/kvm` and checks that it has what we need.
pub(super) fn open(vcpus: u8) -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(kvm_error("open /dev/kvm"))?;
    for (capability, name) in arch::kvm::NEEDED {
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
    arch::kvm::prepare(&vm).map_err(refused)?;
    for (slot, region) in (0..).zip(memory.regions()) {
        map(&vm, slot, region, memory.is_tracking())
            .map_err(kvm_error("give the VM its memory"))?;
    }
    arch::kvm::create_interrupt_controllers(&vm).map_err(refused)?;
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
    let flags = match is_tracking {
        true => KVM_MEM_LOG_DIRTY_PAGES,
        false => 0,
    };
    map_with(vm, slot, region, flags)
}

/// Maps a region that the guest reads and runs as memory; what it writes there is an exit.
pub(super) fn map_read_only(
    vm: &VmFd,
    slot: u32,
    region: &Region,
) -> Result<(), kvm_ioctls::Error> {
    map_with(vm, slot, region, KVM_MEM_READONLY)
}

fn map_with(vm: &VmFd, slot: u32, region: &Region, flags: u32) -> Result<(), kvm_ioctls::Error> {
    let description = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: region.start(),
        memory_size: region.size(),
        userspace_addr: region.host().addr() as u64,
        flags,
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
    hardware: acpi::Hardware,
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
    write(&acpi::build(hardware)?, ACPI)?;
    write(generation.bytes(), GENERATION)?;
    write(&smbios::build(identity, hardware.vcpus, size)?, SMBIOS)?;
    write(&boot::reset_vector(), RESET_VECTOR)?;
    Ok(entry)
}

/// Makes the vCPUs, as they are at a machine's reset: the first one is at the reset vector,
/// the others wait for their SIPI.
pub(super) fn create_vcpus(
    vm: &VmFd,
    model: &arch::kvm::Model,
    count: u8,
) -> Result<Vec<VcpuFd>, Error> {
    let indices = 0..count;
    let created = indices.map(|index| {
        let vcpu = create_vcpu(vm, index)?;
        model.reset(&vcpu, index).map_err(refused)?;
        Ok(vcpu)
    });
    created.collect()
}

/// Makes a vCPU, which is none of the model's yet. KVM makes each number once: whatever
/// fails behind this, the vCPU is to be kept.
pub(super) fn create_vcpu(vm: &VmFd, index: u8) -> Result<VcpuFd, Error> {
    vm.create_vcpu(index.into())
        .map_err(kvm_error("create a vCPU"))
}

/// Puts the first vCPU at the kernel's entry.
pub(super) fn enter(vcpus: &[VcpuFd], memory: &Ram, entry: Entry) -> Result<(), Error> {
    let enter = |vcpu| arch::kvm::enter(vcpu, memory, entry).map_err(refused);
    vcpus.first().map_or(Ok(()), enter)
}
