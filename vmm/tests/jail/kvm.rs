//! KVM, as the crate that we use it by calls it: what each thread has to do works, and
//! what a vCPU's thread must not do is refused.

use kvm_bindings::{
    KvmIrqRouting, Msrs, kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_enable_cap,
    kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// A machine of one vCPU that is never run.
pub(crate) struct Machine {
    kvm: Kvm,
    vm: VmFd,
    vcpu: VcpuFd,
}

/// What was refused with the filter's EPERM, or was not, by name.
type Wrong = Vec<String>;

fn is_refused<T>(result: &Result<T, kvm_ioctls::Error>) -> bool {
    matches!(result, Err(error) if error.errno() == libc::EPERM)
}

macro_rules! check {
    ($wrong:ident, $refused:literal, $($call:expr),+ $(,)?) => {
        $(if is_refused(&$call) != $refused {
            $wrong.push(format!("{}: refused is {}", stringify!($call), !$refused));
        })+
    };
}

impl Machine {
    /// One as it is when the process enters the jail; none where this user has no KVM.
    pub(crate) fn open() -> Option<Self> {
        let kvm = Kvm::new().ok()?;
        let vm = kvm.create_vm().expect("a VM");
        vm.create_irq_chip().expect("interrupt controllers");
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        Some(Self { kvm, vm, vcpu })
    }

    /// By the main thread, in the jail: everything that a reset does.
    pub(crate) fn is_made_anew(&mut self) -> Wrong {
        let mut wrong = Wrong::new();
        let region = kvm_userspace_memory_region::default();
        self.vm = self.kvm.create_vm().expect("another VM");
        check!(
            wrong,
            false,
            self.vm.set_identity_map_address(0xfeff_c000),
            self.vm.set_tss_address(0xfeff_d000),
            // SAFETY: a region of no bytes maps nothing.
            unsafe { self.vm.set_user_memory_region(region) },
            self.vm.create_irq_chip(),
            self.vm.get_clock(),
        );
        self.vcpu = self.vm.create_vcpu(0).expect("another vCPU");
        let supported = self.kvm.get_supported_cpuid(256).expect("CPUID");
        check!(
            wrong,
            false,
            self.vcpu.set_cpuid2(&supported),
            self.vm.create_vcpu(1),
        );
        check!(
            wrong,
            true,
            self.vcpu.nmi(),
            self.vm.create_pit2(<_>::default())
        );
        wrong
    }

    /// By a vCPU's thread.
    pub(crate) fn is_run(&mut self) -> Wrong {
        let Self { kvm, vm, vcpu } = self;
        let mut wrong = Wrong::new();
        let mut msrs = Msrs::from_entries(&[]).expect("no MSRs");
        let event = EventFd::new(0).expect("eventfd");
        let port = IoEventAddress::Pio(0x1000);
        let routes = KvmIrqRouting::from_entries(&[]).expect("no routes");
        vcpu.set_kvm_immediate_exit(1);
        let ran = vcpu.run().map(|_| ());
        // SAFETY: no feature is enabled whose state is larger than `kvm_xsave`.
        let put_xsave = |xsave| unsafe { vcpu.set_xsave(&xsave) };
        check!(
            wrong,
            false,
            ran,
            vcpu.kvmclock_ctrl(),
            vcpu.get_regs().and_then(|regs| vcpu.set_regs(&regs)),
            vcpu.get_sregs().and_then(|sregs| vcpu.set_sregs(&sregs)),
            vcpu.get_fpu().and_then(|fpu| vcpu.set_fpu(&fpu)),
            vcpu.get_xsave().and_then(put_xsave),
            vcpu.get_xcrs().and_then(|xcrs| vcpu.set_xcrs(&xcrs)),
            vcpu.get_msrs(&mut msrs),
            vcpu.set_msrs(&msrs),
            vcpu.get_lapic().and_then(|lapic| vcpu.set_lapic(&lapic)),
            vcpu.get_mp_state()
                .and_then(|state| vcpu.set_mp_state(state)),
            vcpu.get_vcpu_events()
                .and_then(|events| vcpu.set_vcpu_events(&events)),
            vcpu.get_debug_regs()
                .and_then(|regs| vcpu.set_debug_regs(&regs)),
            vcpu.get_tsc_khz().and_then(|khz| vcpu.set_tsc_khz(khz)),
            vm.register_irqfd(&event, 30),
            vm.unregister_irqfd(&event, 30),
            vm.register_ioevent(&event, &port, 1u16),
            vm.unregister_ioevent(&event, &port, 1u16),
            vm.set_gsi_routing(&routes),
        );
        let region = kvm_userspace_memory_region::default();
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            ..Default::default()
        };
        let cpuid = kvm_bindings::CpuId::from_entries(&[]).expect("no CPUID");
        check!(
            wrong,
            true,
            kvm.create_vm(),
            vm.create_vcpu(2),
            // SAFETY: a region of no bytes maps nothing.
            unsafe { vm.set_user_memory_region(region) },
            vm.create_irq_chip(),
            vm.create_device(&mut device),
            vm.enable_cap(&kvm_enable_cap::default()),
            vm.signal_msi(kvm_msi::default()),
            vm.get_clock(),
            vcpu.enable_cap(&kvm_enable_cap::default()),
            vcpu.set_cpuid2(&cpuid),
            vcpu.nmi(),
        );
        wrong
    }

    /// By a device's thread: nothing of it.
    pub(crate) fn is_left_alone(&mut self) -> Wrong {
        let Self { kvm, vm, vcpu } = self;
        let mut wrong = Wrong::new();
        let event = EventFd::new(0).expect("eventfd");
        check!(
            wrong,
            true,
            kvm.create_vm(),
            vm.register_irqfd(&event, 30),
            vcpu.run(),
            vcpu.get_regs(),
        );
        wrong
    }
}
