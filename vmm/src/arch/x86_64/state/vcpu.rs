//! A vCPU's state, read and set on its own thread while it is parked.

#![allow(unsafe_code, reason = "KVM_SET_XSAVE reads as far as KVM says")]

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::msrs::{self, MsrV1, TSC, TSC_DEADLINE};
use super::time::Elapsed;
use super::{raw, refused};
use crate::snapshot::Refused;

/// A vCPU that is parked, and whose last exit is settled. Its CPUID is the
/// [`ProcessorV1`](super::ProcessorV1)'s.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuV1 {
    #[serde(with = "raw")]
    mp_state: kvm_mp_state,
    #[serde(with = "raw")]
    general: kvm_regs,
    #[serde(with = "raw")]
    special: kvm_sregs,
    #[serde(with = "raw")]
    xcrs: kvm_xcrs,
    #[serde(with = "raw")]
    xsave: kvm_xsave,
    #[serde(with = "raw")]
    debug: kvm_debugregs,
    #[serde(with = "raw")]
    pub(super) lapic: kvm_lapic_state,
    /// Frequency of the time stamp counter, which a host whose own isn't stable doesn't say.
    pub(super) tsc_khz: Option<u32>,
    pub(super) msrs: Vec<MsrV1>,
    #[serde(with = "raw")]
    events: kvm_vcpu_events,
}

/// The frequency of a vCPU's time stamp counter. KVM_GET_TSC_KHZ fails where
/// KVM_CAP_GET_TSC_KHZ is missing, or the host's counter isn't stable (EIO); the crate
/// doesn't pass on which.
fn tsc_khz(vcpu: &VcpuFd) -> Option<u32> {
    vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0)
}

impl VcpuV1 {
    /// The frequency of its time stamp counter in kHz, if its host said so.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        self.tsc_khz
    }

    /// Reads it all, with the MSRs of these numbers as far as there are.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Self, Refused> {
        Ok(Self {
            // First: KVM takes in an INIT or a SIPI that waits, which changes the rest.
            mp_state: vcpu.get_mp_state().map_err(refused("get a vCPU's state"))?,
            general: vcpu.get_regs().map_err(refused("get registers"))?,
            special: vcpu.get_sregs().map_err(refused("get registers"))?,
            xcrs: vcpu.get_xcrs().map_err(refused("get XCRs"))?,
            xsave: vcpu.get_xsave().map_err(refused("get the FPU"))?,
            debug: vcpu
                .get_debug_regs()
                .map_err(refused("get debug registers"))?,
            lapic: vcpu.get_lapic().map_err(refused("get a local APIC"))?,
            tsc_khz: tsc_khz(vcpu),
            msrs: msrs::save(vcpu, indices)?,
            // Last: those before may raise some.
            events: vcpu.get_vcpu_events().map_err(refused("get events"))?,
        })
    }

    /// Sets it all, for a vCPU that has its CPUID and was not there for so long. It may have
    /// no MSRs but these numbers.
    ///
    /// # Errors
    /// When KVM refuses, there are other MSRs, or the host's time stamp counter can't be
    /// what this one was; the vCPU is good for nothing then.
    pub fn restore(&self, vcpu: &VcpuFd, indices: &[u32], elapsed: Elapsed) -> Result<(), Refused> {
        msrs::check(&self.msrs, indices)?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(refused("set a vCPU's state"))?;
        // It clears what is pending, which the events bring back.
        vcpu.set_regs(&self.general)
            .map_err(refused("set registers"))?;
        // With the APIC's base, which decides what the local APIC's registers are.
        vcpu.set_sregs(&self.special)
            .map_err(refused("set registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(refused("set XCRs"))?;
        // It fails where there is more of the FPU than this structure has room for.
        vcpu.get_xsave().map_err(refused("get the FPU"))?;
        // SAFETY: KVM reads as many bytes as it has just written for the same vCPU: those
        // of the structure.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(refused("set the FPU"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(refused("set debug registers"))?;
        // Before its deadline, which is an MSR and needs the timer's mode.
        vcpu.set_lapic(&self.lapic)
            .map_err(refused("set a local APIC"))?;
        // Also where the VM was told of it: this says whether the host can.
        if let Some(khz) = self.tsc_khz {
            vcpu.set_tsc_khz(khz)
                .map_err(refused("set the TSC's frequency"))?;
        }
        msrs::restore(vcpu, &self.msrs_after(elapsed))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(refused("set events"))
    }

    /// The MSRs after so long, in the order in which they are to be set: the deadline
    /// counts from the time stamp.
    pub(super) fn msrs_after(&self, elapsed: Elapsed) -> Vec<MsrV1> {
        let mut tsc = 0;
        let mut msrs = self.msrs.clone();
        for msr in msrs.iter_mut().filter(|msr| msr.index == TSC) {
            // It comes round after centuries. One of unknown frequency goes on from where it
            // stood: its guest has KVM's clock, which knows better.
            let cycles = self.tsc_khz.map_or(0, |khz| elapsed.cycles(khz));
            msr.value = msr.value.wrapping_add(cycles);
            tsc = msr.value;
        }
        for msr in msrs.iter_mut().filter(|msr| msr.index == TSC_DEADLINE) {
            // A timer that has run out, but whose interrupt KVM had not raised yet, has
            // no deadline any more, and the interrupt is in no register: a guest that
            // waits for it would for ever. One too many does no harm.
            if msr.value == 0 && self.waits_for_deadline() {
                msr.value = tsc;
            }
        }
        // Stable: all others stay as they were.
        msrs.sort_by_key(|msr| msr.index == TSC_DEADLINE);
        msrs
    }

    /// Whether the local APIC's timer is one with a deadline, and may interrupt: Intel SDM
    /// volume 3, figure 11-8.
    fn waits_for_deadline(&self) -> bool {
        const LVT_TIMER: usize = 0x320;
        const MASKED: u32 = 1 << 16;
        const MODE: u32 = 3 << 17;
        const TSC_DEADLINE_MODE: u32 = 2 << 17;
        let bytes = [0, 1, 2, 3].map(|at| self.lapic.regs[LVT_TIMER + at].cast_unsigned());
        u32::from_le_bytes(bytes) & (MASKED | MODE) == TSC_DEADLINE_MODE
    }
}
