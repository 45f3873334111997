//! What KVM is asked for on this processor: what it must have, what a VM needs besides
//! memory, and vCPUs as a kernel without firmware under it expects them.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_fpu, kvm_mp_state,
    kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::boot::Entry;
use super::cpuid::{self, LocalApic, Topology};
use super::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use super::state::ProcessorV1;
use super::{msrs, regs};
use crate::memory::Ram;
use crate::snapshot;

/// What a machine can't do without, by name.
pub const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];
const X87_CONTROL_AT_RESET: u16 = 0x37f;
const MXCSR_AT_RESET: u32 = 0x1f80;
/// `IA32_TIME_STAMP_COUNTER`: Intel SDM volume 4, table 2-2.
const TSC: u32 = 0x10;
/// What is tried.
const SET_TSC_KHZ: &str = "set the frequency of a vCPU's time stamp counter";

/// KVM refused, or the machine has no room for what it would have.
#[derive(Debug)]
pub struct Refused {
    /// What was tried.
    pub what: &'static str,
    /// Why it failed.
    pub source: kvm_ioctls::Error,
}

fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Refused {
    move |source| Refused { what, source }
}

/// There is no room for a table, in KVM or in guest memory.
fn no_room<E>(what: &'static str) -> impl FnOnce(E) -> Refused {
    move |_| refused(what)(kvm_ioctls::Error::new(libc::ENOMEM))
}

/// Readies a VM that has no memory yet.
///
/// # Errors
/// When KVM refuses.
pub fn prepare(vm: &VmFd) -> Result<(), Refused> {
    vm.set_identity_map_address(KVM_IDENTITY_MAP)
        .map_err(refused("set the identity map address"))?;
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits here")]
    vm.set_tss_address(KVM_TSS as usize)
        .map_err(refused("set the TSS address"))
}

/// Makes the interrupt controllers of a VM that has its memory: they leave grace periods
/// behind that a change of the memory map would wait for, milliseconds at a machine's
/// start.
///
/// # Errors
/// When KVM refuses.
pub fn create_interrupt_controllers(vm: &VmFd) -> Result<(), Refused> {
    vm.create_irq_chip()
        .map_err(refused("create the interrupt controllers"))
}

/// What the vCPUs of a machine are made after.
pub struct Model {
    /// CPUID of each.
    tables: Vec<CpuId>,
    /// Frequency of their time stamp counters; none: the host's.
    tsc_khz: Option<u32>,
}

impl Model {
    /// Of a machine with so many vCPUs: what this host can give them.
    ///
    /// # Errors
    /// When KVM doesn't say what it supports.
    pub fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, Refused> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("ask for the supported CPUID"))?;
        let apic = LocalApic {
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        };
        let tables = (0..vcpus).map(|vcpu| {
            cpuid::build(&supported, Topology { vcpu, vcpus }, apic)
                .map_err(no_room("make the CPUID table"))
        });
        Ok(Self {
            tables: tables.collect::<Result<_, _>>()?,
            tsc_khz: None,
        })
    }

    /// How many vCPUs there may be.
    #[must_use]
    pub fn count(&self) -> u8 {
        u8::try_from(self.tables.len()).unwrap_or(u8::MAX)
    }

    /// What the guest is told.
    #[must_use]
    pub fn save(&self) -> ProcessorV1 {
        ProcessorV1::save(&self.tables)
    }

    /// Becomes what another machine's guest was told, in place of what this host would
    /// tell one that starts here.
    ///
    /// # Errors
    /// When this host can't be that, or there are more or fewer vCPUs.
    pub fn restore(&mut self, state: &ProcessorV1) -> Result<(), snapshot::Refused> {
        self.tables = state.restore(&self.tables)?;
        Ok(())
    }

    /// Has vCPUs that come later, and those of a reset, go by time stamp counters of this
    /// frequency, as those do that were restored: a guest takes all of them for one clock.
    pub fn keep_pace(&mut self, tsc_khz: u32) {
        self.tsc_khz = Some(tsc_khz);
    }

    /// Tells a VM that has no vCPU yet, see [`set_pace`].
    pub fn set_pace(&self, vm: &VmFd) {
        if let Some(khz) = self.tsc_khz {
            set_pace(vm, khz);
        }
    }

    /// Makes a fresh vCPU what it is at a machine's reset: all but the first wait for a SIPI.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn reset(&self, vcpu: &VcpuFd, index: u8) -> Result<(), Refused> {
        let table = self.tables.get(usize::from(index));
        let table = table.ok_or(()).map_err(no_room("find a vCPU's CPUID"))?;
        vcpu.set_cpuid2(table)
            .map_err(refused("set a vCPU's CPUID"))?;
        if let Some(khz) = self.tsc_khz
            && vcpu.get_tsc_khz().ok() != Some(khz)
        {
            vcpu.set_tsc_khz(khz).map_err(refused(SET_TSC_KHZ))?;
        }
        let msrs = Msrs::from_entries(&msrs::at_reset()).map_err(no_room("make the MSRs"))?;
        vcpu.set_msrs(&msrs).map_err(refused("set a vCPU's MSRs"))?;
        vcpu.set_fpu(&kvm_fpu {
            fcw: X87_CONTROL_AT_RESET,
            mxcsr: MXCSR_AT_RESET,
            ..Default::default()
        })
        .map_err(refused("set a vCPU's FPU"))
    }
}

/// Has the vCPUs that a VM gets from here on have this frequency from the first: the kernel
/// then has them count in step with the others. Where it can't (before Linux 5.18; with vCPUs
/// already there, in later ones), [`Model::reset`] and [`fall_in`] still set it.
/// Documentation/virt/kvm/api.rst, KVM_SET_TSC_KHZ.
#[allow(unsafe_code, reason = "the crate has the ioctl for vCPUs only")]
pub fn set_pace(vm: &VmFd, tsc_khz: u32) {
    /// `linux/kvm.h`.
    const KVM_SET_TSC_KHZ: libc::Ioctl = libc::_IO(kvm_bindings::KVMIO, 0xa2);
    // SAFETY: it takes a plain number.
    unsafe {
        libc::ioctl(
            vm.as_raw_fd(),
            KVM_SET_TSC_KHZ,
            libc::c_ulong::from(tsc_khz),
        )
    };
}

/// Has a vCPU that was there before others were restored, and is none of them, count in step
/// with those: of this frequency, if they have one, and from where they are.
///
/// KVM takes a zero for "as those that were set last" (`kvm_synchronize_tsc` of Linux's
/// `arch/x86/kvm/x86.c`), as it does when a vCPU is made.
///
/// # Errors
/// When KVM refuses.
pub fn fall_in(vcpu: &VcpuFd, tsc_khz: Option<u32>) -> Result<(), Refused> {
    if let Some(khz) = tsc_khz
        && vcpu.get_tsc_khz().ok() != Some(khz)
    {
        vcpu.set_tsc_khz(khz).map_err(refused(SET_TSC_KHZ))?;
    }
    let zero = kvm_msr_entry {
        index: TSC,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[zero]).map_err(no_room("make the MSRs"))?;
    vcpu.set_msrs(&msrs)
        .map_err(refused("set a vCPU's time stamp counter"))?;
    Ok(())
}

/// Has a vCPU wait for its INIT and SIPI, which put its registers at their reset values
/// (Intel SDM volume 3A, table 9-1).
///
/// KVM looks for whom an interrupt is meant in a map, which it makes anew as local APICs
/// change, and while a vCPU is created, before that one is there (`kvm_recalculate_apic_map`
/// of Linux's `arch/x86/kvm/lapic.c`). An INIT for one that came last would go nowhere. Its
/// local APIC is therefore set, to what it is.
///
/// # Errors
/// When KVM refuses.
pub fn await_sipi(vcpu: &VcpuFd) -> Result<(), Refused> {
    let lapic = vcpu
        .get_lapic()
        .map_err(refused("get a vCPU's local APIC"))?;
    vcpu.set_lapic(&lapic)
        .map_err(refused("set a vCPU's local APIC"))?;
    let waiting = kvm_mp_state {
        mp_state: KVM_MP_STATE_UNINITIALIZED,
    };
    vcpu.set_mp_state(waiting)
        .map_err(refused("have a vCPU wait for its SIPI"))
}

/// Puts a vCPU at the kernel's entry, and the tables that it needs there into memory.
///
/// # Errors
/// When KVM refuses, or memory is too small for the tables.
pub fn enter(vcpu: &VcpuFd, memory: &Ram, entry: Entry) -> Result<(), Refused> {
    let mut special = vcpu
        .get_sregs()
        .map_err(refused("get a vCPU's registers"))?;
    regs::special(memory, entry, &mut special).map_err(no_room("write the boot tables"))?;
    vcpu.set_sregs(&special)
        .map_err(refused("set a vCPU's registers"))?;
    vcpu.set_regs(&regs::general(entry))
        .map_err(refused("set a vCPU's registers"))
}
