//! States of a real KVM's vCPUs, with guests of a few bytes in real mode.

use std::path::Path;
use std::time::Duration;

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::super::kvm::{Model, create_interrupt_controllers, fall_in, prepare};
use super::controllers::IoapicV1;
use super::msrs::{MsrV1, TSC, TSC_DEADLINE};
use super::*;
use crate::memory::Ram;

const MEMORY: u64 = 0x1_0000;
const CODE: u64 = 0x1000;
/// `inc ebx; mov [0x500], ebx; out dx, al; jmp` to the first.
const COUNT: [u8; 10] = [0x66, 0x43, 0x66, 0x89, 0x1e, 0x00, 0x05, 0xee, 0xeb, 0xf6];

/// A machine of one vCPU.
struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    kvm: Kvm,
    memory: Ram,
}

impl Guest {
    /// Nothing where there is no KVM, said aloud.
    fn new() -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: there is no /dev/kvm");
            return None;
        }
        let kvm = Kvm::new().expect("KVM");
        let vm = kvm.create_vm().expect("VM");
        prepare(&vm).expect("prepared");
        let memory = Ram::private(&[(0, MEMORY)]).expect("memory");
        let region = memory.regions().next().expect("one");
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY,
            userspace_addr: region.host().addr() as u64,
            ..Default::default()
        };
        // SAFETY: the mapping lives in the guest beside the VM and outlives it.
        unsafe { vm.set_user_memory_region(region) }.expect("memory");
        create_interrupt_controllers(&vm).expect("controllers");
        let vcpu = vm.create_vcpu(0).expect("vCPU");
        let model = Model::new(&kvm, 1).expect("model");
        model.reset(&vcpu, 0).expect("reset");
        Some(Self {
            vcpu,
            vm,
            kvm,
            memory,
        })
    }

    fn put(&self, code: &[u8]) {
        use vm_memory::{Bytes, GuestAddress};
        let memory = &self.memory;
        memory
            .write_slice(code, GuestAddress(CODE))
            .expect("within");
        let mut special = self.vcpu.get_sregs().expect("sregs");
        (special.cs.base, special.cs.selector) = (0, 0);
        self.vcpu.set_sregs(&special).expect("sregs");
        let at_code = kvm_regs {
            rip: CODE,
            rflags: 2,
            rdx: 0x80,
            ..Default::default()
        };
        self.vcpu.set_regs(&at_code).expect("regs");
    }

    /// Runs until the guest has said so often that it counted, and what it counted.
    fn count(&mut self, times: u64) -> u64 {
        for _ in 0..times {
            let exit = self.vcpu.run().expect("runs");
            assert!(matches!(exit, VcpuExit::IoOut(0x80, _)), "{exit:?}");
        }
        // The exit is done with by the next entry, which goes no further.
        self.vcpu.set_kvm_immediate_exit(1);
        self.vcpu.run().expect_err("interrupted");
        self.vcpu.set_kvm_immediate_exit(0);
        self.vcpu.get_regs().expect("regs").rbx
    }

    fn msrs(&self) -> Vec<u32> {
        kept_msrs(&self.kvm).expect("a list")
    }

    /// Whether its time stamp counter can be set at all.
    fn has_its_own_tsc(&self) -> bool {
        let now = msr(&self.save(), TSC);
        let guest = Self::new().expect("as this one");
        let later = MsrV1 {
            index: TSC,
            value: now + (1 << 50),
        };
        msrs::restore(&guest.vcpu, &[later]).expect("set");
        msr(&guest.save(), TSC) >= later.value
    }

    fn save(&self) -> VcpuV1 {
        VcpuV1::save(&self.vcpu, &self.msrs()).expect("saved")
    }

    fn restore(&self, state: &VcpuV1, elapsed: Elapsed) -> Result<(), Refused> {
        state.restore(&self.vcpu, &self.msrs(), elapsed)
    }
}

/// By way of a file.
fn copied<T: Serialize + for<'de> Deserialize<'de>>(state: &T) -> T {
    serde_json::from_str(&json(state)).expect("a state")
}

fn json(state: &impl Serialize) -> String {
    serde_json::to_string(state).expect("JSON")
}

const AT_ONCE: Elapsed = Elapsed::new(Duration::ZERO);

fn msr(state: &VcpuV1, index: u32) -> u64 {
    let found = state.msrs.iter().find(|msr| msr.index == index);
    found.expect("an MSR").value
}

#[test]
fn a_vcpu_goes_on_in_another_vm() {
    let Some(mut first) = Guest::new() else {
        return;
    };
    first.put(&COUNT);
    assert_eq!(first.count(3), 3);
    let state = copied(&first.save());
    drop(first);

    let mut second = Guest::new().expect("as the first");
    second.put(&COUNT);
    second.restore(&state, AT_ONCE).expect("restored");
    let mut again = second.save();
    // Time went on.
    let before = msr(&state, TSC);
    assert!(msr(&again, TSC) >= before);
    let clocks = [TSC, TSC_DEADLINE];
    again.msrs.retain(|msr| !clocks.contains(&msr.index));
    let mut wanted = copied(&state);
    wanted.msrs.retain(|msr| !clocks.contains(&msr.index));
    for (again, wanted) in again.msrs.iter().zip(&wanted.msrs) {
        assert_eq!(again, wanted);
    }
    again.msrs.clear();
    wanted.msrs.clear();
    assert_eq!(json(&again), json(&wanted));
    assert_eq!(second.count(2), 5);
}

#[test]
fn time_goes_on_while_a_machine_is_a_file() {
    let Some(first) = Guest::new() else {
        return;
    };
    let (clock, state) = (ClockV1::save(&first.vm).expect("saved"), first.save());
    let hour = Elapsed::new(Duration::from_secs(3600));
    let second = Guest::new().expect("as the first");
    clock.restore(&second.vm, hour).expect("restored");
    second.restore(&state, hour).expect("restored");
    let later = ClockV1::save(&second.vm).expect("saved");
    let went = Duration::from_nanos(later.clock_ns - clock.clock_ns);
    let about_an_hour = Duration::from_secs(3600)..Duration::from_secs(3900);
    assert!(about_an_hour.contains(&went), "{went:?}");
    if !second.has_its_own_tsc() {
        eprintln!("SKIPPED: this KVM gives guests the host's TSC");
        return;
    }
    let khz = state.tsc_khz.expect("a frequency");
    let ticks = msr(&second.save(), TSC).wrapping_sub(msr(&state, TSC));
    let went = Duration::from_millis(ticks / u64::from(khz));
    assert!(about_an_hour.contains(&went), "{went:?}");
}

#[test]
fn a_host_need_not_know_how_fast_its_time_stamps_go() {
    let Some(first) = Guest::new() else {
        return;
    };
    let mut state = first.save();
    state.tsc_khz = None;
    state.msrs.retain(|msr| msr.index == TSC);
    let state = copied(&state);
    assert!(json(&state).contains(r#""tsc_khz":null"#));
    let hour = Elapsed::new(Duration::from_secs(3600));
    assert_eq!(state.msrs_after(hour), state.msrs);
    let second = Guest::new().expect("as the first");
    second.restore(&state, hour).expect("restored");
    assert_eq!(second.save().tsc_khz, first.save().tsc_khz, "as it was");
}

#[test]
fn a_vcpu_that_comes_later_keeps_the_pace_of_those_that_were_restored() {
    let Some(guest) = Guest::new() else {
        return;
    };
    let mut state = guest.save();
    let Some(here) = state.tsc_khz else {
        eprintln!("SKIPPED: this KVM doesn't say how fast its time stamps go");
        return;
    };
    // Faster, which every KVM can be: without the processor's help, it lets them jump.
    let there = here / 10 * 11;
    state.tsc_khz = Some(there);
    guest.restore(&state, AT_ONCE).expect("restored");
    let mut model = Model::new(&guest.kvm, 3).expect("model");
    let later = |model: &Model, index: u8| {
        let vcpu = guest.vm.create_vcpu(index.into()).expect("vCPU");
        model.reset(&vcpu, index).expect("reset");
        VcpuV1::save(&vcpu, &guest.msrs()).expect("saved").tsc_khz()
    };
    assert_eq!(
        later(&model, 1),
        Some(here),
        "the host's, unless somebody says so"
    );
    model.keep_pace(there);
    assert_eq!(later(&model, 2), Some(there));
    // And those of a reset, in a VM of their own.
    let vm = guest.kvm.create_vm().expect("VM");
    prepare(&vm).expect("prepared");
    create_interrupt_controllers(&vm).expect("controllers");
    model.set_pace(&vm);
    let vcpu = vm.create_vcpu(0).expect("vCPU");
    model.reset(&vcpu, 0).expect("reset");
    let pace = VcpuV1::save(&vcpu, &guest.msrs()).expect("saved").tsc_khz();
    assert_eq!(pace, Some(there));
}

/// As of a snapshot in which a vCPU that may come is not plugged: it is made before the
/// others are restored.
#[test]
fn a_vcpu_that_was_not_plugged_counts_in_step_with_those_that_were_restored() {
    let Some(guest) = Guest::new() else {
        return;
    };
    let absent = guest.vm.create_vcpu(1).expect("vCPU");
    let model = Model::new(&guest.kvm, 2).expect("model");
    model.reset(&absent, 1).expect("reset");
    let mut state = guest.save();
    let there = state.tsc_khz.map(|here| here / 10 * 11);
    state.tsc_khz = there;
    // Further than what KVM takes for a try to set the same.
    let hour = Elapsed::new(Duration::from_secs(3600));
    guest.restore(&state, hour).expect("restored");
    fall_in(&absent, there).expect("set");
    let saved = |vcpu: &VcpuFd| VcpuV1::save(vcpu, &guest.msrs()).expect("saved");
    assert_eq!(saved(&absent).tsc_khz(), saved(&guest.vcpu).tsc_khz());
    if !guest.has_its_own_tsc() {
        eprintln!("SKIPPED: this KVM gives guests the host's TSC");
        return;
    }
    let (before, between) = (msr(&saved(&guest.vcpu), TSC), msr(&saved(&absent), TSC));
    let after = msr(&saved(&guest.vcpu), TSC);
    assert!(
        (before..=after).contains(&between),
        "{between} is not between {before} and {after}"
    );
}

#[test]
fn a_clock_that_is_behind_stands_still() {
    let ahead = ClockV1 {
        clock_ns: 0,
        unix_ns: u64::MAX,
    };
    assert_eq!(ahead.elapsed(), AT_ONCE);
    let day = Elapsed::new(Duration::from_secs(86_400));
    assert_eq!(day.cycles(1_000_000), 86_400_000_000_000);
    assert_eq!(Elapsed::new(Duration::MAX).cycles(u32::MAX), u64::MAX);
}

#[test]
fn the_deadline_is_set_last_and_one_that_has_run_out_runs_out_again() {
    let Some(guest) = Guest::new() else {
        return;
    };
    let mut state = guest.save();
    let entry = |index, value| MsrV1 { index, value };
    state.msrs = vec![entry(TSC_DEADLINE, 0), entry(TSC, 7), entry(0x10a, 1)];
    let rest = [entry(TSC, 7), entry(0x10a, 1)];
    let with = |deadline| [&rest[..], &[entry(TSC_DEADLINE, deadline)]].concat();
    assert_eq!(state.msrs_after(AT_ONCE), with(0), "nobody waits");
    // The timer's entry of the local vector table: its mode, not masked.
    state.lapic.regs[0x322] = 4;
    assert_eq!(state.msrs_after(AT_ONCE), with(7));
    state.msrs[0].value = 99;
    assert_eq!(state.msrs_after(AT_ONCE), with(99));
}

#[test]
fn memory_has_the_types_that_it_had() {
    let Some(first) = Guest::new() else {
        return;
    };
    // Some write-back, some write-protected, the rest uncacheable, and all of it
    // in force. Intel SDM volume 3, section 12.11.
    let types = [
        (0x200, 0xc000_0006),
        (0x201, 0xc000_0800),
        (0x250, 0x0505_0505_0505_0505),
        (0x26f, 0x0606_0606_0606_0606),
        (0x2ff, 0xc00),
    ];
    let types = types.map(|(index, value)| MsrV1 { index, value });
    msrs::restore(&first.vcpu, &types).expect("set");
    let state = copied(&first.save());
    let second = Guest::new().expect("as the first");
    assert_ne!(msrs::save(&second.vcpu, &[0x2ff]), Ok(vec![types[4]]));
    second.restore(&state, AT_ONCE).expect("restored");
    let indices = types.map(|msr| msr.index);
    assert_eq!(msrs::save(&second.vcpu, &indices), Ok(types.to_vec()));
}

#[test]
fn an_msr_that_nobody_saves_and_one_that_comes_twice_are_refused() {
    let Some(guest) = Guest::new() else {
        return;
    };
    let kept = guest.msrs();
    assert!(kept.is_sorted_by(|one, next| one < next), "{kept:x?}");
    let state = guest.save();
    let refused = |index| {
        let mut state = copied(&state);
        state.msrs.push(MsrV1 { index, value: 0 });
        let refused = guest.restore(&state, AT_ONCE);
        refused.expect_err("not as it was saved").to_string()
    };
    assert_eq!(refused(TSC), "MSR 0x10 comes twice");
    // EFER, which is among the special registers.
    assert_eq!(
        refused(0xc000_0080),
        "MSR 0xc0000080 is none that is kept here"
    );
}

#[test]
fn controllers_are_what_they_were() {
    let Some(first) = Guest::new() else {
        return;
    };
    first.vm.set_irq_line(5, true).expect("raised");
    let state = copied(&ControllersV1::save(&first.vm).expect("saved"));
    let second = Guest::new().expect("as the first");
    let fresh = ControllersV1::save(&second.vm).expect("saved");
    assert_ne!(json(&fresh), json(&state));
    state.restore(&second.vm).expect("restored");
    let again = ControllersV1::save(&second.vm).expect("saved");
    assert_eq!(json(&again), json(&state));
}

#[test]
fn an_ioapic_that_cannot_be_is_refused() {
    let Some(guest) = Guest::new() else {
        return;
    };
    let saved = ControllersV1::save(&guest.vm).expect("saved");
    assert_eq!(saved.ioapic.check(), Ok(()));
    let refused = |change: fn(&mut IoapicV1)| {
        let mut state = copied(&saved);
        change(&mut state.ioapic);
        let refused = state.restore(&guest.vm);
        refused.expect_err("not possible").to_string()
    };
    assert_eq!(
        refused(|ioapic| ioapic.base_address = 0),
        "IOAPIC: it is at 0xfec00000 here and at 0x0 there"
    );
    assert_eq!(
        refused(|ioapic| ioapic.id = 0x10),
        "IOAPIC: its id can't be 0x10"
    );
    assert_eq!(
        refused(|ioapic| ioapic.selected = 0x100),
        "IOAPIC: there is no register 0x100"
    );
    assert_eq!(
        refused(|ioapic| ioapic.asserted = 0x100_0000),
        "IOAPIC: of 24 pins, 0x1000000 can't be asserted"
    );
    // Nothing of it was taken.
    let again = ControllersV1::save(&guest.vm).expect("saved");
    assert_eq!(json(&again), json(&saved));
}

/// A table of one vCPU: its maker and its features.
fn table(vendor: [u8; 12], features: u32) -> CpuId {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| vendor[at + byte]));
    let maker = kvm_cpuid_entry2 {
        ebx: word(0),
        edx: word(4),
        ecx: word(8),
        ..Default::default()
    };
    let signature = kvm_cpuid_entry2 {
        function: 1,
        eax: 0x00a2_0f12,
        ecx: features,
        ..Default::default()
    };
    CpuId::from_entries(&[maker, signature]).expect("two lines")
}

const AMD: [u8; 12] = *b"AuthenticAMD";

#[test]
fn a_host_must_have_what_the_guest_was_told() {
    let saved = ProcessorV1::save(&[table(AMD, 0b0110)]);
    assert_eq!((saved.family, saved.model), (0x19, 0x21));
    let refused = |here: &[CpuId]| {
        let refused = saved.restore(here);
        refused.expect_err("not the same").to_string()
    };
    assert_eq!(
        refused(&[table(*b"GenuineIntel", 0b0110)]),
        r#"its processor is "AuthenticAMD", and here "GenuineIntel""#
    );
    assert_eq!(
        refused(&[table(AMD, 0b1010)]),
        "this host's processor lacks CPUID 0x1.0 ECX 0x4 of its AuthenticAMD family 0x19 \
         model 0x21"
    );
    let two = [table(AMD, 0b0110), table(AMD, 0b0110)];
    assert_eq!(refused(&two), "it has 1 vCPUs, and the machine 2");
    // A host that has more is no harm: the guest goes on without.
    let tables = copied(&saved).restore(&[table(AMD, 0b1111)]);
    let tables = tables.expect("more than enough");
    assert_eq!(ProcessorV1::save(&tables), saved);
}

#[test]
fn what_is_no_state_is_no_panic() {
    let Some(guest) = Guest::new() else {
        return;
    };
    let state = json(&guest.save());
    let second = Guest::new().expect("as the first");
    let digits = "[0-9a-f]{4}";
    proptest!(ProptestConfig::with_cases(64), |(at in 0..state.len(), digits in digits)| {
        let mut wrong = state.clone().into_bytes();
        let end = wrong.len().min(at + digits.len());
        wrong[at..end].copy_from_slice(&digits.as_bytes()[..end - at]);
        if let Ok(wrong) = serde_json::from_slice::<VcpuV1>(&wrong) {
            let _ = second.restore(&wrong, AT_ONCE);
        }
    });
    let short = state.replacen("\"general\":\"00", "\"general\":\"", 1);
    if short != state {
        let refused = serde_json::from_str::<VcpuV1>(&short)
            .err()
            .expect("too short");
        assert!(
            refused.to_string().contains("143 bytes where 144"),
            "{refused}"
        );
    }
}
