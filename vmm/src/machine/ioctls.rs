//! KVM's ioctls by the threads that make them, for the filters of system calls
//! (Documentation/virt/kvm/api.rst; numbers: `linux/kvm.h`).
//!
//! A thread that runs a vCPU needs few, and the descriptors of the VM and of `/dev/kvm`
//! are in its reach as its own is: it shall not give the guest other memory, make
//! devices or further machines, or enable a capability that we left out.

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_dirty_log, kvm_fpu, kvm_guest_debug,
    kvm_ioeventfd, kvm_irq_routing, kvm_irqchip, kvm_irqfd, kvm_lapic_state, kvm_mp_state,
    kvm_msr_list, kvm_msrs, kvm_regs, kvm_sregs, kvm_sregs2, kvm_translation,
    kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use libc::{_IO, _IOR, _IOW, _IOWR};

use crate::jail::{Allow, Argument};

/// What running a vCPU costs its thread.
pub(super) const VCPU_THREAD: &[Allow] = &[Allow::when(libc::SYS_ioctl, &VCPU)];
/// What making the VM costs the main thread.
pub(super) const MAIN_THREAD: &[Allow] = &[Allow::when(libc::SYS_ioctl, &MAIN)];

/// The request is this very one: numbers alone are not enough, of which some stand for
/// one thing on a VM and another on a vCPU.
const fn is(request: libc::Ioctl) -> Argument {
    Argument::is(1, request)
}

const fn plain(number: u32) -> Argument {
    is(_IO(KVMIO, number))
}

const fn get<T>(number: u32) -> Argument {
    is(_IOR::<T>(KVMIO, number))
}

const fn set<T>(number: u32) -> Argument {
    is(_IOW::<T>(KVMIO, number))
}

const fn exchange<T>(number: u32) -> Argument {
    is(_IOWR::<T>(KVMIO, number))
}

/// A vCPU's thread: runs it, reads and writes its registers, and moves interrupts and
/// doorbells as drivers set them up.
const VCPU: [Argument; 32] = [
    // KVM_RUN: by far the most frequent, so it is looked for first.
    plain(0x80),
    // KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD: MSI-X tables, BARs.
    set::<kvm_irq_routing>(0x6a),
    set::<kvm_irqfd>(0x76),
    set::<kvm_ioeventfd>(0x79),
    // KVM_KVMCLOCK_CTRL.
    plain(0xad),
    // What a vCPU's state is made of: KVM_GET_… and KVM_SET_…
    // … REGS, SREGS, SREGS2
    get::<kvm_regs>(0x81),
    set::<kvm_regs>(0x82),
    get::<kvm_sregs>(0x83),
    set::<kvm_sregs>(0x84),
    get::<kvm_sregs2>(0xcc),
    set::<kvm_sregs2>(0xcd),
    // … FPU, XSAVE and KVM_GET_XSAVE2, XCRS
    get::<kvm_fpu>(0x8c),
    set::<kvm_fpu>(0x8d),
    get::<kvm_xsave>(0xa4),
    get::<kvm_xsave>(0xcf),
    set::<kvm_xsave>(0xa5),
    get::<kvm_xcrs>(0xa6),
    set::<kvm_xcrs>(0xa7),
    // … MSRS, TSC_KHZ
    exchange::<kvm_msrs>(0x88),
    set::<kvm_msrs>(0x89),
    plain(0xa3),
    plain(0xa2),
    // … LAPIC, MP_STATE, VCPU_EVENTS, DEBUGREGS
    get::<kvm_lapic_state>(0x8e),
    set::<kvm_lapic_state>(0x8f),
    get::<kvm_mp_state>(0x98),
    set::<kvm_mp_state>(0x99),
    get::<kvm_vcpu_events>(0x9f),
    set::<kvm_vcpu_events>(0xa0),
    get::<kvm_debugregs>(0xa1),
    set::<kvm_debugregs>(0xa2),
    // What a debugger asks for: KVM_SET_GUEST_DEBUG, KVM_TRANSLATE.
    set::<kvm_guest_debug>(0x9b),
    exchange::<kvm_translation>(0x85),
];

/// What the main thread makes besides: a reset makes the VM anew.
const MAIN: [Argument; 17] = [
    // KVM_CHECK_EXTENSION, KVM_GET_VCPU_MMAP_SIZE, KVM_GET_SUPPORTED_CPUID,
    // KVM_GET_MSR_INDEX_LIST.
    plain(0x03),
    plain(0x04),
    exchange::<kvm_cpuid2>(0x05),
    exchange::<kvm_msr_list>(0x02),
    // KVM_CREATE_VM, KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR,
    // KVM_SET_USER_MEMORY_REGION, KVM_CREATE_IRQCHIP, KVM_CREATE_VCPU, KVM_SET_CPUID2.
    plain(0x01),
    plain(0x47),
    set::<u64>(0x48),
    set::<kvm_userspace_memory_region>(0x46),
    plain(0x60),
    plain(0x41),
    set::<kvm_cpuid2>(0x90),
    exchange::<kvm_cpuid2>(0x91),
    // What a VM's state is made of: KVM_GET_IRQCHIP, KVM_SET_IRQCHIP, KVM_GET_CLOCK,
    // KVM_SET_CLOCK, KVM_GET_DIRTY_LOG.
    exchange::<kvm_irqchip>(0x62),
    get::<kvm_irqchip>(0x63),
    get::<kvm_clock_data>(0x7c),
    set::<kvm_clock_data>(0x7b),
    set::<kvm_dirty_log>(0x42),
];
