//! vCPUs of the real KVM, with guests of a few bytes in real mode.

use std::path::Path;
use std::time::Duration;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::thread::Vcpu as Local;
use super::*;
use crate::arch::layout::{PORT_EVENTS, PORT_RESET, RESET_VALUE};
use crate::serial::{Output, Serial};

const MEMORY: usize = 0x1_0000;
/// Where the guest's code is.
const CODE: u64 = 0x1000;
/// `jmp` to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];

/// A machine of one or more vCPUs, all at `code`.
struct Guest {
    fds: Vec<VcpuFd>,
    surroundings: Surroundings,
    _vm: VmFd,
    memory: GuestMemoryMmap,
}

impl Guest {
    /// Nothing where there is no KVM, said aloud.
    fn new(vcpus: u64, code: &[u8]) -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: there is no /dev/kvm");
            return None;
        }
        install_kick_handler().expect("signal handler");
        let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).expect("VM");
        vm.set_tss_address(0xfffb_d000).expect("TSS");
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory");
        memory
            .write_slice(code, GuestAddress(CODE))
            .expect("within");
        let address = memory.get_host_address(GuestAddress(0)).expect("within");
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: address as u64,
            ..Default::default()
        };
        // SAFETY: the mapping lives in the guest beside the VM and outlives it.
        unsafe { vm.set_user_memory_region(region) }.expect("memory");
        let fds = (0..vcpus).map(|index| {
            let fd = vm.create_vcpu(index).expect("vCPU");
            let mut special = fd.get_sregs().expect("sregs");
            (special.cs.base, special.cs.selector) = (0, 0);
            fd.set_sregs(&special).expect("sregs");
            fd.set_regs(&registers(0)).expect("regs");
            fd
        });
        let fds = fds.collect();
        let log = Output::log(tempfile::tempfile().expect("file")).expect("log");
        let bus = Bus::new(Serial::new(log).expect("serial")).expect("bus");
        let surroundings = Surroundings {
            bus: Arc::new(bus),
            reports: Arc::new(Reports::new(Bell::new().expect("eventfd"))),
            stats: Arc::new([ExitStats::default()]),
            entry: Arc::default(),
        };
        Some(Self {
            fds,
            surroundings,
            _vm: vm,
            memory,
        })
    }

    fn start(&mut self) -> Vcpus {
        Vcpus::start(std::mem::take(&mut self.fds), &self.surroundings).expect("threads")
    }
}

/// At the guest's code.
fn registers(rax: u64) -> kvm_regs {
    kvm_regs {
        rip: CODE,
        rflags: 2,
        rax,
        rdx: PORT_EVENTS.into(),
        ..Default::default()
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = soon();
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

fn get_registers(vcpus: &mut Vcpus, index: usize) -> kvm_regs {
    vcpus
        .call(index, |fd| fd.get_regs(), soon())
        .expect("parked")
        .expect("registers")
}

/// `in al, dx`, and nothing more.
const IN: u8 = 0xec;

#[test]
fn an_exit_is_complete_only_once_it_is_settled() {
    let Some(mut guest) = Guest::new(1, &[&[IN][..], &SPIN].concat()) else {
        return;
    };
    let fd = guest.fds.pop().expect("one");
    fd.set_regs(&registers(0xaa)).expect("regs");
    let mut vcpu = Local::new(0, fd, &guest.surroundings);
    assert_eq!(vcpu.step(), None);
    let before = vcpu.fd().get_regs().expect("regs");
    assert_eq!((before.rip, before.rax), (CODE, 0xaa), "KVM waits");
    assert_eq!(vcpu.settle(), None);
    let after = vcpu.fd().get_regs().expect("regs");
    assert_eq!((after.rip, after.rax), (CODE + 1, 0));
    let exits = guest.surroundings.stats[0].total();
    assert_eq!(vcpu.settle(), None);
    let settled = guest.surroundings.stats[0].total();
    assert_eq!(exits, settled, "once is enough");
}

#[test]
fn an_access_in_parts_is_settled_to_its_last() {
    // `mov eax, [0xffe]`, across two pages that are no memory.
    let Some(mut guest) = Guest::new(1, &[&[0x66, 0xa1, 0xfe, 0x0f][..], &SPIN].concat()) else {
        return;
    };
    let fd = guest.fds.pop().expect("one");
    let mut special = fd.get_sregs().expect("sregs");
    (special.ds.base, special.ds.selector) = (MEMORY as u64, 0x1000);
    fd.set_sregs(&special).expect("sregs");
    let mut vcpu = Local::new(0, fd, &guest.surroundings);
    assert_eq!(vcpu.step(), None);
    assert_eq!(vcpu.settle(), None);
    let after = vcpu.fd().get_regs().expect("regs");
    assert_eq!((after.rip, after.rax), (CODE + 4, 0xffff_ffff));
    // The load's two parts, and the call that was interrupted.
    let exits = guest.surroundings.stats[0].total();
    assert_eq!(exits, 3);
}

#[test]
fn a_vcpu_that_parks_in_an_exit_completes_it() {
    let Some(mut guest) = Guest::new(1, &[&[IN][..], &SPIN].concat()) else {
        return;
    };
    let mut vcpus = guest.start();
    let set = vcpus.call(0, |fd| fd.set_regs(&registers(0xaa)), soon());
    set.expect("parked").expect("registers");
    let bus = &guest.surroundings.bus;
    bus.notify(|_| {
        // While the event register, which the guest reads, is held.
        vcpus.resume();
        let stats = &guest.surroundings.stats[0];
        until("the exit", || stats.total() > 0);
        vcpus.begin_pause();
        assert!(!vcpus.are_parked());
    })
    .expect("notify");
    assert!(vcpus.pause(soon()));
    let after = get_registers(&mut vcpus, 0);
    assert_eq!((after.rip, after.rax), (CODE + 1, 0));
}

#[test]
fn pauses_and_resumes_follow_each_other() {
    // `inc dword [0x500]; jmp` to it.
    let Some(mut guest) = Guest::new(2, &[0x66, 0xff, 0x06, 0x00, 0x05, 0xeb, 0xf9]) else {
        return;
    };
    let mut vcpus = guest.start();
    let count = |guest: &Guest| {
        let count = guest.memory.read_obj::<u32>(GuestAddress(0x500));
        count.expect("within")
    };
    let bell = Arc::clone(&guest.surroundings.reports);
    for _ in 0..50 {
        let before = count(&guest);
        vcpus.resume();
        assert!(!vcpus.are_parked());
        until("it runs", || count(&guest) != before);
        bell.bell().silence();
        vcpus.begin_pause();
        while !vcpus.are_parked() {
            until("a ring", || bell.bell().silence() || vcpus.are_parked());
        }
        let held = count(&guest);
        for index in 0..2 {
            let rip = get_registers(&mut vcpus, index).rip;
            assert!([CODE, CODE + 5].contains(&rip), "{rip:#x}");
        }
        assert_eq!(count(&guest), held);
    }
    let missing = vcpus.call(2, |_| (), soon());
    assert_eq!(missing, Err(CallError::Missing));
    vcpus.resume();
    assert_eq!(vcpus.call(0, |_| (), soon()), Err(CallError::Running));
}

#[test]
fn vcpus_end_by_themselves_and_when_asked() {
    // `out dx, al; jmp` to itself.
    let Some(mut guest) = Guest::new(2, &[&[0xee][..], &SPIN].concat()) else {
        return;
    };
    let reset = kvm_regs {
        rdx: PORT_RESET.into(),
        ..registers(RESET_VALUE.into())
    };
    let mut vcpus = guest.start();
    let set = vcpus.call(1, move |fd| fd.set_regs(&reset), soon());
    set.expect("parked").expect("registers");
    vcpus.resume();
    let reports = &guest.surroundings.reports;
    let mut ending = None;
    until("the guest's reset", || {
        ending = ending.take().or(reports.take().ending);
        ending.is_some()
    });
    assert_eq!(ending, Some(Ending::Reset));
    assert!(!vcpus.have_ended());
    assert!(vcpus.pause(soon()), "one has ended, and one stands still");
    assert_eq!(vcpus.call(1, |_| (), soon()), Err(CallError::Ended));
    let rip = get_registers(&mut vcpus, 0).rip;
    assert!((CODE..=CODE + 1).contains(&rip), "{rip:#x}");
    reports.bell().silence();
    vcpus.begin_end();
    until("the last ring", || reports.bell().silence());
    assert!(vcpus.have_ended());
    // There is no way back.
    vcpus.resume();
    assert!(vcpus.have_ended() && vcpus.are_parked());
}

#[test]
fn a_call_that_panics_is_a_crash() {
    let Some(mut guest) = Guest::new(1, &SPIN) else {
        return;
    };
    let mut vcpus = guest.start();
    let call = |_: &mut VcpuFd| panic!("as the test wants it");
    assert_eq!(vcpus.call(0, call, soon()), Err(CallError::Ended));
    let crashed = Ending::Crashed("vCPU 0: internal error in the VMM".to_owned());
    assert_eq!(guest.surroundings.reports.take().ending, Some(crashed));
}

/// Documentation/virt/kvm/x86/msr.rst.
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const CLOCK: u64 = 0x2000;
/// `pvclock_vcpu_time_info.flags`, and of these PVCLOCK_GUEST_STOPPED.
const CLOCK_FLAGS: GuestAddress = GuestAddress(CLOCK + 29);
const GUEST_STOPPED: u8 = 1 << 1;

#[test]
fn a_guest_learns_from_its_clock_that_it_was_held() {
    let Some(mut guest) = Guest::new(1, &SPIN) else {
        return;
    };
    let mut vcpus = guest.start();
    let set = |fd: &mut VcpuFd| {
        let clock = kvm_msr_entry {
            index: MSR_KVM_SYSTEM_TIME_NEW,
            data: CLOCK | 1,
            ..Default::default()
        };
        fd.set_msrs(&Msrs::from_entries(&[clock]).expect("one"))
    };
    let set = vcpus.call(0, set, soon()).expect("parked");
    if set != Ok(1) {
        eprintln!("SKIPPED: this KVM has no kvm-clock");
        return;
    }
    let stopped = || {
        let flags = guest.memory.read_obj::<u8>(CLOCK_FLAGS).expect("within");
        flags & GUEST_STOPPED != 0
    };
    for _ in 0..3 {
        vcpus.resume();
        until("the flag", stopped);
        assert!(vcpus.pause(soon()));
        // As the guest does once it has seen it.
        let clear = guest.memory.write_obj(0u8, CLOCK_FLAGS);
        clear.expect("within");
    }
}
